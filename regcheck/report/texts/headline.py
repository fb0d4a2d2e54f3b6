"""The verdict in one sentence: the step, and the cause in words or the place."""

from __future__ import annotations

from regcheck.compare.steps import Divergence
from regcheck.diagnosis.records import Diagnosis
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.cause_text import joined_notes
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.text import WHERE, count, entry, tolerance_text, upward
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.words import all_of

LONGEST_EVIDENCE = 140
"""Letters of what is known without a cause, up to which it may stand in the headline."""


def headline(report: Report) -> str:
    """Say the verdict, the step, and the cause in words; the place where there is no cause."""
    found = report.diagnosis
    if report.verdict != "diverged" or found is None:
        return sentence(report)
    step, roles = f"DIVERGED at step {report.verdict_step:,}", roles_of(report.spec)
    in_parameters = report.first_divergence is not None and "parameters" in report.spec.compare
    if not in_parameters:
        reported = found.reporting.causes if found.reporting else ()
        known = told_of_loss(report, found)
        if not reported and known:
            return f"{step}, in the reported loss alone: {known}"
        if not reported:
            return f"{sentence(report)}; no known cause explains it"
        does = all_of(CAUSES[cause].title for cause in reported)
        return f"{step}, in the reported loss alone: {roles.who} {does}"
    if found.best is None:
        known = told_by_evidence(report, found)
        return f"{step}: {known}" if known else f"{sentence(report)}; no known cause explains it"
    if not found.best.causes:
        return f"{step}: the sides differ by rounding alone"
    return roles.worded(f"{step}: {roles.who} {joined_notes(report, found.best)}")


def told_by_evidence(report: Report, found: Diagnosis) -> str:
    """Return what is known of the loss, of all updates, or of the first tensor; if it is short."""
    tensor = report.first_divergence.at.tensor if report.first_divergence else ""
    worded = roles_of(report.spec).worded
    for known in found.evidence:
        if known.kind == "loss-differs":
            where = "the loss differs already, computed from the same parameters"
            return f"{where}; {told_of_loss(report, found) or 'no known cause explains it'}"
        short = known.text if len(known.text) <= LONGEST_EVIDENCE else known.clause
        concerned = not known.tensors or tensor in known.tensors
        if known.clause and concerned and len(short) <= LONGEST_EVIDENCE:
            text = worded(short).rstrip(".")
            return text if known.tensors else text[0].lower() + text[1:]
    return ""


def told_of_loss(report: Report, found: Diagnosis) -> str:
    """Return how one side's loss differs from the other's; empty where it is not known."""
    return roles_of(report.spec).worded(found.loss_evidence.clause) if found.loss_evidence else ""


def with_causes(report: Report) -> str:
    """Say the verdict in one line, with the ids of the causes behind it."""
    causes = report.diagnosis.causes if report.diagnosis else ()
    return headline(report) + (f" ({', '.join(causes)})" if causes else "")


def sentence(report: Report) -> str:
    """Say the verdict in one sentence."""
    judged, compared = report.spec.compare, report.comparison
    if report.verdict == "equivalent":
        what = "" if "parameters" in judged else " in the reported loss"
        return f"EQUIVALENT{what} over {count(compared.compared, 'step')}: {kept(report)}"
    if report.verdict == "inconclusive":
        before = min(compared.stops(judged).values(), default=1) - 1
        until = f"steps 1 to {before:,} agree" if before > 1 else "step 1 agrees"
        agree = f"; {until}" if before else ""
        return f"INCONCLUSIVE: {report.reason}{agree}"
    divergence, loss = report.first_divergence, report.first_loss_divergence
    if divergence is not None and "parameters" in judged:
        where = divergence_place(report, divergence)
        return f"DIVERGED at step {divergence.step:,} of {compared.steps:,}: {where}"
    assert loss is not None
    agree = "; the training itself agrees" if divergence is None else ""
    return f"DIVERGED at step {loss.step:,} of {compared.steps:,}, in the reported loss{agree}"


def kept(report: Report) -> str:
    """Say how well a run that agrees keeps its tolerances."""
    names = report.spec.judged([*report.comparison.trace.tensors, "loss"])
    tolerances = [report.spec.tolerance.of(name) for name in names]
    if any(tolerance.on_drift for tolerance in tolerances):
        texts = {tolerance_text(tolerance) for tolerance in tolerances}
        return f"every step satisfies {all_of(sorted(texts))}"
    ratio = report.smallest_tolerance().rounding
    if ratio == 0:
        return "no step differs"
    limits = sorted({tolerance.limit for tolerance in tolerances})
    allowed = all_of((f"{limit:g}" for limit in limits), "or")
    return (
        f"the largest one-step difference is {upward(ratio)} rounding bounds, of {allowed} allowed"
    )


def divergence_place(report: Report, divergence: Divergence) -> str:
    """Name the entry and the stage of a divergence: `weight[0, 2] (x3), in the penalty`."""
    at = divergence.at
    tolerance, where = report.spec.tolerance.of(at.tensor), entry(report, at.tensor, at.index)
    if not tolerance.on_drift or divergence.stage != "update":
        where += f", {WHERE[divergence.stage]}"
    if not tolerance.on_drift:
        return where
    if tolerance.exact:
        return f"{where}: the accumulated difference is not exactly 0"
    return f"{where}: the accumulated difference exceeds {tolerance_text(tolerance)}"


def expectation(report: Report) -> str:
    """Say whether the run found what its spec expects; empty where it expects nothing."""
    expect = report.spec.expect
    if expect is None:
        return ""
    if report.expected:
        return "As expected."
    wanted = expect.verdict or ("" if expect.step is None and not expect.cause else "diverged")
    at = f" at step {expect.step:,}" if expect.step else ""
    by = f" by {expect.cause}" if expect.cause else ""
    missed = ""
    if expect.cause and report.verdict == "diverged" and not report.names(expect.cause):
        causes = report.diagnosis.causes if report.diagnosis else ()
        missed = f"; the cause is {all_of(causes)}" if causes else "; no cause explains it"
    return f"Not as expected: the spec expects {wanted}{at}{by}{missed}."
