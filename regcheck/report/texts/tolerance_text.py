"""The sentences on the smallest tolerances that would have passed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from regcheck.compare.drift import Needed
from regcheck.report.result import Report
from regcheck.report.texts.text import upward
from regcheck.rules.words import all_of
from regcheck.spec.sections.tolerance import Tolerance


def tolerances(report: Report) -> Iterator[str]:
    """Say what the smallest tolerance is that would have passed; its digits are rounded up.

    Where all that is judged has one tolerance, so has what is said; else each its own.
    """
    found = report.comparison
    if not found.compared:
        return
    if report.verdict == "inconclusive" and not found.stops(report.spec.compare):
        return
    what = " what was judged" if found.first_unjudged or found.losses.first_unjudged else ""
    names = report.spec.judged(found.drift.needed)
    given = [report.spec.tolerance.of(name) for name in names]
    if len(set(given)) == 1:
        smallest = tolerance_forms(report.smallest_tolerance(), given[0])
        yield f"Smallest tolerance that passes{what}: {smallest}."
        return
    each = [
        f"{name} {tolerance_forms(found.drift.needed[name], tolerance)}"
        for name, tolerance in zip(names, given, strict=True)
    ]
    yield f"Smallest tolerances that pass{what}: {'; '.join(each)}."


def tolerance_forms(needed: Needed, tolerance: Tolerance) -> str:
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
    found = [form.format(upward(size)) for form, size in forms.items() if 0 < size < math.inf]
    return all_of(found, "or") if found else "none"
