"""What no settings of torch make it do is refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from regcheck.rules.convention import TORCH, Convention
from regcheck.rules.equivalent import NoMatchError, matching
from regcheck.rules.faults import Faults
from regcheck.rules.optimizers.registry import OPTIMIZERS as RULES
from tests.formula_cases import training
from tests.test_matching import SCHEDULE, could_match, difference, loaded_spec, match_of

MOMENTUM = {"optimizer": {"name": "sgd", "momentum": 0.9}}
DECAYING = {"weight_decay": 0.3}
NESTEROV = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
DAMPENED = {"optimizer": {"name": "sgd", "momentum": 0.6, "dampening": 0.3}}
VARYING = {"lr_schedule": SCHEDULE}

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("old parameters", {}, {"update_order": "bias-first"}),
    ("differ in size, so the sum", {"batch_size": 3}, {"loss_reduction": "sum"}),
    ("differ in size, so the sum", {"batch_size": 3, "accumulate": 2}, {"loss_reduction": "sum"}),
    ("clipping acts", {"clip_value": 0.2}, {"loss_factor": 0.5}),
    ("dampened velocity", NESTEROV, {"momentum_form": "dampened"}),
    ("does not dampen the first step", DAMPENED, {"momentum_form": "dampened"}),
    ("does not contain the lr", MOMENTUM | VARYING, {"momentum_form": "lr-inside"}),
    ("only the weight decay acts", DECAYING, {"loss_factor": 0.0}),
    ("no constant multiple of w", DECAYING, {"penalty_norm": "unsquared"}),
    ("λ/B is not constant", DECAYING | {"batch_size": 3}, {"divide_penalty_by": "batch"}),
    ("clips before", DECAYING | {"clip_norm": 0.1}, {"decay": "before-clipping"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "after-momentum"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "decoupled"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "decoupled-unscaled"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "after-update"}),
    ("does not change with it", DECAYING | VARYING, {"decay": "decoupled-unscaled"}),
    ("does not change with it", DECAYING | VARYING, {"decay": "after-update"}),
    ("an lr of its own", {"weight_decay": {"weight": 0.3, "bias": 0.1}}, {"decay": "after-update"}),
    ("sets the weights to 0", {"weight_decay": 2.0, "lr": 0.5}, {"decay": "after-update"}),
    ("no negative lr", {}, {"loss_factor": -1.0}),
    ("no negative lr", {"weight_decay": 4.0, "lr": 0.5}, {"decay": "after-update"}),
    ("no negative weight decay", DECAYING, {"penalty_factor": -1.0}),
    ("the lr is 0", DECAYING | {"lr": 0.0}, {"decay": "decoupled-unscaled"}),
]


@pytest.mark.parametrize(("reason", "spec", "convention"), REFUSED)
def test_refusal_names_its_reason_and_nothing_would_match(
    reason: str, spec: dict[str, Any], convention: dict[str, Any]
) -> None:
    loaded = loaded_spec(spec | {"convention": convention, "epochs": 4})
    with pytest.raises(NoMatchError, match=reason):
        match_of(loaded)
    assert not could_match(loaded)


@pytest.mark.parametrize(
    ("reason", "changes", "faults"),
    [
        ("no constant multiple of w", {}, Faults(penalty_form="constant")),
        ("own target", {}, Faults(target="batch-mean")),
        ("`loss: bce_with_logits` .* or scaled features", {}, Faults(bce_slope="plain")),
        ("smaller batch's or share's", {"batch_rows": (4, 2)}, Faults(batch_divisor="batch-size")),
        ("numbers of micro-batches", {"batch_rows": (4, 2)}, Faults(accumulation="sum")),
        ("differ in size", {"micro_rows": (3, 2)}, Faults(accumulation="over-rows")),
        ("averages the gradients", {"micro_rows": (4,)}, Faults(accumulation="last")),
        ("zeroes the gradients", {}, Faults(zeroing="never")),
        ("early or late", {"lr_varies": True}, Faults(lr_shift=1)),
        ("by one norm", {}, Faults(clip_scope="tensor")),
        ("no Nesterov momentum with dampening", {"dampening": 0.5}, Faults(nesterov="added")),
        ("clipping acts", {"clipped": True}, Faults(gradient_factor=2.0)),
        ("clipping acts", {"clipped": True, "micro_rows": (4,)}, Faults(accumulation="sum")),
    ],
)
def test_fault_that_no_settings_come_to_is_refused(
    reason: str, changes: dict[str, Any], faults: Faults
) -> None:
    for convention in (TORCH, Convention(penalty_factor=2.0)):
        with pytest.raises(NoMatchError, match=reason):
            matching(convention, training(**changes), faults)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.matrices])
@pytest.mark.parametrize("scheduled", [False, True], ids=["one lr", "a schedule"])
def test_a_scaled_gradient_is_matched_by_each_optimizers_own_options(
    name: str, scheduled: bool
) -> None:
    known = RULES[name]
    spec: dict[str, Any] = {
        "optimizer": {"name": name, **({"eps": 0.1} if known.defaults.get("eps") == 1e-8 else {})},
        "convention": {"loss_factor": 0.5},
        "weight_decay": 0.3 if known.weight_decay else 0.0,
        "epochs": 6,
        **({"lr_schedule": SCHEDULE} if scheduled else {}),
    }
    loaded = loaded_spec(spec)
    if known.scaling is None:
        with pytest.raises(NoMatchError, match="no option of torch's compensates for it"):
            match_of(loaded)
        return
    # As above; ASGD holds its own lr in float32, whose rounding is another at half of it.
    assert difference(loaded, match_of(loaded)) < (1e-7 if name == "asgd" else 1e-12)
