"""Random specs: no false alarm where the rules agree, nothing missed where they do not.

More of them: `pytest -n 2 tests/test_random_specs.py --count 5000 --seed 1000`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.judged_specs import effects, matched_faults, mismatched_faults, observe
from tests.random_specs import columns_of, lengthened, matched_spec, mismatched_spec

Record = Callable[[str, object], None]


@pytest.mark.search(sample=12, whole=500)
def test_matched_spec_raises_no_alarm(seed: int, tmp_path: Path, record_property: Record) -> None:
    spec = matched_spec(seed, tmp_path)
    observed = observe(spec)
    comparison = observed.report.comparison
    record_property("matched specs", observed.report.verdict)
    dtype = spec["dtype"] if isinstance(spec["dtype"], str) else "mixed"
    for name, ratio in observed.ratios().items():
        record_property(f"ratio: {spec['model']} {spec['loss']} {dtype} {name:14}", ratio)

    assert matched_faults(observed) == []
    assert comparison.compared + (comparison.first_unjudged is not None) == len(observed.rows)


@pytest.mark.search(sample=12, whole=500)
def test_mismatched_spec_diverges_at_its_first_clear_step(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    observed = observe(mismatched_spec(seed, tmp_path))
    record_property("mismatched specs", observed.report.verdict)

    assert mismatched_faults(observed) == []


JUDGES = {
    "matched": (matched_spec, matched_faults),
    "mismatched": (mismatched_spec, mismatched_faults),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.search(sample=1, whole=100)
def test_spec_of_1000_steps_has_the_right_verdict(
    kind: str, seed: int, tmp_path: Path, record_property: Record
) -> None:
    make, faults = JUDGES[kind]
    spec = make(seed, tmp_path)
    observed = observe(lengthened(spec, columns_of(spec), 1000))
    record_property(f"{kind} specs of 1,000 steps", observed.report.verdict)

    assert faults(observed) == []


@pytest.mark.slow
def test_random_specs_show_every_outcome(tmp_path: Path) -> None:
    # A generator that had nothing to find would pass all of the above.
    mismatched = [observe(mismatched_spec(seed, tmp_path)).report for seed in (0, 5, 12, 21)]
    stages = {one.first_divergence.stage for one in mismatched if one.first_divergence}
    late = [one.first_divergence.step for one in mismatched if one.first_divergence]

    assert stages == {"gradient", "penalty", "optimizer"}
    assert max(late) > 1
    assert any(one.first_loss_divergence for one in mismatched)
    assert {one.verdict for one in mismatched} == {"equivalent", "diverged"}


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
