"""Formulas as text: what is written is what the trainer does, and it is written as it is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from regcheck.rules.convention import TORCH, Convention, Decay
from regcheck.rules.faults import Faults
from regcheck.rules.formulas.formula import (
    decay_text,
    delta_text,
    gradient_text,
    loss_text,
    penalty_text,
    rule_lines,
    update_lines,
)
from regcheck.rules.formulas.meanings import meanings
from regcheck.rules.optimizers.update_rule import bracketed
from regcheck.rules.settings import SYMBOLIC, exact, letters, number, symbols
from regcheck.trainers.numpy_state import State
from tests.every_rule import rules
from tests.formula_cases import FACTOR, case_of, training
from tests.formula_reader import agreeing_steps, read_loss

# --- every combination ----------------------------------------------------------------------------

WRITTEN = [letters, symbols]
"""With numbers, and with letters."""


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("decay", get_args(Decay))
def test_text_is_what_the_trainer_does(decay: str) -> None:
    compared = 0
    # Every seventh: 7 shares no factor with the numbers of choices.
    for spec, written in itertools.islice(itertools.product(rules(decay), WRITTEN), 0, None, 7):
        case = case_of(spec)
        given = written(case.training)
        text = rule_lines(case.convention, given)
        compared += agreeing_steps(case, text, loss_text(case.convention, given))
    assert compared > 200


# --- faults ---------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Any, ...]] = {
    "penalty_form": ("constant",),
    "bias_decay": ("of-weight",),
    "target": ("batch-mean",),
    "bce_slope": ("plain",),
    "batch_divisor": ("batch-size",),
    "accumulation": ("sum", "over-rows", "last"),
    "zeroing": ("never",),
    "gradient_factor": (FACTOR, -0.5),
    "lr_factor": (FACTOR, 0.5),
    "lr_shift": (1, -1),
    "clip_scope": ("tensor",),
    "momentum": ("ignored",),
    "nesterov": ("added", "missing"),
    "first_step": ("dampened",),
    "betas": ("swapped",),
    "amsgrad": ("added", "missing", "corrected"),
    "averages": ("sums",),
    "correction": ("first", "second", "swapped"),
    "counts_from": (2,),
    "counted": ("tensors", "epochs", "nothing"),
    "state": ("zeroed", "renewed"),
    "moments": ("stale",),
    "norm": ("stale",),
    "root": ("missing",),
    "centered": ("added", "missing"),
    "decay_rate": ("corrected",),
    "lr_decay": ("early", "missing"),
    "lr_in_average": ("inside",),
}
"""Each way to be at fault."""

EACH = [Faults(**{key: value}) for key, values in FAULTS.items() for value in values]


def faulty_specs(draw: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Draw some of the combinations of what a spec can ask for."""
    combinations = [spec for decay in get_args(Decay) for spec in rules(decay)]
    for spec in draw.sample(combinations, count):
        if spec.pop("clip_value", None):  # it has no norm that a fault could take
            spec["clip_norm"] = 0.3
        yield spec


def changed_lines(spec: dict[str, Any], faults: Faults) -> int:
    """Train by the texts with faults in them; count the texts that are not those without."""
    decay = spec["weight_decay"]
    if faults.bias_decay == "of-weight" and isinstance(decay, dict):
        # Where a rule takes the weight's λ for the bias, both are one letter.
        spec = spec | {"weight_decay": decay | {"bias": 0.0}}
    case, changed = case_of(spec, faults), 0
    open_factors: dict[str, Any] = {
        key: math.nan for key in ("gradient_factor", "lr_factor") if getattr(faults, key) == FACTOR
    }
    written_faults = faults._replace(**open_factors)
    for written in WRITTEN:
        given = written(case.training)
        text = rule_lines(case.convention, given, written_faults)
        changed += text != rule_lines(case.convention, given)
        agreeing_steps(case, text, loss_text(case.convention, given, written_faults))
    return changed


@pytest.mark.sampled(every=48)
@pytest.mark.slow
@pytest.mark.parametrize("faults", EACH, ids=str)
def test_text_with_a_fault_is_what_the_trainer_does(faults: Faults) -> None:
    draw = random.Random(f"{faults}")
    assert sum(changed_lines(spec, faults) for spec in faulty_specs(draw, 40)) >= 2


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_text_with_any_faults_together_is_what_the_trainer_does(seed: int) -> None:
    draw = random.Random(seed)
    for spec in faulty_specs(draw, 40):
        chosen = draw.sample(list(FAULTS), draw.randint(2, 5))
        changed_lines(spec, Faults(**{key: draw.choice(FAULTS[key]) for key in chosen}))


# --- how it is written ----------------------------------------------------------------------------

NONE = {"weight": 0.0, "bias": 0.0}
MOVING = SYMBOLIC.with_options(momentum="μ")._replace(clipped=True)

FAULTY: dict[Faults, str] = {
    Faults(penalty_form="constant"): "v ← μ v + clip(g) + λ; w ← w − lr v",
    Faults(target="batch-mean"): "v ← μ v + clip(g(ȳ)) + λ w; w ← w − lr v",
    Faults(bce_slope="plain"): "v ← μ v + clip(g(p−y)) + λ w; w ← w − lr v",
    Faults(target="batch-mean", bce_slope="plain"): ("v ← μ v + clip(g(p−ȳ)) + λ w; w ← w − lr v"),
    Faults(batch_divisor="batch-size"): "v ← μ v + clip(B/batch_size g) + λ w; w ← w − lr v",
    Faults(accumulation="sum"): "v ← μ v + clip(k g) + λ w; w ← w − lr v",
    Faults(zeroing="never"): "v ← μ v + clip(Σg) + λ w; w ← w − lr v",
    Faults(gradient_factor=0.25): "v ← μ v + clip(0.25 g) + λ w; w ← w − lr v",
    Faults(gradient_factor=math.nan): "v ← μ v + clip(c g) + λ w; w ← w − lr v",
    Faults(lr_factor=2.0): "v ← μ v + clip(g) + λ w; w ← w − 2·lr v",
    Faults(lr_factor=math.nan): "v ← μ v + clip(g) + λ w; w ← w − c·lr v",
    Faults(lr_shift=1): "v ← μ v + clip(g) + λ w; w ← w − lr₊₁ v",
    Faults(lr_shift=-1): "v ← μ v + clip(g) + λ w; w ← w − lr₋₁ v",
    Faults(clip_scope="tensor"): "v ← μ v + clip_w(g) + λ w; w ← w − lr v",
    Faults(momentum="ignored"): "w ← w − lr (clip(g) + λ w)",
    Faults(nesterov="added"): "v ← μ v + clip(g) + λ w; w ← w − lr (clip(g) + λ w + μ v)",
}


@pytest.mark.parametrize("faults", FAULTY, ids=str)
def test_fault_is_written_as(faults: Faults) -> None:
    assert "; ".join(update_lines(TORCH, MOVING, "weight", faults)) == FAULTY[faults]


@pytest.mark.parametrize(
    ("convention", "changes", "rule"),
    [
        (Convention(), {}, "w ← w − lr (g + λ w), b likewise"),
        (Convention(penalize_bias=False), {}, "w ← w − lr (g + λ w); b ← b − lr g"),
        (
            Convention(update_order="bias-first"),
            {},
            "first  b ← b − lr (g + λ b); w ← w − lr (g + λ w), with g at the new b",
        ),
        (
            Convention(decay="after-update", penalty_norm="unsquared"),
            {},
            "w ← w − lr g; w ← w − lr·λ w/‖w‖, b likewise",
        ),
        (
            Convention(),
            {"momentum": 0.9, "dampening": 0.3, "weight_decay": NONE},
            "step 1: v ← g; later: v ← 0.9 v + (1 − 0.3) g; w ← w − 0.1 v, b likewise",
        ),
        (
            Convention(momentum_form="dampened"),
            {"momentum": 0.9},
            "v ← 0.9 v + (1 − 0.9) (g + 0.5 w); w ← w − 0.1 v, b likewise",
        ),
        (
            Convention(momentum_form="lr-inside"),
            {"momentum": 0.9, "nesterov": True},
            "v ← 0.9 v + 0.1 (g + 0.5 w); w ← w − (0.1 (g + 0.5 w) + 0.9 v), b likewise",
        ),
        (
            Convention(decay="before-clipping"),
            {"clipped": True},
            "w ← w − 0.1 clip(g + 0.5 w), b likewise",
        ),
        (Convention(), {"clipped": True}, "w ← w − 0.1 (clip(g) + 0.5 w), b likewise"),
        (
            Convention(loss_reduction="sum", loss_factor=-1.0, divide_penalty_by="batch"),
            {"batch_rows": (4, 2)},
            "w ← w − 0.1 ((-1)·B g + 0.5/B w), b likewise",
        ),
        (
            Convention(loss_reduction="sum"),
            {"batch_rows": (5,), "micro_rows": (2, 1)},
            "w ← w − 0.1 (average(mᵢ gᵢ) + 0.5 w), b likewise",
        ),
        (Convention(), {"lr_varies": True}, "w ← w − lr (g + 0.5 w), b likewise"),
    ],
)
def test_rule_is_written_as(convention: Convention, changes: dict[str, Any], rule: str) -> None:
    given = letters(training(**changes)) if changes else SYMBOLIC
    assert "; ".join(rule_lines(convention, given)) == rule


def test_fault_leaves_what_it_is_not_about_as_it_is() -> None:
    assert delta_text(TORCH, SYMBOLIC, "weight", Faults(lr_factor=math.nan)) == "c·lr (g + λ w)"
    assert penalty_text(TORCH, SYMBOLIC, "bias", Faults(penalty_form="constant")) == "λ"
    free = SYMBOLIC._replace(weight_decay={"weight": "λ", "bias": ""})
    assert decay_text(TORCH, free, "bias") == ""
    assert decay_text(TORCH, free, "bias", Faults(bias_decay="of-weight")) == "λ"
    assert gradient_text(TORCH, SYMBOLIC, Faults(lr_factor=2.0)) == "g"
    assert loss_text(TORCH, SYMBOLIC, Faults(gradient_factor=2.0)) == "mean ℓ"
    assert decay_text(Convention(penalty_factor=math.nan), SYMBOLIC, "weight") == "c·λ"


def test_tensors_of_other_names_have_their_letters() -> None:
    decays = {"layers.0.weight": 0.1, "layers.0.bias": 0.0, "layers.1.weight": 0.1, "gain": 0.2}
    given = letters(training(weight_decay=decays))

    assert update_lines(TORCH, given, "layers.1.weight") == ["w ← w − 0.1 (g + 0.1 w)"]
    assert update_lines(TORCH, given, "layers.0.bias") == ["b ← b − 0.1 g"]
    assert delta_text(TORCH, given, "gain") == "0.1 (g + 0.2 w)"
    sibling = Faults(bias_decay="of-weight")
    assert penalty_text(TORCH, given, "layers.0.bias", sibling) == "0.1 b"
    assert loss_text(Convention(penalty_in_loss=True), given) == "mean ℓ + ½·0.1 Σw² + ½·0.2 Σw²"


def test_every_letter_of_a_fault_has_its_meaning() -> None:
    lines = [line for faults in EACH for line in update_lines(TORCH, MOVING, "weight", faults)]
    lines += update_lines(TORCH, MOVING, "weight", Faults(lr_factor=math.nan))
    found = [*meanings(lines)]

    letters_in_order = "w g gₖ Σg p−y ȳ clip clip_w lr lr₊₁ lr₋₁ c λ B k batch_size v μ"
    assert found == letters_in_order.split()
    # Σ alone tells of no sum of gradients, nor lr of its neighbours.
    assert meanings(["½·λ Σw²"], ["w", "Σg", "λ"]) == {"w": "weight", "λ": "weight_decay"}
    assert meanings(["w ← w − lr g"], ["lr", "lr₊₁", "lr₋₁"]) == {"lr": "learning rate"}


def test_only_an_open_sum_gets_brackets() -> None:
    for term in ("g", "clip(g + λ w)", "(1 − μ) (g + λ w)"):
        assert bracketed(term) == term
    for term in ("g + λ w", "clip(g) + λ w"):
        assert bracketed(term) == f"({term})"


def test_numbers_are_short_for_reading_and_exact_for_copying() -> None:
    assert number(1 / 1096) == "0.000912409"
    assert float(exact(0.1 / 1096)) == 0.1 / 1096
    assert exact(0.1) == "0.1"


def test_loss_text_describes_the_loss_before_the_step() -> None:
    case = case_of({"convention": {"penalty_in_loss": True}, "weight_decay": 0.3})
    batch = next(case.trainer.problem.schedule.batches())
    parameters = case.trainer.start().parameters
    step = case.trainer.step(State(parameters, {name: {} for name in parameters}), batch).step
    text = loss_text(case.convention, letters(case.training))
    # A dozen roundings of a number of order 1.
    assert read_loss(text, case, parameters, batch) == pytest.approx(step.loss, rel=1e-14)
    assert read_loss(text, case, step.after, batch) != pytest.approx(step.loss, rel=1e-3)
