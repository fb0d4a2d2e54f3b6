"""What a report says in words: the two rules, the verdict, the terms that differ, the way out.

Every renderer takes its sentences from here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.compare.steps import Divergence
from regcheck.problem.batches import schedule_of
from regcheck.report.result import Report
from regcheck.report.tolerance_text import kept, tolerance_text
from regcheck.rules.convention import TORCH, Convention, differences, name_of
from regcheck.rules.equivalent import torch_call
from regcheck.rules.formula import (
    delta_text,
    gradient_text,
    loss_text,
    meanings,
    penalty_text,
    rule_lines,
)
from regcheck.rules.settings import Letters, letters, symbols

WHERE = {
    "initial": "at the start",
    "forward": "in the forward pass",
    "gradient": "in the data gradient",
    "penalty": "in the penalty",
    "optimizer": "in the optimizer",
    "update": "in the update",
}


class Side(NamedTuple):
    """One side of the comparison: who it is, its update, and the loss that it reports."""

    side: str
    title: str
    update: list[str]
    loss: str


class Term(NamedTuple):
    """One side's term at the divergence: what it does, its formula, and its value."""

    side: str
    does: str
    formulas: list[str]
    value: float


def subject(report: Report) -> str:
    """Name the spec, the model, and the precision."""
    spec = report.spec
    scratch, framework = report.dtypes
    dtype = scratch if scratch == framework else f"NumPy {scratch} against torch {framework}"
    kind = f"{spec.model}, {spec.loss}" if spec.model else "your own model"
    return f"{report.name}: {kind}, {dtype}"


def training_size(report: Report) -> str:
    """Tell the rows, the steps and the batches."""
    spec, training = report.spec, report.training
    rows = training.train_rows
    batch, *rest = training.batch_rows
    if report.comparison.steps == 0:
        batches = "no batch"
    elif batch == rows and not rest:
        batches = "full batch"
    else:
        last = f", the last of an epoch {rest[0]}" if rest else ""
        batches = f"batches of {batch:,} rows{last}"
    if spec.accumulate > 1:
        batches += f", in micro-batches of {spec.batch_size}"
    return (
        f"{count(rows, 'training row')} of {row_size(report)}, "
        f"{count(spec.epochs, 'epoch')}, "
        f"{count(report.comparison.steps, 'step')}, {batches}"
    )


def row_size(report: Report) -> str:
    """Tell what a row of X holds: `4 features`, `1 x 8 x 8 numbers`."""
    shape = report.row_shape
    if len(shape) == 1:
        return count(shape[0], "feature")
    return " x ".join(map(str, shape)) + " numbers" if shape else "1 number"


def count(number: int, noun: str) -> str:
    """Write a number of things: `1 step`, `1,000 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def sides(report: Report) -> list[Side]:
    """Tell who is compared with whom, each with its rule and the spec's numbers in it."""
    return [scratch_side(report), framework_side(report)]


def framework_side(report: Report) -> Side:
    """Tell torch's side."""
    given = letters(report.rule_training)
    rule, loss = rule_lines(TORCH, given), loss_text(TORCH, given)
    if report.spec.own_framework is None:
        return Side("torch", torch_call(report.training.sgd), rule, loss)
    title = f"{named(report.spec.own_framework)}, your model, loss and optimizer"
    if not report.plain_sgd:
        return Side("torch", title, [], "your loss")
    one_layer = report.spec.model is not None
    call = [torch_call(report.training.sgd)] if one_layer else []
    return Side("torch", title, [*call, *rule] if one_layer else [], "your loss")


def named(code: object) -> str:
    """Name a user's function, or the class of an object that is called."""
    return code if isinstance(code, str) else getattr(code, "__qualname__", type(code).__qualname__)


def scratch_side(report: Report) -> Side:
    """Tell the scratch side."""
    if report.spec.scratch is not None:
        loss = "its own loss" if report.comparison.losses_reported else "no loss"
        return Side("scratch", f"{named(report.spec.scratch)}, your code", [], loss)
    convention = report.spec.named_convention()
    given = letters(report.training)
    name = name_of(convention) or ", ".join(
        f"{key}: {here}" for key, (here, _) in differences(convention).items()
    )
    rule = rule_lines(convention, given)
    return Side("scratch", f"NumPy, {name}", rule, loss_text(convention, given))


def meanings_of(report: Report) -> list[str]:
    """Say what those letters of the sides' rules mean that a spec has not, with its settings."""
    spec = report.spec
    lines = [line for side in sides(report) for line in side.update]
    told = dict(
        meaning.split(" ", 1) for meaning in meanings(lines, ("g", "v", "lr", "B", "m", "mᵢ"))
    )
    if spec.accumulate > 1:
        told["g"] = "average gradient of the micro-batches' mean losses, without the penalty"
    if spec.lr_schedule is not None:
        keys = spec.lr_schedule.model_dump(exclude_none=True)
        told["lr"] = ", ".join([f"{spec.lr:g}", *(f"{key} {keys[key]}" for key in keys)])
    if spec.clip_norm is not None:
        told["clip"] = f"g · min(1, {spec.clip_norm:g}/(‖g‖ + 1e-6)), ‖g‖ over all tensors"
    if spec.clip_value is not None:
        told["clip"] = f"each entry of g to at most {spec.clip_value:g} in size"
    return [f"{letter}: {meaning}" for letter, meaning in told.items()]


def judged(report: Report, what: str) -> bool:
    """Say whether the spec's `compare` names parameters or loss."""
    return what in report.spec.compare


def sentence(report: Report) -> str:
    """Say the verdict in one sentence."""
    if report.verdict == "equivalent":
        what = "" if judged(report, "parameters") else " in the reported loss"
        return f"EQUIVALENT{what} over {count(report.comparison.compared, 'step')}: {kept(report)}"
    if report.verdict == "inconclusive":
        before = min(report.comparison.stops(report.spec.compare).values(), default=1) - 1
        until = f"steps 1 to {before:,} agree" if before > 1 else "step 1 agrees"
        agree = f"; {until}" if before else ""
        return f"INCONCLUSIVE: {report.reason}{agree}"
    steps = f"{report.comparison.steps:,}"
    divergence = report.first_divergence
    if divergence is not None and judged(report, "parameters"):
        return f"DIVERGED at step {divergence.step:,} of {steps}: {part(report, divergence)}"
    loss = report.first_loss_divergence
    assert loss is not None
    agree = "; the training itself agrees" if divergence is None else ""
    return f"DIVERGED at step {loss.step:,} of {steps}, in the reported loss{agree}"


def part(report: Report, divergence: Divergence) -> str:
    """Name the entry and the stage of a divergence: `weight[0, 2] (x3), in the penalty`."""
    at = divergence.at
    where = f"{entry(report, at.tensor, at.index)}, {WHERE[divergence.stage]}"
    tolerance = report.spec.tolerance.of(at.tensor)
    if not tolerance.on_drift:
        return where
    if divergence.stage == "update":
        where = entry(report, at.tensor, at.index)
    if tolerance.exact:
        return f"{where}: the drift is not exactly 0"
    return f"{where}: the drift exceeds {tolerance_text(tolerance)}"


def entry(report: Report, tensor: str, index: tuple[int, ...]) -> str:
    """Name one entry of a tensor, with its feature where it has one."""
    if tensor == "bias" or not index:
        return tensor
    name = f"{tensor}[{', '.join(str(part) for part in index)}]"
    # The weight of a model of one's own may have more columns than X, or other ones.
    fits = tensor == "weight" and index[-1] < len(report.features)
    return f"{name} ({report.features[index[-1]]})" if fits else name


def terms(report: Report, divergence: Divergence) -> list[Term]:
    """Give the two terms that differ, with their values at the diverging step."""
    within = divergence.within
    if within == divergence.at:  # nothing within the step is told
        return [
            Term("scratch", "has", [], within.scratch),
            Term("torch", "has", [], within.framework),
        ]
    convention = report.spec.named_convention()
    given = letters(report.training)
    general = symbols(report.training)
    scratch, framework = within.scratch, within.framework
    if divergence.stage == "penalty":
        does = "adds"
        lr = schedule_of(report.spec, report.training.train_rows).lr_at(divergence.step)
        finite = math.isfinite(scratch) and math.isfinite(framework)
        if lr and finite:
            scratch, framework = scratch / lr, framework / lr
        formulas = [
            [penalty_term(side, one, within.tensor) for one in (general, given)]
            for side in (convention, TORCH)
        ]
        if not finite:  # lr·λ·w overflows, and λ w need not
            does, formulas = "shrinks by", [[], []]
    elif divergence.stage == "gradient":
        does = "has"
        formulas = [
            [gradient_text(side, one) for one in (general, given)] for side in (convention, TORCH)
        ]
    elif divergence.stage == "optimizer":
        does = "subtracts"
        formulas = [[delta_text(side, given, within.tensor)] for side in (convention, TORCH)]
    else:
        does = {"forward": "puts out"}.get(divergence.stage, "has")
        formulas = [[], []]
    return [
        Term("scratch", does, unique(formulas[0]), scratch),
        Term("torch", does, unique(formulas[1]), framework),
    ]


def penalty_term(convention: Convention, given: Letters, tensor: str) -> str:
    """Write what the penalty adds to the gradient, where it is not the plain λ w too."""
    text = penalty_text(convention, given, tensor)
    if not text:
        return "nothing"
    if convention.decay == "decoupled-unscaled":
        return f"{text} / {given.lr}"
    return f"{text} (of the moved {tensor})" if convention.decay == "after-update" else text


def unique(texts: list[str]) -> list[str]:
    """Drop repeated texts, and keep the order."""
    return list(dict.fromkeys(texts))


def differing_keys(report: Report) -> str:
    """Name the keys in which the scratch side's convention is not torch's."""
    found = differences(report.spec.named_convention(), bias=report.spec.bias)
    return ", ".join(f"{key}: {here} (torch: {torch})" for key, (here, torch) in found.items())
