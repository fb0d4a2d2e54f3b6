"""A cause together with another value of an option: both are named, with the value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import with_another_option
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import Convention
from tests.by_hand import training
from tests.conftest import Spec
from tests.test_search import Stub

random = np.random.default_rng(8)
X = random.normal(size=(12, 2))
SPEC: Spec = {
    "data": {"X": X.tolist(), "y": (X @ [1.0, -0.5] + random.normal(size=12)).tolist()},
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.4]},
    "lr": 0.05,
    "weight_decay": 0.3,
    "batch_size": 4,
    "epochs": 4,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("torchs", "scratchs", "convention", "cause", "option", "value"),
    [
        # Neither 0.1 nor 1, where the catalogue has squares start.
        (
            {"name": "adagrad"},
            {"name": "adagrad", "initial_accumulator_value": 0.2},
            {"update_order": "bias-first"},
            "update-sequential",
            "initial_accumulator_value",
            0.2,
        ),
        (
            {"name": "adamw", "eps": 0.02},
            {"name": "adamw", "eps": 0.05},
            {"penalty_norm": "unsquared"},
            "penalty-norm-not-squared",
            "eps",
            0.05,
        ),
        (
            {"name": "sgd", "momentum": 0.9},
            {"name": "sgd", "momentum": 0.8},
            {"penalty_norm": "unsquared"},
            "penalty-norm-not-squared",
            "momentum",
            0.8,
        ),
        # Else momentum is ignored, and is 0.8.
        (
            {"name": "sgd", "momentum": 0.9, "nesterov": True},
            {"name": "sgd", "momentum": 0.8},
            {},
            "nesterov-missing",
            "momentum",
            0.8,
        ),
    ],
)
def test_cause_and_another_option_are_named_together(
    torchs: Spec, scratchs: Spec, convention: Spec, cause: str, option: str, value: float
) -> None:
    told = {"optimizer": scratchs, "convention": convention, "framework": {"optimizer": torchs}}
    report = check(SPEC | told)

    assert report.diagnosis is not None
    assert report.diagnosis.best is not None
    assert report.diagnosis.best.causes == tuple(sorted((cause, "option-differs")))
    assert report.diagnosis.best.options[option].factor == pytest.approx(value, rel=1e-9)
    assert report.diagnosis.best.residual <= 1


@pytest.mark.exhaustive
def test_cause_and_another_option_come_before_two_causes_and_an_odd_factor() -> None:
    # Of squares that start at 0.1, and √(10⁵) times the gradient, the step is the same.
    own = {"optimizer": {"name": "adagrad", "eps": 1e-6}, "convention": {"epsilon": "inside"}}
    report = check(SPEC | own | {"weight_decay": 0, "framework": {"optimizer": "adagrad"}})

    assert report.diagnosis is not None
    assert report.diagnosis.best is not None
    assert report.diagnosis.best.causes == ("option-differs", "rmsprop-epsilon-inside")
    assert report.diagnosis.best.options["eps"].factor == 1e-6


ADAM_AS_OFTEN_WRITTEN: Spec = {
    "optimizer": {"name": "adam", "eps": 1e-7},
    "convention": {"epsilon": "uncorrected", "penalize_bias": False},
    "framework": {"optimizer": "adam"},
}


@pytest.mark.slow
def test_two_causes_and_another_option_are_named_together() -> None:
    report = check(SPEC | ADAM_AS_OFTEN_WRITTEN | {"lr": 0.01})

    assert report.diagnosis is not None
    assert report.diagnosis.best is not None
    causes = ("adam-epsilon-uncorrected", "bias-not-penalized", "option-differs")
    assert report.diagnosis.best.causes == causes
    assert report.diagnosis.best.options["eps"].factor == 1e-7


def test_each_cause_that_a_run_shows_is_tried_beside_another_option() -> None:
    tried: list[tuple[tuple[str, ...], Change]] = []

    def other_option(_: object, causes: tuple[str, ...], change: Change) -> Iterator[Explanation]:
        tried.append((causes, change))
        if causes == ("penalty-doubled",):
            yield Explanation((*causes, "option-differs"), change, 0.5)

    stub: Any = Stub()
    shown = frozenset({"loss-halved", "penalty-doubled"})
    with patch("regcheck.diagnosis.search.with_other_option", other_option):
        (found,) = with_another_option(stub, training({}), Convention(), shown)

    assert found.causes == ("penalty-doubled", "option-differs")
    halved, doubled = ({"loss_factor": 0.5}, {"penalty_factor": 2.0})
    assert tried == [(("loss-halved",), halved), (("penalty-doubled",), doubled)]


@pytest.mark.parametrize(
    "model", [pytest.param("linear", marks=pytest.mark.exhaustive), "logistic"]
)
def test_cause_that_makes_the_reported_losses_too_comes_first(model: str) -> None:
    # Adafactor divides by the gradient's size: over B or over the spec's batch size, and summed.
    y = (X[:, 0] > 0).astype(float)
    data = SPEC["data"] if model == "linear" else {"X": X.tolist(), "y": y.tolist()}
    spec = SPEC | {"data": data, "model": model, "optimizer": "adafactor", "batch_size": 5}
    report = check(spec | {"epochs": 2, "convention": {"loss_reduction": "sum"}})

    assert report.diagnosis is not None
    told = [one.causes for one in report.diagnosis.explanations]
    assert told == [("loss-summed",), ("last-batch-divisor",)]
    assert report.diagnosis.causes == ("loss-summed",)
