"""What to compare next, where no cause is named."""

from __future__ import annotations

from regcheck.diagnosis.evidence import NEVER
from regcheck.diagnosis.step_counts import ANOTHER_T
from regcheck.report.result import Report
from regcheck.report.texts.roles import roles_of

NEXT = {
    "gradient": "compare the gradient at {step} with torch's, tensor by tensor, before anything is "
    "added to it",
    "penalty": "compare the weight-decay term at {step} with torch's, tensor by tensor",
    "optimizer": "compare at {step} the lr, the weight decay, and what is kept from earlier steps "
    "(velocity, moments, the step counter)",
}
"""What to compare, by the stage at which the sides differ."""

IN_ORDER = "compare at {step}, in this order: the loss, the gradient, the update"

OF_LOSS = "compare at {step}, in this order: the samples, the predictions, the loss of each sample"

YIELD_GRADIENT = (
    'yield your gradient too, {"weight": w, .., "grad": {"weight": gw, ..}}: regcheck then says '
    "whether it or the update differs"
)


BY_WORDS = {
    "ook for": "",  # which says itself what is next
    NEVER: "update in each step what is never updated, as all else",
    ANOTHER_T: "let t be 1 at the first step, and one more at each, in all epochs alike",
    "with the lr schedule": "let the lr stay as it is at the end of the schedule",
    "with the constant lr": "take the lr of the schedule in each step",
    "with other lrs": "take in each step the lr of the spec and its `lr_schedule`",
}
"""What is next where the evidence has some words, the first that it has."""


def next_steps(report: Report) -> list[str]:
    """Say what to compare next; nothing where a cause is named, or nothing diverges."""
    found, first = report.diagnosis, report.first_divergence
    if report.verdict != "diverged" or found is None or found.best or first is None:
        return []
    if report.spec.recording or "parameters" not in report.spec.compare:
        return []
    known = " ".join(found.evidence)
    told = next((text for words, text in BY_WORDS.items() if words in known), None)
    if told is not None:
        return [told] if told else []
    textbook = report.spec.textbook is not None  # by the very gradient that the optimizer takes
    loss, own = report.first_loss_divergence, report.spec.scratch is not None and not textbook
    text = NEXT.get("optimizer" if textbook else found.stage or "", IN_ORDER)
    if found.stage == "gradient" and not found.reporting and loss and loss.step == first.step:
        text = OF_LOSS
        if first.step == 1 and own:
            text += "; is the start `problem.initial`?"
    lines = [text.format(step=f"step {first.step:,}")]
    sample = report.comparison.sample
    yields = sample is not None and sample.scratch.gradient is not None
    if own and not yields and text in (NEXT["gradient"], IN_ORDER):
        lines.append(YIELD_GRADIENT)
    return [roles_of(report.spec).worded(line) for line in lines]
