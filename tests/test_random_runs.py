"""Random specs: no false alarm where the rules agree, nothing missed where they do not.

REGCHECK_RANDOM_RUNS=10 runs ten times as many; `python tests/random_specs.py` any number.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.random_specs import (
    effects,
    matched_faults,
    matched_spec,
    mismatched_faults,
    mismatched_spec,
    observe,
)

TIMES = int(os.environ.get("REGCHECK_RANDOM_RUNS", "1"))


@pytest.mark.parametrize("seed", range(500 * TIMES))
def test_matched_spec_raises_no_alarm(seed: int, tmp_path: Path) -> None:
    observed = observe(matched_spec(seed, tmp_path))

    assert matched_faults(observed) == []
    assert observed.report.comparison.compared + (
        observed.report.comparison.first_unjudged is not None
    ) == len(observed.rows)


@pytest.mark.parametrize("seed", range(500 * TIMES))
def test_mismatched_spec_diverges_at_its_first_clear_step(seed: int, tmp_path: Path) -> None:
    assert mismatched_faults(observe(mismatched_spec(seed, tmp_path))) == []


def test_random_specs_show_every_outcome(tmp_path: Path) -> None:
    # A generator that had nothing to find would pass all of the above.
    mismatched = [observe(mismatched_spec(seed, tmp_path)).report for seed in range(40)]
    stages = {one.first_divergence.stage for one in mismatched if one.first_divergence}
    late = [one.first_divergence.step for one in mismatched if one.first_divergence]

    assert {"gradient", "penalty", "optimizer"} <= stages
    assert max(late) > 1
    assert any(one.first_loss_divergence for one in mismatched)
    assert {one.verdict for one in mismatched} >= {"equivalent", "diverged"}


@pytest.mark.parametrize("decay", [1e-8, 1e-6])
@pytest.mark.parametrize("model", ["linear", "logistic"])
def test_tiny_penalty_missing_is_found_in_float64(model: str, decay: float) -> None:
    spec = {
        "data": {"synthetic": {"rows": 500, "features": 3, "seed": 1}},
        "model": model,
        "lr": 0.05,
        "weight_decay": decay,
        "epochs": 10,
        "convention": {"penalty_factor": 0},
    }
    observed = observe(spec)
    first = next(one for one in effects(observed) if one.update > 20)

    assert observed.report.first_divergence is not None
    assert (observed.report.first_divergence.step, first.step) == (2, 2)
    assert observed.report.first_divergence.stage == "penalty"


def test_program_counts_specs_and_faults() -> None:
    command = [sys.executable, str(Path(__file__).with_name("random_specs.py"))]
    done = subprocess.run(
        [*command, "--seed", "7", "--count", "3"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 specs, 0 with faults")
