"""The JUnit report, read back by a reader of such files."""

from __future__ import annotations

import pytest
from junitparser import Error, Failure, JUnitXml, TestCase

from regcheck.report.files.junit import junit_chunks
from regcheck.report.record import Record, record_of_error
from tests.records import HOSTILE, inconclusive, named, question, run


def cases(*records: Record) -> list[TestCase]:
    """Return a report's test cases."""
    (suite,) = JUnitXml.fromstring("".join(junit_chunks(records)).encode())
    found = list(suite)
    assert suite.tests == len(found) == len(records)
    assert suite.failures == sum(isinstance(one.result[0], Failure) for one in found if one.result)
    assert suite.errors == sum(isinstance(one.result[0], Error) for one in found if one.result)
    return found


def test_junit_names_a_case_by_folder_and_file() -> None:
    record = run()
    paths = ["configs/deep/a.yaml", "a.yaml", "../b/a.yaml", "/tmp/a.yaml"]
    found = cases(*(named(record, path) for path in paths))
    assert [one.classname for one in found] == ["configs.deep", "regcheck", "b", "tmp"]
    assert {one.name for one in found} == {"a.yaml"}
    assert all(one.is_passed for one in found)


@pytest.mark.slow
def test_junit_failure_says_what_the_report_says() -> None:
    (case,) = cases(question())
    (failure,) = case.result
    summary = question().head["summary"]
    assert failure.type == "diverged"
    assert failure.message == summary["headline"]
    for part in (
        *(summary["subject"], summary["values"]["place"], summary["verified"]),
        *(summary["rules"][0]["lines"][0], summary["fixes"]["torch"][0]),
        *("-2.35233251e-02", "After step 1,000"),
    ):
        assert part in failure.text, part


def test_junit_passes_what_its_spec_expects_and_nothing_else() -> None:
    doubled = {"convention": "doubled"}
    found = cases(
        run(**doubled, expect={"verdict": "diverged"}),
        run(**doubled, expect={"step": 2}),
        run(expect={"verdict": "diverged"}),
        run(lr=1e6, epochs=100, expect={"verdict": "inconclusive"}),
    )
    assert [one.is_passed for one in found] == [True, False, False, True]
    assert [one.result[0].type for one in found if one.result] == ["diverged", "equivalent"]
    assert "expect" in found[2].result[0].message


def test_junit_has_inconclusive_runs_as_failures_and_errors_as_errors() -> None:
    complaint = "bad.yaml:1: no such key\nbad.yaml:2: nor this"
    unjudged, wrong = cases(inconclusive(), record_of_error("bad.yaml", complaint))
    assert isinstance(unjudged.result[0], Failure)
    assert unjudged.result[0].type == "inconclusive"
    assert isinstance(wrong.result[0], Error)
    assert wrong.result[0].message == "ERROR: bad.yaml:1: no such key"
    assert wrong.result[0].text == complaint


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("\x00\x08\x0b\x1b[1m", r"\x00\x08\x0b\x1b[1m"),
        ("\ud800", r"\ud800"),
        ("\ufffe\uffff", r"\ufffe\uffff"),
        ("]]>&<\"'\t\n λ", "]]>&<\"'\t\n λ"),
        (HOSTILE, HOSTILE),
    ],
)
def test_junit_holds_any_text(text: str, read: str) -> None:
    (case,) = cases(record_of_error(f"{text}.yaml", f"{text}: no"))
    assert case.result[0].text == f"{read}: no"
