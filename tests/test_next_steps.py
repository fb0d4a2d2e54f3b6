"""What a report says of evidence in short: it goes by its fields, and by no words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest

from regcheck.checking import check
from regcheck.diagnosis.evidence.record import Evidence, Kind, remark
from regcheck.diagnosis.evidence.tensors import FROZEN, NO_RULE, named
from regcheck.report.result import Report
from regcheck.report.summary import Summary, summary
from regcheck.report.texts.diagnosis.next_steps import (
    BY_KIND,
    BY_STAGE,
    IN_ORDER,
    LOSSES_ALIKE,
    YIELD_GRADIENT,
    next_steps,
)
from regcheck.rules.causes.cause import Stage
from tests.by_hand import BASE, At, code
from tests.conftest import told

NEXT = {
    "yielded-early": "put `yield` after the update, and yield with the updated parameters the loss",
    "says-next": "",
    "look-ahead": "",
    "frozen": "train these tensors in torch too, or leave them as they are",
    "not-given": "give these tensors to torch's optimizer, or leave them as they are",
    "float32": "compute all of it in float64: look for `.astype(np.float32)`",
    "l1-penalty": "take λ w, torch's weight decay, in the place of c sign(w); or give torch the L1",
    "never-updated": "update in each step what is never updated, as all else",
    "other-t": "let t be 1 at the first step, and one more at each, in all epochs alike",
    "schedule-goes-on": "let the lr stay as it is at the end of the schedule",
    "schedule-ignored": "take the lr of the schedule in each step",
    "other-lrs": "take in each step the lr of the spec and its `lr_schedule`",
}
"""What is next by the kind of evidence, of several kinds by the first."""

OF_GRADIENT = "compare the gradient at step 1 with torch's, tensor by tensor"

WORDS = (
    "The updates are never updated, though frozen in torch (requires_grad is False), without "
    "clipping: look for the constant lr."
)
"""A sentence with words of other sentences, as a tensor's name may have them too."""


@cache
def unexplained() -> Report:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw + 0.1 * at.gw**2, at.gb)

    report = check(BASE, scratch=code(step))
    assert (told(report.first_divergence).at.tensor, told(report.diagnosis).causes) == (
        "weight",
        (),
    )
    return report


def short(*evidence: Evidence, of_loss: Evidence | None = None) -> Summary:
    found = replace(told(unexplained().diagnosis), evidence=evidence, loss_evidence=of_loss)
    return summary(replace(unexplained(), diagnosis=found))


@pytest.mark.parametrize("kind", NEXT)
def test_each_kind_says_what_is_next(kind: Kind) -> None:
    (text,) = short(remark(WORDS, kind)).next or ("",)
    assert text.startswith(NEXT[kind])
    assert bool(text) == bool(NEXT[kind])


def test_kinds_that_say_nothing_of_what_is_next_leave_it_to_the_stage() -> None:
    assert [*NEXT] == [*BY_KIND]
    for kind in {*get_args(Kind)} - NEXT.keys():
        assert short(remark(WORDS, kind)).next[0].startswith(OF_GRADIENT)
    assert short(remark(WORDS, "loss-differs"), of_loss=remark(".")).next == (LOSSES_ALIKE,)


def test_of_several_kinds_the_first_is_next() -> None:
    both = remark(WORDS, "never-updated"), remark(WORDS, "frozen")
    assert short(*both).next == short(*both[::-1]).next == (BY_KIND["frozen"],)


@pytest.mark.parametrize(
    ("stage", "said", "asks"),
    [
        ("gradient", BY_STAGE["gradient"], True),
        ("penalty", BY_STAGE["penalty"], False),
        ("optimizer", BY_STAGE["optimizer"], False),
        ("update", IN_ORDER, True),
        (None, IN_ORDER, True),
    ],
)
def test_stage_says_what_to_compare_and_may_ask_for_the_gradient(
    stage: Stage | None, said: str, asks: bool
) -> None:
    report = unexplained()
    found = replace(report, diagnosis=replace(told(report.diagnosis), evidence=(), stage=stage))
    assert next_steps(found) == [said.format(step="step 1"), *([YIELD_GRADIENT] if asks else [])]


LONG = "weight".ljust(140, "t")


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (Evidence("The updates go up", ": down.", tensors=()), "the updates go up: down"),
        (Evidence("Weight goes up.", tensors=("bias", "weight")), "Weight goes up"),
        (Evidence("The updates go up", ": down.".ljust(140)), "the updates go up"),
        (Evidence(LONG), LONG),
    ],
    ids=["all", "one", "long", "longest"],
)
def test_clause_is_in_the_headline(evidence: Evidence, said: str) -> None:
    found = short(remark("The updates are"), evidence, Evidence("Never said."))
    assert found.headline == f"DIVERGED at step 1: {said}"
    assert found.known[:2] == ("The updates are", evidence.text)


@pytest.mark.parametrize(
    "evidence",
    [
        remark("The updates are."),
        Evidence("weight and w are so.", tensors=("bias",)),
        Evidence(LONG + "."),
    ],
    ids=["remark", "another tensor", "too long"],
)
def test_what_is_not_for_the_headline_is_not_in_it(evidence: Evidence) -> None:
    assert short(evidence).headline.endswith("in the gradient; no known cause explains it")


def test_loss_that_differs_already_is_in_the_headline_with_its_reason() -> None:
    reason = Evidence("torch's loss is the other's + 1", ", in all 4 steps.")
    known = "DIVERGED at step 1: the loss differs already, computed from the same parameters; "
    differs = remark("The loss differs already.", "loss-differs")
    assert short(differs).headline == f"{known}no known cause explains it"
    assert short(differs, of_loss=reason).headline == f"{known}torch's loss is the other's + 1"


def test_tensors_are_named_before_how_they_go() -> None:
    names = [f"w{place}" for place in range(9)]
    assert named(names[:1], FROZEN).text == f"w0 is {FROZEN.text}"
    listed = "w0, w1, w2, w3, w4, w5"
    some, many = named(names[:7], NO_RULE), named(names, NO_RULE)
    assert some.text == f"{listed} and w6 are {NO_RULE.text}"
    assert many.text == f"{listed} and 3 more are {NO_RULE.text}"
    # The headline is on a tensor that it names.
    assert (some.tensors, many.tensors) == (tuple(names[:7]), tuple(names[:6]))
