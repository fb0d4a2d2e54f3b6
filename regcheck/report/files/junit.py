"""The JUnit report, which CI systems read: a test case for each spec, passed as it expects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from regcheck.report.files.words import plain_text, result_of
from regcheck.report.record import Record

FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, not even escaped."""


def allowed(text: str) -> str:
    r"""Write those characters as Python does.

    >>> print(allowed("\x1b[1mbold"))
    \x1b[1mbold
    """
    return FORBIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def junit_chunks(records: Sequence[Record]) -> Iterator[str]:
    """Yield the XML of some runs: one suite, a case for each."""
    counts = {"tests": len(records), "failures": 0, "errors": 0, "skipped": 0}
    suite = Element("testsuite", name="regcheck")
    for record in records:
        case = SubElement(suite, "testcase", names(record))
        if record.passed:
            continue
        wrong = record.outcome == "error"
        counts["errors" if wrong else "failures"] += 1
        result = SubElement(case, "error" if wrong else "failure", type=record.outcome)
        result.set("message", allowed(result_of(record)))
        result.text = allowed(plain_text(record))
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    root = Element("testsuites", suite.attrib)
    root.append(suite)
    indent(root)
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield tostring(root, encoding="unicode") + "\n"


def names(record: Record) -> dict[str, str]:
    """Return what a case is called: its folder with points, as a package is, and its file."""
    spec = allowed(str(record.head["spec"]))
    path = PurePath(spec)
    folder = ".".join(part for part in path.parent.parts if part.strip("./\\"))
    return {"classname": folder or "regcheck", "name": path.name or spec, "file": spec}
