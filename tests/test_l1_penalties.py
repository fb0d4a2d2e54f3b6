"""An L1 penalty by hand, which no optimizer of torch's has: c sign(w), and c Σ|w| in the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.texts.diagnosis.next_steps import BY_KIND
from tests.by_hand import BASE, BATCHES, LAMBDA, LR, MOMENTUM, At, Spec, Step, code
from tests.conftest import told

L2: Spec = {"weight_decay": LAMBDA}
BATCHS = "being each batch's own size"
NO_L2: Spec = {"weight_decay": 0}


def lasso(c: float, *, of_bias: bool = False, l2: float = 0.0) -> Step:
    def step(at: At) -> tuple[Any, Any]:
        gb = at.gb + of_bias * c * np.sign(at.b)
        return at.along(at.gw + c * np.sign(at.w), gb, penalty=l2)

    return step


def with_momentum(at: At) -> tuple[Any, Any]:
    v = at.memory["v"] = 0.9 * at.memory.get("v", 0) + at.gw + LAMBDA * at.w + 0.02 * np.sign(at.w)
    u = at.memory["u"] = 0.9 * at.memory.get("u", 0) + at.gb + LAMBDA * at.b
    return at.w - LR * v, at.b - LR * u


def over_rows(at: At) -> tuple[Any, Any]:
    """Take half the loss, divide the penalty by the batch's size, and −1 as the sign of 0."""
    sign = np.where(at.w > 0, 1, -1)
    return at.along(at.gw / 2 + 0.3 * sign / len(at.y), at.gb / 2, penalty=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "spec", "said"),
    [
        (lasso(0.1), NO_L2, ("torch's gradient and 0.1 sign(w)", "torch's rule.")),
        (lasso(0.1, l2=LAMBDA), L2, ("torch's rule and 0.1 sign(w)", "torch's rule.")),
        (
            lasso(0.1),
            L2,
            (
                "torch's gradient and 0.1 sign(w), without weight decay",
                "torch's gradient, without weight decay.",
            ),
        ),
        (with_momentum, MOMENTUM, ("torch's rule and 0.02 sign(w)", "torch's rule.")),
        (
            over_rows,
            BATCHES | NO_L2 | {"init": "zeros"},
            (
                f"0.5 times torch's gradient and 0.3 sign(w) (−1 at 0)/B, B {BATCHS}",
                "0.5 times torch's gradient.",
            ),
        ),
    ],
    ids=["no weight decay", "beside it", "in its place", "momentum", "over the batch's size"],
)
def test_l1_penalty_is_told_by_its_strength(step: Step, spec: Spec, said: tuple[str, str]) -> None:
    report = check(BASE | spec, scratch=code(step))
    short, found = summary(report), told(report.diagnosis)
    assert short.known == (
        f"weight is updated by {said[0]}: an L1 penalty; torch's weight_decay is L2.",
        f"bias is updated by {said[1]}",
    )
    assert "weight is updated by" in short.headline
    assert short.next == (BY_KIND["l1-penalty"],)
    assert (found.stage, found.explained) == ("penalty", False)


def test_l1_penalty_of_a_bias_of_one_sign_is_told_by_the_weights() -> None:
    report = check(BASE | NO_L2, scratch=code(lasso(0.1, of_bias=True)))
    (known,) = summary(report).known
    assert known.startswith("weight and bias are updated by torch's gradient and 0.1 sign(w): ")


def test_constant_that_is_added_to_a_gradient_is_no_l1_penalty() -> None:
    report = check(BASE | NO_L2, scratch=code(lambda at: at.along(at.gw, at.gb + 0.1, penalty=0)))
    assert not any("L1" in one for one in summary(report).known)


@pytest.mark.parametrize(
    ("half", "torchs"), [(1.0, "torch's"), (0.5, "0.5 times torch's")], ids=["mse", "half of it"]
)
def test_l1_penalty_in_the_loss_is_told_by_its_strength(half: float, torchs: str) -> None:
    loss = lambda at: half * at.loss + 0.1 * np.abs(at.w).sum()  # noqa: E731
    report = check(BASE | NO_L2, scratch=code(lasso(0.1), loss))
    found = told(report.diagnosis)
    assert told(found.loss_evidence).text == (
        f"the scratch side's loss is {torchs} + 0.1 Σ|weight|, in all 12 steps: an L1 penalty, "
        "which torch's has not."
    )
    assert found.reporting is None
    assert not any(one.kind == "loss-differs" for one in found.evidence)
