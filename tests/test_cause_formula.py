"""Both sides' formulas of each cause: they are what its planted bug does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.rules.causes.catalogue import CAUSES, formulas_of, framework_formula, scratch_formula
from regcheck.rules.causes.cause import put_in
from regcheck.rules.convention import TORCH
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import loss_text, rule_lines
from regcheck.rules.settings import letters, symbols
from tests.every_rule import DATA
from tests.faults import BUGS, OF_CLASSES
from tests.formula_cases import FACTOR, Case, case_of, training
from tests.formula_reader import agreeing_steps, read_loss

UNWRITTEN = {"initial-parameters", "precision", "row-order"}
"""Causes that are no difference of formulas."""

UPDATING = [
    (name, way)
    for name, cause in CAUSES.items()
    for way in range(len(cause.changes))
    if cause.kind == "update" and name not in {*OF_CLASSES, "muon-bfloat16-missing"}
]
"""Changes of rules; those of classes are read in `test_class_losses`, and Muon's in `test_muon`."""

MOMENTUM = {"name": "sgd", "momentum": 0.9}
X = 60 * np.array(DATA["X"])

ADAM = {"name": "adam", "betas": [0.8, 0.3], "eps": 0.01}
ADAMS: dict[str, Any] = {"optimizer": ADAM}
ADAMWS: dict[str, Any] = {"optimizer": ADAM | {"name": "adamw"}}

ADADELTA: dict[str, Any] = {"optimizer": {"name": "adadelta", "rho": 0.7, "eps": 0.01}}
ADAGRAD: dict[str, Any] = {"optimizer": {"name": "adagrad", "lr_decay": 0.3, "eps": 0.01}}
RMSPROP: dict[str, Any] = {"name": "rmsprop", "alpha": 0.7, "eps": 0.01, "momentum": 0.6}

ADAFACTOR: dict[str, Any] = {
    "optimizer": {"name": "adafactor", "eps": [1e-3, 0.01], "beta2_decay": -0.5},
    "lr": 1.5,
}

RPROP: dict[str, Any] = {"optimizer": "rprop", "weight_decay": 0, "lr": 2.0, "epochs": 6}

CONCERNED: dict[str, dict[str, Any]] = {
    "adadelta-lr-inside": ADADELTA,
    "adafactor-lr-uncapped": ADAFACTOR,
    "adagrad-accumulator-initial": ADAGRAD,
    "adagrad-accumulator-initial by 2": {
        "optimizer": {"name": "adagrad", "initial_accumulator_value": 0.4}
    },
    "adagrad-lr-decay-early": ADAGRAD,
    "adagrad-lr-decay-missing": ADAGRAD,
    "adam-amsgrad-added": ADAMS,
    "adam-amsgrad-corrected": {"optimizer": ADAM | {"amsgrad": True}},
    "adam-amsgrad-missing": {"optimizer": ADAM | {"amsgrad": True}},
    "adam-betas-swapped": ADAMS,
    "adam-bias-correction-compounded": ADAMS,
    "adam-bias-correction-late": ADAMS,
    "adam-bias-correction-missing": ADAMS,
    "adam-bias-correction-partial": ADAMS,
    "adam-bias-correction-swapped": ADAMS,
    "adam-epsilon-inside": ADAMS,
    "adam-epsilon-uncorrected": ADAMS,
    "adam-moments-reset": ADAMS | {"accumulate": 1},
    "adam-steps-not-counted": ADAMS,
    "adam-steps-per-epoch": ADAMS | {"accumulate": 1},
    "adam-steps-per-tensor": ADAMS,
    "adamax-norm-stale": {"optimizer": ADAM | {"name": "adamax"}},
    "bce-saturated": {
        "data": {"X": X.tolist(), "y": (X[:, 0] < 0).astype(int).tolist()},
        "model": "logistic",
        "loss": "bce",
    },
    "bias-penalized": {"weight_decay": {"weight": 0.3, "bias": 0.0}},
    "decay-bias-corrected": ADAMWS,
    "dampening-on-first-step": {"optimizer": MOMENTUM | {"dampening": 0.3}},
    "epsilon-outside": ADADELTA,
    "moments-not-averaged": ADAMS,
    "moments-stale": ADAMS,
    "nesterov-missing": {"optimizer": MOMENTUM | {"nesterov": True}},
    "penalty-coupled": ADAMWS,
    "rmsprop-centered-added": {"optimizer": RMSPROP},
    "rmsprop-centered-missing": {"optimizer": RMSPROP | {"centered": True}},
    "rmsprop-epsilon-inside": {"optimizer": RMSPROP},
    "radam-rectified-early": {
        "optimizer": ADAM | {"name": "radam", "betas": [0.8, 0.95]},
        "epochs": 6,
    },
    "root-missing": ADAMS,
    "rprop-sign-change-stepped": RPROP,
    "rprop-step-taken-back": RPROP,
}
"""What a training must have for some causes, or ways, beside what concerns the others."""


def concerned_case(name: str, way: int) -> Case:
    """Make a training that a cause concerns, with the cause in it; FACTOR where that is open."""
    key = CAUSES[name].factor_key
    change = CAUSES[name].changes[way] if key is None else {key: FACTOR}
    spec: dict[str, Any] = {
        "weight_decay": {"weight": 0.3, "bias": 0.2},
        "clip_norm": 0.5,
        "batch_size": 2,
        "accumulate": 2,
        "epochs": 3,
        "lr_schedule": {"kind": "exponential", "factor": 0.8},
        "optimizer": MOMENTUM,
        **CONCERNED.get(f"{name} by {way}", CONCERNED.get(name, {})),
    }
    torchs = case_of(spec).training.settings.torchs
    convention, faults = put_in(change, torchs, NO_FAULTS)
    case = case_of(spec | {"convention": convention._asdict()}, faults)
    assert CAUSES[name].concerns(case.training, torchs)
    return case


ASSIGNED = [*"GRVYφΔuhMSAQU", "M̂", "Ŝ", *"NrdDvw"]
"""What a step assigns to, in its order."""


def in_order(line: str) -> int:
    """Return when a line acts in a step; the lines of the bias come last, unless they are first."""
    if line.startswith("first  ") or "←" not in line:
        return -1
    if "b ← " in line:
        return len(ASSIGNED)
    return ASSIGNED.index(line.split(": ")[-1].split(" ← ")[0])


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize(("name", "way"), UPDATING)
def test_formula_of_a_cause_is_what_its_change_does(name: str, way: int) -> None:
    case = concerned_case(name, way)
    for given in (letters(case.training), symbols(case.training)):
        formulas, torch = formulas_of(name, given), rule_lines(given.torchs, given)
        assert formulas.framework
        assert formulas.scratch[way] not in ([], formulas.framework)
        kept = [line for line in torch if line not in formulas.framework]
        rule = sorted([*kept, *formulas.scratch[way]], key=in_order)
        loss = loss_text(case.convention, given, case.trainer.problem.faults)
        assert agreeing_steps(case, rule, loss) >= 4
        # What is not the cause's rule is told from it: by torch's own text it does not hold.
        with pytest.raises(AssertionError):
            agreeing_steps(case, torch, loss)


BATCH = "w ← w − 0.1 (g + 0.5/8 w), b likewise"
TORCHS = "w ← w − 0.1 (g + 0.5 w), b likewise"


@pytest.mark.parametrize(
    ("name", "changes", "scratch", "framework"),
    [
        ("penalty-divided-by-batch", {}, BATCH, TORCHS),
        (
            "bias-not-penalized",
            {"momentum": 0.9},
            "w ← w − 0.1 v; v ← 0.9 v + g; b ← b − 0.1 v",
            "w ← w − 0.1 v, b likewise",
        ),
        (
            "momentum-dampened",
            {"momentum": 0.9},
            "v ← 0.9 v + (1 − 0.9) (g + 0.5 w)",
            "v ← 0.9 v + g + 0.5 w",
        ),
        (
            "schedule-shifted",
            {"lr_varies": True},
            "w ← w − lr₊₁ (g + 0.5 w), b likewise, or w ← w − lr₋₁ (g + 0.5 w), b likewise",
            "w ← w − lr (g + 0.5 w), b likewise",
        ),
        (
            "last-batch-divisor",
            {"batch_rows": (3, 2)},
            "w ← w − 0.1 (B/3 g + 0.5 w), b likewise",
            TORCHS,
        ),
        (
            "accumulation-not-averaged",
            {"micro_rows": (3, 2)},
            "w ← w − 0.1 (3 g + 0.5 w), b likewise",
            TORCHS,
        ),
        (
            "accumulation-last-only",
            {"micro_rows": (3, 2)},
            "w ← w − 0.1 (gₖ + 0.5 w), b likewise",
            TORCHS,
        ),
        (
            "accumulation-over-rows",
            {"batch_rows": (5,), "micro_rows": (3, 2)},
            "w ← w − 0.1 (sum(mᵢ gᵢ)/5 + 0.5 w), b likewise",
            TORCHS,
        ),
        ("penalty-in-loss", {}, "reports  mean ℓ + ½·0.5 Σw² + ½·0.5 Σb²", "reports  mean ℓ"),
        (
            "loss-epoch-mean",
            {"batch_rows": (4,)},
            "reports  mean over the epoch's batches so far of mean ℓ",
            "reports  mean ℓ",
        ),
        (
            "loss-last-micro-batch",
            {"micro_rows": (3, 2)},
            "reports  mean ℓ of the last micro-batch",
            "reports  average(mean ℓ)",
        ),
        (
            "loss-after-update",
            {},
            "reports  mean ℓ, at the parameters after the update",
            "reports  mean ℓ",
        ),
        ("penalty-scaled", {}, "w ← w − 0.1 (g + c·0.5 w), b likewise", TORCHS),
        ("gradient-scaled", {}, "w ← w − 0.1 (c g + 0.5 w), b likewise", TORCHS),
        ("learning-rate-scaled", {}, "w ← w − c·0.1 (g + 0.5 w), b likewise", TORCHS),
        *((name, {}, "", "") for name in sorted(UNWRITTEN)),
    ],
)
def test_formulas_of_a_cause_are_written_as(
    name: str, changes: dict[str, Any], scratch: str, framework: str
) -> None:
    given = training(**changes)
    assert name in UNWRITTEN or CAUSES[name].concerns(given, TORCH)
    assert scratch_formula(name, given) == scratch
    assert framework_formula(name, given) == framework
    if CAUSES[name].fitted:  # c until the factor is known
        assert scratch_formula(name, given, 0.25) == scratch.replace("c", "0.25", 1)


LAST = " of the last micro-batch"
AFTER = ", at the parameters after the update"
EPOCH = "mean over the epoch's batches so far of "


def test_formulas_of_the_reported_loss_are_what_is_reported() -> None:
    plain = case_of({"batch_size": 3, "epochs": 2, "weight_decay": 0.3})
    accumulated = case_of({"batch_size": 2, "accumulate": 2, "epochs": 3, "weight_decay": 0.3})
    for name in [name for name, one in CAUSES.items() if one.kind == "reporting"]:
        case = accumulated if name == "loss-last-micro-batch" else plain
        text = scratch_formula(name, case.training).removeprefix("reports  ")
        torch = framework_formula(name, case.training).removeprefix("reports  ")
        trainer = BUGS[name][-1](case.trainer.problem)
        state, differing = trainer.start(), 0
        so_far: list[float] = []
        for batch in case.trainer.problem.schedule.batches():
            update: Any = trainer.step(state, batch)
            # Of a scaled loss the planted factor is 0.5.
            loss = text.removesuffix(AFTER).removesuffix(LAST).removeprefix(EPOCH)
            at = update.step.after if text.endswith(AFTER) else state.parameters
            rows = batch.micro_batches[-1:] if text.endswith(LAST) else batch.micro_batches
            seen = batch._replace(micro_batches=rows)
            one = read_loss(loss.replace("c ", "0.5 "), case, at, seen)
            so_far = [*(so_far if batch.batch > 1 else []), one]
            expected = sum(so_far) / len(so_far) if text.startswith(EPOCH) else one
            # Some dozen roundings of numbers of order 1.
            assert update.step.loss == pytest.approx(expected, rel=1e-13)
            differing += abs(read_loss(torch, case, state.parameters, batch) - expected) > 1e-3
            state = update.state
        assert differing >= 3
