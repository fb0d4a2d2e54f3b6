"""The lines on a diagnosis: the causes, the proof, what explains it as well, and the fixes."""

from __future__ import annotations

import numpy as np

from regcheck.diagnosis.records import Diagnosis, Explanation
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.cause_text import (
    Line,
    cause_notes,
    explained_rules,
    factor_name,
    labelled,
)
from regcheck.report.texts.diagnosis.loss_text import loss_lines
from regcheck.report.texts.diagnosis.next_steps import next_steps
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.text import upward
from regcheck.rules.formulas.torch_call import alike
from regcheck.rules.settings import number
from regcheck.rules.words import all_of

MOST_ALTERNATIVES = 3
"""Other explanations that are printed; the JSON report has them all."""


UNEXPLAINED = (
    "not explained: no known cause, no pair of causes, no factor on the lr, the gradient or the "
    "weight decay and no other value of an option reproduces these steps."
)


SAME_RULE = "the same rule under another name: fix either"


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
    lines += labelled("Known", (one.text for one in found.evidence))
    lines += labelled("Next", next_steps(report))
    lines += loss_lines(report, found) + fitted_lines(report, found)
    roles = roles_of(report.spec)
    return [one if one.formula else one._replace(text=roles.worded(one.text)) for one in lines]


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
        text + (f" of {all_of(names)}" if len(group) > 1 else "") + spreads.get(text, "")
        for group in (rates, penalties)
        for text, names in group.items()
    ]
    torch = f"lr {all_of(dict.fromkeys(number(settings.of(name).lr) for name in decays))}"
    if any(decays.values()):
        torch += f", weight_decay {all_of(f'{value:g}' for value in alike(decays))}"
    return [Line("Fitted", f"from the scratch side's steps: {', '.join(texts)}; torch has {torch}")]
