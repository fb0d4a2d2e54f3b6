"""Causes in words: what the scratch side does, with its numbers, and both rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from regcheck.diagnosis.listing import name_of_factor
from regcheck.diagnosis.records import ALL_ELSE, Explanation
from regcheck.numerics.least_squares import Fit
from regcheck.report.result import Report
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import put_in
from regcheck.rules.convention import Convention, is_bias
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.formulas.formula import LIKEWISE, rule_lines, update_lines
from regcheck.rules.formulas.torch_call import alike, other_decays
from regcheck.rules.settings import Letters, Training, letters, number
from regcheck.rules.words import all_of

MOST_TENSORS = 3
"""Tensors that are named."""


DECAYS = frozenset({"penalty-missing", "penalty-scaled"})
"""The causes that other weight decays of some tensors have."""


class Line(NamedTuple):
    """A line of the diagnosis: its label (empty where it goes on), and whether it is a formula."""

    label: str
    text: str
    formula: bool = False


def labelled(label: str, texts: Iterable[str]) -> list[Line]:
    """Put a label before the first of some lines."""
    return [Line("" if place else label, text) for place, text in enumerate(texts)]


def cause_notes(report: Report, best: Explanation) -> list[str]:
    """Say of each cause what the scratch side does, with its number where it has one."""
    return [cause_note(report, best, cause) for cause in best.causes]


def cause_note(report: Report, best: Explanation, cause: str) -> str:
    """Say what the scratch side does, by one cause."""
    fit, text = best.fits.get(cause), best.note
    if cause == "bias-penalized" and (names := undecayed(report)):
        return f"applies weight decay to {all_of(names, most=MOST_TENSORS)} too"
    if best.weight_decay is not None:  # which is what the note is about
        if cause in DECAYS:
            return text
        text = ""
    if "lr_schedule" in best.change and cause != "schedule-differs":  # likewise
        text = ""
    if best.by_entry is not None and cause == "penalty-missing":
        return f"{CAUSES[cause].title} to {'; '.join([*best.by_entry.told, ALL_ELSE])}"
    text = text or in_tensors(best)
    if cause == "option-differs":
        text = options_text(report)
    elif fit is not None:
        text = factor_text(report, cause, fit)
    return CAUSES[cause].title + (f": {text}" if text else "")


OVER_ALL = frozenset({"gradient-scaled", "loss-summed"})
"""The causes that a sum over each batch, divided by the number of all samples, comes to."""


def sums_over_all(report: Report, best: Explanation) -> bool:
    """Whether both causes are one slip: a batch's sum is divided by the number of all samples."""
    fit = best.fits.get("gradient-scaled")
    if fit is None or not OVER_ALL.issubset(best.causes):
        return False
    return factor_name(report, "gradient-scaled", fit) == "1/n"


def joined_notes(report: Report, best: Explanation) -> str:
    """Say in one sentence what the scratch side does, with causes that are one slip as one."""
    notes = dict(zip(best.causes, cause_notes(report, best), strict=True))
    if sums_over_all(report, best):
        both = "divides each batch's sum by the number of all samples, n, not by the batch's own"
        notes |= dict.fromkeys(OVER_ALL, both)
    return ", and ".join(dict.fromkeys(notes.values()))


def undecayed(report: Report) -> list[str]:
    """Return the tensors that torch does not decay, where there are others than biases."""
    names = [name for name, decay in report.training.settings.weight_decay.items() if not decay]
    return [] if all(map(is_bias, names)) else names


def explained_rules(report: Report, best: Explanation) -> tuple[list[str], list[str]]:
    """Write torch's rule with the causes put into it, and torch's own."""
    training, fitted = report.rule_training, report.fitted_training
    convention, faults = put_in(best.change, training.settings.torchs, NO_FAULTS)
    scratch = lines_of(best, convention, letters(fitted or training), faults)
    torch = lines_of(best, training.settings.torchs, letters(training))
    if best.weight_decay is not None and fitted is None:
        own = report.training.settings.weight_decay
        scratch += decay_lines(training, best.weight_decay, own, scratch, (convention, faults))
        torchs = (training.settings.torchs, NO_FAULTS)
        torch += decay_lines(training, own, best.weight_decay, torch, torchs)
    if best.by_entry is not None:
        scratch += [f"{where}: {has}" for where, has in best.by_entry.told.items()]
    elif "lr_schedule" in best.change:
        scratch.append(f"lr_schedule: {best.note}")
    return scratch, torch


def decay_lines(
    training: Training,
    decays: Mapping[str, float],
    other: Mapping[str, float],
    shown: Sequence[str],
    rule: tuple[Convention, Faults],
) -> list[str]:
    """Write the updates of those tensors whose weight decay is not the other side's.

    Args:
        training: with one weight and at most one bias.
        decays: of each tensor, on the side that is written.
        other: on the other side.
        shown: the lines that the side has already, which are left out.
        rule: the side's, with its faults.
    """
    convention, faults = rule
    seen = {line.removesuffix(LIKEWISE) for line in shown}
    found = []
    differing = {name: decays[name] for name in other_decays(decays, other)}
    for decay, names in alike(differing).items():
        given = letters(training.with_decays({"weight": decay}))
        lines = [
            one for one in update_lines(convention, given, "weight", faults) if one not in seen
        ]
        if lines:
            found.append(f"{all_of(names, most=MOST_TENSORS)}: {'; '.join(lines)}")
    return found


def in_tensors(best: Explanation) -> str:
    """Say in which tensors a cause acts, where it acts in some alone."""
    if not best.tensors:
        return ""
    return f"in {all_of(best.tensors, most=MOST_TENSORS)} alone; {ALL_ELSE}"


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


class OtherOption(NamedTuple):
    """An option, or one number of several, that is not torch's, and its deviation if fitted."""

    scratch: Any
    torch: Any
    deviation: float = 0.0

    @property
    def text(self) -> str:
        """Write the scratch side's value."""
        if isinstance(self.scratch, float):
            return fitted_text(Fit(self.scratch, self.deviation))
        return str(self.scratch)

    @property
    def torchs_text(self) -> str:
        """Write torch's value."""
        return number(self.torch) if isinstance(self.torch, float) else str(self.torch)


def other_options(report: Report) -> dict[str, OtherOption]:
    """Return the options that are not torch's by their names, each of several numbers by itself."""
    best = report.diagnosis.best if report.diagnosis else None
    if best is None:
        return {}
    found: dict[str, OtherOption] = {}
    changed: Any = best.change.get("options", ())
    for key, value in changed:
        own = report.training.settings.options[key]
        if not isinstance(value, tuple):
            found[key] = OtherOption(value, own)
            continue
        for place, (scratch, torch) in enumerate(zip(value, own, strict=True)):
            if scratch != torch:
                found[f"{key}[{place}]"] = OtherOption(scratch, torch)
    fits = {name: fit for name, fit in best.options.items() if name in found}
    return found | {name: found[name]._replace(deviation=x.deviation) for name, x in fits.items()}


def options_text(report: Report) -> str:
    """Describe which options have another value than torch's: betas[0] is 0.95, torch's is 0.9."""
    return "; ".join(
        f"{name} is {other.text}, torch's is {other.torchs_text}"
        for name, other in other_options(report).items()
    )
