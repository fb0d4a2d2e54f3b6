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
        "λ itself is no multiple of w": faults.penalty_form == "constant",
        "the targets' mean is no target": faults.target != "row",
        "BCELoss passes no gradient where p rounds to 0 or 1. Take `loss: bce_with_logits` "
        "(torch.nn.BCEWithLogitsLoss), or scaled features (`standardize: true`)": (
            faults.bce_slope != "floored"
        ),
        "only the last batch's gradient is another": (
            faults.batch_divisor != "rows" and len(training.loss_rows) > 1
        ),
        "the steps have different numbers of micro-batches": (
            faults.accumulation == "sum" and uneven
        ),
        "the micro-batches or shares of a step differ in rows. Weight the loss of each by k m/B: "
        "it is one of k, and has m of the step's B rows": (
            faults.accumulation == "over-rows"
            and (len(training.loss_rows) > 1 or training.weighted)
        ),
        "torch's loop zeroes the gradients at each step": faults.zeroing == "never",
    }


def step_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Return which faults of the optimizer's step no settings of torch's come to."""
    return {
        "the schedule is another": bool(faults.lr_schedule),
        "the schedule runs earlier or later": faults.lr_shift != 0 and training.lr_varies,
        "torch clips all tensors by one norm": faults.clip_scope != "all",
        "torch takes its step by the moments of that step": faults.moments != "fresh",
        "torch's moments are means, not sums": faults.averages != "means",
        "torch corrects both moments, each by its own β": faults.correction != "both",
        "torch counts the steps from 1": faults.counts_from != 1,
        "torch counts its steps, for all tensors alike": faults.counted != "steps",
        "torch's optimizer remembers the epochs before": faults.state != "kept",
        "torch divides by the root": faults.root != "root",
        "torch's lr_decay begins with the second step": faults.lr_decay == "early",
        "torch averages the squares of steps without the lr": faults.lr_in_average != "outside",
        "torch's decay is not corrected for the moments' start": faults.decay_rate != "lr",
        "torch does not dampen the first step": faults.first_step != "undampened",
        "with a dampening of its own, Nesterov's step is none of torch's": (
            faults.nesterov == "added" and training.settings.dampening != 0
        ),
        "clipping acts on the scaled gradient": (
            training.clipped and (faults.gradient_factor != 1 or faults.accumulation == "sum")
        ),
    }
