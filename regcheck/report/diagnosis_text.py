"""What a report says of its diagnosis: the causes, the proof, what is as good, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.records import Diagnosis, SpecFix
from regcheck.diagnosis.replay import Explanation, Fit
from regcheck.diagnosis.reported_loss import Reporting
from regcheck.diagnosis.search import name_of_factor
from regcheck.report.numbers import upward
from regcheck.report.result import Report, effective, factor_number, fix_of
from regcheck.rules.cause import put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH
from regcheck.rules.equivalent import Matching, torch_call
from regcheck.rules.formula import loss_text, rule_lines
from regcheck.rules.settings import exact, letters

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
        lines += cause_lines(report, found.best)
        lines.append(Line("Proof", proof(report, found, found.best)))
        lines += alternative_lines(report, found)
    elif report.first_divergence is not None:
        lines += unexplained_lines(found)
    lines += loss_lines(report, found)
    measured = measured_text(report, found)
    if measured:
        lines.append(Line("Fitted", measured))
    return lines


def cause_lines(report: Report, best: Explanation) -> list[Line]:
    """Tell the causes: what the scratch side does, and both rules where they differ."""
    lines: list[Line] = []
    if not best.causes:
        return [Line("Cause", "none: the sides differ by rounding alone")]
    for cause in best.causes:
        note = f": {best.note}" if best.note and cause not in best.fits else ""
        factor = factor_text(report, cause, best.fits.get(cause))
        text = f"{cause}: the scratch side {CAUSES[cause].title}{factor}{note}"
        lines.append(Line("" if lines else "Cause", text))
    convention, faults = put_in(best.change, TORCH, NO_FAULTS)
    given = letters(report.rule_training)
    own = report.rule_training
    if best.weight_decay is not None and best.weight_decay.keys() == own.sgd.weight_decay.keys():
        own = own.with_decays(best.weight_decay)
    rules = {
        "scratch": rule_lines(convention, letters(own), faults),
        "torch": rule_lines(TORCH, given),
    }
    if rules["scratch"] != rules["torch"]:
        for side, rule in rules.items():
            lines += [
                Line("", f"{'' if place else side:<8} {text}", formula=True)
                for place, text in enumerate(rule)
            ]
    return lines


def factor_text(report: Report, cause: str, fit: Fit | None) -> str:
    """Write a fitted factor: `: 0.25 = 1/B`."""
    return "" if fit is None else f": {factor_number(report, cause, fit)}"


def proof(report: Report, found: Diagnosis, best: Explanation) -> str:
    """Say what putting the causes into torch's rule makes of the difference."""
    steps = "the one step agrees" if found.steps == 1 else f"all {found.steps:,} steps agree"
    if found.steps < report.comparison.compared:
        steps = f"all {found.steps:,} kept steps of {report.comparison.compared:,} agree"
    left = (
        f"the largest difference left is {upward(best.residual * report.limit_within)} rounding "
        f"bounds, of {report.limit_within:g} allowed"
    )
    if not best.causes:
        return f"no formula differs: {steps}; {left}."
    if best.causes == ("precision",) and not best.note:
        return f"no formula differs: {steps}, to the rounding of float32."
    if found.start is not None:
        first = next(iter(found.start))
        some = ", ".join(f"{value:.6g}" for value in np.ravel(found.start[first])[:4])
        return (
            f"from {first} {some}{', ..' if found.start[first].size > 4 else ''} {steps}; {left}."
        )
    if not best.change and best.weight_decay is None:
        where = "from the same parameters" if "initial-parameters" in best.causes else "then"
        return f"{where} {steps}; {left}."
    them = "it" if len(best.causes) == 1 else "these"
    return f"with {them} in torch's rule {steps}; {left}."


def alternative_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Tell the explanations that are as good, and what would tell them apart."""
    lines: list[Line] = []
    others = list(zip(found.explanations[1:], found.distinguished_by[1:], strict=True))
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


def unexplained_lines(found: Diagnosis) -> list[Line]:
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
    lines += [Line("Known" if not place else "", clue) for place, clue in enumerate(found.evidence)]
    return lines


def loss_lines(report: Report, found: Diagnosis) -> list[Line]:
    """Tell what explains the reported losses."""
    if not found.loss_diverged:
        return []
    if found.reporting is None:
        unknown = "why the reported losses part is not explained."
        return [Line("Loss", found.loss_evidence or unknown)]
    lines = [
        Line("Loss", f"{cause}: the scratch side {CAUSES[cause].title}; the training is the same")
        for cause in found.reporting.causes
    ]
    formula = reported_formula(report, found.reporting)
    if formula != TORCHS_LOSS:
        lines = lines or [Line("Loss", "the scratch side reports the loss that it trains by")]
        lines.append(Line("", f"scratch  {formula}", formula=True))
    if found.loss_evidence:
        lines.append(Line("" if lines else "Loss", found.loss_evidence))
    return lines


TORCHS_LOSS = "torch's loss"


def reported_formula(report: Report, reporting: Reporting) -> str:
    """Write the loss that the scratch side reports: `½ torch's loss + ½·0.1 Σw²`."""
    scale = scale_text(report, reporting.scale)
    if scale == "1" and "reported-loss-scaled" in reporting.causes:
        scale = "c"  # another at each step
    data = f"{scale} {TORCHS_LOSS}".removeprefix("1 ")
    for cause in reporting.causes:
        if cause != "reported-loss-scaled" and CAUSES[cause].reports:
            data = CAUSES[cause].reports.format(data)
    letter = {"weight": "w", "bias": "b"}
    strengths = {name: fit.factor for name, fit in reporting.strengths.items() if fit.factor}
    terms = [f"½·{kappa:.6g} Σ{letter.get(name, name)}²" for name, kappa in strengths.items()]
    return " + ".join([data, *terms])


def scale_text(report: Report, scale: float) -> str:
    """Write the factor on a reported loss: by its name, if it has one."""
    for share, text in ((1.0, ""), (0.5, "½ ")):
        named = name_of_factor("gradient-scaled", Fit(scale / share, 0.0), report.training)
        if named:
            return text + named.text
    return f"{scale:.6g}"


def measured_text(report: Report, found: Diagnosis) -> str:
    """Tell the effective lr and weight decay that the scratch side's steps come to."""
    fits = {name: effective(scales) for name, scales in found.effective_settings.items()}
    if not fits or any(rate is None for rate, _ in fits.values()):
        return ""
    decays = report.training.sgd.weight_decay
    rates: dict[str, list[str]] = {}
    penalties: dict[str, list[str]] = {}
    for name, (rate, decay) in fits.items():
        assert rate is not None
        alpha = 1.0 if rate.is_near(1.0) else rate.factor
        rates.setdefault(f"lr {alpha * report.training.sgd.lr:.6g}", []).append(name)
        if decay is not None and any(decays.values()):
            sure = f" ± {decay.deviation:.0e}"
            lost = abs(decay.factor) < 1e-9 * decays.get(name, 0.0)
            told = f"weight_decay {0.0 if lost else decay.factor:.6g}"
            penalties.setdefault(told, []).append(f"{name}{sure}")
    texts = [of_tensors(text, at, rates) for text, at in rates.items()]
    texts += [of_tensors(text, at, penalties) for text, at in penalties.items()]
    torch = f"lr {report.training.sgd.lr:g}"
    if any(decays.values()):
        values = " and ".join(f"{value:g}" for value in dict.fromkeys(decays.values()))
        torch += f", weight_decay {values}"
    return f"from the scratch side's steps: {', '.join(texts)}; torch has {torch}"


def of_tensors(text: str, tensors: list[str], among: Mapping[str, list[str]]) -> str:
    """Say of which tensors a number is, where not all have the same."""
    names = [tensor.split(" ± ")[0] for tensor in tensors]
    _, _, sure = tensors[0].partition(" ± ")
    spread = f" (± {sure})" if sure else ""
    return text + (f" of {' and '.join(names)}" if len(among) > 1 else "") + spread


def ways_out(report: Report) -> list[tuple[str, list[str]]]:
    """Say what to change on either side so that they match: a label and its lines."""
    found = report.diagnosis
    if found is None or not (found.best or found.reporting):
        return []
    ways: list[tuple[str, list[str]]] = []
    given = letters(report.rule_training)
    lines = [fix_of(report, cause) for cause in found.causes]
    changed = found.best is not None and (found.best.change or found.best.weight_decay)
    if found.best is not None and changed and set(found.best.change) != {"bce_slope"}:
        _, faults = put_in(found.best.change, TORCH, NO_FAULTS)
        lines += rule_lines(TORCH, given, NO_FAULTS._replace(bce_slope=faults.bce_slope))
    if found.reporting is not None and found.reporting.causes:
        own = f"{TORCHS_LOSS}, as your loss function has it"
        loss = loss_text(TORCH, given) if report.spec.own_framework is None else own
        lines.append(f"reports  {loss}")
    if lines:
        ways.append(("in the scratch code", lines))
    match = found.matching
    if not changed:
        return ways + spec_ways(report)
    if isinstance(match, Matching):
        lines = [torch_call(match.sgd)]
        if report.training.lr_varies and match.lr_factor != 1:
            lines.append(f"and every lr of the schedule times {match.lr_factor!r}")
        ways.append(("or in torch", lines))
    elif match is not None:
        ways.append(("in torch", [f"no lr and weight_decay match: {match}"]))
    return ways + spec_ways(report)


def not_written(report: Report) -> str:
    """Say why no spec with the fix is written."""
    if report.verdict == "equivalent":
        return "the sides agree"
    if report.verdict == "inconclusive":
        return f"the run is inconclusive: {report.reason}"
    found = report.diagnosis
    if found is None or not found.causes:
        return "no cause was found"
    named = ", ".join(found.causes)
    if isinstance(found.fix, str):
        return f"{named}: {found.fix}"
    rest = "the reported losses" if found.best else "the parameters"
    return (
        f"{named}: the fix is in the scratch code; why {rest} part is not explained, so that no "
        "change of the spec makes the sides agree"
    )


def spec_ways(report: Report) -> list[tuple[str, list[str]]]:
    """Say what to change in the spec so that its sides agree."""
    fix = report.diagnosis and report.diagnosis.fix
    if not isinstance(fix, SpecFix):
        return []
    lines = [f"{key}: {written(value)}" for key, value in fix.changes.items()]
    return [("in the spec", lines)]


def written(value: object) -> str:
    """Write a value of a spec in one line, its numbers in full."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return exact(value) if isinstance(value, float) else str(value)
