"""Random users' functions: the planted cause is named, and no cause that is not there.

REGCHECK_RANDOM_RUNS=10 runs ten times as many; `python tests/random_causes.py` any number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.compare import comparison
from regcheck.diagnosis import search
from regcheck.diagnosis.replay import Replay
from regcheck.rules.causes import CAUSES
from tests.faults import FAULTS, OUTSIDE
from tests.random_causes import (
    Case,
    exactly,
    faults_of,
    needs_of,
    outcome,
    random_causes,
    random_spec,
    run_case,
    see,
)
from tests.rule import Rule
from tests.user_functions import Code

TIMES = int(os.environ.get("REGCHECK_RANDOM_RUNS", "1"))


@pytest.mark.parametrize("seed", range(400 * TIMES))
def test_planted_cause_is_named_and_no_other_alone(seed: int) -> None:
    _, _, faults = run_case(seed)

    assert faults == []


def test_every_cause_of_the_update_is_planted() -> None:
    drawn = {
        cause for seed in range(1000) for cause in random_causes(np.random.default_rng(seed))[0]
    }
    update = {name for name, cause in CAUSES.items() if cause.kind == "update"}

    assert FAULTS.keys() | OUTSIDE.keys() == update
    assert drawn == update


def test_random_functions_come_to_every_outcome() -> None:
    # A generator that had nothing to find would pass all of the above.
    outcomes = {outcome(run_case(seed)[1]) for seed in range(60)}

    assert outcomes >= {"equivalent", "explained", "unexplained", "loss explained"}


def planted_alone(cause: str, folder: Path) -> Iterator[Case]:
    """Draw cases of one cause, with no open factor."""
    for seed in range(6):
        random = np.random.default_rng(seed)
        spec, X, y = random_spec(random, needs_of(cause), folder / f"{cause}-{seed}.npz")
        rule = FAULTS[cause].rule()
        yield Case(spec, X, y, Code(spec, rule), frozenset({cause}), frozenset(), {})


CLOSED = sorted(name for name, one in FAULTS.items() if one.key is None)


@pytest.mark.parametrize("cause", CLOSED)
def test_user_code_does_what_the_catalogue_says(cause: str, tmp_path: Path) -> None:
    # Not by the diagnosis: the code's steps are those of the catalogue's change, by NumpyTrainer.
    shown = 0
    for case in planted_alone(cause, tmp_path):
        seen = see(case)
        torch, history = seen.sides.torch, seen.history
        assert torch is not None
        limits = dict.fromkeys(history.shapes, 8.0)
        replay = Replay(history, torch, limits, sees_rows=True)
        assert replay.residual(CAUSES[cause].changes[0]) <= 1, (cause, str(case))
        shown += replay.residual({}) > 1
    assert shown > 0


def test_code_without_a_cause_is_exactly_torchs_rule(tmp_path: Path) -> None:
    for case in planted_alone("learning-rate-scaled", tmp_path):
        seen = see(case)

        assert seen.report.verdict != "diverged"
        assert max(step.update for step in exactly(seen, Rule())) < 0.5


# --- what is judged is able to fail ---------------------------------------------------------------


def faults_with(cause: str, folder: Path) -> list[str]:
    """Judge some cases of one cause."""
    return [fault for case in planted_alone(cause, folder) for fault in faults_of(see(case))]


SABOTAGED = ("penalty-divided-by-batch", "decay-after-update", "loss-halved", "nesterov-added")


@pytest.mark.parametrize("cause", SABOTAGED)
def test_row_missing_in_the_catalogue_is_caught(cause: str, tmp_path: Path) -> None:
    rest = {name: row for name, row in CAUSES.items() if name != cause}

    assert faults_with(cause, tmp_path) == []
    with patch.object(search, "CAUSES", rest):
        assert any(cause in fault for fault in faults_with(cause, tmp_path))


def test_cause_named_whatever_the_steps_are_is_caught(tmp_path: Path) -> None:
    with patch.object(Replay, "residual", lambda self, change: 0.5 if change else 2.0):
        faults = faults_with("penalty-halved", tmp_path)

    assert any("leaves" in fault for fault in faults)


def test_mistake_without_a_name_that_is_explained_is_caught() -> None:
    seeds = [seed for seed in range(200) if wrong_of(seed)][:10]
    with patch.object(Replay, "residual", lambda self, change: 0.5 if change else 2.0):
        caught = [seed for seed in seeds if run_case(seed)[2]]

    assert len(caught) > len(seeds) / 2


def wrong_of(seed: int) -> str:
    """Name the mistake of a seed that is none of the catalogue's."""
    return random_causes(np.random.default_rng([seed, 2]))[1]


def test_divergence_that_is_not_found_is_caught(tmp_path: Path) -> None:
    with patch.object(comparison, "diverges", lambda row, tolerances: False):
        faults = faults_with("penalty-missing", tmp_path)

    assert any(fault.startswith("not found") for fault in faults)


def test_false_alarm_is_caught(tmp_path: Path) -> None:
    (case, *_) = planted_alone("learning-rate-scaled", tmp_path)
    with patch.object(comparison, "diverges", lambda row, tolerances: True):
        faults = faults_of(see(case))

    assert any(fault.startswith("diverged") for fault in faults)


def test_loss_that_is_taken_for_another_is_caught() -> None:
    with patch("regcheck.diagnosis.diagnose.explain_losses", return_value=None):
        faults = [fault for seed in range(30) for fault in run_case(seed)[2]]

    assert any(fault.startswith("loss:") and "not explained" in fault for fault in faults)


def test_program_counts_runs_and_faults() -> None:
    command = [sys.executable, str(Path(__file__).with_name("random_causes.py"))]
    done = subprocess.run(
        [*command, "--seed", "3", "--count", "3"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 runs, 0 with faults")
