"""What a run could not have shown, and whether a cause explains what it shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from regcheck import checking
from regcheck.checking import check
from regcheck.compare import comparison
from regcheck.compare.comparison import Comparing
from regcheck.compare.not_distinguished import Hidden
from regcheck.problem.batches import Batch, training_of
from regcheck.report.result import Report
from regcheck.rules.cause import HIDING
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import is_bias
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from regcheck.trainers.sides import Sides
from regcheck.user_code.problem_api import UserProblem
from tests.faults import BUGS, Plant
from tests.random_specs import matched_spec
from tests.test_concerns import ALWAYS, BIAS, COUPLED, PENALTY
from tests.test_sabotage import (
    DAMPENED,
    MOMENTUM,
    NESTEROV,
    NEW_LR_AT_5,
    SATURATED,
    TARGETS,
    ZEROS,
    spec_of,
)

Spec = dict[str, Any]

ACTING: Spec = spec_of(batches="mini") | {
    "batch_size": 3,  # 3, 3, 3 and 2 rows, of which two make a step
    "accumulate": 2,
    "epochs": 4,
    "clip_norm": 1.0,
    "lr_schedule": {"kind": "exponential", "factor": 0.8},
}
"""A training in which everything acts that can: two steps an epoch, all but the first clipped."""

DATA: Spec = spec_of()["data"]
FREE: Spec = {"weight_decay": {"weight": 0.5, "bias": 0}}

# --- what a run could not have shown ------------------------------------------------------------


@pytest.mark.parametrize("momentum", [MOMENTUM, NESTEROV, DAMPENED], ids=["plain", "N", "damped"])
@pytest.mark.parametrize("decay", [{}, FREE], ids=["both", "bias-free"])
def test_run_in_which_everything_acts_could_have_shown_every_cause(
    momentum: Spec, decay: Spec
) -> None:
    report = check(ACTING | momentum | decay)

    assert report.verdict == "equivalent"
    assert report.not_distinguished == ()


def test_runs_in_which_everything_acts_concern_every_cause() -> None:
    concerned = set()
    for changes in (MOMENTUM | FREE, NESTEROV, DAMPENED, SATURATED):
        loaded = from_mapping(ACTING | changes)
        training, convention = training_of(loaded.spec, 11), loaded.spec.named_convention()
        concerned |= {name for name, one in CAUSES.items() if one.concerns(training, convention)}

    assert concerned == set(CAUSES)


ALL = PENALTY | BIAS | ALWAYS
"""What concerns a training with weight_decay, and nothing else that is special."""

NO_LOSS = ALL - {"loss-halved", "loss-summed", "target-broadcast", "penalty-in-loss"}
"""Of these, what leaves the loss alone that is reported at the same parameters."""

ACTING_WITHOUT_LR = {"decay-not-scaled-by-lr", "penalty-in-loss"}
"""Of the penalty's, those that shrink w by 1 − λ, or do nothing to w."""

TINY: Spec = {"weight_decay": 1e-10, "dtype": "float32"}
# z = ±w against ±1: what the bias gets from one row the other takes away, to the last bit.
ODD: Spec = {"data": {"X": [[1.0], [-1.0]], "y": [1.0, -1.0]}} | ZEROS
NOTHING_TO_LEARN: Spec = {"data": {"X": [[1.0, 2.0], [3.0, 1.0]], "y": [0.0, 0.0]}} | ZEROS
ONE_ROW: Spec = {"data": {"X": [[1.0, 2.0]], "y": [3.0]}} | ZEROS

HIDDEN: dict[str, tuple[Spec, dict[str, Iterable[str]]]] = {
    "everything that this plain run has acts": ({}, {}),
    "bias stays 0": (
        ODD,
        {
            "the bias stays 0": BIAS,
            # The bias does not move, and so it does not matter when.
            "the effect is 0 here": {"update-sequential"},
        },
    ),
    "bias stays 0, and is free": (
        ODD | FREE,
        {"the bias stays 0": {"bias-penalized"}, "the effect is 0 here": {"update-sequential"}},
    ),
    "lr 0": (
        {"lr": 0},
        {"the lr is 0": NO_LOSS - ACTING_WITHOUT_LR},
    ),
    "lr 0, from 0": (
        {"lr": 0} | ZEROS,
        {
            "the bias stays 0": BIAS,
            "what is penalized stays 0": PENALTY - {"penalty-constant"},
            # Each output is 0, against which the mean loss is the same in any pairing.
            "the lr is 0": (ALWAYS & NO_LOSS) | {"penalty-constant", "target-broadcast"},
        },
    ),
    "no gradient": (
        NOTHING_TO_LEARN,
        {
            "the bias stays 0": BIAS,
            "what is penalized stays 0": PENALTY - {"penalty-constant"},
            "the gradient stays 0": ALWAYS - {"target-broadcast"},
            "all targets of a batch are equal": {"target-broadcast"},
        },
    ),
    "equal targets": (
        {"data": {"X": [[1.0, 2.0], [3.0, 1.0]], "y": [2.0, 2.0]}} | ZEROS,
        {"all targets of a batch are equal": {"target-broadcast"}},
    ),
    "λ 0": ({"weight_decay": 0}, {}),
    "λ 0, but a convention about it": (
        {"weight_decay": 0, "convention": "bias-free"},
        {"weight_decay is 0": PENALTY, "the bias has no weight_decay": BIAS},
    ),
    "λ tiny in float32": (
        TINY,
        {"the effect stays within the tolerance (…)": PENALTY | BIAS},
    ),
    # A reason holds at every step, or it is none.
    "λ tiny in float32, lr 0 in the last step": (
        TINY | {"lr_schedule": {"kind": "list", "values": [*5 * [0.1], 0]}},
        {"the effect stays within the tolerance (…)": PENALTY | BIAS},
    ),
    "λ tiny in float32, lr 0 in the first step": (
        TINY | {"lr_schedule": {"kind": "list", "values": [0, 0.1]}},
        {"the effect stays within the tolerance (…)": PENALTY | BIAS},
    ),
    "λ tiny in float32, lr 0": (
        TINY | {"lr": 0},
        {
            "the effect stays within the tolerance (…)": ACTING_WITHOUT_LR,
            "the lr is 0": NO_LOSS - ACTING_WITHOUT_LR,
        },
    ),
    "λ tiny in float64": ({"weight_decay": 1e-8}, {}),
    "one row a batch": (
        {"batch_size": 1, "epochs": 1},
        {
            "each loss is taken over one row": {"loss-summed"},
            "each step sees one row": {"penalty-divided-by-batch"},
            "all targets of a batch are equal": {"target-broadcast"},
        },
    ),
    "one row a micro-batch": (
        {"batch_size": 1, "accumulate": 2, "epochs": 1},
        {
            "each loss is taken over one row": {"loss-summed"},
            "all targets of a batch are equal": {"target-broadcast"},
        },
    ),
    "one row in all": (
        ONE_ROW,
        {
            "each loss is taken over one row": {"loss-summed"},
            "each step sees one row": {"penalty-divided-by-batch"},
            "there is one training row": {"penalty-divided-by-dataset"},
            "all targets of a batch are equal": {"target-broadcast"},
        },
    ),
    "one micro-batch a step": (
        {"accumulate": 3},
        {"each step has one micro-batch": {"accumulation-not-averaged"}},
    ),
    "one step": (
        {"epochs": 1},
        {"only one step is compared": {"gradient-accumulated"}},
    ),
    "one step with momentum": (
        {"epochs": 1} | MOMENTUM,
        {
            "only one step is compared": {"gradient-accumulated", *COUPLED},
            "only one step is compared, and the velocity is the gradient in it": {
                "momentum-missing"
            },
        },
    ),
    # d₁ = (1 + μ) g₁ has the momentum in it.
    "one step with Nesterov": (
        {"epochs": 1} | NESTEROV,
        {"only one step is compared": {"gradient-accumulated"}},
    ),
    # w₀ = 0 is all that torch's velocity remembers at step 2.
    "two steps with momentum, from 0": (
        {"epochs": 2} | MOMENTUM | ZEROS,
        {"the effect stays within the tolerance (…)": COUPLED},  # of which rounding is a part
    ),
    "schedule that comes after the run": (
        {"epochs": 3} | NEW_LR_AT_5 | MOMENTUM,
        {"the lr does not change in these steps": {"schedule-shifted", "momentum-lr-inside"}},
    ),
    # One step early it shows in the run's last; one step late it does not.
    "schedule that comes right after the run": (
        {"epochs": 4} | NEW_LR_AT_5 | MOMENTUM,
        {"the lr does not change in these steps": {"schedule-shifted", "momentum-lr-inside"}},
    ),
    "clipping that never acts": (
        {"clip_norm": 1e9},
        {
            "no gradient is large enough to be clipped": {
                "clip-per-tensor",
                "decay-before-clipping",
            }
        },
    ),
    "clipping of entries that never acts": (
        {"clip_value": 1e9},
        {"no gradient is large enough to be clipped": {"decay-before-clipping"}},
    ),
    "no output that is saturated": (
        {"model": "logistic", "loss": "bce", "data": {**DATA, "y": TARGETS["logistic"].tolist()}},
        {"no output is saturated": {"bce-saturated"}},
    ),
    "loss alone": ({"compare": ["loss"]}, {"`compare` leaves the parameters out": NO_LOSS}),
    # The mean of (0 − y)² is the same in any pairing; the parameters would show it.
    "loss alone, one step from 0": (
        {"compare": ["loss"], "epochs": 1} | ZEROS,
        {
            "`compare` leaves the parameters out": NO_LOSS | {"target-broadcast"},
            "what is penalized stays 0": {"penalty-in-loss"},
        },
    ),
    "parameters alone": ({"compare": ["parameters"]}, {}),
    # The bias moves by lr λ b a step, a weight by 1e-4 of itself, and by half as much, a hundredth
    # as much, or lr λ as much: in six steps that is less than a thousandth.
    "loose tolerance on the drift": (
        {"tolerance": {"rtol": 1e-3}, "weight_decay": 1e-3},
        {
            "the effect stays within the tolerance (…)": {
                "bias-not-penalized",
                "decay-after-update",
                "penalty-halved",
                "penalty-scaled",
            }
        },
    ),
    "no step": (
        {"batch_size": 20, "drop_last": True},
        {"no step was compared": ALL},
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_run_tells_what_it_could_not_have_shown(name: str) -> None:
    changes, expected = HIDDEN[name]
    report = check(spec_of() | changes)
    told = {
        one.cause: re.sub(r" \(.*%.*\)", " (…)", one.reason) for one in report.not_distinguished
    }

    assert report.verdict == ("inconclusive" if name == "no step" else "equivalent")
    assert told == {cause: reason for reason, causes in expected.items() for cause in causes}
    assert list(told) == sorted(told)


@pytest.mark.parametrize("key", [{"loss_factor": 0.5}, {"loss_reduction": "sum"}], ids=str)
def test_what_is_hidden_does_not_depend_on_what_the_scratch_side_does(key: Spec) -> None:
    # Causes are put into torch's rule, not into one whose gradient is another.
    report = check(spec_of() | TINY | {"convention": key})

    assert report.verdict == "diverged"
    assert {one.cause for one in report.not_distinguished} == PENALTY | BIAS


def test_every_circumstance_is_told_of_some_run() -> None:
    told = {reason for _, expected in HIDDEN.values() for reason in expected}

    assert set(HIDING.values()) <= told


class Untried:
    """Stands in the place of all trials."""

    def __init__(self, *given: object) -> None: ...

    def advance(self, *given: object) -> None: ...

    def hidden(self) -> list[Hidden]:
        return []


class Brief(Comparing):
    """Ends a run where it diverges."""

    def __init__(self, sides: Sides, spec: Any, training: Training) -> None:
        super().__init__(sides, spec, training)
        self.judged = spec.compare

    def advance(self, batch: Batch) -> bool:
        found = {"parameters": self.first, "loss": self.first_loss}
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
        return [name for name in concerning if any(passes(spec, bug) for bug in BUGS[name])]


def passes(spec: Spec, bug: Plant) -> bool:
    """Say whether a spec does not diverge with a bug on the scratch side."""
    with patch.object(checking, "NumpyTrainer", bug):
        return check(spec | {"convention": "pytorch"}).verdict != "diverged"


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


@pytest.mark.search(sample=75, whole=300)
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
    with patch.object(checking, "NumpyTrainer", bug):
        diagnosis = check(spec).diagnosis
    assert diagnosis is not None
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cause", UPDATES)
def test_cause_alone_explains_what_its_bug_does(cause: str, dtype: str) -> None:
    # Clipping everything would hide whatever scales the gradient from float32.
    spec = ACTING | NEEDED.get(cause, MOMENTUM) | {"dtype": dtype, "clip_norm": 5.0}
    for bug in BUGS[cause]:
        assert cause in (found := explaining(spec, bug))
        assert found <= {cause} | SAME.get(cause, set())


def verdict_of(spec: Spec, cause: str) -> bool | None:
    """Say whether a run is as expected, if a cause is."""
    return check(spec | {"expect": {"cause": cause}}).expected


def test_penalty_in_the_loss_is_explained_beside_another_penalty() -> None:
    spec = spec_of() | {"convention": "divided-by-batch"}

    assert verdict_of(spec, "penalty-in-loss")
    assert verdict_of(spec, "penalty-divided-by-batch")
    assert verdict_of(spec, "penalty-divided-by-dataset")  # the batch is the dataset
    assert not verdict_of(spec | {"batch_size": 4}, "penalty-divided-by-dataset")
    assert not verdict_of(spec, "penalty-missing")


@pytest.mark.parametrize(
    ("convention", "cause"),
    [
        # The loss is torch's, with whatever penalty: nothing in it needs explaining.
        ({"penalty_factor": 2}, "penalty-in-loss"),
        # One row a step: the loss parts, and a division by it does nothing at all.
        ({"penalty_in_loss": True}, "penalty-divided-by-batch"),
        # The loss parts by half of it.
        ({"loss_factor": 0.5}, "penalty-in-loss"),
        # Both act: the penalty is doubled, and not halved.
        ({"loss_factor": 0.5, "penalty_factor": 2}, "penalty-halved"),
    ],
    ids=str,
)
def test_cause_that_is_none_explains_nothing(convention: Spec, cause: str) -> None:
    spec = spec_of() | {"batch_size": 1, "epochs": 1, "convention": convention}

    assert check(spec).verdict == "diverged"
    assert verdict_of(spec, cause) is False


def test_other_start_is_explained_by_no_cause_that_does_nothing() -> None:
    # λ is 0: with the cause or without it, the steps agree; the starts do not.
    spec = spec_of() | {"weight_decay": 0, "expect": {"cause": "penalty-doubled"}}
    with patch.object(checking, "NumpyTrainer", BUGS["initial-parameters"][0]):
        report = check(spec)

    assert report.verdict == "diverged"
    assert report.expected is False


def test_rounding_is_explained_by_no_cause() -> None:
    spec = spec_of() | {"tolerance": "exact", "weight_decay": 0, "epochs": 50}

    assert check(spec).verdict == "diverged"
    assert verdict_of(spec, "penalty-doubled") is False


def test_cause_explains_each_tensor_by_its_own_tolerance() -> None:
    spec = spec_of() | {"convention": "doubled"}
    for loose, strict in (("weight", "bias"), ("bias", "weight")):
        judged = spec | {"tolerance": {loose: {"rounding": 1e18}, strict: {"rounding": 8}}}
        assert verdict_of(judged, "penalty-doubled")
        assert verdict_of(judged, "penalty-halved") is False


def test_runs_that_agree_or_say_nothing_have_no_cause() -> None:
    assert verdict_of(spec_of(), "penalty-doubled") is False
    assert verdict_of(spec_of() | {"batch_size": 20, "drop_last": True}, "loss-halved") is False


def test_expected_cause_stands_beside_verdict_and_step() -> None:
    spec = spec_of() | {"convention": "doubled"}
    expected = {"verdict": "diverged", "step": 1, "cause": "penalty-doubled"}

    assert check(spec | {"expect": expected}).expected
    assert check(spec | {"expect": expected | {"step": 2}}).expected is False
    with patch.object(checking, "NumpyTrainer", BUGS["penalty-doubled"][0]):
        assert verdict_of(spec_of(), "penalty-doubled")
        assert verdict_of(spec_of(), "penalty-halved") is False


# --- a user's own model, with names of its own --------------------------------------------------


class Bare(nn.Module):
    """A model of one parameter that is called neither weight nor bias."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def two_layers() -> nn.Module:
    """Make a model whose biases start at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 2, dtype=torch.float64),
        nn.Tanh(),
        nn.Linear(2, 1, dtype=torch.float64),
        nn.Flatten(0),
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
    return model


def without_biases() -> nn.Module:
    """Make a model of layers without a bias."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Flatten(0)]
    return nn.Sequential(*layers).double()


def one_step(make: Callable[[], nn.Module], decays: dict[bool, float]) -> Report:
    """Take one step with both sides of a model of one's own; decays of weights and of biases."""

    def made(problem: UserProblem) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        model = make()
        groups = [
            {"params": [w], "weight_decay": decays[is_bias(name)]}
            for name, w in model.named_parameters()
        ]
        return model, nn.MSELoss(), torch.optim.SGD(groups, lr=problem.lr)

    def train(problem: UserProblem) -> Iterator[Spec]:
        model, loss, optimizer = made(problem)
        for rows in problem.batches:
            optimizer.zero_grad()
            z = model(torch.from_numpy(problem.X[rows]))
            loss(z, torch.from_numpy(problem.y[rows])).backward()
            optimizer.step()
            yield {name: w.detach().numpy().copy() for name, w in model.named_parameters()}

    data = {"X": [[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0]], "y": [1.0, -1.0, 2.0]}
    return check({"data": data, "lr": 0.1}, scratch=train, framework=made)


OWN_MODELS: dict[str, tuple[Callable[[], nn.Module], dict[bool, float], str, str | None]] = {
    "biases at zero": (two_layers, {False: 0.5, True: 0.5}, "bias-not-penalized", "stays 0"),
    "free biases at zero": (two_layers, {False: 0.5, True: 0.0}, "bias-penalized", "stays 0"),
    "decay of biases alone": (two_layers, {False: 0.0, True: 0.5}, "bias-not-penalized", "stays 0"),
    "no biases": (without_biases, {False: 0.5, True: 0.5}, "bias-not-penalized", None),
    "another name": (Bare, {False: 0.5, True: 0.5}, "bias-not-penalized", None),
}


@pytest.mark.parametrize("name", OWN_MODELS)
def test_own_models_biases_are_known_by_the_last_part_of_their_names(name: str) -> None:
    make, decays, cause, reason = OWN_MODELS[name]
    report = one_step(make, decays)
    assert report.verdict != "diverged"  # inconclusive where nothing is penalized but zeros
    hidden = dict(report.not_distinguished)
    if reason is None:
        assert not {"bias-not-penalized", "bias-penalized", "update-sequential"} & hidden.keys()
    else:
        assert hidden[cause] == f"the bias {reason}"


def test_clipping_of_one_tensor_is_the_same_by_its_own_norm() -> None:
    spec = spec_of() | {"clip_norm": 0.1, "weight_decay": 0.5}
    free = {"bias": False, "init": {"weight": [0.5, -0.3, 0.8]}}
    assert "clip-per-tensor" not in dict(check(spec | free).not_distinguished)
