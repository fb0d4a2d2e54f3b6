"""The framework side as a user's own function: model, loss function and optimizer."""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from regcheck import cli
from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.report.result import Report
from regcheck.user_code.problem_api import UserProblem

Spec = dict[str, Any]
Made = tuple[Any, Any, Any]
Build = Callable[[UserProblem], Made]
Train = Callable[[UserProblem], Iterator[Spec]]

ROWS = 24


def data(labels: bool = False) -> Spec:
    random = np.random.default_rng(1)
    X = random.normal(size=(ROWS, 3))
    y = X @ [0.5, -1.5, 2.0] + 0.3 * random.normal(size=ROWS)
    return {"X": X.tolist(), "y": ((y > 0).astype(float) if labels else y).tolist()}


BASE: Spec = {
    "data": data(),
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9], "bias": [0.3]},
    "epochs": 8,
    "lr": 0.05,
    "weight_decay": 0.1,
}
BATCHES: Spec = {"batch_size": 10, "shuffle": {"seed": 3}}  # 10, 10 and 4 rows
LOGISTIC: Spec = {"data": data(labels=True), "model": "logistic"}
NO_MODEL: Spec = {key: BASE[key] for key in ("data", "epochs", "lr", "weight_decay")}


def line(problem: UserProblem, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Make the model with the problem's start."""
    model = nn.Linear(problem.X.shape[1], 1, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model.bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model


def sgd(problem: UserProblem, model: nn.Module, **settings: Any) -> torch.optim.SGD:
    given = {"lr": problem.lr, "weight_decay": problem.weight_decay} | settings
    return torch.optim.SGD(model.parameters(), **given)


def flat(model: nn.Module) -> nn.Module:
    """Let a model give (n,), as the targets are."""
    return nn.Sequential(model, nn.Flatten(0))


def build(dtype: torch.dtype = torch.float64, loss: Any = None, **settings: Any) -> Build:
    """Write a user's function."""

    def made(problem: UserProblem) -> Made:
        model = flat(line(problem, dtype))
        return model, loss or nn.MSELoss(), sgd(problem, model, **settings)

    return made


def scratch(penalty: float = 0.1, lr: float = 0.05) -> Train:
    """Write w ← w − lr (g + penalty·w) for the linear model."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            r = X @ w + b - y
            loss = (r**2).mean()
            w = w - lr * (2 * X.T @ r / len(y) + penalty * w)
            b = b - lr * (2 * r.mean() + penalty * b)
            yield {"weight": w, "bias": b, "loss": loss}

    return train


def causes_of(report: Report) -> list[str]:
    return [cause["id"] for cause in report.to_dict()["diagnosis"]["causes"]]


# --- what trains as the built-in framework side does ----------------------------------------------

HEAVY = {"name": "sgd", "momentum": 0.9}
SAME: dict[str, tuple[Spec, Build]] = {
    "sgd": ({}, build()),
    "mini-batches": (BATCHES, build()),
    "momentum": ({"optimizer": HEAVY}, build(momentum=0.9)),
    "nesterov": ({"optimizer": HEAVY | {"nesterov": True}}, build(momentum=0.9, nesterov=True)),
    "dampening": ({"optimizer": HEAVY | {"dampening": 0.5}}, build(momentum=0.9, dampening=0.5)),
    "schedule": ({"lr_schedule": {"kind": "exponential", "factor": 0.9}}, build()),
    "schedule by epochs": (
        BATCHES | {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.1, "per": "epoch"}},
        build(),
    ),
    "clip_norm": ({"clip_norm": 1.0}, build()),
    "clip_value": ({"clip_value": 0.5}, build()),
    "accumulation": ({"batch_size": 5, "accumulate": 2}, build()),
    "logistic": (LOGISTIC | {"loss": "bce_with_logits"}, build(loss=nn.BCEWithLogitsLoss())),
    "float32": ({}, build(torch.float32)),
    "a scheduler that nobody steps": ({}, build()),
}


@pytest.mark.parametrize("name", SAME)
def test_same_training_is_equivalent_to_the_built_in_scratch_side(name: str) -> None:
    spec, own = SAME[name]
    report = check(BASE | spec, framework=own)
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps > 0
    assert report.first_loss_divergence is None


@pytest.mark.parametrize("name", SAME)
def test_same_training_follows_the_built_in_framework_side_bit_for_bit(name: str) -> None:
    spec, own = SAME[name]
    if name == "float32":
        spec = {"dtype": {"scratch": "float64", "framework": "float32"}}
    theirs = check(BASE | spec, framework=own).comparison.final["framework"]
    ours = check(BASE | spec).comparison.final["framework"]
    assert theirs.loss == ours.loss
    for tensor, values in ours.parameters.items():
        # Bit for bit but for the shapes that torch's kernels are given: (n,) here, (n, 1) there.
        assert theirs.parameters[tensor] == pytest.approx(values, rel=1e-6 if "32" in name else 0)


@pytest.mark.parametrize("spec", [{}, BATCHES], ids=["full", "batches"])
def test_own_code_on_both_sides_is_equivalent(spec: Spec) -> None:
    report = check(BASE | spec, framework=build(), scratch=scratch())
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps


def test_float32_module_widens_what_rounding_may_do() -> None:
    report = check(BASE, framework=build(torch.float32))
    # At the framework's 24 bits, and not at 53: the drift is far above float64's 1e-16.
    assert 1e-9 < report.comparison.drift.largest < 1e-5
    assert check(BASE | {"dtype": "float64"}, framework=build()).comparison.drift.largest < 1e-13


# --- what trains by other settings ----------------------------------------------------------------


@pytest.mark.parametrize("code", [None, scratch()], ids=["built in", "own code"])
@pytest.mark.parametrize(
    ("own", "cause", "matching"),
    [
        (build(weight_decay=0.2), "penalty-halved", (0.1, 0.05)),
        (build(weight_decay=0.037), "penalty-scaled", (0.1, 0.05)),
        (build(lr=0.1), "learning-rate-scaled", (0.1, 0.05)),
        (build(lr=0.037), "learning-rate-scaled", (0.1, 0.05)),
        (build(momentum=0.9), "momentum-missing", (0.1, 0.05)),
    ],
    ids=["twice the decay", "another decay", "twice the lr", "another lr", "momentum"],
)
def test_other_settings_of_the_optimizer_are_told(
    code: Train | None, own: Build, cause: str, matching: tuple[float, float]
) -> None:
    report = check(BASE, framework=own, scratch=code)
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    assert causes_of(report) == [cause]
    match = report.to_dict()["diagnosis"]["matching"]
    # Fitted from eight steps that round at 1e-16, or one division.
    found = match["weight_decay"], match["lr"]
    assert found == pytest.approx(matching, rel=1e-9)
    own_side = "the framework side is your own" if code is None else "both sides are your own"
    assert own_side in str(report.diagnosis.fix)


def test_nesterov_that_only_the_framework_has_is_told() -> None:
    spec = BASE | {"optimizer": HEAVY}
    report = check(spec, framework=build(momentum=0.9, nesterov=True))
    assert causes_of(report) == ["nesterov-missing"]


def test_momentum_that_only_the_spec_has_is_a_divergence_from_step_2_on() -> None:
    report = check(BASE | {"optimizer": HEAVY}, framework=build())
    first = report.first_divergence
    assert first is not None
    assert (report.verdict, first.step) == ("diverged", 2)  # at step 1 the velocity is the gradient


def shrinking(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Halve the parameters after a step."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for w in group["params"]:
                w *= 0.5


class HalvingSGD(torch.optim.SGD):
    """An optimizer of one's own."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        shrinking(self)


def hook(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.register_step_post_hook(shrinking)
    return optimizer


def another_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    step = optimizer.step

    def halving() -> None:
        step()
        shrinking(optimizer)

    optimizer.step = halving  # type: ignore[method-assign, assignment]
    return optimizer


def own_kind(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    group = optimizer.param_groups[0]
    return HalvingSGD(group["params"], lr=group["lr"], weight_decay=group["weight_decay"])


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Wrap the step of the class itself, under its own name."""
    step = torch.optim.SGD.step

    @functools.wraps(step)
    def halving(optimizer: torch.optim.SGD, closure: Any = None) -> None:
        step(optimizer, closure)
        shrinking(optimizer)

    def patch(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        monkeypatch.setattr(torch.optim.SGD, "step", halving)
        return optimizer

    return patch


@pytest.mark.parametrize("kind", ["hook", "another step", "an own class", "a patched class"])
@pytest.mark.parametrize("halves", [True, False])
def test_what_is_hooked_into_a_step_is_done(kind: str, halves: bool, patched: Any) -> None:
    kinds = {"hook": hook, "another step": another_step, "an own class": own_kind}
    changed = kinds.get(kind, patched)

    def made(problem: UserProblem) -> Made:
        model, loss, optimizer = build()(problem)
        return model, loss, changed(optimizer)

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            slopes = 2 * (X @ w + b - y) / len(rows)
            w = w - problem.lr * (X.T @ slopes + 0.1 * w)
            b = b - problem.lr * (slopes.sum() + 0.1 * b)
            w, b = (w / 2, b / 2) if halves else (w, b)
            yield {"weight": w, "bias": b}

    report = check(BASE, scratch=train, framework=made)

    assert report.verdict == ("equivalent" if halves else "diverged")


def test_sparse_gradients_are_refused() -> None:
    class Table(nn.Embedding):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows.long())[:, 0, 0]

    def made(_: UserProblem) -> Made:
        model = Table(4, 1, sparse=True, dtype=torch.float64)
        return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)

    def train(problem: UserProblem) -> Iterator[Spec]:
        for _ in problem.batches:
            yield dict(problem.initial)

    spec = {"data": {"X": [[0], [1], [3]], "y": [1.0, 2.0, 0.5]}, "lr": 0.1, "epochs": 2}
    with pytest.raises(UserCodeError, match="the gradient of weight is sparse") as caught:
        check(spec, scratch=train, framework=made)
    assert "sparse=True" in str(caught.value)
    assert "Your own code raised it" not in str(caught.value)


def test_start_that_was_not_copied_is_told() -> None:
    def forgot(problem: UserProblem) -> Made:
        model = nn.Linear(3, 1, dtype=torch.float64)
        return flat(model), nn.MSELoss(), sgd(problem, model)

    report = check(BASE, framework=forgot)
    first = report.first_divergence
    assert first is not None
    assert (first.step, first.stage) == (1, "initial")
    assert causes_of(report) == ["initial-parameters"]
    assert report.diagnosis is not None
    assert report.diagnosis.explained


# --- predictions (n, 1) against targets (n,) ------------------------------------------------------

TRAPS: dict[str, Any] = {
    "MSELoss": nn.MSELoss(),
    "L1Loss": nn.L1Loss(),
    "functional": nn.functional.mse_loss,
    "own": lambda z, y: ((z - y) ** 2).mean(),
    "own, turned": lambda z, y: (y - z).abs().mean(),
}


def column(loss: Any) -> Build:
    def made(problem: UserProblem) -> Made:
        model = line(problem)
        return model, loss, sgd(problem, model)

    return made


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch's own, where a batch has one row
@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize(
    ("spec", "rows"), [({}, 24), (BATCHES, 10), ({"batch_size": 23}, 23)], ids=str
)
def test_targets_that_broadcast_are_pointed_out(name: str, spec: Spec, rows: int) -> None:
    with pytest.raises(UserCodeError) as told:
        check(BASE | spec, framework=column(TRAPS[name]))
    text = str(told.value)
    assert f"predictions ({rows}, 1) meet targets ({rows},)" in text
    assert f"broadcasts them to ({rows}, {rows})" in text
    assert "`.squeeze(-1)`" in text
    assert "y[:, None]" in text


def test_targets_that_broadcast_are_pointed_out_beside_own_code_too() -> None:
    with pytest.raises(UserCodeError, match=r"predictions \(24, 1\) meet targets \(24,\)"):
        check(BASE, framework=column(nn.MSELoss()), scratch=scratch())


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
def test_shapes_that_torch_itself_refuses_are_explained(loss: nn.Module) -> None:
    def made(problem: UserProblem) -> Made:
        model = nn.Sequential(line(problem), nn.Sigmoid())
        return model, loss, sgd(problem, model)

    with pytest.raises(UserCodeError) as told:
        check(BASE | LOGISTIC, framework=made)
    assert "raised ValueError: " in str(told.value)
    assert "torch.Size([24, 1])" in str(told.value)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        assert "let the model's output be (n,) too, by `.squeeze(-1)`" in str(told.value)


def test_own_loss_of_a_logistic_model_that_broadcasts_is_pointed_out() -> None:
    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (nn.functional.softplus(z) - z * y).mean()

    with pytest.raises(UserCodeError, match=r"predictions \(24, 1\) meet targets \(24,\)"):
        check(BASE | LOGISTIC | {"loss": "bce_with_logits"}, framework=column(loss))


def test_targets_made_a_column_are_no_trap() -> None:
    loss = nn.MSELoss()
    report = check(BASE, framework=column(lambda z, y: loss(z, y[:, None])))
    assert report.verdict == "equivalent"


# --- what a function may give ---------------------------------------------------------------------


def giving(*changed: Any, place: int | None = None) -> Build:
    """Give what a function should, with one of the three changed; or other things altogether."""

    def made(problem: UserProblem) -> Any:
        right = list(build()(problem))
        if place is None:
            return changed[0] if len(changed) == 1 else changed
        right[place] = changed[0]
        return tuple(right)

    return made


def no_optimizer_of_it(problem: UserProblem) -> Made:
    return (*build()(problem)[:2], build()(problem)[2])


def no_parameters(problem: UserProblem) -> Made:
    return nn.Flatten(0), nn.MSELoss(), sgd(problem, line(problem))


def no_bias(problem: UserProblem) -> Made:
    model = nn.Linear(3, 1, bias=False).double()
    return model, nn.MSELoss(), sgd(problem, model)


def two_layers(problem: UserProblem) -> Made:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    return model, nn.MSELoss(), sgd(problem, model)


def half_precision(problem: UserProblem) -> Made:
    model = line(problem, torch.bfloat16)
    return model, nn.MSELoss(), sgd(problem, model)


def elsewhere(problem: UserProblem) -> Made:
    model = nn.Linear(3, 1, device="meta")
    return model, nn.MSELoss(), sgd(problem, model)


def closures(problem: UserProblem) -> Made:
    model = flat(line(problem))
    return model, nn.MSELoss(), torch.optim.LBFGS(model.parameters())


RETURNS = "it must return (model, loss_function, optimizer)"

BAD: dict[str, tuple[Any, list[str]]] = {
    "nothing": (giving(None), ["gave None; " + RETURNS]),
    "two things": (giving(1, 2), ["gave 2 things; " + RETURNS]),
    "four things": (giving(1, 2, 3, 4), ["gave 4 things; " + RETURNS]),
    "a dict": (giving({"model": 1}), ["gave a dict; " + RETURNS]),
    "a generator": (scratch(), ["gave a generator; " + RETURNS]),
    "no model": (
        giving(np.zeros(3), place=0),
        ["gave a ndarray in the place of the model, a torch.nn.Module; " + RETURNS],
    ),
    "no loss": (giving(0.5, place=1), ["gave a float in the place of the loss_function"]),
    "no optimizer": (
        giving(0.05, place=2),
        ["gave a float in the place of the optimizer, a torch.optim.Optimizer; " + RETURNS],
    ),
    "a loss not made": (
        giving(nn.MSELoss, place=1),
        ["gave the class MSELoss in the place of the loss_function; make one of it: MSELoss(..)"],
    ),
    "an optimizer not made": (
        giving(torch.optim.SGD, place=2),
        ["gave the class SGD in the place of the optimizer; make one of it: SGD(..)"],
    ),
    "another model's optimizer": (
        no_optimizer_of_it,
        ["the optimizer has none of the model's parameters; give it model.parameters()"],
    ),
    "no parameters": (no_parameters, ["the model has no parameters; there is nothing to train"]),
    "no bias": (
        no_bias,
        ["the model has weight (1, 3)", "one weight of 3 entries and one bias", "leave `model`"],
    ),
    "two layers": (
        two_layers,
        ["0.weight (3, 3), 0.bias (3,), 1.weight (1, 3), 1.bias (1,)", "give `scratch` too"],
    ),
    "half precision": (
        half_precision,
        ["weight is torch.bfloat16; it must be torch.float32 or torch.float64"],
    ),
    "elsewhere": (
        elsewhere,
        ["weight is on meta; regcheck trains on the CPU: leave out .to(device)"],
    ),
    "an optimizer that needs a closure": (
        closures,
        ["torch.optim.LBFGS takes the loss several times in one step", "torch.optim.SGD"],
    ),
    "no function of the problem": (
        lambda: None,
        ["cannot be called with the problem alone: its parameters are ()"],
    ),
    "a loss cut off": (
        build(loss=lambda z, y: ((z.detach() - y) ** 2).mean()),
        ["gave a tensor of shape (), cut off", "that torch can differentiate"],
    ),
    "a loss as a number": (
        build(loss=lambda z, y: ((z - y) ** 2).mean().item()),
        ["It must give one number that torch can differentiate"],
    ),
    "a loss of each row": (
        build(loss=nn.MSELoss(reduction="none")),
        ["loss_function(model(X), y) gave a tensor of shape (24,)", "the mean of the rows' losses"],
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
    report = check(BASE, framework=build())
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
    def made(problem: UserProblem) -> Made:
        model = Own(problem, shape)
        return model, nn.MSELoss(), sgd(problem, model)

    return made


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
    assert (report.verdict, report.comparison.compared) == ("equivalent", 8)
    assert report.comparison.final["framework"].parameters["beta"].shape == shape
    assert set(report.comparison.final["scratch"].parameters) == {"beta", "offset"}


def own_names(problem: UserProblem) -> Iterator[Spec]:
    for yielded in scratch()(problem_with_names(problem)):
        yield {"beta": yielded["weight"], "offset": yielded["bias"], "loss": yielded["loss"]}


def problem_with_names(problem: UserProblem) -> UserProblem:
    initial = problem.initial
    initial["weight"], initial["bias"] = initial["beta"].ravel(), initial["offset"].reshape(1)
    return problem


# --- a loss that holds on to its model ------------------------------------------------------------


def penalty_in_torch(problem: UserProblem) -> Made:
    model = line(problem)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        penalty = sum((w**2).sum() for w in model.parameters())
        return nn.functional.mse_loss(z, y) + 0.1 / 2 * penalty

    return flat(model), loss, sgd(problem, model, weight_decay=0)


def with_penalty(problem: UserProblem) -> Iterator[Spec]:
    w, b = problem.initial["weight"], problem.initial["bias"]
    for yielded in scratch()(problem):
        penalty = 0.1 / 2 * ((w**2).sum() + (b**2).sum())
        w, b = yielded["weight"], yielded["bias"]
        yield {**yielded, "loss": yielded["loss"] + penalty}


@pytest.mark.parametrize("spec", [{}, BATCHES], ids=["full", "batches"])
def test_penalty_in_the_frameworks_own_loss_is_that_of_its_own_model(spec: Spec) -> None:
    report = check(BASE | spec, framework=penalty_in_torch, scratch=with_penalty)
    assert (report.verdict, report.comparison.compared) == ("equivalent", report.comparison.steps)
    assert report.first_loss_divergence is None


def test_model_made_once_is_copied_and_stays_as_it_was() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.7, 0.9]], dtype=torch.float64))
        model.bias.fill_(0.3)

    def made(problem: UserProblem) -> Made:
        return flat(model), nn.MSELoss(), sgd(problem, model)

    assert check(BASE, framework=made, scratch=scratch()).verdict == "equivalent"


def test_model_made_once_whose_loss_holds_on_to_it_is_refused() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(z, y) + (model.weight**2).sum()

    def made(problem: UserProblem) -> Made:
        return flat(model), loss, sgd(problem, model)

    with pytest.raises(UserCodeError, match="Make the model inside the function"):
        check(BASE, framework=made, scratch=scratch())


def test_function_that_makes_another_model_each_time_is_refused() -> None:
    widths = iter(range(2, 9))

    def made(problem: UserProblem) -> Made:
        hidden = next(widths)
        model = nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, 1), nn.Flatten(0)).double()
        return model, nn.MSELoss(), sgd(problem, model)

    with pytest.raises(UserCodeError, match="let it make the same model each time"):
        check(NO_MODEL, framework=made, scratch=scratch())


@pytest.mark.parametrize("spec", [{}, BATCHES], ids=["full", "batches"])
def test_rows_changed_in_place_are_pointed_out(spec: Spec) -> None:
    class Doubling(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, X: torch.Tensor) -> Any:
            return self.model(X.mul_(2))

    def made(problem: UserProblem) -> Made:
        model = Doubling(line(problem))
        return flat(model), nn.MSELoss(), sgd(problem, model)

    with pytest.raises(UserCodeError, match="changes the X or y that it is given in place"):
        check(BASE | spec, framework=made)


# --- any module -----------------------------------------------------------------------------------


def mlp(problem: UserProblem, **settings: Any) -> Made:
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.from_numpy(random.normal(size=tuple(tensor.shape))))
    return model, nn.MSELoss(), sgd(problem, model, momentum=0.9, **settings)


def mlp_by_hand(strength: Callable[[int], float]) -> Train:
    def train(problem: UserProblem) -> Iterator[Spec]:
        P = problem.initial
        V = {name: 0 * w for name, w in P.items()}
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            h = np.tanh(X @ P["0.weight"].T + P["0.bias"])
            z = h @ P["2.weight"][0] + P["2.bias"]
            dz = 2 * (z - y) / len(y)
            da = dz[:, None] * P["2.weight"] * (1 - h**2)
            G = {"0.weight": da.T @ X, "0.bias": da.sum(0), "2.weight": dz @ h, "2.bias": dz.sum()}
            for name, w in P.items():
                V[name] = 0.9 * V[name] + G[name] + strength(len(y)) * w
            P = {name: w - problem.lr * V[name] for name, w in P.items()}
            yield {**P, "loss": ((z - y) ** 2).mean()}

    return train


@pytest.mark.parametrize("spec", [{}, BATCHES | {"epochs": 3}], ids=["full", "batches"])
def test_any_module_agrees_with_the_users_own_scratch(spec: Spec) -> None:
    report = check(NO_MODEL | spec, framework=mlp, scratch=mlp_by_hand(lambda rows: 0.1))
    assert (report.verdict, report.comparison.compared) == ("equivalent", report.comparison.steps)
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(report.comparison.final["framework"].parameters) == names
    assert set(report.to_dict()["rows"][0]["tensors"]) == names


@pytest.mark.parametrize(
    ("spec", "others"), [({}, True), (BATCHES | {"epochs": 3}, False)], ids=["full", "batches"]
)
def test_penalty_divided_by_the_batch_is_found_in_any_module(spec: Spec, others: bool) -> None:
    code = mlp_by_hand(lambda rows: 0.1 / rows)
    report = check(NO_MODEL | spec, framework=mlp, scratch=code)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (1, "penalty")
    assert causes_of(report) == ["penalty-divided-by-batch"]
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    told = [one.causes for one in report.diagnosis.explanations[1:]]
    assert (("penalty-divided-by-dataset",) in told) is others


# --- other optimizers -----------------------------------------------------------------------------

ADAM: Spec = {
    "data": {"X": [[1, 2], [3, -1], [-2, 0.5], [0.5, 1.5]], "y": [1, 2, -1, 0.5]},
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
    "model": "linear",
    "epochs": 10,
    "lr": 0.1,
}
Shift = Callable[[Any, Any, Any, int], Any]
"""Of w, the moments m and v, and the step t: what is subtracted from w."""


def torchs(w: Any, m: Any, v: Any, t: int, eps: float = 1e-8) -> Any:
    return 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)


def raw(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * m / (np.sqrt(v) + 1e-8)


def eps_hat(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 0.1)


def decoupled(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * 0.1 * w + torchs(w, m, v, t)


def decay_late(w: Any, m: Any, v: Any, t: int) -> Any:
    return w - (w - torchs(w, m, v, t)) * (1 - 0.1 * 0.1)


def adam(shift: Shift, penalty: float = 0.0) -> Train:
    """Write Adam by hand; the penalty is what is added to the gradient."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P = {name: w.ravel() for name, w in problem.initial.items()}
        m = {name: 0 * w for name, w in P.items()}
        v = {name: 0 * w for name, w in P.items()}
        for t, rows in enumerate(problem.batches, start=1):
            X, y = problem.X[rows], problem.y[rows]
            r = X @ P["weight"] + P["bias"] - y
            G = {"weight": 2 * X.T @ r / len(y), "bias": 2 * r.mean(keepdims=True)}
            for name, w in P.items():
                g = G[name] + penalty * w
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
            P = {name: w - shift(w, m[name], v[name], t) for name, w in P.items()}
            yield {**P, "loss": (r**2).mean()}

    return train


def by(optimizer: type[torch.optim.Optimizer], **settings: Any) -> Build:
    def made(problem: UserProblem) -> Made:
        model = flat(line(problem))
        settings_of_it: Any = {"lr": 0.1} | settings
        return model, nn.MSELoss(), optimizer(model.parameters(), **settings_of_it)

    return made


@pytest.mark.parametrize("epochs", [10, 100])
@pytest.mark.parametrize(
    ("own", "code"),
    [
        (by(torch.optim.Adam), adam(torchs)),
        (by(torch.optim.Adam, weight_decay=0.1), adam(torchs, 0.1)),
        (by(torch.optim.AdamW, weight_decay=0.1), adam(decoupled)),
        (
            by(torch.optim.Adam, eps=0.1),
            adam(lambda w, m, v, t: torchs(w, m, v, t, eps=0.1)),
        ),
    ],
    ids=["Adam", "Adam with a penalty", "AdamW", "Adam with a large eps"],
)
def test_own_adam_agrees_with_torchs(own: Build, code: Train, epochs: int) -> None:
    report = check(ADAM | {"epochs": epochs}, framework=own, scratch=code)
    assert (report.verdict, report.comparison.compared) == ("equivalent", epochs)
    # Measured noise bounds it; agreement is not for want of a bound.
    rows = report.to_dict()["rows"]
    bounds = [tensor["bound"] for row in rows for tensor in row["tensors"].values()]
    assert all(0 < bound < 1e-11 for bound in bounds)


Numbers = tuple[tuple[float, float, float], tuple[float, float, float]]

WRONG_ADAMS: dict[str, tuple[Build, Train, Numbers, Numbers]] = {
    # google-deepmind/optax#417
    "adaml2-vs-adamw": (
        by(torch.optim.Adam, weight_decay=0.1),
        adam(decoupled),
        (
            (0.5999999985714286, -0.2000000006932409, 0.1999999988439306),
            (0.5883992023598928, 0.09389972370650997, 0.2181343292732808),
        ),
        (
            (0.5949999986666666, -0.19700000070796458, 0.19899999885714287),
            (0.5887045275353404, 0.08894893847574427, 0.22121242685354164),
        ),
    ),
    # huggingface/transformers#14539, stanford-cs336/assignment1-basics#54
    "adamw-after-update": (
        by(torch.optim.AdamW, weight_decay=0.1),
        adam(decay_late),
        (
            (0.5949999986666666, -0.19700000070796458, 0.19899999885714287),
            (0.5887045275353403, 0.08894893847574425, 0.2212124268535416),
        ),
        (
            (0.59399999868, -0.19800000070088494, 0.19799999886857145),
            (0.5866909560546759, 0.09088606808302147, 0.22469668000021614),
        ),
    ),
    # ml-explore/mlx#1623
    "adam-no-bias-corr": (
        by(torch.optim.Adam),
        adam(raw),
        (
            (0.5999999986666666, -0.2000000007079646, 0.19999999885714287),
            (0.5802703873103345, 0.09300097444462212, 0.2341345135835295),
        ),
        (
            (0.8162276326835607, 0.016227695220393412, 0.4162276517311647),
            (0.4647409022467533, 0.22804599131560171, 0.2120675858232071),
        ),
    ),
    # tensorflow/tensorflow#9047, huggingface/transformers#35504
    "adam-eps-hat": (
        by(torch.optim.Adam, eps=0.1),
        adam(eps_hat),
        (
            (0.5882352941176471, -0.2066115702479339, 0.18974358974358974),
            (0.5592109375898268, 0.11315294179949988, 0.2739275560371412),
        ),
        (
            (0.5191704184914043, -0.26912418253026066, 0.12167302013019107),
            (0.6454108573438362, 0.06745412927538706, 0.33151777111264175),
        ),
    ),
}


@pytest.mark.parametrize("name", WRONG_ADAMS)
def test_reported_adams_diverge_at_once_and_no_cause_is_made_up(name: str) -> None:
    own, code, framework, scratch_ends = WRONG_ADAMS[name]
    for at, epochs in enumerate((1, 10)):
        report = check(ADAM | {"epochs": epochs}, framework=own, scratch=code)
        assert (report.verdict, report.first_divergence and report.first_divergence.step) == (
            "diverged",
            1,
        )
        for side, numbers in (("framework", framework), ("scratch", scratch_ends)):
            ends = report.comparison.final[side].parameters
            found = [*ends["weight"].ravel(), *ends["bias"].ravel()]
            # Ten steps of some 30 roundings of numbers below 5, divided by √v no smaller than 0.1.
            assert found == pytest.approx(numbers[at], rel=0, abs=1e-12)
        found_by = report.diagnosis
        assert found_by is not None
        assert (found_by.explained, found_by.causes) == (False, ())
        assert any("causes are known for torch.optim.SGD" in clue for clue in found_by.evidence)


# --- what own code does besides, through the command line -----------------------------------------

HEAD = """
import os, sys
import torch
from torch import nn

def start(problem):
    model = nn.Sequential(nn.Linear(2, 1, dtype=torch.float64), nn.Flatten(0))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model[0].bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=problem.lr)

class At3(nn.Module):
    def __init__(self, model, act):
        super().__init__()
        self.model, self.act, self.calls = model, act, 0

    def forward(self, X):
        self.calls += 1
        if self.calls == 3:
            self.act()
        return self.model(X)

def leave():
    sys.exit(0)

def fail():
    {}["width"]

def endless():
    while True:
        pass

def interrupt():
    raise KeyboardInterrupt
"""

BUILDS: dict[str, tuple[str, int, list[str]]] = {
    "prints": (
        "print('hello'); return model, lambda z, y: (print('loss'), loss(z, y))[1], optimizer",
        0,
        ["hello", "loss"],
    ),
    "turns gradients off": (
        "torch.set_grad_enabled(False); return model, loss, optimizer",
        0,
        [],
    ),
    "sets the default dtype": (
        "torch.set_default_dtype(torch.float16); return model, loss, optimizer",
        0,
        [],
    ),
    "is in eval mode": ("return model.eval(), loss, optimizer", 0, []),
    "raises": (
        "raise KeyError('width')",
        2,
        ["build.py:build: raised KeyError: 'width'", "fix it there", "in build"],
    ),
    "exits": ("sys.exit(0)", 2, ["build.py:build: tried to end the program"]),
    "raises in forward": (
        "return At3(model, fail), loss, optimizer",
        2,
        ["framework: raised KeyError: 'width'", "in forward", "in fail"],
    ),
    "exits in forward": (
        "return At3(model, leave), loss, optimizer",
        2,
        ["framework: tried to end the program", "in leave"],
    ),
    "exits hard in forward": (
        "return At3(model, lambda: os._exit(0)), loss, optimizer",
        2,
        ["framework: tried to end the program"],
    ),
    "never comes back": (
        "return At3(model, endless), loss, optimizer",
        2,
        ["framework: took longer than 0.5 seconds", "--timeout SECONDS", "in endless"],
    ),
    "is interrupted": ("return At3(model, interrupt), loss, optimizer", 130, ["interrupted"]),
    "raises in the loss": (
        "return model, lambda z, y: 1 / 0, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in backward": (
        "model[0].weight.register_hook(lambda g: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in step": (
        "optimizer.register_step_pre_hook(lambda *a: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_own_framework_code_does_besides_is_no_harm_or_is_told(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body, code, told = BUILDS[name]
    source = (
        f"{HEAD}\ndef build(problem):\n    model, loss, optimizer = start(problem)\n    {body}\n"
    )
    (tmp_path / "build.py").write_text(textwrap.dedent(source), encoding="utf-8")
    spec = ADAM | {"epochs": 5, "framework": "build.py:build"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert cli.exit_code(["run", "--json", "--timeout", "0.5", str(path)]) == code
    captured = capfd.readouterr()
    for words in told:
        assert words in captured.err
    assert "/regcheck/regcheck/" not in captured.err
    assert str(Path(cli.__file__).parent) not in captured.err  # none of regcheck's own frames
    if code == 0:
        assert json.loads(captured.out)["verdict"] == "equivalent"
    else:
        assert captured.out.strip() == ""
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
