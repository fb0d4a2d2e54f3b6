"""The lines on the reported losses."""

from __future__ import annotations

from regcheck.diagnosis.listing import name_of_factor
from regcheck.diagnosis.records import Diagnosis, Explanation, Reporting
from regcheck.diagnosis.reported_loss import LOGARITHMS
from regcheck.numerics.least_squares import Fit
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.cause_text import Line, labelled
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change, put_in
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import loss_text
from regcheck.rules.settings import letters
from regcheck.rules.words import all_of

TORCHS_LOSS = "torch's loss"


UNEXPLAINED_LOSS = "no known cause explains why the reported losses differ."


def loss_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Describe what explains the reported losses."""
    if not found.loss_diverged:
        return []
    known = [found.loss_evidence.text] if found.loss_evidence else []
    if found.reporting is None:
        return labelled("Loss", known or [UNEXPLAINED_LOSS])
    texts = [
        f"{cause}: the scratch side {CAUSES[cause].title}; the training is the same"
        for cause in found.reporting.causes
    ]
    formula = reported_formula(report, found.reporting, found.best)
    if formula == TORCHS_LOSS:
        return labelled("Loss", [*texts, *known])
    lines = labelled("Loss", texts or ["the scratch side reports the loss that it trains by"])
    lines.append(Line("", f"scratch  {formula}", formula=True))
    return [*lines, *labelled("", known)]


def loss_texts(report: Report, found: Diagnosis) -> list[str]:
    """Say in short what explains the reported losses."""
    reporting = found.reporting
    if not found.loss_diverged or reporting is None:
        return [one.text for one in loss_lines(report, found)]
    formula = reported_formula(report, reporting, found.best)
    causes, text = reporting.causes, f"the scratch side reports {formula}"
    if formula == TORCHS_LOSS:
        titles = [CAUSES[cause].title for cause in causes]
        text = all_of(titles) if titles else "the reported losses differ as the updates do"
    named = f"{all_of(causes)}: " if causes else ""
    known = [found.loss_evidence.text] if found.loss_evidence else []
    return [f"{named}{text}", *known]


def reported_formula(report: Report, reporting: Reporting, best: Explanation | None) -> str:
    """Write the loss that the scratch side reports: `½ torch's loss + ½·0.1 Σw²`."""
    logarithms = {value: name for name, value in LOGARITHMS.items()}
    scale = logarithms.get(reporting.scale, f"{reporting.scale:.6g}")
    for share, half in ((0.5, "½ "), (1.0, "")) if reporting.scale != 1 else ():
        fit = Fit(reporting.scale / share, 0.0)
        named = name_of_factor("gradient-scaled", fit, report.training)
        scale = half + named.text if named else scale
    if scale == "1" and "reported-loss-scaled" in reporting.causes:
        scale = "c"  # another at each step
    between = "·" if scale[-1].isdigit() else " " if scale == "½" else " times "
    formula = f"{scale}{between}{TORCHS_LOSS}".removeprefix("1·")
    if best is not None and not reporting.causes and is_no_multiple(report, best.change):
        convention, faults = put_in(best.change, report.training.settings.torchs, NO_FAULTS)
        formula = loss_text(convention, letters(report.training), faults)
    for cause in reporting.causes:
        if cause != "reported-loss-scaled" and CAUSES[cause].reports:
            formula = CAUSES[cause].reports.format(formula)
    for name, fit in reporting.strengths.items():
        if fit.factor:
            letter = {"weight": "w", "bias": "b"}.get(name, name)
            squares = f" + ½·{fit.factor:.6g} Σ{letter}²"
            formula += squares if reporting.squared else f" + {fit.factor:.6g} ‖{letter}‖"
    return formula


def is_no_multiple(report: Report, change: Change) -> bool:
    """Whether a rule's loss is no one multiple of torch's: of other targets, or over other rows."""
    if "target" in change:
        return True
    by_rows = "loss_reduction" in change or "batch_divisor" in change
    over_rows = change.get("accumulation") == "over-rows"
    return len(report.training.loss_rows) > 1 and (by_rows or over_rows)
