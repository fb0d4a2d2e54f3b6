"""What is known of code that no cause explains, and what a yielded gradient tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.evidence.tensors import FROZEN, NOT_GIVEN
from regcheck.report.summary import summary
from regcheck.report.terminal.details import report_text
from regcheck.report.texts.diagnosis.next_steps import BY_KIND, OF_LOSS
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LR,
    MOMENTUM,
    ROWS,
    At,
    Spec,
    Step,
    causes_of,
    code,
)
from tests.conftest import in_one_line, told
from tests.user_modules import NO_MODEL, mlp, mlp_by_hand, sgd, user

NESTEROV: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}


def wrong_sign_of_bias(at: At) -> tuple[Any, Any]:
    return at.along(at.gw, -at.gb)


def uphill(at: At) -> tuple[Any, Any]:
    return at.along(at.gw, at.gb, lr=-LR)


def stale(at: At) -> tuple[Any, Any]:
    last = at.memory.get("last", (at.gw, at.gb))
    at.memory["last"] = at.gw, at.gb
    return at.along(*last)


def before_its_velocity(at: At) -> tuple[Any, Any]:
    v, c = at.memory.get("v", 0), at.memory.get("c", 0)
    at.memory["v"] = 0.9 * v + at.gw + LAMBDA * at.w
    at.memory["c"] = 0.9 * c + at.gb + LAMBDA * at.b
    return at.w - LR * v, at.b - LR * c


def half_nesterov(at: At) -> tuple[Any, Any]:
    v = at.memory["v"] = 0.9 * at.memory.get("v", 0) + at.gw
    c = at.memory["c"] = 0.9 * at.memory.get("c", 0) + at.gb
    return at.w - LR * (at.gw + 0.5 * v), at.b - LR * (at.gb + 0.5 * c)


def wrong_derivative(at: At) -> tuple[Any, Any]:
    return at.along(*at.mean(np.abs(at.slope)))


WRONG: dict[str, tuple[Step, Spec, int, str, list[str]]] = {
    "a sign in one tensor": (
        wrong_sign_of_bias,
        {},
        1,
        "gradient",
        [
            "weight is updated by torch's rule.",
            "bias is updated by a wrong sign: −1 times torch's gradient.",
        ],
    ),
    "all signs": (
        uphill,
        {},
        1,
        "gradient",
        ["weight and bias are updated by −1 times torch's update: subtract it, do not add it."],
    ),
    "the gradient of the step before": (
        stale,
        BATCHES,
        2,
        "gradient",
        ["Each update uses the gradient of the previous step: compute the predictions"],
    ),
    "the velocity of the step before": (
        before_its_velocity,
        BATCHES | MOMENTUM,
        1,
        "optimizer",
        ["Each update uses the velocity, or the gradient, of the previous step: swap the two"],
    ),
    "a derivative": (
        wrong_derivative,
        {},
        1,
        "gradient",
        ["Finite differences of the loss confirm torch's gradient: at step 1 they differ from it"],
    ),
    "another form of Nesterov momentum": (
        half_nesterov,
        BATCHES | NESTEROV | {"weight_decay": 0},
        1,
        "optimizer",
        [
            (
                "Each update subtracts 0.075 g − 0.045 times the previous g + 0.9 times the "
                "previous update; torch's subtracts 0.095 g − 0.045 times the previous g + 0.9"
            )
        ],
    ),
    "nothing in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b),
        {},
        1,
        "update",
        ["weight is updated by torch's rule.", "bias is never updated."],
    ),
    "a sum in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * (ROWS * at.gb)),
        {},
        1,
        "gradient",
        ["weight is updated by torch's rule.", "bias is updated by 40 times torch's gradient"],
    ),
    "a mean of a mean in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * at.gb / len(at.y)),
        BATCHES,
        1,
        "gradient",
        [
            "weight is updated by torch's rule.",
            "bias is updated by 1/B times torch's gradient, B being each batch's own size, without",
        ],
    ),
}


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_code_is_not_explained_and_what_is_known_is_told(name: str) -> None:
    step, spec, first, stage, clues = WRONG[name]
    report = check(BASE | spec, scratch=code(step))
    found = report.to_dict()["diagnosis"]
    assert not found["explained"]
    assert (causes_of(found), found["alternatives"], found["matching"]) == ([], [], None)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (first, stage)
    assert found["stage"] == stage
    for clue in clues:
        assert any(one.startswith(clue) for one in found["clues"]), found["clues"]
    text = " ".join(report_text(report).split())
    assert "not explained: no known cause" in text
    assert all(" ".join(clue.split()) in text for clue in found["clues"])
    assert told(report.diagnosis).fix is None


@pytest.mark.slow
def test_derivative_of_tanh_from_the_wrong_side_of_it_is_told_by_its_tensors() -> None:
    assert check(NO_MODEL, scratch=mlp_by_hand(), framework=user(mlp)).verdict == "equivalent"
    wrong = check(NO_MODEL, scratch=mlp_by_hand(slope=lambda a, h: 1 - a**2), framework=user(mlp))
    first, found = wrong.first_divergence, wrong.diagnosis
    assert first is not None
    assert found is not None
    assert (first.step, first.stage, found.explained) == (1, "gradient", False)
    told = " ".join(one.text for one in found.evidence)
    assert "0.weight and 0.bias are updated by no constant combination of torch's gradient" in told
    assert "2.weight and 2.bias are updated by torch's rule." in told
    assert "Finite differences of the loss confirm torch's gradient" in told


def frozen(problem: UserProblem) -> Any:
    model, loss, optimizer = user(mlp)(problem)
    model[0].requires_grad_(False)
    return model, loss, optimizer


def forgotten(problem: UserProblem) -> Any:
    model, loss, _ = user(mlp)(problem)
    return model, loss, sgd(problem, model[2])


@pytest.mark.parametrize(("framework", "why"), [(frozen, FROZEN), (forgotten, NOT_GIVEN)])
def test_tensors_that_torch_does_not_train_are_told_with_the_reason(
    framework: Any, why: Evidence
) -> None:
    short = summary(check(NO_MODEL, scratch=mlp_by_hand(), framework=framework))
    assert f"{short.headline}.".endswith(f": 0.weight and 0.bias are {why.text}")
    assert short.next == (BY_KIND[why.kind],)


def test_tensor_that_is_never_updated_is_told_with_what_is_next() -> None:
    short = summary(check(BASE, scratch=code(WRONG["nothing in one tensor"][0])))
    assert short.headline == "DIVERGED at step 1: bias is never updated"
    assert short.next == (BY_KIND["never-updated"],)


@pytest.mark.parametrize("name", ["sgd", "radam"])
def test_code_that_never_updates_is_explained_by_no_lr_of_0_and_no_causes_together(
    name: str,
) -> None:
    # Old moments of an optimizer that each epoch of one step makes anew come to no step, too.
    falling = {"lr_schedule": {"kind": "step", "every": 3, "factor": 0.5}}
    report = check(
        BASE | falling | {"optimizer": {"name": name}}, scratch=code(lambda at: (at.w, at.b))
    )
    assert summary(report).headline == "DIVERGED at step 1: weight and bias are never updated"


def test_code_that_updates_in_its_first_steps_alone_is_told_no_lr_of_0() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return (at.w, at.b) if at.t > 1 else at.along(at.gw, at.gb)

    short = summary(check(BASE, scratch=code(step)))
    assert short.headline == "DIVERGED at step 3: nothing is updated from step 3 on"
    assert len(short.known) == 1
    assert not short.next


def test_loss_that_differs_from_the_same_parameters_is_told_first() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(*at.mean(at.slope + 0.1 * np.sin(at.y)))

    report = check(BASE, scratch=code(step, loss=lambda at: at.loss + 0.1 * np.sin(at.y).mean()))
    found, short = told(report.diagnosis), summary(report)
    assert found.evidence[0].text == (
        "The loss differs already at step 1, computed from the same parameters: the forward pass, "
        "the loss or the data differ, and not the update alone."
    )
    assert short.headline.startswith("DIVERGED at step 1: the loss differs already, computed")
    assert short.next == (f"{OF_LOSS.format(step='step 1')}; is the start `problem.initial`?",)
    assert "Next compare at step 1, in this order: the samples" in in_one_line(report)
