"""What the reference trainer does at each step, reports and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.user_code.problem_api import UserProblem

Array = NDArray[np.floating]
Pair = tuple[Array, Array]
"""Something of the weight, (d,), and of the bias, a scalar."""

Rows = NDArray[np.intp]

Memory = Mapping[str, Array]
"""What an optimizer remembers of one tensor, by torch's names."""


class Rule(NamedTuple):
    """What the code does at each step; the defaults are torch's.

    Attributes:
        divide: what λ is divided by: nothing, the step's rows, or all rows.
        penalty: a factor on λ.
        shape: the penalty's gradient: λ w, λ alone, or λ w/‖w‖.
        bias: the bias has its own λ, none, or that of the weight.
        decay: where λ w goes: where torch has it, into the gradient, past the momentum, past both
            and times lr, past both and not times lr, onto the updated w, or into what is clipped.
        decay_rate: what multiplies it is the lr, or the lr with Adam's bias correction.
        reduce: rows' gradients are averaged, summed, or divided by the spec's batch size.
        half, gradient, rate: factors on the loss, on its gradient, and on the lr.
        early: how many steps early the lr's schedule is.
        schedule: other keys of it; per is `other` where it goes by epochs and not steps, or back.
        velocity: torch's, with 1 − μ on the gradient, with the lr in it, or none.
        nesterov: as the spec says, always, or never.
        first: the first step's velocity is the gradient, or dampened like all others.
        epsilon: where torch has it, added to the corrected root, to the root before its
            correction, or inside of what the root or the maximum is taken of.
        start: what squares start at; None is torch's.
        correction: moments are corrected for the step, not at all, or kept corrected.
        averages: moments are means of what is new, or sums.
        corrected: both moments, each by its own β, the first alone, the second alone, or each by
            the other's β.
        counted: the number of the first step, for the correction.
        counts: what is counted for it: steps, updates of tensors, epochs, or nothing.
        state: what is remembered goes on at a new epoch, is set to 0, or begins anew with t.
        betas: as the spec says, or in each other's place.
        amsgrad: as the spec says, always, never, or always and of corrected moments.
        moments: the step is taken by those of this step, or by the old ones.
        norm: Adamax's step is by the maximum of this step, or by the old one plus ε.
        root: whether the root of the second moment is taken.
        centered: as the spec says, always, or never.
        reversal: where a gradient's sign changed, Rprop skips the step and remembers 0, steps and
            remembers the gradient, steps and remembers 0, or undoes the last step.
        rectified: the N of RAdam above which it divides.
        lr_decay: Adagrad's counts the steps before, this one too, or none.
        average: Adadelta's is of the steps, or of the steps times lr.
        capped: whether Adafactor's lr is at most 1/√t.
        cast: whether Muon's iteration is in bfloat16.
        other: other values of the optimizer's options.
        clip: one norm over both tensors, or one for each.
        micro_batches: their gradients are averaged, summed, averaged by their rows, or the last is
            taken alone.
        target: the row's own, or broadcast, each output against each target.
        slope: BCELoss's as torch has it, or p − y.
        zeroed: whether gradients are set to 0 after each step.
        order: both tensors are updated together, or the bias first.
    """

    divide: Literal["nothing", "rows", "all rows"] = "nothing"
    penalty: float = 1.0
    shape: Literal["w", "constant", "unit"] = "w"
    bias: Literal["own", "none", "of weight"] = "own"
    decay: Literal["torch", "gradient", "velocity", "apart", "bare", "late", "clipped"] = "torch"
    decay_rate: Literal["lr", "corrected"] = "lr"
    reduce: Literal["mean", "sum", "nominal"] = "mean"
    half: float = 1.0
    gradient: float = 1.0
    rate: float = 1.0
    early: int = 0
    schedule: tuple[tuple[str, Any], ...] = ()
    velocity: Literal["torch", "dampened", "lr inside", "none"] = "torch"
    nesterov: Literal["as set", "always", "never"] = "as set"
    first: Literal["gradient", "dampened"] = "gradient"
    epsilon: Literal["torch", "outside", "uncorrected", "inside"] = "torch"
    start: float | None = None
    correction: Literal["torch", "none", "kept"] = "torch"
    averages: Literal["means", "sums"] = "means"
    corrected: Literal["both", "first", "second", "swapped"] = "both"
    counted: int = 1
    counts: Literal["steps", "tensors", "epochs", "nothing"] = "steps"
    state: Literal["goes on", "set to 0", "anew"] = "goes on"
    betas: Literal["as set", "swapped"] = "as set"
    amsgrad: Literal["as set", "always", "never", "of corrected"] = "as set"
    moments: Literal["new", "old"] = "new"
    norm: Literal["new", "old"] = "new"
    root: bool = True
    centered: Literal["as set", "always", "never"] = "as set"
    reversal: Literal["skip", "step", "step once", "undo"] = "skip"
    rectified: Literal[5, 4] = 5
    lr_decay: Literal["before", "this too", "none"] = "before"
    average: Literal["d", "lr d"] = "d"
    capped: bool = True
    cast: bool = True
    other: tuple[tuple[str, Any], ...] = ()
    clip: Literal["together", "each"] = "together"
    micro_batches: Literal["mean", "sum", "by rows", "last"] = "mean"
    target: Literal["row", "broadcast"] = "row"
    slope: Literal["torch", "plain"] = "torch"
    zeroed: bool = True
    order: Literal["together", "bias first"] = "together"


def keys_of(rule: Rule, per: str) -> dict[str, Any]:
    """Return the other keys of a schedule that goes by steps or epochs."""
    keys = dict(rule.schedule)
    if keys.get("per") == "other":
        keys["per"] = "step" if per == "epoch" else "epoch"
    return keys


Base = Literal["none", "own", "torch", "epoch", "epoch by rows", "last", "after"]


class Reported(NamedTuple):
    """What the code reports as its loss.

    Attributes:
        base: no loss, the loss of its own rule, torch's mean loss, the mean of the epoch's losses
            so far (plain, or weighted by rows), the last micro-batch's, or the loss after the
            update.
        strengths: κ of weight and bias in κ/2 Σw², which is added.
        plain: whether κ is λ, or λ times or over a plain number.
        per_batch: whether κ is divided by each step's rows.
        wobble: the size of a mistake that is no known one.
        times: a factor on the base, or the rows of the batch.
    """

    base: Base = "own"
    strengths: tuple[float, float] = (0.0, 0.0)
    plain: bool = False
    per_batch: bool = False
    wobble: float = 0.0
    times: float | Literal["rows"] = 1.0


class Kept(NamedTuple):
    """What is kept from step to step, besides the parameters.

    Attributes:
        memory: what the optimizer remembers of weight and bias; nothing before step 1.
        total: the sum of all gradients so far, where they are never set to 0.
        last: the data gradient of the step before.
        losses, sizes: of the epoch's batches, this one among them.
    """

    memory: tuple[Memory, Memory] = ({}, {})
    total: Pair | None = None
    last: Pair | None = None
    losses: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()


class Passed(NamedTuple):
    """A pass over a step's rows, by micro-batch: outputs, row losses and their slopes.

    `own_loss` is the loss of the rule, `loss` torch's mean.
    """

    outputs: Sequence[Array]
    rows: Sequence[Pair]
    own_loss: float
    loss: float
    gradient: Pair


class Moved(NamedTuple):
    """What a step makes of one tensor, and what its penalty and all of it subtract."""

    after: Array
    memory: Memory
    penalty: Array
    delta: Array


class Taken(NamedTuple):
    """One step: the pass before it, the gradient that it took, and what came of it."""

    passed: Passed
    gradient: Pair
    weight: Moved
    bias: Moved
    kept: Kept

    @property
    def after(self) -> Pair:
        return self.weight.after, self.bias.after


class Moment(NamedTuple):
    """What a mistake in the gradient may see: the step's gradient, and that of the step before."""

    problem: UserProblem
    at: Pair
    gradient: Pair
    last: Pair
    X: Array
    y: Array
    random: np.random.Generator


Wrong = Callable[[Moment], Pair]
"""Spoils a gradient."""
