"""Which sets of causes are tried, and listed how, and what tells two explanations apart."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.diagnosis.distinguishing import distinguishing, standing_for, trained
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import (
    LATE,
    Found,
    Hypotheses,
    concerning,
    explaining,
    is_late,
    listed,
    merged,
    search,
    trials,
)
from regcheck.numerics.least_squares import Fit
from regcheck.problem.batches import schedule_of, training_of
from regcheck.problem.problem import AS_IT_IS, Problem, build_problem, small_problems
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from tests.by_hand import BASE, BATCHES, MOMENTUM, ROWS, Spec

# --- what tells two explanations apart ------------------------------------------------------------

PENALTY_OVER = {"divide_penalty_by": "dataset"}, {"divide_penalty_by": "batch"}

TOLD: dict[str, tuple[Spec, Change, Change, str]] = {
    "as it is": ({}, {}, {"penalty_factor": 2.0}, "other data"),
    "rows": ({}, *PENALTY_OVER, "mini-batches"),
    "rows, by a fitted factor": (
        {},
        {"divide_penalty_by": "batch"},
        {"penalty_factor": 1 / ROWS},
        "mini-batches",
    ),
    "the last batch": (
        {"batch_size": 8},
        {},
        {"batch_divisor": "batch-size"},
        "mini-batches with a smaller last one",
    ),
    "the lr": (
        {"lr": 0.5},
        {"decay": "decoupled-unscaled"},
        {"penalty_factor": 2.0},
        "another lr",
    ),
    "the schedule": ({}, {}, {"lr_shift": 1}, "an lr that changes"),
    "momentum": ({}, {}, {"momentum": "ignored"}, "momentum"),
    "both": (
        {},
        {},
        {"momentum_form": "lr-inside"},
        "momentum and an lr that changes",
    ),
    "a second step": ({"epochs": 1} | MOMENTUM, {}, {"momentum": "ignored"}, "more steps"),
    "its values": ({"epochs": 2} | MOMENTUM, {}, {"momentum": "ignored"}, "other data"),
    "a start": (
        {"init": {"weight": [0.5, -0.7, 0.9], "bias": [0]}},
        {},
        {"penalty_factor": 2.0},
        "a start away from zero",
    ),
    "nothing but overflow": ({}, {}, {"gradient_factor": 1e300}, ""),
    "nothing but rounding": ({"lr": 1e5}, {"loss_factor": 0.3}, {"gradient_factor": 0.3}, ""),
    "nothing": (MOMENTUM, {"loss_factor": 0.5}, {"gradient_factor": 0.5}, ""),
}


@pytest.mark.parametrize("name", TOLD)
def test_first_circumstance_under_which_two_rules_differ_is_named(name: str) -> None:
    spec, one, other, told = TOLD[name]
    problem = build_problem(from_mapping(BASE | spec))
    explanations = [Explanation((), change, 0.0) for change in (one, other)]
    assert distinguishing(problem, explanations) == ("", told)
    assert distinguishing(problem, explanations[:1]) == ("",)


def test_decay_tells_where_there_is_none() -> None:
    problem = build_problem(from_mapping(BASE | {"weight_decay": 0}))
    explanations = [Explanation((), change, 0.0) for change in ({}, {"penalty_factor": 2.0})]
    assert distinguishing(problem, explanations) == ("", "another weight_decay")


def test_changes_of_one_key_or_of_one_divisor_do_not_go_together() -> None:
    assert merged([{"loss_factor": 0.5}, {"penalty_factor": 2.0}]) == {
        "loss_factor": 0.5,
        "penalty_factor": 2.0,
    }
    assert merged([{"loss_factor": 0.5}, {"loss_factor": 2.0}]) is None
    divisors: list[Change] = [{"loss_reduction": "sum"}, {"batch_divisor": "batch-size"}]
    assert merged(divisors) is merged([*divisors, {"loss_factor": 0.5}]) is None
    assert merged([{"loss_reduction": "sum"}]) == {"loss_reduction": "sum"}


def problem_of(spec: Spec) -> Problem:
    return build_problem(from_mapping(BASE | spec))


def training(spec: Spec) -> Training:
    return training_of(from_mapping(BASE | spec).spec, ROWS)


@pytest.mark.parametrize(
    ("size", "small"),
    [("full", {ROWS: 12}), (16, {16: 4, ROWS: 12}), (ROWS + 1, {ROWS: 12})],
)
def test_rows_of_the_small_problem_stand_for_those_of_the_run(
    size: Any, small: dict[float, float]
) -> None:
    problem = problem_of({"batch_size": size})
    inverse = {1 / there: 1 / here for there, here in small.items()}
    assert standing_for(problem, small_problems(problem)[AS_IT_IS]) == small | inverse


@pytest.mark.parametrize(
    ("change", "here"),
    [
        ({"penalty_factor": (1 + 1e-10) / ROWS}, {"penalty_factor": 1 / 12}),
        ({"gradient_factor": float(ROWS)}, {"gradient_factor": 12.0}),
        ({"lr_factor": 0.5 / ROWS}, {}),
        ({"penalty_factor": 1.0}, {}),
        ({"loss_factor": 1 / ROWS}, {}),  # not a fitted one
    ],
)
def test_fitted_factor_that_is_a_number_of_rows_is_that_of_the_small_problem(
    change: Change, here: Change
) -> None:
    problem = small_problems(problem_of(BATCHES))[AS_IT_IS]
    scaled = {1.0: 12.0, float(ROWS): 12.0, 1 / ROWS: 1 / 12}
    steps = trained(problem, Explanation((), change, 0.0), scaled)
    assert steps.shape == (6, 3)
    assert np.array_equal(steps, trained(problem, Explanation((), here or change, 0.0), {}))


# --- which sets are tried -------------------------------------------------------------------------

ODD = Fit(1.37, 1e-9)


class Stub:
    """Stands for a replay in which some sets of causes explain the run; tells what is tried."""

    def __init__(
        self,
        explain: Mapping[tuple[str, ...], Change | None] | None = None,
        fit: Fit | None = ODD,
        shown: Mapping[str, int] | None = None,
        **spec: Any,
    ) -> None:
        self.explain, self.fitted, self.shown = explain or {}, fit, shown
        self.tried: list[tuple[tuple[str, ...], Change]] = []
        self.first = 1
        schedule = schedule_of(from_mapping(BASE | spec).spec, ROWS)
        self.torch = SimpleNamespace(problem=SimpleNamespace(schedule=schedule))

    @property
    def sets(self) -> list[tuple[str, ...]]:
        return [causes for causes, _ in self.tried]

    def explanation(
        self, causes: tuple[str, ...], change: Change, fits: Any = None, note: str = ""
    ) -> Explanation | None:
        self.tried.append((causes, change))
        if causes not in self.explain or self.explain[causes] not in (None, change):
            return None
        return Explanation(causes, change, 0.0, fits or {}, note)

    def fit(self, change: Change, key: str) -> Fit | None:
        return self.fitted

    def first_shown(self, change: Change) -> int | None:
        (key,) = change
        return 1 if self.shown is None else self.shown.get(key)


def hypotheses(stub: Any, shown: str = "abc", fitted: tuple[str, ...] = ()) -> Hypotheses:
    changes: dict[str, list[Change]] = {
        "a": [{"loss_factor": 0.5}],
        "b": [{"penalty_factor": 2.0}],
        "c": [{"lr_shift": 1}, {"lr_shift": -1}],
    }
    return Hypotheses(stub, training({}), changes, frozenset(shown), fitted)


@pytest.mark.parametrize(
    ("size", "hidden", "sets"),
    [
        (1, False, [("a",), ("b",)]),
        (2, False, [("a", "b")]),
        (1, True, [("c",), ("c",)]),
        (2, True, [("a", "c"), ("a", "c"), ("b", "c"), ("b", "c")]),
    ],
)
def test_sets_of_so_many_causes_are_tried_once(
    size: int, hidden: bool, sets: list[tuple[str, ...]]
) -> None:
    stub = Stub()
    assert not list(explaining(hypotheses(stub, "ab"), (), size, False, hidden))
    assert stub.sets == sets


def test_no_set_is_tried_of_which_a_part_explains_the_run() -> None:
    stub = Stub({("b", "c"): {"penalty_factor": 2.0, "lr_shift": -1}})
    found = (Explanation(("a",), {}, 0.0),)
    (one,) = explaining(hypotheses(stub), found, 2, False, False)
    assert (one.causes, one.change) == (("b", "c"), {"penalty_factor": 2.0, "lr_shift": -1})
    assert stub.sets == [("b", "c")] * 2


def test_set_with_an_open_factor_is_tried_with_each() -> None:
    stub = Stub()
    both = ("gradient-scaled", "penalty-scaled")
    assert not list(explaining(hypotheses(stub, fitted=both), (), 1, True, False))
    assert stub.tried == [
        (("a", "gradient-scaled"), {"loss_factor": 0.5, "gradient_factor": 1.37}),
        (("a", "penalty-scaled"), {"loss_factor": 0.5, "penalty_factor": 1.37}),
        (("b", "gradient-scaled"), {"penalty_factor": 2.0, "gradient_factor": 1.37}),
        # b says itself what the penalty's factor is.
        *((("c", "gradient-scaled"), {"lr_shift": n, "gradient_factor": 1.37}) for n in (1, -1)),
        *((("c", "penalty-scaled"), {"lr_shift": n, "penalty_factor": 1.37}) for n in (1, -1)),
    ]


@pytest.mark.parametrize(
    ("cause", "factor", "tried"),
    [
        ("gradient-scaled", -0.5, False),
        ("gradient-scaled", 0.0, False),
        ("gradient-scaled", 0.7, True),
        ("learning-rate-scaled", -0.5, False),
        ("penalty-scaled", -0.5, True),
        ("penalty-scaled", 0.0, True),
    ],
)
def test_only_a_penalty_may_have_a_factor_that_is_not_positive(
    cause: str, factor: float, tried: bool
) -> None:
    stub = Stub(fit=Fit(factor, 1e-9))
    assert any(trials(hypotheses(stub), (), cause)) is False
    assert stub.tried == ([((cause,), {CAUSES[cause].factor_key: factor})] if tried else [])


def test_plain_number_near_a_factor_is_tried_before_it() -> None:
    stub = Stub(fit=Fit(0.025 + 1e-6, 1e-6))
    list(trials(hypotheses(stub), (), "gradient-scaled"))
    assert [change["gradient_factor"] for _, change in stub.tried] == [1 / ROWS, 0.025 + 1e-6]
    none = Stub(fit=None)
    assert not list(trials(hypotheses(none), (), "gradient-scaled"))
    assert not none.tried


@pytest.mark.parametrize(("shift", "note"), [(1, "1 step early"), (-1, "1 step late")])
def test_shift_of_the_schedule_is_noted_where_it_is_all(shift: int, note: str) -> None:
    change = {"lr_shift": shift}
    for causes, told in ((("schedule-shifted",), note), (("schedule-shifted", "z"), "")):
        stub = Stub({causes: None})
        own = hypotheses(stub)._replace(changes={"schedule-shifted": [change], "z": [{}]})
        (one,) = trials(own, causes, None)
        assert one is not None
        assert one.note == told


SHOWN = frozenset({"loss-halved", "penalty-doubled", "target-broadcast"})
FITTED = {name for name, cause in CAUSES.items() if cause.fitted}


def kinds(stub: Stub) -> list[tuple[int, bool, bool]]:
    """List how many causes are tried beside one with a factor or none, and if any is hidden."""
    found = (
        (len(own - FITTED), bool(own & FITTED), not own <= SHOWN | FITTED)
        for own in map(set, stub.sets)
    )
    return list(dict.fromkeys(found))


ROUND_1 = [(1, False, False), (0, True, False), (2, False, False), (1, True, False)]


@pytest.mark.parametrize(
    ("explain", "rounds"),
    [
        ([], [(3, False, False), (2, True, False), (2, False, True), (1, True, True)]),
        ([("loss-halved",)], []),
        ([("gradient-scaled",)], [(2, True, False)]),  # by an odd factor
        ([tuple(sorted(SHOWN))], [(3, False, False)]),
    ],
)
def test_search_goes_on_until_the_run_is_explained_plainly(
    explain: list[tuple[str, ...]], rounds: list[tuple[int, bool, bool]]
) -> None:
    stub: Any = Stub(dict.fromkeys(explain))
    with patch("regcheck.diagnosis.search.with_other_option", return_value=()):
        found = search(stub, training({}), Convention(), SHOWN)
    assert [one.causes for one in found] == explain
    assert kinds(stub) == ROUND_1 + rounds
    once = {(causes, str(change)) for causes, change in stub.tried}
    assert len(once) == len(stub.tried)


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
        ((ODD_PAIR, NAMED_PAIR), (ODD_PAIR, NAMED_PAIR)),
        ((ODD_PAIR, BY_ODD), (BY_ODD, ODD_PAIR)),
        ((PAIR, BY_ODD), (BY_ODD, PAIR)),
    ],
)
def test_explanations_are_listed_the_plainest_first(found: Found, plainest_first: Found) -> None:
    assert listed(found, training({})) == plainest_first
