"""Random users' functions with one factor 1 + δ: it is named as that factor, never as others.

`python tests/random_factors.py` runs any number.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from regcheck.diagnosis.replay import Fit, Replay
from regcheck.rules.cause import Change
from tests.random_factors import PLACES, Seen, outcome, random_case, run_case

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_factor_near_one_is_named_as_what_it_is(seed: int) -> None:
    _, faults = run_case(seed)

    assert faults == []


def test_factors_stand_in_every_place_and_on_both_sides_of_one(tmp_path: Path) -> None:
    cases = [random_case(seed, tmp_path) for seed in SEEDS]

    assert {case.place for case in cases} == set(PLACES)
    assert {case.delta > 0 for case in cases} == {True, False}
    assert min(abs(case.delta) for case in cases) < 1e-11
    assert max(abs(case.delta) for case in cases) > 1e-7


def test_random_factors_come_to_every_outcome() -> None:
    seen: list[Seen] = [run_case(seed)[0] for seed in SEEDS[:20]]

    assert {outcome(one) for one in seen} == {"equivalent", "explained"}


def test_factor_that_is_taken_for_one_is_caught() -> None:
    # As where a billionth of the factor was its slack: then sets of others were found for it.
    fit = Replay.fit

    def rounded(replay: Replay, change: Change, key: str) -> Fit | None:
        found = fit(replay, change, key)
        return None if found is None or abs(found.factor - 1) < 1e-9 else found

    with patch.object(Replay, "fit", rounded):
        faults = [fault for seed in SEEDS for fault in run_case(seed)[1]]

    assert any(fault.startswith("taken for") for fault in faults)
