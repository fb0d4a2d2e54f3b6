"""Ways to differ from torch that are mistakes, and no choice."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class Faults(NamedTuple):
    """Ways to differ that nobody chooses; the defaults are torch's, and no spec states them.

    A convention is a choice, and a spec may name it. These are mistakes: they are put into a rule
    to see whether a run would have shown them (`regcheck.rules.causes.catalogue`).

    Attributes:
        penalty_form: λ times w, or λ itself added.
        bias_decay: the bias's own λ, or the weight's.
        target: each row's own, or the mean of the batch's: (n, 1) against (n,) broadcasts to it;
            the label without its smoothing, or smoothed over the other classes alone.
        bce_slope: BCELoss's with its floor, (p − y) q/max(q, 1e-12) with q = p (1 − p), or p − y.
        batch_divisor: the rows of the batch, which may be weighted by their classes; batch_size for
            a smaller last batch too; or the rows, where torch's mean weights them.
        accumulation: the micro-batches' mean, their sum, the mean over all rows of the step, or the
            last micro-batch's gradient alone.
        zeroing: gradients are zeroed at each step, or never.
        gradient_factor, lr_factor: factors on the gradient, not on the loss, and on every lr.
        lr_shift: how many steps early the schedule is; −1 is one step late.
        lr_schedule: other values of some keys of the lr's schedule, in pairs.
        clip_scope: the norm over all tensors, each tensor's own, or that of all weights, which it
            clips alone.
        clip_epsilon: what is added to the norm.
        momentum: kept, or ignored.
        nesterov: as set, or with it or without whatever is set.
        first_step: torch does not dampen the first step's velocity.
        betas: as set, or β₁ and β₂ in each other's place.
        amsgrad: as set, or with it or without whatever is set, or with it, of corrected moments.
        moments: those of this step, or those of the step before it.
        norm: Adamax divides by the U of this step, or by that of the step before it, plus ε.
        averages: what is new in a moment is 1 − β of it, or all.
        correction: of both moments, each by its own β; of one of them; or each by the other's β.
        counts_from: the number of the first step, as the moments' correction takes it.
        counted: steps; updates of tensors, of which a step has several; epochs; or nothing: t is 1.
        state: at a new epoch it is kept, zeroed while t goes on, or begun anew.
        root: the root of the second moment, or that moment itself.
        centered: as set, or with it or without whatever is set.
        lr_decay: as set, ignored, or from step 1 on, not from step 2 on.
        lr_in_average: Adadelta's average of d², or of the squares of lr d.
        lr_cap: Adafactor's lr is at most 1/√t, or the lr itself.
        cast: Muon rounds to bfloat16, or not.
        reversal: where a gradient's sign changed, Rprop takes no step and remembers a gradient of
            0; takes one and remembers the gradient, or that 0; or takes the last step back.
        rectified_above: RAdam's step is divided by √S where its N is above 5, or above 4.
        decay_rate: a decoupled decay times the lr, or times the lr with Adam's bias correction.
        options: other values of some of the optimizer's options, in pairs.
    """

    penalty_form: Literal["proportional", "constant"] = "proportional"
    bias_decay: Literal["own", "of-weight"] = "own"
    target: Literal["row", "batch-mean", "unsmoothed", "other-classes"] = "row"
    bce_slope: Literal["floored", "plain"] = "floored"
    batch_divisor: Literal["rows", "batch-size", "unweighted"] = "rows"
    accumulation: Literal["mean", "sum", "over-rows", "last"] = "mean"
    zeroing: Literal["each-step", "never"] = "each-step"
    gradient_factor: float = 1.0
    lr_factor: float = 1.0
    lr_shift: int = 0
    lr_schedule: tuple[tuple[str, Any], ...] = ()
    clip_scope: Literal["all", "tensor", "weights"] = "all"
    clip_epsilon: float = 1e-6
    momentum: Literal["kept", "ignored"] = "kept"
    nesterov: Literal["as-set", "added", "missing"] = "as-set"
    first_step: Literal["undampened", "dampened"] = "undampened"
    betas: Literal["as-set", "swapped"] = "as-set"
    amsgrad: Literal["as-set", "added", "missing", "corrected"] = "as-set"
    moments: Literal["fresh", "stale"] = "fresh"
    norm: Literal["fresh", "stale"] = "fresh"
    averages: Literal["means", "sums"] = "means"
    correction: Literal["both", "first", "second", "swapped"] = "both"
    counts_from: int = 1
    counted: Literal["steps", "tensors", "epochs", "nothing"] = "steps"
    state: Literal["kept", "zeroed", "renewed"] = "kept"
    root: Literal["root", "missing"] = "root"
    centered: Literal["as-set", "added", "missing"] = "as-set"
    lr_decay: Literal["as-set", "early", "missing"] = "as-set"
    lr_in_average: Literal["outside", "inside"] = "outside"
    lr_cap: Literal["capped", "missing"] = "capped"
    cast: Literal["bfloat16", "missing"] = "bfloat16"
    reversal: Literal["skipped", "stepped", "stepped-once", "taken-back"] = "skipped"
    rectified_above: Literal[5, 4] = 5
    decay_rate: Literal["lr", "corrected"] = "lr"
    options: tuple[tuple[str, Any], ...] = ()


NO_FAULTS = Faults()
