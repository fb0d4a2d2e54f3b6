"""What a user's function may give, and a loss that holds on to its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LAMBDA, TORCHS, At, Spec, code
from tests.user_modules import NO_MODEL, SHUFFLED, Build, Made, flat_line, line, sgd, user

# --- what a function may give ---------------------------------------------------------------------


def giving(*changed: Any, place: int | None = None) -> Build:
    """Give what a function should, with one of the three changed; or other things altogether."""

    def made(problem: UserProblem) -> Any:
        right = list(user()(problem))
        if place is None:
            return changed[0] if len(changed) == 1 else changed
        right[place] = changed[0]
        return tuple(right)

    return made


def scheduled(problem: UserProblem, model: nn.Module) -> torch.optim.SGD:
    optimizer = sgd(problem, model)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return optimizer


RETURNS = "it must return (model, loss_function, optimizer)"
CALL = 'call `super().__init__(params, {"lr": lr})`, with all options that it has'

BAD: dict[str, tuple[Any, list[str]]] = {
    "nothing": (giving(None), ["returned None; " + RETURNS]),
    "two things": (giving(1, 2), ["returned 2 things; " + RETURNS]),
    "four things": (giving(1, 2, 3, 4), ["returned 4 things; " + RETURNS]),
    "a dict": (giving({"model": 1}), ["returned a dict; " + RETURNS]),
    "a generator": (code(TORCHS), ["returned a generator; " + RETURNS]),
    "no model": (
        giving(np.zeros(3), place=0),
        ["returned a ndarray in place of the model, a torch.nn.Module; " + RETURNS],
    ),
    "no loss": (giving(0.5, place=1), ["returned a float in place of the loss_function"]),
    "no optimizer": (
        giving(0.05, place=2),
        ["returned a float in place of the optimizer, a torch.optim.Optimizer; " + RETURNS],
    ),
    "a loss not made": (
        giving(nn.MSELoss, place=1),
        ["returned the class MSELoss as the loss_function; return an instance: MSELoss(..)"],
    ),
    "an optimizer not made": (
        giving(torch.optim.SGD, place=2),
        ["returned the class SGD as the optimizer; return an instance: SGD(..)"],
    ),
    "an optimizer of no class of torch's": (
        giving(type("Plain", (), {"step": print})(), place=2),
        ["class Plain is none of torch's: let it be `class Plain(torch.optim.Optimizer)`", CALL],
    ),
    "an optimizer that is not initialized": (
        giving(type("Bare", (torch.optim.Optimizer,), {"__init__": lambda _: None})(), place=2),
        ["the optimizer Bare has no param_groups: let its __init__ " + CALL],
    ),
    "another model's optimizer": (
        user(optimizer=lambda problem, _: sgd(problem, line(problem))),
        ["the optimizer has none of the model's parameters; give it model.parameters()"],
    ),
    "no parameters": (
        user(lambda _: nn.Flatten(0), None, lambda problem, _: sgd(problem, line(problem))),
        ["the model has no parameters; there is nothing to train"],
    ),
    "no bias": (
        user(lambda _: nn.Linear(3, 1, bias=False).double()),
        ["the model has weight (1, 3)", "one weight of 3 entries and one bias", "leave `model`"],
    ),
    "two layers": (
        user(lambda _: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()),
        ["0.weight (3, 3), 0.bias (3,), 1.weight (1, 3), 1.bias (1,)", "give `scratch` too"],
    ),
    "a lazy module": (
        user(lambda _: nn.Sequential(nn.LazyLinear(1), nn.Flatten(0))),
        ["0.weight has no shape yet", "call the lazy model once"],
    ),
    "half precision": (
        user(lambda problem: line(problem, torch.bfloat16)),
        ["weight is torch.bfloat16; it must be torch.float32 or torch.float64"],
    ),
    "elsewhere": (
        user(lambda _: nn.Linear(3, 1, device="meta")),
        ["weight is on meta; regcheck trains on the CPU: remove .to(device)"],
    ),
    "an optimizer that needs a closure": (
        user(optimizer=lambda _, model: torch.optim.LBFGS(model.parameters())),
        ["torch.optim.LBFGS computes the loss several times per step", "torch.optim.SGD"],
    ),
    "a scheduler": (
        user(optimizer=scheduled),
        ["an lr scheduler is made for the optimizer", "set `lr_schedule` in the spec"],
    ),
    "no function of the problem": (
        lambda: None,
        ["cannot be called with the problem alone: its parameters are ()"],
    ),
    "a loss cut off": (
        user(loss=lambda z, y: ((z.detach() - y) ** 2).mean()),
        ["returned a tensor of shape (), cut off", "that torch can differentiate"],
    ),
    "a loss as a number": (
        user(loss=lambda z, y: ((z - y) ** 2).mean().item()),
        ["It must return one number that torch can differentiate"],
    ),
    "a loss of each row": (
        user(loss=nn.MSELoss(reduction="none")),
        ["loss_function(model(X), y) returned a tensor of shape (40,)", "the mean of the losses"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_told(name: str) -> None:
    own, expected = BAD[name]
    with pytest.raises(UserCodeError) as told:
        check(BASE, framework=own)
    for words in expected:
        assert words in str(told.value)


def test_parameters_of_a_sequential_go_by_the_models_names() -> None:
    report = check(BASE, framework=user())
    assert set(report.comparison.final["framework"].parameters) == {"weight", "bias"}
    assert report.comparison.final["framework"].parameters["weight"].shape == (1, 3)


class Own(nn.Module):
    """A model with names of its own, and its weight as a column or a row."""

    def __init__(self, problem: UserProblem, shape: tuple[int, ...]) -> None:
        super().__init__()
        first = problem.initial["weight"] if "weight" in problem.initial else np.ones((1, 3))
        last = problem.initial["bias"] if "bias" in problem.initial else np.ones(1)
        self.beta = nn.Parameter(torch.from_numpy(first).reshape(shape))
        self.offset = nn.Parameter(torch.from_numpy(last))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X @ self.beta.ravel() + self.offset


def named(shape: tuple[int, ...]) -> Build:
    return user(lambda problem: Own(problem, shape))


def test_one_weight_and_one_bias_are_found_whatever_their_names() -> None:
    report = check(BASE, framework=named((1, 3)))
    assert report.verdict == "equivalent"
    assert set(report.comparison.final["framework"].parameters) == {"weight", "bias"}


def test_weight_of_another_shape_is_told() -> None:
    with pytest.raises(
        UserCodeError, match=r"beta has shape \(3, 1\).*as nn.Linear does, \(1, 3\)"
    ):
        check(BASE, framework=named((3, 1)))


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3,)], ids=str)
def test_parameters_keep_their_own_names_without_the_specs_model(shape: tuple[int, ...]) -> None:
    report = check(NO_MODEL, framework=named(shape), scratch=own_names)
    assert (report.verdict, report.comparison.compared) == ("equivalent", 12)
    assert report.comparison.final["framework"].parameters["beta"].shape == shape
    assert set(report.comparison.final["scratch"].parameters) == {"beta", "offset"}


def own_names(problem: UserProblem) -> Iterator[Spec]:
    for yielded in code(TORCHS)(problem_with_names(problem)):
        yield {"beta": yielded["weight"], "offset": yielded["bias"], "loss": yielded["loss"]}


def problem_with_names(problem: UserProblem) -> UserProblem:
    initial = problem.initial
    initial["weight"], initial["bias"] = initial["beta"].ravel(), initial["offset"].reshape(1)
    return problem


# --- a loss that holds on to its model ------------------------------------------------------------


def penalty_in_torch(problem: UserProblem) -> Made:
    model = flat_line(problem)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = sum((w**2).sum() for w in model.parameters())
        return nn.functional.mse_loss(z, y) + 0.1 / 2 * penalty

    return model, loss, sgd(problem, model, weight_decay=0)


def with_penalty(at: At) -> float:
    return at.loss + LAMBDA / 2 * float((at.w**2).sum() + (at.b**2).sum())


@pytest.mark.parametrize("spec", [{}, SHUFFLED], ids=["full", "batches"])
def test_penalty_in_the_frameworks_own_loss_is_that_of_its_own_model(spec: Spec) -> None:
    report = check(BASE | spec, framework=penalty_in_torch, scratch=code(TORCHS, with_penalty))
    assert (report.verdict, report.comparison.compared) == ("equivalent", report.comparison.steps)
    assert report.first_loss_divergence is None


@pytest.mark.parametrize("holds_on", [False, True])
def test_model_made_once_is_copied_unless_its_loss_holds_on_to_it(holds_on: bool) -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.7, 0.9]], dtype=torch.float64))
        model.bias.fill_(0.3)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = (model.weight**2).sum() if holds_on else 0
        return nn.functional.mse_loss(z, y) + penalty

    build = user(lambda _: nn.Sequential(model, nn.Flatten(0)), loss)
    if holds_on:
        with pytest.raises(UserCodeError, match="Make the model inside the function"):
            check(BASE, framework=build, scratch=code(TORCHS))
    else:
        assert check(BASE, framework=build, scratch=code(TORCHS)).verdict == "equivalent"


def test_function_that_makes_another_model_each_time_is_refused() -> None:
    widths = iter(range(2, 9))

    def model(_: UserProblem) -> nn.Module:
        hidden = next(widths)
        return nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, 1), nn.Flatten(0)).double()

    with pytest.raises(UserCodeError, match="return the same model each time"):
        check(NO_MODEL, framework=user(model), scratch=code(TORCHS))


@pytest.mark.parametrize("spec", [{}, SHUFFLED], ids=["full", "batches"])
def test_rows_changed_in_place_are_pointed_out(spec: Spec) -> None:
    class Doubling(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, X: torch.Tensor) -> Any:
            return self.model(X.mul_(2))

    with pytest.raises(UserCodeError, match="changes X or y in place"):
        check(BASE | spec, framework=user(lambda problem: Doubling(flat_line(problem))))
