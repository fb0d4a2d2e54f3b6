"""What a report says of its diagnosis: the causes, the proof, what is as good, and the way out."""

from __future__ import annotations

from typing import NamedTuple

from regcheck.cause_formula import framework_formula, scratch_formula
from regcheck.causes import CAUSES
from regcheck.convention import TORCH
from regcheck.diagnose import Diagnosis
from regcheck.formula import letters, loss_text, rule_lines, torch_call
from regcheck.hypotheses import Explanation, Fit
from regcheck.matching import Matching
from regcheck.record import Report, effective, way_out
from regcheck.report.numbers import upward
from regcheck.search import name_of_factor

MOST_ALTERNATIVES = 3
"""Other explanations that are told; the JSON report has them all."""


class Line(NamedTuple):
    """A line of the diagnosis: its label (empty where it goes on), and whether it is a formula."""

    label: str
    text: str
    formula: bool = False


def why(report: Report) -> list[Line]:
    """Tell the diagnosis, line by line."""
    found = report.diagnosis
    if found is None:
        return []
    lines: list[Line] = []
    if found.best is not None:
        for cause in found.best.causes:
            lines += cause_lines(report, cause, found.best, "Cause")
        lines.append(Line("Proof", proof(found, found.best)))
        lines += alternative_lines(report, found)
    elif report.first_divergence is not None:
        lines += unexplained_lines(report, found)
    lines += loss_lines(report, found)
    measured = measured_text(report, found)
    if measured:
        lines.append(Line("Fitted", measured))
    return lines


def cause_lines(report: Report, cause: str, best: Explanation, label: str) -> list[Line]:
    """Tell one cause: what the scratch side does, and both formulas."""
    row, fit = CAUSES[cause], best.fits.get(cause)
    note = f": {best.note}" if best.note else ""
    factor = factor_text(report, cause, fit)
    lines = [Line(label, f"{cause}: the scratch side {row.title}{factor}{note}")]
    pair = {
        "scratch": scratch_formula(cause, report.training, fit.factor if fit else None),
        "torch": framework_formula(cause, report.training),
    }
    if all(pair.values()) and pair["scratch"] != pair["torch"]:
        lines += [Line("", f"{side:<8} {text}", formula=True) for side, text in pair.items()]
    return lines


def factor_text(report: Report, cause: str, fit: Fit | None) -> str:
    """Write a fitted factor: `, by 0.25 = 1/B`."""
    if fit is None:
        return ""
    named = name_of_factor(cause, fit, report.training)
    return f": {number(fit)}" + (f" = {named.text}" if named else "")


def number(fit: Fit) -> str:
    """Write a fitted number with its deviation, where that shows in ten digits."""
    plain = f"{fit.factor:.10g}"
    return plain if fit.deviation < 1e-10 * abs(fit.factor) else f"{plain} ± {fit.deviation:.1g}"


def proof(found: Diagnosis, best: Explanation) -> str:
    """Say what putting the causes into torch's rule makes of the difference."""
    steps = "the one step agrees" if found.steps == 1 else f"all {found.steps:,} steps agree"
    if best.causes == ("initial-parameters",):
        return f"From the same parameters, {steps.replace('all', 'the rest of')}."
    if best.causes == ("precision",):
        return f"No formula differs: {steps} to the rounding of the coarser dtype."
    them = "it" if len(best.causes) == 1 else "these"
    return (
        f"With {them} in torch's rule, {steps}; the largest difference left is "
        f"{upward(best.residual)} of what rounding may do."
    )


def alternative_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Tell the explanations that are as good, and what would tell them apart."""
    lines: list[Line] = []
    others = list(zip(found.explanations[1:], found.apart[1:], strict=True))
    for one, apart in others[:MOST_ALTERNATIVES]:
        named = " with ".join(
            cause + factor_text(report, cause, one.fits.get(cause)).replace(": ", " by ", 1)
            for cause in sorted(one.causes, key=lambda cause: cause in one.fits)
        )
        tell = (
            f"a run with {apart} would tell"
            if apart
            else "the same rule by another name: fix either"
        )
        lines.append(Line("" if lines else "Or", f"{named} explains it just as well ({tell})"))
    if len(others) > MOST_ALTERNATIVES:
        lines.append(Line("", f"and {len(others) - MOST_ALTERNATIVES} more, in the JSON report"))
    return lines


def unexplained_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Say that nothing explains the divergence, and what is known."""
    where = {
        "gradient": "in the data gradient, as far as the steps tell: look at the forward pass, the "
        "loss's derivative, and which rows are used.",
        "optimizer": "in the optimizer: what the step makes of the gradient.",
        "penalty": "in the penalty: the data gradient is torch's.",
    }
    lines = [
        Line(
            "Cause",
            "not explained: no cause that regcheck knows, no pair of them and no scale of the "
            "lr, the gradient or the penalty makes these steps.",
        )
    ]
    if found.stage in where:
        lines.append(Line("Where", where[found.stage]))
    lines += [Line("Known" if not place else "", clue) for place, clue in enumerate(found.clues)]
    return lines


def loss_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Tell what explains the reported losses."""
    if not found.loss_parted:
        return []
    if found.reporting is None:
        return [Line("Loss", "why the reported losses part is not explained.")]
    lines = []
    for cause in found.reporting.causes:
        text = f"{cause}: the scratch side {CAUSES[cause].title}; the training is the same"
        lines.append(Line("Loss", text))
        strengths = {name: fit for name, fit in found.reporting.strengths.items() if fit.factor}
        if cause == "penalty-in-loss" and strengths:
            letter = {"weight": "w", "bias": "b"}
            terms = [
                f"½·{fit.factor:.6g} Σ{letter.get(name, name)}²" for name, fit in strengths.items()
            ]
            lines.append(Line("", f"scratch  torch's loss + {' + '.join(terms)}", formula=True))
    return lines


def measured_text(report: Report, found: Diagnosis) -> str:
    """Tell the effective lr and weight decay that the steps come to."""
    told = []
    decays = dict(report.training.weight_decay)
    fits = {name: effective(scales) for name, scales in found.scales.items()}
    rates = [gradient for gradient, _ in fits.values() if gradient is not None]
    if not rates:
        return ""
    alpha = rates[0]
    if all(rate.is_near(alpha.factor) or alpha.is_near(rate.factor) for rate in rates):
        lr = report.training.lr
        if alpha.is_near(1.0):
            told.append(f"lr {lr:g} as torch")
        else:
            told.append(f"lr {alpha.factor * lr:.6g} (torch {lr:g})")
    for name, (_, decay) in fits.items():
        if decay is not None and (decays.get(name) or not decay.is_near(0.0)):
            size = max(abs(decay.factor), abs(decays.get(name, 0.0)))
            value = 0.0 if abs(decay.factor) < 1e-9 * size else decay.factor
            told.append(
                f"{name}'s weight decay {value:.6g} ± {max(decay.deviation, 0):.0e} "
                f"(torch {decays.get(name, 0.0):g})"
            )
    return "the scratch side's steps come to " + ", ".join(told) if told else ""


def ways_out(report: Report) -> list[tuple[str, list[str]]]:
    """Say what to change on either side so that they match: a label and its lines."""
    found = report.diagnosis
    if found is None or not (found.best or found.reporting):
        return []
    ways: list[tuple[str, list[str]]] = []
    given = letters(report.training)
    fixes = [CAUSES[cause].fix for cause in found.causes if CAUSES[cause].fix]
    if found.best is not None and report.first_divergence is not None:
        lines = [*fixes]
        if any(CAUSES[cause].changes for cause in found.best.causes):
            lines += rule_lines(TORCH, given)
        ways.append(("in the scratch code", lines))
    elif fixes:
        ways.append(("in the scratch code", fixes))
    if found.reporting is not None and found.reporting.causes:
        ways[-1][1].append(f"and report  {loss_text(TORCH, given)}")
    match = way_out(report)
    if found.best is None or not found.best.change:
        return ways
    if isinstance(match, Matching):
        lines = [torch_call(match.put_in(report.training))]
        if report.training.lr_varies and match.lr_factor != 1:
            lines.append(f"and every lr of the schedule times {match.lr_factor!r}")
        ways.append(("or in torch", lines))
    elif match is not None:
        ways.append(("in torch", [f"no lr and weight_decay match: {match}"]))
    return ways
