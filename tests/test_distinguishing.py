"""What tells two explanations apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.distinguishing import distinguishing, standing_for, trained
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import merged
from regcheck.problem.problem import AS_IT_IS, Problem, build_problem, small_problems
from regcheck.rules.causes.cause import Change
from regcheck.spec import from_mapping
from tests.by_hand import BASE, BATCHES, MOMENTUM, ROWS, Spec

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
    "the schedule": ({}, {}, {"lr_shift": 1}, "an lr schedule"),
    "momentum": ({}, {}, {"momentum": "ignored"}, "momentum"),
    "another momentum": (
        {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.9}},
        {"first_step": "dampened"},
        {"momentum_form": "dampened"},
        "another momentum",
    ),
    "both": (
        {},
        {},
        {"momentum_form": "lr-inside"},
        "momentum and an lr schedule",
    ),
    "a second step": ({"epochs": 1} | MOMENTUM, {}, {"momentum": "ignored"}, "more steps"),
    "its values": ({"epochs": 2} | MOMENTUM, {}, {"momentum": "ignored"}, "other data"),
    "a start": (
        {"init": {"weight": [0.5, -0.7, 0.9], "bias": [0]}},
        {},
        {"penalty_factor": 2.0},
        "nonzero initial parameters",
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
    assert distinguishing(problem, explanations) == ("", "weight_decay")


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


def test_factor_that_is_the_batch_size_follows_it_into_other_batches() -> None:
    # B · (sum over a smaller last batch)/B is the sum, whatever B is.
    report = check(BASE | {"batch_size": 16, "convention": {"loss_reduction": "sum"}})

    assert report.diagnosis is not None
    causes = [one.causes for one in report.diagnosis.explanations]
    assert causes == [("loss-summed",), ("gradient-scaled", "last-batch-divisor")]
    assert report.diagnosis.distinguished_by == ("", "")
