"""What no settings of torch's come to, of a scratch side's faults: reason → whether it stands."""

from __future__ import annotations

from regcheck.rules.faults import Faults
from regcheck.rules.settings import Training


def fault_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Return which faults no settings of torch's come to."""
    return loss_obstacles(training, faults) | step_obstacles(training, faults)


def loss_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Return which faults of the loss and its gradient no settings of torch's come to."""
    uneven = len(training.batch_rows) > 1
    return {
        "λ itself is no constant multiple of w": faults.penalty_form == "constant",
        "torch uses each sample's own target": faults.target == "batch-mean",
        "torch smooths over all classes. Use CrossEntropyLoss(label_smoothing=0)": (
            faults.target == "unsmoothed"
        ),
        "torch smooths over all K classes. Use CrossEntropyLoss with label_smoothing ε K/(K − 1)": (
            faults.target == "other-classes"
        ),
        "BCELoss has no gradient where p rounds to 0 or 1. Use `loss: bce_with_logits` "
        "(torch.nn.BCEWithLogitsLoss), or scaled features (`standardize: true`)": (
            faults.bce_slope != "floored"
        ),
        "only the smaller batch's or share's gradient differs": (
            faults.batch_divisor == "batch-size" and len(training.loss_rows) > 1
        ),
        "torch divides by the samples' class weights. Use CrossEntropyLoss(weight=.., "
        "reduction='none'), and its mean": faults.batch_divisor == "unweighted",
        "the steps have different numbers of micro-batches": (
            faults.accumulation == "sum" and uneven
        ),
        "the micro-batches or shares of a step differ in size. Multiply the loss of each by "
        "k m/B: it is one of k, and has m of the step's B samples": (
            faults.accumulation == "over-rows"
            and (len(training.loss_rows) > 1 or training.weighted)
        ),
        "torch averages the gradients of all micro-batches or ranks": (
            faults.accumulation == "last" and bool(training.micro_rows)
        ),
        "torch's loop zeroes the gradients at each step": faults.zeroing == "never",
    }


def step_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Return which faults of the optimizer's step no settings of torch's come to."""
    return {
        "the lr schedules differ": bool(faults.lr_schedule),
        "the lr schedule runs early or late": faults.lr_shift != 0 and training.lr_varies,
        "torch clips all tensors by one norm": faults.clip_scope != "all",
        "torch takes amsgrad's maximum before the bias correction": faults.amsgrad == "corrected",
        "torch uses the moments of the current step": faults.moments != "fresh",
        "torch divides by the U of the current step": faults.norm != "fresh",
        "torch's moments are means, not sums": faults.averages != "means",
        "torch corrects both moments, each with its own β": faults.correction != "both",
        "torch counts the steps from 1": faults.counts_from != 1,
        "torch counts each step, not epochs or tensors": faults.counted != "steps",
        "torch keeps the optimizer's state from epoch to epoch": faults.state != "kept",
        "torch divides by the square root": faults.root != "root",
        "torch's lr_decay starts at step 2": faults.lr_decay == "early",
        "torch averages the squared steps without the lr": faults.lr_in_average != "outside",
        "torch's Adafactor has an lr of at most 1/√t": faults.lr_cap != "capped",
        "torch's Muon rounds to bfloat16": faults.cast != "bfloat16",
        "torch's Rprop takes no step where a gradient's sign changed": faults.reversal != "skipped",
        "torch's RAdam rectifies where N > 5": faults.rectified_above != 5,
        "torch's weight decay has no bias correction": faults.decay_rate != "lr",
        "torch has no Nesterov momentum with dampening": (
            faults.nesterov == "added" and training.settings.dampening != 0
        ),
        "clipping acts on the scaled gradient": (
            training.clipped and (faults.gradient_factor != 1 or faults.accumulation == "sum")
        ),
    }
