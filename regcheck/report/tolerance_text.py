"""What a report says of its tolerances, of what would have passed, and of what was expected."""

from __future__ import annotations

import math

from regcheck.compare.drift import Needed
from regcheck.report.numbers import upward
from regcheck.report.result import Report
from regcheck.spec.tolerance import Tolerance


def kept(report: Report) -> str:
    """Say how well a run that agrees keeps its tolerances."""
    tensors = report.spec.judged([*report.comparison.trace.tensors, "loss"])
    tolerances = {tolerance_text(report.spec.tolerance.of(name)) for name in tensors}
    if any(report.spec.tolerance.of(name).on_drift for name in tensors):
        return f"every step keeps {' and '.join(sorted(tolerances))}"
    ratio = report.smallest_tolerance().rounding
    if ratio == 0:
        return "no step differs"
    limits = sorted({report.spec.tolerance.of(name).limit for name in tensors})
    allowed = " or ".join(f"{limit:g}" for limit in limits)
    largest = f"the largest local difference is {upward(ratio)} rounding bounds"
    return f"{largest}, of {allowed} allowed"


def ratio_head(report: Report) -> str:
    """Head the column of what is judged: `× bound`, `× tol` on the drift, `ratio` where mixed."""
    drifts = {report.spec.tolerance.of(name).on_drift for name in report.comparison.trace.tensors}
    return "ratio" if len(drifts) > 1 else "× tol" if True in drifts else "× bound"


def ratio_legend(report: Report) -> list[str]:
    """Say what that column holds, and above which number a step diverges; and so for the loss."""
    tolerances = report.spec.tolerance
    same = any(
        tolerances.of("loss") == tolerances.of(name) for name in report.comparison.trace.tensors
    )
    loss_alone = [] if same else report.spec.judged(["loss"])
    limits: dict[str, list[str]] = {}
    for name in (*report.comparison.trace.tensors, *loss_alone):
        tolerance = report.spec.tolerance.of(name)
        if tolerance.exact:
            text = "drift, which must be 0 to the last bit"
        elif tolerance.on_drift:
            allowed = f"{tolerance.atol or 0:g} + {tolerance.rtol or 0:g} |torch's|"
            text = f"drift against {allowed}; a step diverges above 1"
        else:
            against = "local against what rounding can cause"
            text = f"{against}; a step diverges above {tolerance.limit:g}"
        limits.setdefault(text, []).append(name)
    head = ratio_head(report)
    if len(limits) == 1:
        return [f"{head}: {next(iter(limits))}"]
    return [f"{head} of {', '.join(names)}: {text}" for text, names in limits.items()]


def tolerance_text(tolerance: Tolerance) -> str:
    """Write a tolerance as a spec does."""
    used = tolerance.as_used()
    if isinstance(used, str):
        return used
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in used.items()) + "}"


def smallest_line(report: Report) -> str:
    """Say what the smallest tolerance is that would have passed; its digits are rounded up.

    Where all that is judged has one tolerance, so has what is told; else each its own.
    """
    what = (
        " what was judged"
        if report.comparison.first_unjudged or report.comparison.first_loss_unjudged
        else ""
    )
    names = report.spec.judged(report.comparison.drift.needed)
    tolerances = [report.spec.tolerance.of(name) for name in names]
    if len(set(tolerances)) == 1:
        told = smallest_forms(report.smallest_tolerance(), tolerances[0])
        return f"Smallest tolerance that passes{what}: {told}."
    parts = [
        f"{name} {smallest_forms(report.comparison.drift.needed[name], tolerance)}"
        for name, tolerance in zip(names, tolerances, strict=True)
    ]
    return f"Smallest tolerances that pass{what}: {'; '.join(parts)}."


def smallest_forms(needed: Needed, tolerance: Tolerance) -> str:
    """Write the smallest tolerance of each kind, as a spec does."""
    if needed.exact:
        return "exact"
    forms = {
        "{{rounding: {}}}": needed.rounding,
        "{{rtol: {}}}": needed.rtol_alone,
        "{{atol: {}}}": needed.atol_alone,
    }
    if tolerance.rtol and tolerance.atol:
        forms[f"{{{{rtol: {{}}, atol: {tolerance.atol!r}}}}}"] = needed.rtol
        forms[f"{{{{rtol: {tolerance.rtol!r}, atol: {{}}}}}}"] = needed.atol
    told = [form.format(upward(size)) for form, size in forms.items() if 0 < size < math.inf]
    return " or ".join(part for part in (", ".join(told[:-1]), *told[-1:]) if part) or "none"


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
        named = " and ".join(report.diagnosis.causes) if report.diagnosis else ""
        missed = f"; the cause is {named}" if named else "; no cause explains it"
    return f"Not as expected: the spec expects {wanted}{at}{by}{missed}."
