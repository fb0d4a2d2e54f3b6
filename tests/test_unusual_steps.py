"""Steps that are another step's, or that differ alone, are told as such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LR,
    MOMENTUM,
    At,
    Spec,
    code,
    silent,
)
from tests.conftest import told


@pytest.mark.parametrize("spec", [{}, BATCHES, BATCHES | MOMENTUM], ids=["full", "batches", "μ"])
def test_code_that_yields_before_its_update_is_told_so(spec: Spec) -> None:
    def step(at: At) -> tuple[Any, Any]:
        v = at.memory["v"] = at.memory.get("v", 0) * momentum + at.gw + LAMBDA * at.w
        c = at.memory["c"] = at.memory.get("c", 0) * momentum + at.gb + LAMBDA * at.b
        return at.w - LR * v, at.b - LR * c

    def train(problem: UserProblem) -> Iterator[Spec]:
        before = problem.initial
        for after in code(step)(problem):
            yield {**before, "loss": after["loss"]}
            before = {name: after[name] for name in before}

    momentum = 0.9 if "optimizer" in spec else 0
    assert check(BASE | spec, scratch=code(step)).verdict == "equivalent"
    report = check(BASE | spec, scratch=train)
    short = summary(report)
    assert told(report.diagnosis).causes == ()
    assert short.headline.endswith("your code yields its parameters before their update")
    assert [one.partition(",")[0] for one in short.next] == ["put `yield` after the update"]
    assert not short.fixes


def test_one_step_without_decay_is_no_other_start_where_its_loss_is_torchs() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw, at.gb, penalty=LAMBDA if at.t else 0)

    report = check(BASE | BATCHES, scratch=code(step))
    assert told(report.diagnosis).causes == ()
    assert summary(report).headline == (
        "DIVERGED at step 1: only step 1 differs, and is torch's without weight decay"
    )
    # A loss that is not told contradicts nothing.
    assert check(BASE | BATCHES, scratch=code(step, silent)).names("initial-parameters")


def test_first_step_alone_asks_for_the_start_unless_its_loss_is_torchs() -> None:
    # λ = 1/lr and X = 0: from any start torch's weight is 0 after a step.
    def step(at: At) -> tuple[Any, Any]:
        w, b = at.along(at.gw, at.gb, penalty=1 / LR)
        return w + (at.t == 0), b

    def told_loss(at: At) -> float:
        return at.loss

    data = {"X": np.zeros((4, 3)).tolist(), "y": [1.0, 2.0, 3.0, 4.0]}
    spec = BASE | {"data": data, "weight_decay": 1 / LR}
    for loss, said in ((silent, "Is the start `problem.initial`? Else look"), (told_loss, "Look")):
        short = summary(check(spec, scratch=code(step, loss)))
        assert f"are torch's. {said} for what step 1 does otherwise" in short.known[0]


def norm(at: At) -> float:
    return float(np.linalg.norm(np.append(at.gw, at.gb)))


def root(at: At) -> float:
    return float(2 * np.sqrt(at.loss))


@pytest.mark.parametrize(("divisor", "said"), [(norm, "its norm"), (root, "2 √loss")])
def test_gradient_that_is_divided_by_a_number_of_each_step_is_told(divisor: Any, said: str) -> None:
    def step(at: At) -> tuple[Any, Any]:
        x = 1e-3 * divisor(at)  # with an lr of its own, which makes much longer steps than torch's
        return at.along(at.gw / x, at.gb / x, penalty=0)

    report = check(BASE | {"weight_decay": 0}, scratch=code(step, silent))
    headline = f"DIVERGED at step 1: the updates are torch's with the gradient divided by {said}"
    assert summary(report).headline.startswith(headline)
    assert "each step's lr is 50/" in " ".join(summary(report).known)
