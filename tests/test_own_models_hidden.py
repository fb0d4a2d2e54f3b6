"""What a run of a user's own model could not have shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.texts.headline import headline
from regcheck.rules.convention import is_bias
from regcheck.user_code.problem_api import UserProblem
from tests.own_models import trained_by


class Bare(nn.Module):
    """A model of one parameter that is called neither weight nor bias."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def two_layers(bias: bool = True) -> nn.Module:
    """Make a model whose biases start at zero, or one without."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 2, bias=bias), nn.Tanh(), nn.Linear(2, 1, bias=bias), nn.Flatten(0)]
    model = nn.Sequential(*layers).double()
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(tensor)
    return model


@pytest.mark.parametrize(
    ("make", "weights", "biases", "hidden"),
    [
        (two_layers, 0.5, 0.5, "bias-not-penalized"),
        (two_layers, 0.5, 0.0, "bias-penalized"),
        (two_layers, 0.0, 0.5, "bias-not-penalized"),
        (lambda: two_layers(bias=False), 0.5, 0.5, None),
        (Bare, 0.5, 0.5, None),
    ],
    ids=["biases at zero", "free biases", "decay of biases alone", "no biases", "another name"],
)
def test_own_models_biases_are_known_by_the_last_part_of_their_names(
    make: Callable[[], nn.Module], weights: float, biases: float, hidden: str | None
) -> None:
    def made(problem: UserProblem) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        model = make()
        groups = [
            {"params": [w], "weight_decay": biases if is_bias(name) else weights}
            for name, w in model.named_parameters()
        ]
        return model, nn.MSELoss(), torch.optim.SGD(groups, lr=problem.lr)

    data = {"X": [[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0]], "y": [1.0, -1.0, 2.0]}
    report = check({"data": data, "lr": 0.1}, scratch=trained_by(made), framework=made)
    assert report.verdict != "diverged"  # inconclusive where nothing is penalized but zeros
    found = dict(report.not_distinguished)
    if hidden is None:
        assert not {"bias-not-penalized", "bias-penalized", "update-sequential"} & found.keys()
    else:
        assert found[hidden] == "the bias stays 0"


def test_norms_weights_that_are_not_decayed_are_no_bias() -> None:
    """Where torch decays neither the biases nor LayerNorm's weight, these are named."""

    def made(decay_of_all: float) -> Any:
        def build(problem: UserProblem) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1), nn.Flatten(0)).double()
            decays = (0.5, *3 * [decay_of_all])
            groups = [
                {"params": [w], "weight_decay": decay}
                for w, decay in zip(model.parameters(), decays, strict=True)
            ]
            return model, nn.MSELoss(), torch.optim.SGD(groups, lr=problem.lr)

        return build

    data = {"X": [[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0]], "y": [1.0, -1.0, 2.0]}
    report = check({"data": data, "lr": 0.1}, scratch=trained_by(made(0.5)), framework=made(0.0))
    assert "applies weight decay to 0.bias, 1.weight and 1.bias too" in headline(report)
    assert "do not decay 0.bias, 1.weight and 1.bias: " in str(summary(report).fixes)
