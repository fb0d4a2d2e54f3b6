"""Causes planted by hand: whether they are hidden just where they pass, and what they explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.compare import comparison
from regcheck.compare.comparison import Comparing, Watch
from regcheck.compare.not_distinguished import Hidden
from regcheck.problem.batches import Batch, training_of
from regcheck.report.result import Report
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from regcheck.trainers.sides import Sides
from tests.conftest import Spec, told
from tests.faults import BUGS, Plant
from tests.first_steps import DAMPENED, FIRSTS, MOMENTUM, NESTEROV, SATURATED, spec_of
from tests.random_specs import matched_spec
from tests.rule import Rule
from tests.test_not_distinguished import ACTING, FREE


def check_with(bug: Plant, spec: Spec) -> Report:
    """Check a spec with a bug on the scratch side."""
    with patch.object(checking, "NumpyTrainer", bug):
        return check(spec)


# --- what is hidden, and what passes --------------------------------------------------------------


class Untried:
    """Stands in the place of all trials."""

    def __init__(self, *given: object) -> None: ...

    def advance(self, *given: object) -> None: ...

    def hidden(self) -> list[Hidden]:
        return []


class Brief(Comparing):
    """Ends a run where it diverges."""

    def __init__(self, sides: Sides, spec: Any, training: Training, watch: Watch) -> None:
        super().__init__(sides, spec, training, watch)
        self.judged = spec.compare

    def advance(self, batch: Batch) -> bool:
        found = {"parameters": self.first.divergence, "loss": self.losses.divergence}
        return super().advance(batch) and not any(found[what] for what in self.judged)


def passing(spec: Spec, rows: int) -> list[str]:
    """Plant each cause that concerns a spec, and name those with which it does not diverge."""
    loaded = from_mapping(spec)
    training, convention = training_of(loaded.spec, rows), loaded.spec.named_convention()
    concerning = [
        name
        for name, cause in CAUSES.items()
        if cause.changes
        and cause.concerns(training, convention)
        and (cause.kind == "update" or "loss" in loaded.spec.compare)
    ]
    with patch.object(comparison, "Trials", Untried), patch.object(comparison, "Comparing", Brief):
        planted = spec | {"convention": "pytorch"}
        return [
            name
            for name in concerning
            if any(check_with(bug, planted).verdict != "diverged" for bug in faulty(name, spec))
        ]


def faulty(cause: str, spec: Spec) -> list[Plant]:
    """Return the trainers that have a cause: squares that start where torch's do have none."""
    own = spec.get("optimizer", {}).get("initial_accumulator_value", 0.0)
    rules = (getattr(bug, "keywords", {}).get("rule", Rule()) for bug in BUGS[cause])
    return [bug for bug, rule in zip(BUGS[cause], rules, strict=True) if rule.start != own]


JUDGINGS: tuple[Spec, ...] = (
    {},
    {"compare": ["loss"]},
    {"compare": ["parameters"]},
    {"tolerance": {"rtol": 1e-3}},
    {"tolerance": {"rounding": 100}},
)


def judged_spec(seed: int, folder: Path) -> tuple[Spec, int]:
    """Draw a short matched spec, judged in one of several ways; and its rows, if they are few."""
    spec = matched_spec(seed, folder) | JUDGINGS[seed % len(JUDGINGS)]
    spec["epochs"] = min(spec["epochs"], 6 if spec["batch_size"] == "full" else 2)
    return spec, len(spec["data"].get("X", ()))  # none where they are many, and in a file


@pytest.mark.slow
@pytest.mark.search(sample=2, whole=300)
def test_what_is_hidden_is_just_what_passes_once_it_is_planted(seed: int, tmp_path: Path) -> None:
    spec, rows = judged_spec(seed, tmp_path)
    report = check(spec) if rows else None
    # A drift that rounding makes by itself has no need of a bug.
    if report is not None and report.verdict != "diverged":
        assert [one.cause for one in report.not_distinguished] == passing(spec, rows)


def test_random_specs_hide_some_causes(tmp_path: Path) -> None:
    # Else there were nothing to find above.
    specs = [spec for seed in range(50) if (spec := judged_spec(seed, tmp_path))[1]]

    assert len(specs) >= 8
    assert sum(bool(check(spec).not_distinguished) for spec, _ in specs[:8]) > 1


# --- whether a cause explains a divergence ------------------------------------------------------

UPDATES = [name for name, cause in CAUSES.items() if cause.kind == "update" and cause.changes]


def explaining(spec: Spec, bug: Plant) -> set[str]:
    """Plant a bug, and name the causes of which one alone explains all that comes of it."""
    diagnosis = told(check_with(bug, spec).diagnosis)
    assert diagnosis.explained
    return {one.causes[0] for one in diagnosis.explanations if len(one.causes) == 1}


NEEDED: dict[str, Spec] = {
    "bce-saturated": SATURATED | MOMENTUM,
    "bias-penalized": FREE,
    "dampening-on-first-step": DAMPENED,
    "nesterov-missing": NESTEROV,
}
"""What a cause needs to act, where plain momentum and a penalty on all do not do."""

SAME = {
    # w − lr (v + λ w) and (1 − lr λ) w − lr v are one rule, whatever the momentum.
    "decay-after-momentum": {"penalty-decoupled"},
    "penalty-decoupled": {"decay-after-momentum"},
    # v holds 1 − μ of all gradients: so does an lr of 1 − μ times torch's.
    "momentum-dampened": {"learning-rate-scaled"},
    # Two micro-batches a step, and a last one with its own: the sum is twice the mean here.
    "accumulation-not-averaged": {"gradient-scaled"},
    # An exponential schedule that is a step early is one factor on every lr.
    "schedule-shifted": {"learning-rate-scaled"},
}
"""What is the same rule as a cause in the training here, in one of its ways at least."""


@pytest.mark.sampled(every=36)
@pytest.mark.parametrize(
    "dtype", ["float64", pytest.param("float32", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("cause", UPDATES)
def test_cause_alone_explains_what_its_bug_does(cause: str, dtype: str) -> None:
    # Clipping everything would hide whatever scales the gradient from float32.
    for place, bug in enumerate(BUGS[cause]):
        own = FIRSTS[cause][min(place, len(FIRSTS[cause]) - 1)].settings
        of_another = own.get("optimizer", {}).get("name", "sgd") != "sgd"
        needed = own if of_another else NEEDED.get(cause, MOMENTUM)
        spec = ACTING | needed | {"dtype": dtype, "clip_norm": 5.0}
        assert cause in (found := explaining(spec, bug))
        assert found <= {cause} | SAME.get(cause, set())


def explains(spec: Spec, cause: str) -> bool | None:
    """Return whether a run is as expected, if it is expected to diverge by a cause."""
    return check(spec | {"expect": {"cause": cause}}).expected


BY_BATCH: Spec = {"convention": "divided-by-batch"}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("changes", "cause", "explained"),
    [
        # The penalty in the loss stands beside another penalty.
        (BY_BATCH, "penalty-in-loss", True),
        (BY_BATCH, "penalty-divided-by-batch", True),
        (BY_BATCH, "penalty-divided-by-dataset", True),  # the batch is the dataset
        (BY_BATCH | {"batch_size": 4}, "penalty-divided-by-dataset", False),
        (BY_BATCH, "penalty-missing", False),
        # The loss is torch's, with whatever penalty: nothing in it needs explaining.
        ({"convention": {"penalty_factor": 2}}, "penalty-in-loss", False),
        # One row a step: the loss differs, and a division by it does nothing at all.
        (
            {"batch_size": 1, "epochs": 1, "convention": {"penalty_in_loss": True}},
            "penalty-divided-by-batch",
            False,
        ),
        # The loss differs by half of it.
        ({"convention": {"loss_factor": 0.5}}, "penalty-in-loss", False),
        # Both act: the penalty is doubled, and not halved.
        ({"convention": {"loss_factor": 0.5, "penalty_factor": 2}}, "penalty-halved", False),
        # Rounding has no cause.
        ({"tolerance": "exact", "weight_decay": 0, "epochs": 50}, "penalty-doubled", False),
    ],
    ids=str,
)
def test_cause_explains_what_it_does_and_nothing_else(
    changes: Spec, cause: str, explained: bool
) -> None:
    assert check(spec_of() | changes).verdict == "diverged"
    assert explains(spec_of() | changes, cause) is explained


@pytest.mark.parametrize(("loose", "strict"), [("weight", "bias"), ("bias", "weight")])
def test_cause_explains_each_tensor_by_its_own_tolerance(loose: str, strict: str) -> None:
    tolerance = {loose: {"rounding": 1e18}, strict: {"rounding": 8}}
    spec = spec_of() | {"convention": "doubled", "tolerance": tolerance}
    assert explains(spec, "penalty-doubled")
    assert explains(spec, "penalty-halved") is False


def test_runs_that_agree_or_say_nothing_have_no_cause() -> None:
    assert explains(spec_of(), "penalty-doubled") is False
    assert explains(spec_of() | {"batch_size": 20, "drop_last": True}, "loss-halved") is False


def test_other_start_is_explained_by_no_cause_that_does_nothing() -> None:
    # λ is 0: with the cause or without it, the steps agree; the starts do not.
    spec = spec_of() | {"weight_decay": 0, "expect": {"cause": "penalty-doubled"}}
    report = check_with(BUGS["initial-parameters"][0], spec)

    assert report.verdict == "diverged"
    assert report.expected is False
