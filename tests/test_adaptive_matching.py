"""What is matched for optimizers that divide by the gradient's size trains as the scratch side."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from regcheck.rules.convention import Decay
from regcheck.rules.equivalent import NoMatchError
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.optimizers.update_rule import shortest
from tests.test_matching import SCHEDULE, difference, loaded_spec, match_of

ADAPTIVE = sorted(x for x, one in OPTIMIZERS.items() if not (one.linear or one.matrices))


def adaptive_specs(name: str) -> Iterator[dict[str, Any]]:
    """Yield what an optimizer's matching looks at, with an ε that shows."""
    draw, rule = random.Random(name), OPTIMIZERS[name]
    shown = {key: value for key, value in SHOWN.items() if key in rule.options}
    flags = [key for key, option in rule.options.items() if isinstance(option.default, bool)]
    for decay, loss_factor, reduction in itertools.product(
        get_args(Decay), (1.0, 0.5, 30.0), ("mean", "sum")
    ):
        flag = draw.choice([*flags, ""])
        convention: dict[str, Any] = {
            "decay": decay,
            "loss_factor": loss_factor,
            "loss_reduction": reduction,
            "penalty_factor": draw.choice([1.0, 2.0, 0.5, -1.0]),
            "penalize_bias": draw.random() < 0.7,
        }
        for key, forms in FORMS.items():
            if key in rule.keys and draw.random() < 0.3:
                convention[key] = draw.choice(forms)
        yield {
            "optimizer": {"name": name} | shown | ({flag: True} if flag else {}),
            "convention": convention,
            "weight_decay": draw.choice([0.3, {"weight": 0.3, "bias": 0.2}, 0.0]),
            "batch_size": draw.choice([3, 4, 8, 8]),
            "epochs": 4,
        } | draw.choice([{}, {}, {"lr_schedule": SCHEDULE}, {"clip_norm": 0.5}])


SHOWN: dict[str, Any] = {"eps": 1e-2, "momentum": 0.6, "lambd": 0.3, "t0": 2.0}
"""Options that show in a few steps."""

FORMS: dict[str, list[Any]] = {
    "accumulator_start": [0.0, 0.3],
    "bias_correction": [True, False],
    "epsilon": ["outside", "inside"],
    "momentum_form": ["torch", "dampened", "lr-inside"],
}


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
def test_torch_with_matched_settings_trains_as_an_optimizer_with_a_convention(name: str) -> None:
    matched = 0
    for seed, spec in enumerate(adaptive_specs(name)):
        spec = adapted(spec)
        loaded = loaded_spec(spec, seed)
        try:
            match = match_of(loaded)
        except NoMatchError:
            continue
        # Up to 16 steps of some 50 roundings, of numbers of order 1, divided by gradients that
        # may be a thousandth of these.
        # Torch holds ASGD's lr in float32.
        assert difference(loaded, match) < (1e-6 if name == "asgd" else 1e-10), spec
        matched += 1
    assert matched >= 2


def adapted(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec as its optimizer takes it: a pair, and no decay where there is none."""
    name = spec["optimizer"]["name"]
    own = spec["optimizer"] | ({"eps": [1e-2, 1e-3]} if name == "adafactor" else {})
    if not OPTIMIZERS[name].weight_decay:
        spec = spec | {"weight_decay": 0.0}
    return spec | {
        "optimizer": {key: list(x) if isinstance(x, tuple) else x for key, x in own.items()}
    }


LATE = shortest(0.3 / 0.985)
"""λ/(1 − lr λ)."""


@pytest.mark.parametrize(
    ("optimizer", "changes", "convention", "call"),
    [
        # c g is g with ε/c and λ/c in the places of ε and λ.
        ("adam", {}, {"loss_reduction": "sum"}, {"eps": 1.25e-9, "weight_decay": 0.0375}),
        ("adamw", {}, {"loss_factor": 0.5}, {"eps": 2e-8}),
        ("adam", {}, {"decay": "decoupled"}, {"optimizer": "adamw"}),
        ("adamw", {}, {"decay": "gradient"}, {"optimizer": "adam"}),
        ("adamw", {}, {"penalty_factor": 1.3}, {"weight_decay": 0.39}),
        ("adamw", {}, {"decay": "decoupled-unscaled"}, {"weight_decay": 6.0}),
        # 1 − lr λ = 0.985
        (
            "adamw",
            {},
            {"decay": "after-update"},
            {"lr": 0.04925, "weight_decay": shortest(0.3 / 0.985)},
        ),
        ("rmsprop", {"momentum": 0.9}, {"momentum_form": "dampened"}, {"lr": 0.005}),
        ("adagrad", {}, {"accumulator_start": 0.1}, {"initial_accumulator_value": 0.1}),
        (
            "adagrad",
            {"eps": 0.02},
            {"epsilon": "inside", "accumulator_start": 0.1, "loss_factor": 2.0},
            {"initial_accumulator_value": 0.03, "eps": 0.0, "weight_decay": 0.15},
        ),
    ],
)
def test_match_by_hand(
    optimizer: str, changes: dict[str, Any], convention: dict[str, Any], call: dict[str, Any]
) -> None:
    spec = {"optimizer": {"name": optimizer} | changes, "convention": convention}
    settings = match_of(loaded_spec(spec | {"weight_decay": 0.3})).settings
    [decay] = set(settings.weight_decay.values())
    found = {
        **settings.options,
        "lr": settings.lr,
        "weight_decay": decay,
        "optimizer": settings.optimizer,
    }
    own = OPTIMIZERS[settings.optimizer].defaults | changes
    plain = own | {"lr": 0.05, "weight_decay": 0.3, "optimizer": optimizer}
    assert found == plain | call


@pytest.mark.parametrize(
    ("reason", "optimizer", "changes"),
    [
        ("where ε is added", "adam", {"epsilon": "inside"}),
        ("moments are bias-corrected", "adamw", {"bias_correction": False}),
        ("the start of the sum of squared gradients", "rmsprop", {"accumulator_start": 0.1}),
        ("has the opposite sign", "adam", {"loss_factor": -1.0}),
        ("the gradient is 0", "adam", {"loss_factor": 0.0}),
        ("no negative weight decay", "adam", {"penalty_factor": -1.0}),
        ("no negative weight decay", "adamw", {"penalty_factor": -1.0}),
        ("an lr of its own", "adamw", {"decay": "after-update", "penalize_bias": False}),
        ("RMSprop has no decoupled weight decay", "rmsprop", {"decay": "decoupled"}),
        ("no option of torch's compensates for it", "adadelta", {"loss_factor": 0.5}),
        ("no constant multiple of w", "adamw", {"penalty_norm": "unsquared"}),
    ],
)
def test_refusal_names_its_reason(reason: str, optimizer: str, changes: dict[str, Any]) -> None:
    spec = {"optimizer": optimizer, "convention": changes, "weight_decay": 0.3}
    with pytest.raises(NoMatchError, match=reason):
        match_of(loaded_spec(spec))
