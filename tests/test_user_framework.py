"""The framework side as a user's own function: what it trains as, and by which other settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.terminal.short import short_text
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LOGISTIC, MOMENTUM, TORCHS, Spec, Train, causes_of, code
from tests.conftest import told
from tests.user_modules import (
    NO_MODEL,
    SHUFFLED,
    Build,
    Made,
    flat_line,
    mlp,
    mlp_by_hand,
    sgd,
    user,
    with_sgd,
)

# --- what trains as the built-in framework side does ----------------------------------------------

HEAVY = MOMENTUM["optimizer"]
SAME: dict[str, tuple[Spec, Build]] = {
    "sgd": ({}, user()),
    "mini-batches": (SHUFFLED, user()),
    "momentum": ({"optimizer": HEAVY}, with_sgd(momentum=0.9)),
    "nesterov": ({"optimizer": HEAVY | {"nesterov": True}}, with_sgd(momentum=0.9, nesterov=True)),
    "dampening": ({"optimizer": HEAVY | {"dampening": 0.5}}, with_sgd(momentum=0.9, dampening=0.5)),
    "schedule": ({"lr_schedule": {"kind": "exponential", "factor": 0.9}}, user()),
    "schedule by epochs": (
        SHUFFLED | {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.1, "per": "epoch"}},
        user(),
    ),
    "clip_norm": ({"clip_norm": 1.0}, user()),
    "clip_value": ({"clip_value": 0.5}, user()),
    "accumulation": ({"batch_size": 6, "accumulate": 2}, user()),
    "logistic": (LOGISTIC | {"loss": "bce_with_logits"}, user(loss=nn.BCEWithLogitsLoss())),
    "float32": ({}, user(lambda problem: flat_line(problem, torch.float32))),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", SAME)
def test_same_training_is_the_built_in_framework_side_bit_for_bit(name: str) -> None:
    spec, own = SAME[name]
    report = check(BASE | spec, framework=own)
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps > 0
    assert report.first_loss_divergence is None
    dtype = {"dtype": {"scratch": "float64", "framework": "float32"}} if name == "float32" else {}
    ours = check(BASE | spec | dtype).comparison.final["framework"]
    theirs = report.comparison.final["framework"]
    if not dtype:
        assert theirs.loss == ours.loss
    for tensor, values in ours.parameters.items():
        # Bit for bit but for the shapes that torch's kernels are given: (n,) here, (n, 1) there.
        assert theirs.parameters[tensor] == pytest.approx(values, rel=1e-6 if dtype else 0)


@pytest.mark.parametrize("spec", [{}, SHUFFLED], ids=["full", "batches"])
def test_own_code_on_both_sides_is_equivalent(spec: Spec) -> None:
    report = check(BASE | spec, framework=user(), scratch=code(TORCHS))
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps


def test_float32_module_widens_what_rounding_may_do() -> None:
    report = check(BASE, framework=user(lambda problem: flat_line(problem, torch.float32)))
    # At the framework's 24 bits, and not at 53: the drift is far above float64's 1e-16.
    assert 1e-9 < report.comparison.drift.largest < 1e-5
    assert check(BASE | {"dtype": "float64"}, framework=user()).comparison.drift.largest < 1e-13


# --- what trains by other settings ----------------------------------------------------------------


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("train", [None, code(TORCHS)], ids=["built in", "own code"])
@pytest.mark.parametrize(
    ("own", "cause", "matching"),
    [
        (with_sgd(weight_decay=0.2), "penalty-halved", (0.1, 0.05)),
        (with_sgd(weight_decay=0.037), "penalty-scaled", (0.1, 0.05)),
        (with_sgd(lr=0.1), "learning-rate-scaled", (0.1, 0.05)),
        (with_sgd(lr=0.037), "learning-rate-scaled", (0.1, 0.05)),
        (with_sgd(momentum=0.9), "momentum-missing", (0.1, 0.05)),
    ],
    ids=["twice the decay", "another decay", "twice the lr", "another lr", "momentum"],
)
def test_other_settings_of_the_optimizer_are_told(
    train: Train | None, own: Build, cause: str, matching: tuple[float, float]
) -> None:
    report = check(BASE, framework=own, scratch=train)
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    assert causes_of(report.to_dict()["diagnosis"]) == [cause]
    match = report.to_dict()["diagnosis"]["matching"]
    # Fitted from twelve steps that round at 1e-16, or one division.
    found = match["weight_decay"], match["lr"]
    assert found == pytest.approx(matching, rel=1e-9)
    own_side = "the framework side is your own" if train is None else "both sides are your own"
    assert own_side in str(report.diagnosis.fix)


def test_nesterov_that_only_the_framework_has_is_told() -> None:
    spec = BASE | {"optimizer": HEAVY}
    report = check(spec, framework=with_sgd(momentum=0.9, nesterov=True))
    assert causes_of(report.to_dict()["diagnosis"]) == ["nesterov-missing"]


def test_built_in_scratch_side_has_the_rule_of_the_spec() -> None:
    """`w ← w − 0.1 (g + 0.2 w)` where the spec says so, whatever the user's optimizer has."""
    spec = BASE | {"weight_decay": 0.2, "optimizer": "adam", "epochs": 2}
    report = check(spec, framework=with_sgd(weight_decay=0.3))
    scratch, torchs = summary(report).rules
    assert scratch.lines[0] == "G ← g + 0.2 w"
    assert "torch.optim.SGD" in torchs.lines[0]
    assert "0.3 w" in torchs.lines[-1]


@pytest.mark.slow
def test_momentum_that_only_the_spec_has_is_a_divergence_from_step_2_on() -> None:
    report = check(BASE | {"optimizer": HEAVY}, framework=user())
    # At step 1 the velocity is the gradient.
    assert (report.verdict, told(report.first_divergence).step) == ("diverged", 2)


def test_start_that_was_not_copied_is_told() -> None:
    forgot = user(lambda _: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double())
    report = check(BASE, framework=forgot)
    first = told(report.first_divergence)
    assert (first.step, first.stage) == (1, "initial")
    assert causes_of(report.to_dict()["diagnosis"]) == ["initial-parameters"]
    assert told(report.diagnosis).explained


# --- any module -----------------------------------------------------------------------------------


MLP = user(mlp, optimizer=lambda problem, model: sgd(problem, model, momentum=0.9))


@pytest.mark.parametrize("spec", [{}, SHUFFLED | {"epochs": 3}], ids=["full", "batches"])
def test_any_module_agrees_with_the_users_own_scratch(spec: Spec) -> None:
    report = check(NO_MODEL | spec, framework=MLP, scratch=mlp_by_hand(momentum=0.9))
    assert (report.verdict, report.comparison.compared) == ("equivalent", report.comparison.steps)
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(report.comparison.final["framework"].parameters) == names
    assert set(report.to_dict()["rows"][0]["tensors"]) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "others"), [({}, True), (SHUFFLED | {"epochs": 3}, False)], ids=["full", "batches"]
)
def test_penalty_divided_by_the_batch_is_found_in_any_module(spec: Spec, others: bool) -> None:
    train = mlp_by_hand(lambda rows: 0.1 / rows, momentum=0.9)
    report = check(NO_MODEL | spec, framework=MLP, scratch=train)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (1, "penalty")
    assert causes_of(report.to_dict()["diagnosis"]) == ["penalty-divided-by-batch"]
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    told = [one.causes for one in report.diagnosis.explanations[1:]]
    assert (("penalty-divided-by-dataset",) in told) is others


class Penalized(torch.nn.MSELoss):
    """A loss function that holds ½·0.3 Σw² of all parameters, as somebody adds a penalty."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.tensors = parameters

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(z, y) + 0.15 * sum(w.square().sum() for w in self.tensors)


def test_penalty_in_torchs_own_loss_function_is_named() -> None:
    def build(problem: UserProblem) -> Made:
        model = flat_line(problem)
        parameters = list(model.parameters())
        return model, Penalized(parameters), torch.optim.SGD(parameters, lr=problem.lr)

    report = check(BASE, scratch=code(TORCHS), framework=build)

    assert report.diagnosis is not None
    text = " ".join(short_text(report, 160).split())
    assert "scratch adds 0.2 w less than torch to the gradient of " in text
    assert "add 0.2 w to the gradient of weight and bias, or take it from torch's" in text
    assert "w ← w − 0.05 (g − 0.2 w)" in text
    assert "torch's loss is the scratch side's + ½·0.3 Σweight² + ½·0.3 Σbias², in all" in text


def weighted(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return a loss of the same class of functions as the spec's, and another one."""
    weight = torch.tensor(3.0, dtype=torch.float64)
    return nn.functional.binary_cross_entropy_with_logits(z, y, pos_weight=weight)


LOSSES: dict[str, Any] = {
    "other weights": weighted,
    "a sum": nn.BCEWithLogitsLoss(reduction="sum"),
    "a sigmoid of a probability": lambda z, y: nn.BCEWithLogitsLoss()(torch.sigmoid(z), y),
}


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", ["own", "built-in"])
@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
def test_what_is_known_of_the_specs_loss_is_not_said_of_another(
    name: str, side: str, loss: str
) -> None:
    sides: Spec = {"scratch": code(TORCHS)} if side == "own" else {}
    report = check(BASE | LOGISTIC | {"loss": loss}, framework=user(loss=LOSSES[name]), **sides)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.loss_evidence is None
    assert "precision" not in report.diagnosis.causes
    assert "bce-saturated" not in report.diagnosis.causes


def weight_alone(problem: UserProblem, model: Any) -> torch.optim.SGD:
    return torch.optim.SGD([model[0].weight], lr=problem.lr, weight_decay=0.1)


ODD: dict[str, Build] = {
    "a tensor that the optimizer does not have": user(optimizer=weight_alone),
    "a loss of what has no gradient": user(
        loss=lambda z, y: nn.MSELoss()(z.detach().requires_grad_(), y)
    ),
    "an lr that is a tensor, of float32": user(
        optimizer=lambda problem, model: sgd(problem, model, lr=torch.tensor(problem.lr))
    ),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("sides", [{}, {"scratch": code(TORCHS)}], ids=["built-in", "own"])
def test_odd_framework_side_diverges_at_once(name: str, sides: Spec) -> None:
    report = check(BASE, framework=ODD[name], **sides)

    assert report.first_divergence is not None
    assert report.first_divergence.step == 1
