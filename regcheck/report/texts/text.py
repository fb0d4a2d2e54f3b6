"""The sentences of a report: both rules, the verdict, the terms that differ; and its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from regcheck.compare.steps import Divergence
from regcheck.report.result import Report
from regcheck.report.texts.roles import roles_of
from regcheck.rules.convention import Convention, differences, name_of
from regcheck.rules.formulas.formula import (
    delta_text,
    gradient_text,
    loss_text,
    penalty_text,
    rule_lines,
)
from regcheck.rules.formulas.meanings import meanings
from regcheck.rules.formulas.torch_call import framework_call, torch_call
from regcheck.rules.models import ONE_LAYER
from regcheck.rules.settings import Letters, exact, letters, symbols
from regcheck.spec.sections.tolerance import Tolerance

WHERE = {
    "initial": "at the start",
    "forward": "in the forward pass",
    "gradient": "in the gradient",
    "penalty": "in the weight decay",
    "optimizer": "in the optimizer",
    "update": "in the update",
}


def both(left: float, right: float) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart, nine at least."""
    texts = (f"{left:.9g}", f"{right:.9g}")
    return texts if texts[0] != texts[1] or left == right else (f"{left:.17g}", f"{right:.17g}")


def short(value: float) -> str:
    """Write a number in few characters: `0`, `0.47`, `4.4e-05`, `6.1e+10`."""
    if value == 0:
        return "0"
    return f"{value:.2g}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def upward(value: float) -> str:
    """Write a number with two digits, rounded up."""
    if value == 0:
        return "0"
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - 1)
    return short(float(exact.quantize(unit, rounding=ROUND_CEILING)))


def count(number: int, noun: str) -> str:
    """Write a number of things: `1 step`, `1,000 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def tolerance_text(tolerance: Tolerance) -> str:
    """Write a tolerance as a spec does."""
    used = tolerance.as_used()
    if isinstance(used, str):
        return used
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in used.items()) + "}"


def written(value: object) -> str:
    """Write a value of a spec in one line, its numbers in full."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return exact(value) if isinstance(value, float) else str(value)


class Side(NamedTuple):
    """One side of the comparison: who it is, its update, and the loss that it reports."""

    side: str
    title: str
    update: list[str]
    loss: str


def sides(report: Report) -> list[Side]:
    """Describe who is compared with whom, each with its rule and the spec's numbers in it."""
    names = roles_of(report.spec).sides
    pair = (scratch_side(report), framework_side(report))
    return [side._replace(side=name) for side, name in zip(pair, names, strict=True)]


def scratch_side(report: Report) -> Side:
    """Describe the scratch side."""
    if report.spec.textbook is not None:
        given, call = letters(report.rule_training), torch_call(report.rule_training.settings)
        title = f"NumPy, the textbook {report.spec.textbook}: {call}"
        return Side("scratch", title, rule_lines(given.torchs, given), "no loss of its own")
    if report.spec.recording:
        return Side("scratch", report.spec.recording, [], "torch's loss, as recorded")
    if report.spec.scratch is not None:
        loss = "its own loss" if report.comparison.losses.reported else "no loss"
        return Side("scratch", f"{code_name(report.spec.scratch)}, your code", [], loss)
    convention = report.spec.named_convention()
    given = letters(report.scratch_training.of_kinds())
    torchs = given.torchs
    name = name_of(convention, torchs) or ", ".join(
        f"{key}: {here}" for key, (here, _) in differences(convention, torchs).items()
    )
    rule = rule_lines(convention, given)
    return Side("scratch", f"NumPy, {name}", rule, loss_text(convention, given))


def framework_side(report: Report) -> Side:
    """Describe torch's side."""
    given = letters(report.rule_training)
    call = framework_call(report.training)
    rule = rule_lines(given.torchs, given)
    if report.spec.own_framework is None:
        return Side("torch", call, rule, loss_text(given.torchs, given))
    title = f"{code_name(report.spec.own_framework)}, your model, loss and optimizer"
    known = report.rule_is_known and report.spec.model is not None
    if report.spec.textbook is not None and report.diagnosis is not None:
        known = False  # its rule is not the textbook's: what it is, the diagnosis says
    return Side("torch", title, [call, *rule] if known else [], "your loss")


def code_name(code: object) -> str:
    """Name a user's function, or the class of an object that is called."""
    return code if isinstance(code, str) else getattr(code, "__qualname__", type(code).__qualname__)


FIRST_LETTERS = ("g", "gₖ", "y₀", "ỹ")
"""Letters of the gradient, which are explained first."""

LAST_LETTERS = ("j", "lr", "B", "m", "mᵢ", "mₖ", "W", "Wᵢ", "Wₖ")
"""Letters whatever the optimizer, which are explained last."""


def letter_meanings(report: Report, lines: Sequence[str]) -> list[str]:
    """Say what those letters of some rules mean that a spec has not, with its settings."""
    spec = report.spec
    rules = [one.settings.rule for one in (report.training, report.scratch_training)]
    own = [one for rule in rules for one in rule.meanings]
    unsaid = dict.fromkeys([*FIRST_LETTERS, *own, *LAST_LETTERS])
    found = meanings(lines, unsaid, report.training)
    if spec.lr_schedule is not None:
        keys = spec.lr_schedule.model_dump(exclude_none=True)
        told = [f"{key} {value}" for key, value in keys.items()]
        remarks = [spec.lr_schedule.rule.remark] if spec.lr_schedule.rule.remark else []
        found["lr"] = ", ".join([f"{spec.lr:g}", *told, *remarks])
    if spec.clip_norm is not None:
        found["clip"] = f"g · min(1, {spec.clip_norm:g}/(‖g‖ + 1e-6)), ‖g‖ over all tensors"
    if spec.clip_value is not None:
        found["clip"] = f"each entry of g to at most {spec.clip_value:g} in size"
    return [f"{letter}: {meaning}" for letter, meaning in found.items()]


def entry(report: Report, tensor: str, index: tuple[int, ...]) -> str:
    """Name one entry of a tensor, with its feature where it has one."""
    one = report.spec.architecture or ONE_LAYER
    if not index or (tensor == "bias" and one.is_one_vector):
        return tensor
    name = f"{tensor}[{', '.join(map(str, index))}]"
    # The weight of a model of one's own may have more columns than X, or other ones.
    fits = tensor == "weight" and index[-1] < len(report.features)
    said = [report.features[index[-1]]] if fits else []
    if one.name == "softmax" and not report.classes_are_numbers:
        said = [report.classes[index[0]], *said]
    return f"{name} ({', '.join(said)})" if said else name


class Term(NamedTuple):
    """One side's term at the divergence: what it does, its formulas, and its value."""

    side: str
    does: str
    formulas: list[str]
    value: float


def terms(report: Report, divergence: Divergence) -> list[Term]:
    """Return the two terms that differ, with their values at the diverging step."""
    within, stage = divergence.within, divergence.stage
    values = [within.scratch, within.framework]
    scratch = report.scratch_training if report.spec.scratch is None else report.training
    rules = [
        (report.spec.named_convention(), [symbols(scratch), letters(scratch)]),
        (report.training.settings.torchs, [symbols(report.training), letters(report.training)]),
    ]
    does = "has"
    formulas: list[list[str]] = [[], []]
    if within == divergence.at:
        pass  # nothing within the step is reported
    elif stage == "penalty" and not all(map(math.isfinite, values)):
        does = "shrinks by"  # lr·λ·w overflows, and λ w need not
    elif stage == "penalty":
        does = "adds"
        lr = report.schedule.lr_at(divergence.step) or 1.0
        values = [value / lr for value in values]
        formulas = [
            [penalty_term(side, one, within.tensor) for one in written] for side, written in rules
        ]
    elif stage == "gradient":
        formulas = [[gradient_text(side, one) for one in written] for side, written in rules]
    elif stage == "optimizer":
        does = "subtracts"
        formulas = [[delta_text(side, written[1], within.tensor)] for side, written in rules]
    elif stage == "forward":
        does = "outputs"
    return [
        Term(side, does, list(dict.fromkeys(texts)), value)
        for side, texts, value in zip(roles_of(report.spec).sides, formulas, values, strict=True)
    ]


def penalty_term(convention: Convention, given: Letters, tensor: str) -> str:
    """Write what the penalty adds to the gradient, where it is not the plain λ w too."""
    text = penalty_text(convention, given, tensor)
    if not text:
        return "nothing"
    if convention.decay == "decoupled-unscaled":
        return f"{text} / {given.lr}"
    return f"{text} (of the updated {tensor})" if convention.decay == "after-update" else text
