"""The lines on a diagnosis: the causes, the proof, what explains it as well, and the fixes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.records import Diagnosis, Explanation, Reporting
from regcheck.diagnosis.search import name_of_factor
from regcheck.numerics.least_squares import Fit
from regcheck.report.result import Report
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.text import upward
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change, put_in
from regcheck.rules.convention import Convention, is_bias
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.formulas.formula import loss_text, rule_lines, update_lines
from regcheck.rules.formulas.torch_call import alike
from regcheck.rules.settings import Letters, letters, number

MOST_TENSORS = 3
"""Tensors that are named."""

MOST_ALTERNATIVES = 3
"""Other explanations that are printed; the JSON report has them all."""

TORCHS_LOSS = "torch's loss"

UNEXPLAINED = (
    "not explained: no known cause, no pair of causes, no factor on the lr, the gradient or the "
    "weight decay and no other value of an option reproduces these steps."
)

UNEXPLAINED_LOSS = "no known cause explains why the reported losses differ."

UNEXPLAINED_STAGES = {
    "gradient": "in the gradient of the loss, as far as the steps show: check the forward pass, "
    "the loss's derivative, and which samples are used.",
    "optimizer": "in the optimizer: how the step uses the gradient.",
    "penalty": "in the weight decay: the gradient of the loss is torch's.",
}
"""Where to look if no cause explains a divergence."""

SAME_RULE = "the same rule under another name: fix either"


class Line(NamedTuple):
    """A line of the diagnosis: its label (empty where it goes on), and whether it is a formula."""

    label: str
    text: str
    formula: bool = False


def diagnosis_lines(report: Report) -> list[Line]:
    """Describe the diagnosis, line by line."""
    found = report.diagnosis
    if found is None:
        return []
    lines: list[Line] = []
    if found.best is not None:
        lines += cause_lines(report, found.best)
        lines.append(Line("Proof", proof(report, found, found.best)))
        lines += labelled("Or", alternatives(report, found))
    elif report.first_divergence is not None:
        lines.append(Line("Cause", UNEXPLAINED))
        lines += labelled("Where", where_to_look(found))
    lines += labelled("Known", found.evidence)
    lines += loss_lines(report, found) + fitted_lines(report, found)
    roles = roles_of(report.spec)
    return [one if one.formula else one._replace(text=roles.worded(one.text)) for one in lines]


def where_to_look(found: Diagnosis) -> list[str]:
    """Say where to look for what no cause explains, where the stage is known."""
    return [UNEXPLAINED_STAGES[found.stage]] if found.stage in UNEXPLAINED_STAGES else []


def labelled(label: str, texts: Iterable[str]) -> list[Line]:
    """Put a label before the first of some lines."""
    return [Line("" if place else label, text) for place, text in enumerate(texts)]


def cause_lines(report: Report, best: Explanation) -> list[Line]:
    """Describe the causes: what the scratch side does, and both rules where they differ."""
    if not best.causes:
        return [Line("Cause", "none: the sides differ by rounding alone")]
    notes = cause_notes(report, best)
    causes = [
        f"{cause}: the scratch side {note}" for cause, note in zip(best.causes, notes, strict=True)
    ]
    lines = labelled("Cause", causes)
    scratch, torch = explained_rules(report, best)
    if scratch != torch:
        roles = roles_of(report.spec)
        for side, rule in ((roles.explained, scratch), (roles.reference, torch)):
            lines += [
                Line("", f"{'' if place else side:<8} {text}", formula=True)
                for place, text in enumerate(rule)
            ]
    return lines


def cause_notes(report: Report, best: Explanation) -> list[str]:
    """Say of each cause what the scratch side does, with its number where it has one."""
    notes = []
    for cause in best.causes:
        fit = best.fits.get(cause)
        text = options_text(report) if cause == "option-differs" else best.note
        text = text or in_tensors(best)
        if fit is not None:
            text = factor_text(report, cause, fit)
        notes.append(CAUSES[cause].title + (f": {text}" if text else ""))
    return notes


def explained_rules(report: Report, best: Explanation) -> tuple[list[str], list[str]]:
    """Write torch's rule with the causes put into it, and torch's own."""
    own = letters(report.fitted_training or report.rule_training)
    convention, faults = put_in(best.change, own.torchs, NO_FAULTS)
    scratch = lines_of(best, convention, own, faults)
    return scratch, lines_of(best, own.torchs, letters(report.rule_training))


def in_tensors(best: Explanation) -> str:
    """Say in which tensors a cause acts, where it acts in some alone."""
    if not best.tensors:
        return ""
    more = len(best.tensors) - MOST_TENSORS
    names = [*best.tensors[:MOST_TENSORS], *([f"{more} more"] if more > 0 else [])]
    return f"in {' and '.join(names)} alone; all else follows torch's rule"


def lines_of(
    best: Explanation, convention: Convention, given: Letters, faults: Faults = NO_FAULTS
) -> list[str]:
    """Write a rule, of the biases alone or of the weights alone where others keep to torch's."""
    kinds = {is_bias(name) for name in best.tensors}
    if len(kinds) != 1:
        return rule_lines(convention, given, faults)
    return update_lines(convention, given, "bias" if True in kinds else "weight", faults)


def factor_text(report: Report, cause: str, fit: Fit) -> str:
    """Write a fitted factor, and its name where that is another: `0.25 = 1/B`, `2`."""
    text = fitted_text(fit)
    named = name_of_factor(cause, fit, report.training)
    same = named is None or named.text.replace("−", "-") == text
    return text if same or named is None else f"{text} = {named.text}"


def factor_name(report: Report, cause: str, fit: Fit) -> str:
    """Write a fitted factor by its name if it has one: `1/B`."""
    named = name_of_factor(cause, fit, report.training)
    return fitted_text(fit) if named is None else named.text


def fitted_text(fit: Fit) -> str:
    """Write a fitted number, with its deviation where that shows in ten digits."""
    shows = fit.deviation >= 1e-10 * abs(fit.factor)
    return f"{fit.factor:.10g}" + (f" ± {fit.deviation:.1g}" if shows else "")


def other_options(report: Report) -> dict[str, tuple[Fit, float]]:
    """Return the options that are fitted by their names, and torch's values of them."""
    best, settings = report.diagnosis and report.diagnosis.best, report.training.settings
    numbers = settings.rule.numbers
    fits = best.options if best else {}
    return {name: (fit, numbers[name].of(settings.options)) for name, fit in fits.items()}


def options_text(report: Report) -> str:
    """Describe which options have another value than torch's: betas[0] is 0.95, torch's is 0.9."""
    return "; ".join(
        f"{name} is {fitted_text(fit)}, torch's is {number(torch)}"
        for name, (fit, torch) in other_options(report).items()
    )


def proof(report: Report, found: Diagnosis, best: Explanation) -> str:
    """Say what putting the causes into torch's rule makes of the difference, and what is left."""
    limit = report.limit_within
    left = f"{upward(best.residual * limit)} rounding bounds, of {limit:g} allowed"
    what = verified(report, found, best)
    if best.causes == ("precision",) and not best.note:
        return f"{what}, to the rounding of float32."
    return f"{what}; the largest remaining difference is {left}."


def verified(report: Report, found: Diagnosis, best: Explanation) -> str:
    """Say which steps agree once the causes are in torch's rule."""
    steps = "the one step agrees" if found.steps == 1 else f"all {found.steps:,} steps agree"
    if found.steps < report.comparison.compared:
        steps = f"all {found.steps:,} kept steps of {report.comparison.compared:,} agree"
    if not best.causes or (best.causes == ("precision",) and not best.note):
        changed = "no formula differs:"
    elif found.start is not None:
        name, start = next(iter(found.start.items()))
        some = ", ".join(f"{value:.6g}" for value in np.ravel(start)[:4])
        changed = f"from {name} {some}{', ..' if start.size > 4 else ''}"
    elif not best.change and best.weight_decay is None:
        changed = "from the same parameters" if "initial-parameters" in best.causes else "then"
    else:
        changed = f"with {'this' if len(best.causes) == 1 else 'these'} in torch's rule"
    return f"{changed} {steps}"


def alternatives(report: Report, found: Diagnosis) -> list[str]:
    """Describe the explanations that are as good, with the runs that would distinguish them."""
    by_run: dict[str, list[str]] = {}
    for one, run in zip(found.explanations[1:], found.distinguished_by[1:], strict=True):
        causes = [
            f"{cause} by {factor_name(report, cause, one.fits[cause])}"
            if cause in one.fits
            else cause
            for cause in sorted(one.causes, key=lambda cause: cause in one.fits)
        ]
        by_run.setdefault(run, []).append(" with ".join(causes))
    texts = []
    for run, names in by_run.items():
        if len(names) > MOST_ALTERNATIVES:
            names = [*names[:MOST_ALTERNATIVES], f"{len(names) - MOST_ALTERNATIVES} more"]
        how = f"a run with {run} would distinguish them" if run else SAME_RULE
        texts.append(f"equally possible: {', or '.join(names)}; {how}")
    return texts


def loss_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Describe what explains the reported losses."""
    if not found.loss_diverged:
        return []
    if found.reporting is None:
        return [Line("Loss", found.loss_evidence or UNEXPLAINED_LOSS)]
    texts = [
        f"{cause}: the scratch side {CAUSES[cause].title}; the training is the same"
        for cause in found.reporting.causes
    ]
    formula = reported_formula(report, found.reporting, found.best)
    if formula == TORCHS_LOSS:
        return labelled("Loss", [*texts, found.loss_evidence] if found.loss_evidence else texts)
    lines = labelled("Loss", texts or ["the scratch side reports the loss that it trains by"])
    lines.append(Line("", f"scratch  {formula}", formula=True))
    return [*lines, Line("", found.loss_evidence)] if found.loss_evidence else lines


def loss_texts(report: Report, found: Diagnosis) -> list[str]:
    """Say in short what explains the reported losses."""
    reporting = found.reporting
    if not found.loss_diverged or reporting is None:
        return [one.text for one in loss_lines(report, found)]
    formula = reported_formula(report, reporting, found.best)
    causes, text = reporting.causes, f"the scratch side reports {formula}"
    if formula == TORCHS_LOSS:
        titles = " and ".join(CAUSES[cause].title for cause in causes)
        text = titles or "the reported losses differ as the updates do"
    named = f"{' and '.join(causes)}: " if causes else ""
    evidence = [found.loss_evidence] if found.loss_evidence else []
    return [f"{named}{text}", *evidence]


def reported_formula(report: Report, reporting: Reporting, best: Explanation | None) -> str:
    """Write the loss that the scratch side reports: `½ torch's loss + ½·0.1 Σw²`."""
    scale = f"{reporting.scale:.6g}"
    for share, half in ((0.5, "½ "), (1.0, "")):
        fit = Fit(reporting.scale / share, 0.0)
        named = name_of_factor("gradient-scaled", fit, report.training)
        scale = half + named.text if named else scale
    if scale == "1" and "reported-loss-scaled" in reporting.causes:
        scale = "c"  # another at each step
    formula = f"{scale} {TORCHS_LOSS}".removeprefix("1 ")
    if best is not None and not reporting.causes and counts_rows_otherwise(report, best.change):
        convention, faults = put_in(best.change, report.training.settings.torchs, NO_FAULTS)
        formula = loss_text(convention, letters(report.training), faults)
    for cause in reporting.causes:
        if cause != "reported-loss-scaled" and CAUSES[cause].reports:
            formula = CAUSES[cause].reports.format(formula)
    for name, fit in reporting.strengths.items():
        if fit.factor:
            letter = {"weight": "w", "bias": "b"}.get(name, name)
            formula += f" + ½·{fit.factor:.6g} Σ{letter}²"
    return formula


def counts_rows_otherwise(report: Report, change: Change) -> bool:
    """Whether a rule's loss is another multiple of torch's where means are over other rows."""
    by_rows = "loss_reduction" in change or "batch_divisor" in change
    over_rows = change.get("accumulation") == "over-rows"
    return len(report.training.loss_rows) > 1 and (by_rows or over_rows)


def fitted_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Describe the effective lr and weight decay that the scratch side's steps come to."""
    settings = report.training.settings
    decays = settings.weight_decay
    rates: dict[str, list[str]] = {}
    penalties: dict[str, list[str]] = {}
    spreads: dict[str, str] = {}
    for name, scales in found.effective_settings.items():
        rate, decay = scales.gradient, scales.weight_decay
        if not scales.fits or rate is None:
            return []
        alpha = 1.0 if rate.is_near(1.0) else rate.factor
        rates.setdefault(f"lr {alpha * settings.of(name).lr:.6g}", []).append(name)
        if decay is not None and any(decays.values()):
            lost = abs(decay.factor) < 1e-9 * decays.get(name, 0.0)
            text = f"weight_decay {0.0 if lost else decay.factor:.6g}"
            penalties.setdefault(text, []).append(name)
            spreads.setdefault(text, f" (± {decay.deviation:.0e})")
    if not rates:
        return []
    texts = [
        text + (f" of {' and '.join(names)}" if len(group) > 1 else "") + spreads.get(text, "")
        for group in (rates, penalties)
        for text, names in group.items()
    ]
    torch = f"lr {' and '.join(dict.fromkeys(number(settings.of(name).lr) for name in decays))}"
    if any(decays.values()):
        torch += f", weight_decay {' and '.join(f'{value:g}' for value in alike(decays))}"
    return [Line("Fitted", f"from the scratch side's steps: {', '.join(texts)}; torch has {torch}")]
