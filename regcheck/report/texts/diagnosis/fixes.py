"""What to change on either side, or in the spec, so that they match, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regcheck.diagnosis.records import Diagnosis, Explanation, SpecFix
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.cause_text import (
    DECAYS,
    OVER_ALL,
    factor_text,
    other_options,
    sums_over_all,
    undecayed,
)
from regcheck.report.texts.diagnosis.loss_text import TORCHS_LOSS, reported_formula
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.text import written
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import put_in
from regcheck.rules.equivalent import Matching
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import loss_text, rule_lines
from regcheck.rules.formulas.torch_call import alike, other_decays, torch_call
from regcheck.rules.optimizers.lr_schedules import scheduler_call
from regcheck.rules.settings import letters, number
from regcheck.rules.words import all_of

RENEW = "renew the recording: `regcheck run SPEC --record FILE`"


def fix_of(report: Report, cause: str) -> str:
    """Say what fixes a cause, with the factor that was fitted in the place of c."""
    fix, reporting = plain_fix(report, cause), report.diagnosis and report.diagnosis.reporting
    if cause == "penalty-in-loss" and reporting and not reporting.squared:
        fix = fix.replace("term;", "term, whose norm would have to be squared, ½ λ ‖w‖²;")
    return roles_of(report.spec).worded(fix)


def plain_fix(report: Report, cause: str) -> str:
    """Say what fixes a cause in the catalogue's words."""
    fix = CAUSES[cause].fix
    apart = report.training.settings.torchs.decay == "decoupled"
    if apart and CAUSES[cause].fix_apart:
        fix = CAUSES[cause].fix_apart
    best = report.diagnosis.best if report.diagnosis else None
    if best is None:
        return fix
    if cause in DECAYS and best.weight_decay is not None:
        return decays_fix(best.weight_decay, report.training.settings.weight_decay)
    if cause in OVER_ALL and sums_over_all(report, best):
        return "divide each batch's sum by the batch's own number of samples, not by n"
    if cause == "bias-penalized" and (names := undecayed(report)):
        torchs = report.training.settings.weight_decay
        decayed = dict.fromkeys(names, max(torchs.values()))
        return decays_fix({**torchs, **decayed}, torchs)
    of_decay = apart and cause in DECAYS
    if best.by_entry is not None and CAUSES[cause].fix_by_entry and not of_decay:
        return CAUSES[cause].fix_by_entry
    if cause == "option-differs":
        own = [f"{name} {one.torchs_text}" for name, one in other_options(report).items()]
        return f"{fix}: {', '.join(own)}"
    schedule = report.schedule.lr_schedule
    if cause == "schedule-differs" and schedule is not None:
        return f"{fix}: {', '.join(schedule.text(key) for key, _ in other_keys(best))}"
    if cause in best.fits:
        factor = factor_text(report, cause, best.fits[cause])
        fix = fix.replace("the factor c", f"the factor {factor}")
    return fix


def decays_fix(decays: Mapping[str, float], torch: Mapping[str, float]) -> str:
    """Say which tensors to decay by which number of torch's.

    >>> decays_fix({"w": 0.0, "v": 0.1, "b": 0.1}, {"w": 0.1, "v": 0.1, "b": 0.0})
    "decay w by torch's weight_decay, 0.1; do not decay b: torch's weight_decay for it is 0"
    """
    found = []
    # What is below torch's 0 is missing there: torch's loss function has it, not its optimizer.
    other = {
        name: (decay, -own if own < 0 == decay else 0.0)
        for name, (own, decay) in other_decays(decays, torch).items()
    }
    for (decay, missing), names in alike(other).items():
        text, it = all_of(names), "it" if len(names) == 1 else "them"
        if missing:
            found.append(
                f"add {number(missing)} w to the gradient of {text}, or take it from torch's"
            )
            continue
        none = f"do not decay {text}: torch's weight_decay for {it} is 0"
        found.append(f"decay {text} by torch's weight_decay, {number(decay)}" if decay else none)
    return "; ".join(found)


def fixes(report: Report) -> dict[str, list[str]]:
    """Return what to change on either side, or in the spec, so that they match."""
    found = report.diagnosis
    if found is None or not (found.best or found.reporting):
        return {}
    roles = roles_of(report.spec)
    lines = [*scratch_fixes(report, found), *fixed_rule(report, found)]
    ways = {roles.fix: lines} if lines else {}
    calls, matches = torch_fixes(report, found)
    if calls:
        ways[roles.matching if matches else "in torch"] = calls
    if isinstance(found.fix, SpecFix):
        ways["in the spec"] = spec_fixes(found.fix)
    return ways


def short_fixes(report: Report) -> dict[str, tuple[str, ...]]:
    """Return the same in short: by whom, and without the rule that the scratch side then has."""
    found = report.diagnosis
    if report.verdict != "diverged" or found is None or not (found.best or found.reporting):
        return {}
    roles = roles_of(report.spec)
    ways = {
        roles.explained: scratch_fixes(report, found),
        roles.reference: torch_fixes(report, found)[0],
        "spec": spec_fixes(found.fix) if isinstance(found.fix, SpecFix) else [],
    }
    return {label: tuple(lines) for label, lines in ways.items() if lines}


def scratch_fixes(report: Report, found: Diagnosis) -> list[str]:
    """Say what to change in the scratch code, a sentence for each cause."""
    if report.spec.recording:
        return [RENEW]
    lines = list(dict.fromkeys(fix_of(report, cause) for cause in found.causes))
    if found.loss_diverged and found.reporting is not None and not found.reporting.causes:
        reports = reported_formula(report, found.reporting, found.best)
        lines += [f"report {TORCHS_LOSS}, not {reports}"] if reports != TORCHS_LOSS else []
    return lines


def fixed_rule(report: Report, found: Diagnosis) -> list[str]:
    """Write the rule and the loss that the scratch code then has."""
    best, given = found.best, letters(report.rule_training)
    lines: list[str] = []
    if best is not None and changes_rule(best) and set(best.change) != {"bce_slope"}:
        _, faults = put_in(best.change, given.torchs, NO_FAULTS)
        lines += rule_lines(given.torchs, given, NO_FAULTS._replace(bce_slope=faults.bce_slope))
    if found.reporting is not None and found.reporting.causes:
        own = f"{TORCHS_LOSS}, as your loss function has it"
        loss = loss_text(given.torchs, given) if report.spec.own_framework is None else own
        lines.append(f"reports  {loss}")
    return lines


def changes_rule(best: Explanation) -> bool:
    """Whether an explanation changes torch's rule at all."""
    return bool(best.change or best.weight_decay)


def torch_fixes(report: Report, found: Diagnosis) -> tuple[list[str], bool]:
    """Write torch's call that trains as the scratch side does; or say why there is none.

    Returns the lines, and whether they are such a call.
    """
    best, match = found.best, found.matching
    if best is None:
        return [], False
    if changes_rule(best) and isinstance(match, Matching):
        calls = [torch_call(match.settings)]
        if report.training.lr_varies and match.lr_factor != 1:
            calls.append(f"and every lr of the schedule times {match.lr_factor!r}")
        return calls, True
    if best.causes == ("schedule-differs",):
        return [other_schedule_call(report, best)], True
    if changes_rule(best) and match is not None and report.spec.textbook is None:
        what = "lr and weight_decay" if report.training.settings.rule.linear else "settings"
        return [f"no {what} match: {match}"], False
    return [], False


def spec_fixes(fix: SpecFix) -> list[str]:
    """Write the keys of the spec that change, with their values."""
    return [f"{key}: {written(value)}" for key, value in fix.changes.items()]


def other_keys(best: Explanation) -> Sequence[tuple[str, Any]]:
    """Return the keys of the schedule that an explanation changes, with their values."""
    found: Any = best.change["lr_schedule"]
    return tuple(found)


def other_schedule_call(report: Report, best: Explanation) -> str:
    """Write the call of torch's scheduler with the keys that the scratch side has."""
    kind = report.schedule.with_keys(other_keys(best)).lr_schedule
    assert kind is not None
    return scheduler_call(kind.kind, kind.all_keys, report.schedule.lr)


def not_written(report: Report) -> str:
    """Say why no spec with the fix is written."""
    if report.verdict == "equivalent":
        return "the sides agree"
    if report.verdict == "inconclusive":
        return f"the run is inconclusive: {report.reason}"
    found = report.diagnosis
    if found is None or not found.causes:
        return "no cause was found"
    reason = found.fix
    if not isinstance(reason, str):
        rest = "the reported losses" if found.best else "the parameters"
        reason = (
            f"the fix is in the scratch code; why {rest} differ is not explained, so no change of "
            "the spec makes the sides agree"
        )
    return f"{', '.join(found.causes)}: {reason}"
