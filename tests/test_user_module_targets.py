"""Predictions (n, 1) that meet targets (n,): pointed out, unless the loss sees to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.errors import UserCodeError
from tests.by_hand import BASE, LOGISTIC, TORCHS, Spec, code
from tests.user_modules import SHUFFLED, line, user

TRAPS: dict[str, Any] = {
    "MSELoss": nn.MSELoss(),
    "L1Loss": nn.L1Loss(),
    "functional": nn.functional.mse_loss,
    "own": lambda z, y: ((z - y) ** 2).mean(),
    "own, turned": lambda z, y: (y - z).abs().mean(),
}


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch's own, where a batch has one row
@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize(
    ("spec", "rows"), [({}, 40), (SHUFFLED, 16), ({"batch_size": 39}, 39)], ids=str
)
def test_targets_that_broadcast_are_pointed_out(name: str, spec: Spec, rows: int) -> None:
    with pytest.raises(UserCodeError) as told:
        check(BASE | spec, framework=user(line, TRAPS[name]))
    text = str(told.value)
    assert f"predictions ({rows}, 1) meet targets ({rows},)" in text
    assert f"broadcasts them to ({rows}, {rows})" in text
    assert "`.squeeze(-1)`" in text
    assert "y[:, None]" in text


def test_targets_that_broadcast_are_pointed_out_beside_own_code_and_own_losses_too() -> None:
    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (nn.functional.softplus(z) - z * y).mean()

    trap = r"predictions \(40, 1\) meet targets \(40,\)"
    with pytest.raises(UserCodeError, match=trap):
        check(BASE, framework=user(line), scratch=code(TORCHS))
    with pytest.raises(UserCodeError, match=trap):
        check(BASE | LOGISTIC | {"loss": "bce_with_logits"}, framework=user(line, loss))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
def test_shapes_that_torch_itself_refuses_are_explained(loss: nn.Module) -> None:
    own = user(lambda problem: nn.Sequential(line(problem), nn.Sigmoid()), loss)
    with pytest.raises(UserCodeError) as told:
        check(BASE | LOGISTIC, framework=own)
    assert "raised ValueError: " in str(told.value)
    assert "torch.Size([40, 1])" in str(told.value)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        assert "let the model's output be (n,) too, by `.squeeze(-1)`" in str(told.value)


def test_targets_made_a_column_are_no_trap() -> None:
    loss = nn.MSELoss()
    report = check(BASE, framework=user(line, lambda z, y: loss(z, y[:, None])))
    assert report.verdict == "equivalent"
