"""What a run could not have shown: each cause put into torch's rule, and tried along the run."""

from __future__ import annotations

import re

import pytest

from regcheck.checking import check
from regcheck.problem.batches import training_of
from regcheck.report.summary import summary
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import HIDING
from regcheck.spec import from_mapping
from tests.conftest import Spec
from tests.faults import OF_CLASSES
from tests.first_steps import (
    ADADELTA,
    ADAFACTOR,
    ADAM,
    ADAMAX,
    ADAMW,
    AMSGRAD,
    CENTERED,
    DAMPENED,
    HEAVY_RMSPROP,
    MOMENTUM,
    MUON,
    NESTEROV,
    NEW_LR_AT_5,
    RADAM,
    RPROP,
    SATURATED,
    STARTED,
    ZEROS,
    spec_of,
)
from tests.test_concerns import ALWAYS, BIAS, COUPLED, OF_ADAM, PENALTY, RESET, SWAPPED

ACTING: Spec = spec_of(batches="mini") | {
    "batch_size": 3,  # 3, 3, 3 and 2 rows, of which two make a step
    "accumulate": 2,
    "epochs": 4,
    "clip_norm": 1.0,
    "lr_schedule": {"kind": "exponential", "factor": 0.8},
}
"""A training in which everything acts that can: two steps an epoch, all but the first clipped."""

FREE: Spec = {"weight_decay": {"weight": 0.5, "bias": 0}}


OPTIMIZERS = {
    "plain": MOMENTUM,
    "N": NESTEROV,
    "damped": DAMPENED,
    "adam": ADAM,
    "amsgrad": AMSGRAD,
    "adamw": ADAMW,
    "rmsprop": HEAVY_RMSPROP,
    "centered": CENTERED,
    "adagrad": STARTED,
    "adadelta": ADADELTA,
    "adamax": ADAMAX,
    "radam": RADAM,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("decay", [{}, FREE], ids=["both", "bias-free"])
def test_run_in_which_everything_acts_could_have_shown_every_cause(
    optimizer: str, decay: Spec
) -> None:
    report = check(ACTING | OPTIMIZERS[optimizer] | decay)

    assert report.verdict == "equivalent"
    assert report.not_distinguished == ()


def test_every_cause_and_what_may_hide_it_is_in_some_run() -> None:
    concerned = set()
    for changes in (MOMENTUM | FREE, *OPTIMIZERS.values(), ADAFACTOR, MUON, RPROP, SATURATED):
        loaded = from_mapping(ACTING | changes)
        training, convention = training_of(loaded.spec, 11), loaded.spec.named_convention()
        concerned |= {name for name, one in CAUSES.items() if one.concerns(training, convention)}

    assert concerned == set(CAUSES) - OF_CLASSES
    reasons = {why for _, expected in HIDDEN.values() for why in expected}
    assert HIDING.keys() - reasons == {"never-saturated"}  # which leaves nothing to distinguish


# --- what hides a cause ---------------------------------------------------------------------------

REASONS = HIDING | {
    "loss-alone": "`compare` does not include the parameters",
    "no-effect": "its effect is 0 in this run",
    "no-step": "no step was compared",
    "small": "its effect stays within the tolerance (…)",
}

ALL = PENALTY | BIAS | ALWAYS
"""What concerns a training with weight_decay, and nothing else that is special."""

NO_LOSS = ALL - {"loss-halved", "loss-summed", "target-broadcast", "penalty-in-loss"}
"""Of these, what leaves the loss alone that is reported at the same parameters."""

ACTING_WITHOUT_LR = {"decay-not-scaled-by-lr", "penalty-in-loss"}
"""Of the penalty's, those that shrink w by 1 − λ, or do nothing to w."""

AT_ZERO = PENALTY - {"penalty-constant"}
"""Of the penalty's, those that do nothing where what is penalized is 0."""

PAIRING, ONE_STEP = {"target-broadcast"}, {"gradient-accumulated"}
OF_EPSILON = {"adam-epsilon-inside", "adam-epsilon-uncorrected"}
COMPOUNDED = "adam-bias-correction-compounded"
UNCOUNTED = "adam-steps-not-counted"
BY_BATCH = {"penalty-divided-by-batch"}
OF_SCHEDULE = {"schedule-shifted", "momentum-lr-inside"}

TINY: Spec = {"weight_decay": 1e-10, "dtype": "float32"}
# z = ±w against ±1: what the bias gets from one row the other takes away, to the last bit.
ODD: Spec = {"data": {"X": [[1.0], [-1.0]], "y": [1.0, -1.0]}} | ZEROS
NOTHING_TO_LEARN: Spec = {"data": {"X": [[1.0, 2.0], [3.0, 1.0]], "y": [0.0, 0.0]}} | ZEROS
EQUAL_TARGETS: Spec = {"data": NOTHING_TO_LEARN["data"] | {"y": [2.0, 2.0]}} | ZEROS
ONE_ROW: Spec = {"data": {"X": [[1.0, 2.0]], "y": [3.0]}} | ZEROS
UNSATURATED = spec_of("logistic") | {"loss": "bce"}

HIDDEN: dict[str, tuple[Spec, dict[str, set[str]]]] = {
    "everything that this plain run has acts": ({}, {}),
    # Where the bias does not move, it does not matter when.
    "bias stays 0": (ODD, {"bias-zero": BIAS, "no-effect": {"update-sequential"}}),
    "bias stays 0, and is free": (
        ODD | FREE,
        {"bias-zero": {"bias-penalized"}, "no-effect": {"update-sequential"}},
    ),
    "lr 0": ({"lr": 0}, {"lr-zero": NO_LOSS - ACTING_WITHOUT_LR}),
    "lr 0, from 0": (
        {"lr": 0} | ZEROS,
        # Each output is 0, against which the mean loss is the same in any pairing.
        {
            "bias-zero": BIAS,
            "penalized-zero": AT_ZERO,
            "lr-zero": (ALWAYS & NO_LOSS) | {"penalty-constant"} | PAIRING,
        },
    ),
    "no gradient": (
        NOTHING_TO_LEARN,
        {
            "bias-zero": BIAS,
            "penalized-zero": AT_ZERO,
            "zero-gradient": ALWAYS - PAIRING,
            "equal-targets": PAIRING,
        },
    ),
    "equal targets": (EQUAL_TARGETS, {"equal-targets": PAIRING}),
    "λ 0": ({"weight_decay": 0}, {}),
    "λ 0, but a convention about it": (
        {"weight_decay": 0, "convention": "bias-free"},
        {"no-decay": PENALTY, "no-bias-decay": BIAS},
    ),
    "λ tiny in float64": ({"weight_decay": 1e-8}, {}),
    "λ tiny in float32": (TINY, {"small": PENALTY | BIAS}),
    # A reason holds at every step, or it is none.
    "λ tiny in float32, lr 0 in the last step": (
        TINY | {"lr_schedule": {"kind": "list", "values": [*5 * [0.1], 0]}},
        {"small": PENALTY | BIAS},
    ),
    "λ tiny in float32, lr 0 in the first step": (
        TINY | {"lr_schedule": {"kind": "list", "values": [0, 0.1]}},
        {"small": PENALTY | BIAS},
    ),
    "λ tiny in float32, lr 0": (
        TINY | {"lr": 0},
        {"small": ACTING_WITHOUT_LR, "lr-zero": NO_LOSS - ACTING_WITHOUT_LR},
    ),
    "one row a batch": (
        {"batch_size": 1, "epochs": 1},
        {"one-row-losses": {"loss-summed"}, "one-row-batches": BY_BATCH, "equal-targets": PAIRING},
    ),
    "one row a micro-batch": (
        {"batch_size": 1, "accumulate": 2, "epochs": 1},
        {"one-row-losses": {"loss-summed"}, "equal-targets": PAIRING},
    ),
    "one row in all": (
        ONE_ROW,
        {
            "one-row-losses": {"loss-summed"},
            "one-row-batches": BY_BATCH,
            "one-training-row": {"penalty-divided-by-dataset"},
            "equal-targets": PAIRING,
        },
    ),
    "even micro-batches": (
        {"batch_size": 5, "accumulate": 2, "epochs": 2},  # two of 5 rows, and one of 1
        {"even-micro-batches": {"accumulation-over-rows"}},
    ),
    "one micro-batch": (
        {"accumulate": 3},
        {"one-micro-batch": {"accumulation-last-only", "accumulation-not-averaged"}},
    ),
    "one step": ({"epochs": 1}, {"one-step": ONE_STEP}),
    "one step with momentum": (
        {"epochs": 1} | MOMENTUM,
        {
            "one-step": ONE_STEP | COUPLED,
            "one-plain-step": {"momentum-missing"},
            "one-epoch": {RESET},
        },
    ),
    # d₁ = (1 + μ) g₁ has the momentum in it.
    "one step with Nesterov": (
        {"epochs": 1} | NESTEROV,
        {"one-step": ONE_STEP, "one-epoch": {RESET}},
    ),
    "one step of Adam": (
        {"epochs": 1} | ADAM,
        {
            "one-step": ONE_STEP | {SWAPPED, "adam-amsgrad-added", COMPOUNDED, UNCOUNTED},
            "one-epoch": {RESET, "adam-moments-reset"},
        },
    ),
    "one step an epoch of Adam, and rows left out": (
        {"batch_size": 8, "drop_last": True, "epochs": 6} | ADAM,
        {"one-step-epochs": {"adam-steps-per-epoch"}},
    ),
    # 1e-12 beside roots of the order of 1; without ε the forms round otherwise, no more.
    "ε tiny in float32": (
        {"optimizer": ADAM["optimizer"] | {"eps": 1e-12}, "dtype": "float32"},
        {"small": OF_EPSILON},
    ),
    "ε 0": ({"optimizer": ADAM["optimizer"] | {"eps": 0}}, {"small": OF_EPSILON}),
    # A second moment that remembers a thousand steps does not fall in six.
    "second moments that grow": (
        {"optimizer": {"name": "adam", "eps": 0.01}},
        {"small": {"adam-amsgrad-added"}},
    ),
    "an lr that Adafactor does not cap": (
        {"optimizer": ADAFACTOR["optimizer"]},
        # A factor on the gradient is one on its size, by which it is divided.
        {"lr-below-cap": {"adafactor-lr-uncapped"}, "small": {"gradient-scaled"}},
    ),
    # No root divides as yet.
    "four steps of RAdam": (
        {"epochs": 4} | RADAM,
        {
            "no-step-between": {"radam-rectified-early"},
            "small": {"adam-epsilon-inside", "epsilon-outside", "root-missing"},
        },
    ),
    "no gradient of AdamW's": (
        NOTHING_TO_LEARN | ADAMW,
        {
            "bias-zero": BIAS,
            "penalized-zero": (AT_ZERO | {"penalty-coupled", "decay-bias-corrected"}),
            "zero-gradient": (ALWAYS | OF_ADAM) - PAIRING,
            "equal-targets": PAIRING,
        },
    ),
    # w₀ = 0 is all that torch's velocity remembers at step 2, and rounding is a part of that.
    "two steps with momentum, from 0": ({"epochs": 2} | MOMENTUM | ZEROS, {"small": COUPLED}),
    "schedule that comes after the run": (
        {"epochs": 3} | NEW_LR_AT_5 | MOMENTUM,
        {"lr-unchanged": OF_SCHEDULE},
    ),
    # One step early it shows in the run's last; one step late it does not.
    "schedule that comes right after the run": (
        {"epochs": 4} | NEW_LR_AT_5 | MOMENTUM,
        {"lr-unchanged": OF_SCHEDULE},
    ),
    "clipping that never acts": (
        {"clip_norm": 1e9},
        {"never-clipped": {"clip-per-tensor", "decay-before-clipping"}},
    ),
    "clipping of entries that never acts": (
        {"clip_value": 1e9},
        {"never-clipped": {"decay-before-clipping"}},
    ),
    # BCELoss's floor has then no sample to act on.
    "no output that is saturated": (UNSATURATED, {}),
    "loss alone": ({"compare": ["loss"]}, {"loss-alone": NO_LOSS}),
    # The mean of (0 − y)² is the same in any pairing; the parameters would show it.
    "loss alone, one step from 0": (
        {"compare": ["loss"], "epochs": 1} | ZEROS,
        {"loss-alone": NO_LOSS | PAIRING, "penalized-zero": {"penalty-in-loss"}},
    ),
    "parameters alone": ({"compare": ["parameters"]}, {}),
    # The bias moves by lr λ b a step, a weight by 1e-4 of itself, and by half as much, a hundredth
    # as much, or lr λ as much: in six steps that is less than a thousandth.
    "loose tolerance on the drift": (
        {"tolerance": {"rtol": 1e-3}, "weight_decay": 1e-3},
        {"small": BIAS | {"decay-after-update", "penalty-halved", "penalty-scaled"}},
    ),
    "no step": ({"batch_size": 20, "drop_last": True}, {"no-step": ALL}),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_run_says_what_it_could_not_have_shown(name: str) -> None:
    changes, expected = HIDDEN[name]
    report = check(spec_of() | changes)
    given = {cause: re.sub(r" \(.*%.*\)", " (…)", why) for cause, why in report.not_distinguished}

    assert report.verdict == ("inconclusive" if name == "no step" else "equivalent")
    assert given == {cause: REASONS[why] for why, causes in expected.items() for cause in causes}
    assert list(given) == sorted(given)


@pytest.mark.parametrize("key", [{"loss_factor": 0.5}, {"loss_reduction": "sum"}], ids=str)
def test_what_is_hidden_does_not_depend_on_what_the_scratch_side_does(key: Spec) -> None:
    # Causes are put into torch's rule, not into one whose gradient is another.
    report = check(spec_of() | TINY | {"convention": key})

    assert report.verdict == "diverged"
    assert dict(report.not_distinguished).keys() == PENALTY | BIAS


def test_clipping_of_one_tensor_is_the_same_by_its_own_norm() -> None:
    spec = spec_of() | {"clip_norm": 0.1, "bias": False, "init": {"weight": [0.5, -0.3, 0.8]}}
    assert "clip-per-tensor" not in dict(check(spec).not_distinguished)


def test_short_report_begins_its_notes_with_what_could_not_have_shown() -> None:
    notes = summary(check(spec_of() | {"epochs": 1})).notes
    assert notes[0] == "This run cannot distinguish gradient-accumulated (why: --details)."
