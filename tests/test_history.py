"""What is kept of a run for its diagnosis: to the first divergence, and some steps from it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.compare import history
from regcheck.diagnosis.diagnose import diagnose
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.by_hand import BASE, LAMBDA, At, Train, code, same, silent
from tests.conftest import in_one_line, told

SLOW = BASE | {"lr": 0.005}


def wrong_from(first: int, wrong: Callable[[Any], Any], decay: float = LAMBDA) -> Train:
    """Write torch's rule, with what is wrong from a step on."""

    def step(at: At) -> tuple[Any, Any]:
        slope, by = (wrong(at.slope), decay) if at.t + 1 >= first else (at.slope, LAMBDA)
        return at.along(*at.mean(slope), by, lr=0.005)

    return code(step, silent)


def bent(slopes: Any) -> Any:
    return slopes * (1 + np.tanh(slopes) / 10)


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
        report = check(SLOW | {"epochs": steps}, scratch=wrong_from(first, bent))
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

    # The scales and clues take some twenty rules along the steps that they are fitted to.
    assert many - few < 25 * (35 - 15)


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize(("first", "kept"), [(1, 8), (5, 12), (30, 37)])
def test_steps_to_the_first_divergence_and_some_from_it_on_are_kept(first: int, kept: int) -> None:
    with patch.object(history, "MOST_AFTER", 8):
        report = check(SLOW | {"epochs": 40}, scratch=wrong_from(first, bent))

    assert told(report.first_divergence).step == first
    assert told(report.diagnosis).steps == kept


def test_proof_says_how_many_steps_it_is_of() -> None:
    doubled = wrong_from(1, same, decay=2 * LAMBDA)
    whole = check(SLOW | {"epochs": 30}, scratch=doubled)
    with patch.object(history, "MOST_AFTER", 8):
        some = check(SLOW | {"epochs": 30}, scratch=doubled)

    assert "all 30 steps agree" in in_one_line(whole)
    assert "all 8 kept steps of 30 agree" in in_one_line(some)
    for report in (whole, some):
        assert told(report.diagnosis).causes == ("penalty-doubled",)
