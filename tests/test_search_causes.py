"""Which causes concern a run, and how the explanations are listed."""

from __future__ import annotations

from typing import Any

import pytest

from regcheck.diagnosis.listing import Found, listed
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import (
    LATE,
    Hypotheses,
    concerning,
    is_late,
)
from regcheck.numerics.least_squares import Fit
from regcheck.rules.convention import Convention
from tests.by_hand import BATCHES, MOMENTUM, ROWS, Spec, training
from tests.test_search import ODD, SHOWN, Stub

# --- which causes concern a run -------------------------------------------------------------------


def concerned(stub: Any, spec: Spec, visible: frozenset[str] | None = None) -> Hypotheses:
    return concerning(stub, training(spec), Convention(), visible)


def test_causes_that_change_the_update_of_a_training_concern_it() -> None:
    found = concerned(Stub(), {})
    assert {"loss-halved", "penalty-doubled", "decay-after-update"} <= found.changes.keys()
    assert found.fitted == ("gradient-scaled", "learning-rate-scaled", "penalty-scaled")
    # There is neither momentum nor a schedule; what only reports another loss is no update.
    others = {"momentum-missing", "schedule-shifted", "penalty-in-loss", "precision", *found.fitted}
    assert not others & found.changes.keys()
    assert "momentum-missing" in concerned(Stub(), MOMENTUM).changes


def test_schedule_is_shifted_by_steps_and_epochs() -> None:
    by_epoch = {"kind": "exponential", "factor": 0.5, "per": "epoch"}
    spec = BATCHES | {"lr_schedule": by_epoch}
    shifts = concerned(Stub(**spec), spec).changes["schedule-shifted"]
    assert shifts == [{"lr_shift": steps} for steps in (1, -1, 3, -3)]


def test_causes_that_the_run_shows_are_given_or_looked_for() -> None:
    assert concerned(Stub(), {}, SHOWN | {"precision"}).shown == SHOWN
    assert concerned(Stub(shown={"target": 1}), {}).shown == {"target-broadcast"}


@pytest.mark.parametrize(
    ("first", "shows", "late"),
    [(20, None, True), (20, 10, True), (20, 9, False), (20, 15, True), (21, 10, True)],
)
def test_cause_is_late_that_shows_in_the_second_half_of_the_steps_that_agree(
    first: int, shows: int | None, late: bool
) -> None:
    stub: Any = Stub(shown={} if shows is None else {"target": shows})
    stub.first = first
    assert is_late(stub, [{"target": "batch-mean"}]) is late


def test_cause_is_late_if_it_is_in_one_of_its_ways() -> None:
    stub: Any = Stub(shown={"target": 9, "zeroing": 10})
    stub.first = 20
    assert is_late(stub, [{"target": "batch-mean"}, {"zeroing": "never"}])


def test_causes_that_show_early_are_left_out_of_a_late_divergence() -> None:
    stub = Stub(shown={"target": 2})
    for stub.first in (10, LATE):
        assert "target-broadcast" in concerned(stub, {}).changes
    stub.first = LATE + 1
    found = concerned(stub, {}).changes
    assert "target-broadcast" not in found
    assert "gradient-accumulated" in found


# --- how they are listed --------------------------------------------------------------------------

NAMED = Fit(1 / ROWS, 1e-9)


def one(*causes: str, **fits: Fit) -> Explanation:
    """Write an explanation, with the fits of gradient-scaled, and of learning-rate-scaled."""
    names = {"gradient": "gradient-scaled", "rate": "learning-rate-scaled"}
    return Explanation(causes, {}, 0.0, {names[key]: fit for key, fit in fits.items()})


HALVED, DOUBLED = one("loss-halved"), one("penalty-doubled")
PAIR = one("loss-halved", "penalty-doubled")
BY_ODD = one("gradient-scaled", gradient=ODD)
BY_HALF = one("gradient-scaled", gradient=Fit(0.5, 1e-9))
ODD_PAIR = one("gradient-scaled", "penalty-doubled", gradient=ODD)
NAMED_PAIR = one("learning-rate-scaled", "penalty-doubled", rate=NAMED)
HALF_PAIR = one("gradient-scaled", "penalty-doubled", gradient=Fit(0.5, 1e-9))
BY_N = one("learning-rate-scaled", rate=NAMED)
THREE = one("bias-not-penalized", "loss-halved", "penalty-missing")


@pytest.mark.parametrize(
    ("found", "plainest_first"),
    [
        ((DOUBLED, HALVED), (HALVED, DOUBLED)),
        # Single ones first, those without a factor before others; fewer before more.
        ((THREE, PAIR, BY_N, HALVED), (HALVED, BY_N, PAIR, THREE)),
        ((NAMED_PAIR, THREE), (THREE, NAMED_PAIR)),
        # A factor that another cause names, which explains the run too.
        ((BY_HALF,), (BY_HALF,)),
        ((BY_HALF, HALVED), (HALVED,)),
        ((HALF_PAIR, PAIR), (PAIR,)),
        ((HALF_PAIR, HALVED), (HALVED,)),
        # An odd factor beside another cause, where a plain reason is found.
        ((ODD_PAIR,), (ODD_PAIR,)),
        ((ODD_PAIR, HALVED), (HALVED,)),
        ((ODD_PAIR, BY_N), (BY_N,)),
        ((ODD_PAIR, PAIR), (PAIR,)),
        ((ODD_PAIR, NAMED_PAIR), (NAMED_PAIR, ODD_PAIR)),
        ((ODD_PAIR, BY_ODD), (BY_ODD, ODD_PAIR)),
        ((PAIR, BY_ODD), (BY_ODD, PAIR)),
    ],
)
def test_explanations_are_listed_the_plainest_first(found: Found, plainest_first: Found) -> None:
    assert listed(found, training({})) == plainest_first
