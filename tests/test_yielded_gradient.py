"""The gradient that code yields decides where the difference is, not whether there is one."""

from __future__ import annotations

from typing import Any

import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.texts.diagnosis.next_steps import BY_STAGE, YIELD_GRADIENT
from tests.by_hand import (
    BASE,
    LAMBDA,
    TORCHS,
    At,
    Step,
    causes_of,
    code,
    descent,
    found_by,
)
from tests.conftest import told


def curved(at: At) -> tuple[Any, Any]:
    """Make something of the gradient that no cause makes."""
    return at.along(at.gw + 0.1 * at.gw**2, at.gb)


def own(at: At) -> tuple[Any, Any]:
    return at.gw, at.gb


def with_penalty(at: At) -> tuple[Any, Any]:
    return at.gw + LAMBDA * at.w, at.gb + LAMBDA * at.b


def flipped(at: At) -> tuple[Any, Any]:
    return -at.gw, at.gb


OF_GRADIENT = BY_STAGE["gradient"].format(step="step 1")

NEXT_BY = {
    ("gradient", False): (OF_GRADIENT, YIELD_GRADIENT),
    ("gradient", True): (OF_GRADIENT,),
    ("optimizer", True): (BY_STAGE["optimizer"].format(step="step 1"),),
}
"""What is next, by the stage and whether the code yields its gradient."""


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("grad", "stage", "clue"),
    [
        (None, "gradient", "weight is updated by no constant combination of torch's gradient"),
        (own, "optimizer", "Your code's gradient is torch's at step 1, to"),
        (with_penalty, "optimizer", "Your code's gradient is torch's at step 1, to"),
        (flipped, "gradient", "Your code's gradient is not torch's at step 1."),
    ],
    ids=["none", "data gradient", "with the penalty", "wrong"],
)
def test_gradient_that_is_yielded_decides_the_stage(
    grad: Step | None, stage: str, clue: str
) -> None:
    report = check(BASE, scratch=code(curved, grad=grad))
    found = told(report.diagnosis)
    assert not found.explained
    assert (told(report.first_divergence).stage, found.stage) == (stage, stage)
    assert sum(one.text.startswith(clue) for one in found.evidence) == 1
    assert sum(one.text.startswith("Your code's gradient is") for one in found.evidence) == (
        grad is not None
    )
    assert summary(report).next == NEXT_BY[stage, grad is not None]


@pytest.mark.parametrize("grad", [own, with_penalty, flipped])
def test_gradient_that_is_yielded_does_not_decide_the_verdict(grad: Step) -> None:
    # It is told for the diagnosis; what trains is what comes of it.
    assert check(BASE, scratch=code(TORCHS, grad=grad)).verdict == "equivalent"
    found = found_by(code(descent(2 * LAMBDA), grad=grad))
    assert causes_of(found) == ["penalty-doubled"]
