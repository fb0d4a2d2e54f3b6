"""What is kept of a run for its diagnosis: to the first divergence, and some steps from it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.compare import history
from regcheck.diagnosis.diagnose import diagnose
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import in_one_line

Spec = dict[str, Any]

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 3))
Y = X @ [0.5, -1.5, 2.0] + 0.3 * RANDOM.normal(size=40)
BASE: Spec = {
    "data": {"X": X.tolist(), "y": Y.tolist()},
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9], "bias": [0.3]},
    "lr": 0.005,
    "weight_decay": 0.1,
}


def code(first: int, wrong: Callable[[Any], Any], decay: float = 0.1) -> Any:
    """Write torch's rule, with what is wrong from a step on."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for step, rows in enumerate(problem.batches, 1):
            s = 2 * (problem.X[rows] @ w + b - problem.y[rows]) / len(rows)
            s, by = (wrong(s), decay) if step >= first else (s, 0.1)
            w = w - problem.lr * (problem.X[rows].T @ s + by * w)
            b = b - problem.lr * (s.sum() + by * b)
            yield {"weight": w, "bias": b}

    return train


def bent(slopes: Any) -> Any:
    return slopes * (1 + np.tanh(40 * slopes) / 10)


def steps_of_diagnosis(steps: int, first: int = 1) -> tuple[int, int]:
    """Count the steps that a diagnosis takes by all rules, and those that it has."""
    counted = 0
    step = NumpyTrainer.step

    def counting(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        return step(*arguments)

    def counted_diagnosis(*arguments: Any) -> Any:
        with patch.object(NumpyTrainer, "step", counting):
            return diagnose(*arguments)

    with (
        patch.object(checking, "diagnose", counted_diagnosis),
        patch.object(history, "MOST_AFTER", 40),
    ):
        report = check(BASE | {"epochs": steps}, scratch=code(first, bent))
    assert report.diagnosis is not None
    assert not report.diagnosis.explained
    return counted, report.diagnosis.steps


@pytest.mark.slow
def test_unexplained_diagnosis_costs_the_same_however_many_steps_follow() -> None:
    few, many = steps_of_diagnosis(60), steps_of_diagnosis(240)

    assert many[1] == 40
    assert many[0] == few[0]


@pytest.mark.slow
def test_start_from_elsewhere_is_given_up_at_the_first_step_that_refutes_it() -> None:
    # Each cause by itself is tried from another start: a rule that went on would take all steps.
    few, many = steps_of_diagnosis(15)[0], steps_of_diagnosis(35)[0]

    # The scales and clues take a dozen rules along the steps that they are fitted to.
    assert many - few < 20 * (35 - 15)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "kept"), [(1, 8), (5, 12), (30, 37)])
def test_steps_to_the_first_divergence_and_some_from_it_on_are_kept(first: int, kept: int) -> None:
    with patch.object(history, "MOST_AFTER", 8):
        report = check(BASE | {"epochs": 40}, scratch=code(first, bent))

    assert report.first_divergence is not None
    assert report.first_divergence.step == first
    assert report.diagnosis is not None
    assert report.diagnosis.steps == kept


def test_proof_says_how_many_steps_it_is_of() -> None:
    doubled = code(1, lambda slopes: slopes, decay=0.2)
    whole = check(BASE | {"epochs": 30}, scratch=doubled)
    with patch.object(history, "MOST_AFTER", 8):
        some = check(BASE | {"epochs": 30}, scratch=doubled)

    assert "all 30 steps agree" in in_one_line(whole)
    assert "all 8 kept steps of 30 agree" in in_one_line(some)
    for report in (whole, some):
        assert report.diagnosis is not None
        assert report.diagnosis.causes == ("penalty-doubled",)
