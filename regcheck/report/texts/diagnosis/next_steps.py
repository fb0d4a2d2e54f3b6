"""What to compare next, where no cause is named."""

from __future__ import annotations

from regcheck.compare.steps import Divergence
from regcheck.diagnosis.evidence.record import Kind
from regcheck.diagnosis.records import Diagnosis
from regcheck.report.result import Report
from regcheck.report.texts.roles import roles_of
from regcheck.rules.causes.cause import Stage

BY_STAGE: dict[Stage, str] = {
    "gradient": "compare the gradient at {step} with torch's, tensor by tensor, before anything is "
    "added to it",
    "penalty": "compare the weight-decay term at {step} with torch's, tensor by tensor",
    "optimizer": "compare at {step} the lr, the weight decay, and what is kept from earlier steps "
    "(velocity, moments, the step counter)",
}
"""What to compare, by the stage at which the sides differ."""

IN_ORDER = "compare at {step}, in this order: the loss, the gradient, the update"

IN_LOSS = (
    "compare at {step} how the loss is computed: each sample's loss, their mean or sum, before or "
    "after the update"
)

OF_LOSS = "compare at {step}, in this order: the samples, the predictions, the loss of each sample"

LOSSES_ALIKE = (
    "compute both losses in the same way, and the gradient of the same loss; then run again"
)

YIELD_GRADIENT = (
    'yield your gradient too, {"weight": w, .., "grad": {"weight": gw, ..}}: regcheck then says '
    "whether it or the update differs"
)


BY_KIND: dict[Kind, str] = {
    "yielded-early": "put `yield` after the update, and yield with the updated parameters the loss "
    "that was computed before it",
    "says-next": "",
    "look-ahead": "",
    "frozen": "train these tensors in torch too, or leave them as they are in the scratch code",
    "not-given": "give these tensors to torch's optimizer, or leave them as they are in the "
    "scratch code",
    "float32": "compute all of it in float64: look for `.astype(np.float32)` and "
    "`dtype=np.float32`; or allow for it, by a `tolerance` of rtol and atol",
    "l1-penalty": "take λ w, torch's weight decay, in the place of c sign(w); or give torch the "
    "L1 term too, whose gradient at 0 is 0: a loss function with c * w.abs().sum() in it, from a "
    "function of your own (`framework: model.py:build`)",
    "never-updated": "update in each step what is never updated, as all else",
    "other-t": "let t be 1 at the first step, and one more at each, in all epochs alike",
    "schedule-goes-on": "let the lr stay as it is at the end of the schedule",
    "schedule-ignored": "take the lr of the schedule in each step",
    "other-lrs": "take in each step the lr of the spec and its `lr_schedule`",
}
"""What is next where some evidence is of a kind: by the first of these kinds that there is."""


def next_steps(report: Report) -> list[str]:
    """Say what to compare next; nothing where a cause is named, or nothing diverges."""
    found = report.diagnosis
    if report.verdict != "diverged" or found is None or report.spec.recording:
        return []
    first, loss, lines = report.first_divergence, report.first_loss_divergence, []
    judged = report.spec.compare
    if first is not None and found.best is None and "parameters" in judged:
        lines = of_updates(report, found, first)
    elif loss is not None and "loss" in judged and not (found.reporting or found.loss_evidence):
        lines = [IN_LOSS.format(step=f"step {loss.step:,}")]
    return [roles_of(report.spec).worded(line) for line in lines]


def of_updates(report: Report, found: Diagnosis, first: Divergence) -> list[str]:
    """Say what to compare where updates differ by no cause that is named."""
    kinds = {one.kind for one in found.evidence}
    told = next((text for kind, text in BY_KIND.items() if kind in kinds), None)
    if told is not None:
        return [told] if told else []
    differs = any(one.kind == "loss-differs" for one in found.evidence)
    if found.loss_evidence and differs:  # whose reason is known
        return [LOSSES_ALIKE]
    return by_stage(report, found, first)


def by_stage(report: Report, found: Diagnosis, first: Divergence) -> list[str]:
    """Say what to compare by the stage at which the updates differ."""
    textbook = report.spec.textbook is not None  # by the very gradient that the optimizer takes
    stage: Stage = "optimizer" if textbook else found.stage or "update"
    loss, own = report.first_loss_divergence, report.spec.scratch is not None and not textbook
    step = f"step {first.step:,}"
    if stage == "gradient" and not found.reporting and loss and loss.step == first.step:
        start = "; is the start `problem.initial`?" if first.step == 1 and own else ""
        return [OF_LOSS.format(step=step) + start]
    lines = [BY_STAGE.get(stage, IN_ORDER).format(step=step)]
    sample = report.comparison.sample
    yields = sample is not None and sample.scratch.gradient is not None
    if own and not yields and stage not in ("penalty", "optimizer"):
        lines.append(YIELD_GRADIENT)
    return lines
