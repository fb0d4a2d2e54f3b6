"""Which sets of causes are tried."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import (
    Hypotheses,
    Round,
    explaining,
    nothing_found,
    search,
    trials,
)
from regcheck.numerics.least_squares import Fit
from regcheck.problem.batches import schedule_of
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import Convention
from regcheck.spec import from_mapping
from tests.by_hand import BASE, ROWS, training

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

    def unwidened(self, change: Change) -> float:
        return 0.0

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


PLAIN = Round(nothing_found, ())
HIDDEN, RARE = PLAIN._replace(hidden=True), PLAIN._replace(rare=True)
"""Rounds of which only the kind of sets is looked at."""


@pytest.mark.parametrize(
    ("size", "of", "sets"),
    [
        (1, PLAIN, [("a",), ("b",)]),
        (2, PLAIN, [("a", "b")]),
        (1, HIDDEN, [("c",), ("c",)]),
        (2, HIDDEN, [("a", "c"), ("a", "c"), ("b", "c"), ("b", "c")]),
    ],
)
def test_sets_of_so_many_causes_are_tried_once(
    size: int, of: Round, sets: list[tuple[str, ...]]
) -> None:
    stub = Stub()
    assert not list(explaining(hypotheses(stub, "ab"), (), size, False, of))
    assert stub.sets == sets


def test_rare_causes_are_tried_by_themselves_and_beside_others_at_last() -> None:
    tried = {}
    for of in (PLAIN, RARE):
        for size, fitted in ((1, False), (2, False), (1, True)):
            stub = Stub()
            own = hypotheses(stub, fitted=("penalty-scaled",))._replace(rare=frozenset("a"))
            assert not list(explaining(own, (), size, fitted, of))
            tried[of.rare, size, fitted] = {"".join(causes)[:2] for causes in stub.sets}
    assert tried[False, 1, False] == {"a", "b", "c"}
    assert tried[False, 2, False] == {"bc"}
    assert tried[True, 2, False] == {"ab", "ac"}
    assert tried[False, 1, True] == {"cp"}  # b is a factor on the penalty itself
    assert tried[True, 1, True] == {"ap"}


def test_no_set_is_tried_of_which_a_part_explains_the_run() -> None:
    stub = Stub({("b", "c"): {"penalty_factor": 2.0, "lr_shift": -1}})
    found = (Explanation(("a",), {}, 0.0),)
    (one,) = explaining(hypotheses(stub), found, 2, False, PLAIN)
    assert (one.causes, one.change) == (("b", "c"), {"penalty_factor": 2.0, "lr_shift": -1})
    assert stub.sets == [("b", "c")] * 2


def test_set_with_an_open_factor_is_tried_with_each() -> None:
    stub = Stub()
    both = ("gradient-scaled", "penalty-scaled")
    assert not list(explaining(hypotheses(stub, fitted=both), (), 1, True, PLAIN))
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
    stub = Stub(fit=Fit(0.025 + 1e-7, 1e-6))
    list(trials(hypotheses(stub), (), "gradient-scaled"))
    tried = [change["gradient_factor"] for _, change in stub.tried]
    assert tried == [1 / ROWS, 0.0250001]
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
