"""Code that puts other memory in the place of a tensor's: `p.data = ..`, `self.mean = ..`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.report.result import Report
from tests.own_optimizers import Own, build
from tests.own_rules import Mlp, spec


class Replacing(Own):
    """SGD that makes new parameters at each step, as its author learnt it."""

    def move(self, w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move one tensor."""
        d = g + group["weight_decay"] * w.data
        # Made first, it is likely to have the address that the old memory had before it.
        w.data = w.data - (0.5 if self.mistake == "lr halved" else 1) * group["lr"] * d
        if self.mistake == "dtype":
            w.data = w.data.double() if w.dtype == torch.float32 else w.data.float()
        if self.mistake == "shape":
            w.data = w.data[None]


def replacing(mistake: str = "", dtype: Any = torch.float64) -> Report:
    made = build(Replacing, Mlp, dtype, mistake=mistake, weight_decay=0.1)
    return check(spec("mlp", optimizer="sgd", scratch="sgd"), framework=made)


def test_optimizer_may_replace_the_parameters() -> None:
    assert replacing().verdict == "equivalent"


def test_what_is_wrong_in_it_is_named() -> None:
    report = replacing("lr halved")
    assert report.diagnosis is not None
    assert report.diagnosis.causes == ("learning-rate-scaled",)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("dtype", r"a step made .*weight, \(.*\) float64, one of \(.*\) float32"),
        ("shape", r"a step made .*weight, \((\d+), (\d+)\) float64, one of \(1, \1, \2\) float64"),
    ],
)
def test_another_dtype_or_shape_is_an_error(mistake: str, error: str) -> None:
    with pytest.raises(UserCodeError, match=error):
        replacing(mistake)


class Centred(Mlp):
    """The MLP of X less its running mean, which each pass makes anew."""

    replaces = True
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, X: Tensor) -> Tensor:
        """Return one number for each row."""
        mean = 0.9 * self.mean + 0.1 * X.mean(dim=0)
        if self.replaces:
            self.mean = mean
        else:
            self.mean.copy_(mean)
        return super().forward(X - mean)


class CentredInPlace(Centred):
    replaces = False


def test_model_may_replace_its_buffers() -> None:
    ends = []
    for model in (Centred, CentredInPlace):
        made = build(torch.optim.SGD, model, weight_decay=0.1)
        report = check(spec("mlp", optimizer="sgd", scratch="sgd"), framework=made)
        assert report.verdict == "equivalent"
        ends.append(report.comparison.final["framework"].loss)
    assert ends[0] == ends[1]
