"""What tells two explanations apart, and which changes go together."""

from __future__ import annotations

import pytest

from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import distinguishing, merged
from regcheck.problem.problem import build_problem
from regcheck.rules.cause import Change
from regcheck.spec import from_mapping
from tests.by_hand import BASE, MOMENTUM, ROWS, Spec

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
    assert merged([{"loss_reduction": "sum"}, {"batch_divisor": "batch-size"}]) is None
    assert merged([{"loss_reduction": "sum"}]) == {"loss_reduction": "sum"}
