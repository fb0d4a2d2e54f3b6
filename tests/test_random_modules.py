"""Random modules of a user's own: none wrongly blamed, none wrongly passed.

More of them: `pytest -n 2 tests/test_random_modules.py --count 2000 --seed 1000`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.conftest import told
from tests.judged_modules import effect, faults_of, run
from tests.random_modules import CASTS, Case, random_case

Record = Callable[[str, object], None]

INCONCLUSIVE = {110}
"""Those of the first 300 that rounding leaves too little of."""


@pytest.mark.slow
@pytest.mark.search(sample=5, whole=300)
def test_random_module_is_neither_blamed_nor_passed_wrongly(
    seed: int, record_property: Record
) -> None:
    case = random_case(seed)
    report, found = faults_of(case, doubled=seed % 10 == 0)
    record_property(f"modules {'with a fault' if case.fault else 'that are right'}", report.verdict)
    if report.verdict == "inconclusive":
        record_property("why inconclusive", report.reason[:60])
    print(case)

    assert not found
    # Of many more, less than 2 % are.
    assert report.verdict != "inconclusive" or seed in INCONCLUSIVE or seed >= 300


def test_half_of_the_modules_have_a_fault_and_all_kinds_occur() -> None:
    cases = [random_case(seed) for seed in range(300)]

    assert 0.4 < sum(bool(case.fault) for case in cases) / 300 < 0.6
    assert len({case.fault for case in cases}) > 20
    assert {len(case.sizes) for case in cases} == {2, 3, 4, 5}
    assert {case.dtype for case in cases} == {"float32", "float64"}
    assert len({case.optimizer for case in cases}) == 6
    assert len({case.cast for case in cases if case.loss == "cross_entropy"}) == 6


def test_an_effect_is_a_share_of_the_step() -> None:
    case = replace(random_case(0), fault="lr one percent", optimizer="sgd", decay=0.0, epochs=1)

    assert effect(case) == pytest.approx(0.01)
    assert effect(replace(case, fault="lr tripled")) == pytest.approx(2.0)


@pytest.mark.slow
def test_a_case_is_checked_as_its_code_is_written() -> None:
    case: Case = replace(random_case(2), fault="", times=(1.0, 1.0, 1.0))

    assert run(case).verdict == "equivalent"
    assert run(replace(case, times=(1.01, 1.0, 1.0))).verdict == "diverged"


# --- integer targets, however they are made of float ones -----------------------------------------

CLASSES = Case(
    seed=5,
    sizes=(4, 6, 3),
    activation="tanh",
    loss="cross_entropy",
    cast="long",
    bias=True,
    optimizer="sgd",
    lr=0.1,
    decay=0.01,
    dtype="float64",
    rows=30,
    batch=12,
    epochs=4,
    style=0,
)


@pytest.mark.sampled(every=12)
@pytest.mark.parametrize(
    ("cast", "fault"),
    [
        *product([*CASTS, "where"], ["", "lr one percent"]),
        *product(["where"], ["lr tripled", "wrong slope", "missing slope", "decay doubled"]),
    ],
)
def test_targets_that_are_made_integers_hide_nothing(
    cast: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_comparison = lambda y: torch.where(y == 1, 1, torch.where(y == 2, 2, 0))  # noqa: E731
    monkeypatch.setitem(CASTS, "where", by_comparison)
    report = run(replace(CLASSES, cast=cast, fault=fault))

    assert (report.verdict, report.reason) == ("diverged" if fault else "equivalent", "")
    if fault:
        assert told(report.first_divergence).step == 1
