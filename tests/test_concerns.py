"""Which trainings each cause concerns."""

from __future__ import annotations

import pytest

from regcheck.problem.batches import training_of
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.convention import TORCH
from regcheck.spec import from_mapping
from tests.conftest import Spec
from tests.faults import OF_CLASSES

# Those that concern every training, and change no rule; and those of trainings in batches.
UNCHANGING = {"initial-parameters", "loss-after-update", "option-differs", "precision"}
UNCHANGING |= {"reported-loss-scaled"}
IN_BATCHES = {"loss-epoch-mean", "row-order"}
OF_MICRO_BATCHES = {"accumulation-last-only", "accumulation-not-averaged", "loss-last-micro-batch"}

ALWAYS_NAMES = """
gradient-accumulated gradient-scaled learning-rate-scaled loss-halved loss-summed target-broadcast
update-sequential
"""
PENALTY_NAMES = """
decay-after-update decay-not-scaled-by-lr penalty-constant penalty-divided-by-batch
penalty-divided-by-dataset penalty-doubled penalty-halved penalty-in-loss penalty-missing
penalty-norm-not-squared penalty-scaled penalty-sign-flipped
"""
ALWAYS, PENALTY = set(ALWAYS_NAMES.split()), set(PENALTY_NAMES.split())
RESET = "optimizer-state-reset"
MOMENTUM = {"momentum-dampened", "momentum-missing", RESET}
BIAS = {"bias-not-penalized"}
COUPLED = {"decay-after-momentum", "penalty-decoupled"}
OF_COUNT = {
    "adam-bias-correction-late",
    "adam-moments-reset",
    "adam-steps-not-counted",
    "adam-steps-per-tensor",
}
OF_CORRECTION = {"adam-bias-correction-compounded", "adam-bias-correction-missing", *OF_COUNT}
OF_TWO_MOMENTS = {"adam-bias-correction-partial", "adam-bias-correction-swapped"}
OF_ROOT = {"moments-stale", "root-missing"}
OF_SQUARES = OF_ROOT | {"adagrad-accumulator-initial", "rmsprop-epsilon-inside", RESET}
AVERAGED = {"moments-not-averaged"}
SWAPPED = "adam-betas-swapped"
UNCORRECTED = "adam-epsilon-uncorrected"
OF_BETAS = OF_ROOT | OF_CORRECTION | {"adam-epsilon-inside", UNCORRECTED, SWAPPED, RESET}
OF_ADAM = OF_BETAS | OF_TWO_MOMENTS | AVERAGED | {"adam-amsgrad-added"}
OF_MAXIMUM = {"adam-amsgrad-corrected", "adam-amsgrad-missing"}
OF_AMSGRAD = OF_BETAS | OF_TWO_MOMENTS | AVERAGED | OF_MAXIMUM
DECOUPLED = {"decay-bias-corrected", "penalty-coupled"}

NO_DECAY: Spec = {"weight_decay": 0}
HEAVY: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
LEAPING: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
HALVED_LR: Spec = {"lr_schedule": {"kind": "exponential", "factor": 0.5}}

LABELS: Spec = {"data": {"X": [[1], [2], [3], [4]], "y": [0, 1, 1, 0]}, "model": "logistic"}

CONCERNED: list[tuple[Spec, set[str]]] = [
    (NO_DECAY, set()),
    ({}, PENALTY | BIAS),
    ({"weight_decay": {"weight": 0.5, "bias": 0}}, PENALTY | {"bias-penalized"}),
    ({"weight_decay": {"weight": 0, "bias": 0.5}}, PENALTY | BIAS),
    # What the spec's convention says of a penalty concerns it, whatever λ is.
    (NO_DECAY | {"convention": "doubled"}, PENALTY),
    (NO_DECAY | {"convention": "bias-free"}, PENALTY | BIAS),
    (NO_DECAY | {"convention": {"loss_factor": 0.5}}, set()),
    (NO_DECAY | HEAVY, MOMENTUM | {"nesterov-added"}),
    (HEAVY, MOMENTUM | {"nesterov-added"} | PENALTY | BIAS | COUPLED),
    (NO_DECAY | LEAPING, MOMENTUM | {"nesterov-missing"}),
    (
        NO_DECAY | {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.1}},
        MOMENTUM | {"nesterov-added", "dampening-on-first-step"},
    ),
    # torch's dampening acts on a velocity, and there is none.
    (NO_DECAY | {"optimizer": {"name": "sgd", "dampening": 0.1}}, set()),
    (NO_DECAY | {"optimizer": "adam"}, OF_ADAM),
    ({"optimizer": "adam"}, OF_ADAM | PENALTY | BIAS | {"penalty-decoupled"}),
    (NO_DECAY | {"optimizer": {"name": "adam", "betas": [0.9, 0.9]}}, OF_ADAM - {SWAPPED}),
    (NO_DECAY | {"optimizer": {"name": "adam", "amsgrad": True}}, OF_AMSGRAD),
    (NO_DECAY | {"optimizer": "adamw"}, OF_ADAM),
    ({"optimizer": "adamw"}, OF_ADAM | PENALTY | BIAS | DECOUPLED),
    (
        {"optimizer": {"name": "adam", "decoupled_weight_decay": True}},
        OF_ADAM | PENALTY | BIAS | DECOUPLED,
    ),
    (NO_DECAY | {"optimizer": "rmsprop"}, OF_SQUARES | AVERAGED | {"rmsprop-centered-added"}),
    (
        NO_DECAY | {"optimizer": {"name": "rmsprop", "centered": True}},
        OF_SQUARES | AVERAGED | {"rmsprop-centered-missing"},
    ),
    (
        {"optimizer": {"name": "rmsprop", "momentum": 0.9}},
        OF_SQUARES | AVERAGED | {"rmsprop-centered-added"} | MOMENTUM | PENALTY | BIAS | COUPLED,
    ),
    (NO_DECAY | {"optimizer": "adagrad"}, OF_SQUARES),
    (
        NO_DECAY | {"optimizer": {"name": "adagrad", "lr_decay": 0.1}},
        OF_SQUARES | {"adagrad-lr-decay-early", "adagrad-lr-decay-missing"},
    ),
    # Where the lr is 1, as torch's own for Adadelta is, lr d is d.
    (NO_DECAY | {"optimizer": "adadelta", "lr": 1}, {"epsilon-outside", RESET}),
    (NO_DECAY | {"optimizer": "adadelta"}, {"epsilon-outside", "adadelta-lr-inside", RESET}),
    (
        NO_DECAY | {"optimizer": "adamax"},
        {"adamax-norm-stale", "epsilon-outside", SWAPPED, RESET, *OF_CORRECTION},
    ),
    (NO_DECAY | {"optimizer": "nadam"}, OF_BETAS - OF_COUNT),
    (
        NO_DECAY | {"optimizer": "radam"},
        OF_BETAS - OF_COUNT - {UNCORRECTED} | {"epsilon-outside", "radam-rectified-early"},
    ),
    (
        {"optimizer": {"name": "nadam", "decoupled_weight_decay": True}},
        OF_BETAS - OF_COUNT | PENALTY | BIAS | DECOUPLED,
    ),
    ({"optimizer": "asgd"}, PENALTY | BIAS | {"penalty-decoupled", RESET}),
    (
        {"optimizer": "adafactor"},
        PENALTY | BIAS | {"adafactor-lr-uncapped", "penalty-coupled", RESET},
    ),
    (
        NO_DECAY | {"optimizer": "muon", "bias": False, "init": {"weight": [1.0, 2.0]}},
        MOMENTUM - {"momentum-dampened"} | {"muon-bfloat16-missing", "nesterov-missing"},
    ),
    (
        NO_DECAY | {"optimizer": "rprop"},
        {RESET, "rprop-sign-change-stepped", "rprop-step-taken-back"},
    ),
    # What the spec's convention says of a coupled penalty is not torch's own.
    (
        NO_DECAY | {"optimizer": "adamw", "convention": {"decay": "gradient"}},
        OF_ADAM | PENALTY | DECOUPLED,
    ),
    (NO_DECAY | HALVED_LR, {"schedule-differs", "schedule-shifted"}),
    (
        NO_DECAY | HALVED_LR | HEAVY,
        MOMENTUM | {"nesterov-added", "schedule-differs", "schedule-shifted", "momentum-lr-inside"},
    ),
    (NO_DECAY | LABELS | {"loss": "bce"}, {"bce-saturated"}),
    (NO_DECAY | LABELS | {"loss": "bce_with_logits"}, set()),
    (NO_DECAY | LABELS | {"loss": "mse"}, set()),
    (NO_DECAY | {"clip_norm": 1.0}, {"clip-per-tensor"}),
    ({"clip_norm": 1.0}, {"clip-per-tensor", "decay-before-clipping"} | PENALTY | BIAS),
    ({"clip_value": 1.0}, {"decay-before-clipping"} | PENALTY | BIAS),
    # Four rows: 2 and 2; 3 and 1; 3 alone; or two micro-batches of 2; of 3 and 1.
    (NO_DECAY | {"batch_size": 2}, IN_BATCHES),
    (NO_DECAY | {"batch_size": 3}, {"last-batch-divisor"} | IN_BATCHES),
    (NO_DECAY | {"batch_size": 3, "drop_last": True}, IN_BATCHES),
    (
        NO_DECAY | {"optimizer": "adam", "batch_size": 2},
        OF_ADAM | IN_BATCHES | {"adam-steps-per-epoch"},
    ),
    (
        NO_DECAY | {"batch_size": 2, "accumulate": 2},
        OF_MICRO_BATCHES,
    ),
    (
        NO_DECAY | {"batch_size": 3, "accumulate": 2},
        OF_MICRO_BATCHES | {"accumulation-over-rows", "last-batch-divisor"},
    ),
]


@pytest.mark.parametrize(("changes", "concerning"), CONCERNED)
def test_cause_concerns_the_trainings_that_it_is_about(
    small: Spec, changes: Spec, concerning: set[str]
) -> None:
    loaded = from_mapping(small | changes)
    training, convention = training_of(loaded.spec, 4), loaded.spec.named_convention()
    found = {name for name, cause in CAUSES.items() if cause.concerns(training, convention)}

    of_bias = set() if changes.get("bias", True) else {"update-sequential"}
    assert found == (ALWAYS - of_bias) | UNCHANGING | concerning

    # The tensors of a deeper model go by other names, and concern the same.
    decays = {f"layers.0.{name}": decay for name, decay in training.settings.weight_decay.items()}
    deeper = training.with_decays(decays)
    assert found == {name for name, cause in CAUSES.items() if cause.concerns(deeper, convention)}


def test_every_cause_concerns_some_training() -> None:
    concerning = (concerning for _, concerning in CONCERNED)
    assert set().union(ALWAYS, UNCHANGING, *concerning) == set(CAUSES) - OF_CLASSES


def test_bias_that_a_model_has_not_is_penalized_by_neither_side(small: Spec) -> None:
    training = training_of(from_mapping(small).spec, 4).with_decays({"layers.0.weight": 1})

    assert CAUSES["penalty-halved"].concerns(training, TORCH)
    assert not CAUSES["bias-penalized"].concerns(training, TORCH)
    assert not CAUSES["bias-not-penalized"].concerns(training, TORCH)
