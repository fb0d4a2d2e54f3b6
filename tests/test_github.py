"""GitHub Actions: annotations that the runner reads back, and the job's summary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from regcheck import cli
from regcheck.report.github import MOST_BYTES, SHORTENED, annotation, tell_github
from regcheck.report.record import record_of_error
from tests.records import named, run

Write = Callable[..., Path]


@pytest.fixture
def job_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process part of a GitHub workflow."""
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


def commands(text: str) -> list[tuple[dict[str, str], str]]:
    """Return the errors that the runner reads, as its ActionCommand.cs does."""
    found = []
    for line in re.findall("^::error (.*)$", text, re.MULTILINE):
        properties, _, message = line.partition("::")
        pairs = dict(one.split("=", 1) for one in properties.split(","))
        found.append(({key: unescaped(one) for key, one in pairs.items()}, unescaped(message)))
    return found


def unescaped(text: str) -> str:
    """Return what stands for an escaped text."""
    for code, sign in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, sign)
    return text


def test_each_failing_spec_gets_an_annotation_at_its_line(
    write_spec: Write, job_summary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = write_spec("failing.yaml", convention="doubled")
    wrong = write_spec("wrong.yaml", lr="O.1")
    passing = write_spec("passing.yaml")
    assert cli.exit_code(["run", *map(str, (failing, wrong, passing)), "--jobs", "1"]) == 2
    captured = capsys.readouterr()
    assert "::" not in captured.out
    (first, message), (second, complaint) = commands(captured.err)
    lines = failing.read_text().splitlines()
    assert first["file"] == str(failing)
    assert lines[int(first["line"]) - 1].startswith("convention")
    assert first["title"] == "regcheck: diverged"
    assert message.startswith("DIVERGED at step 1")
    assert "fix in torch: torch.optim.SGD(lr=0.1, weight_decay=1)" in message.splitlines()
    assert second["file"] == str(wrong)
    assert wrong.read_text().splitlines()[int(second["line"]) - 1].startswith("lr")
    assert "lr: must be a number" in complaint
    assert job_summary.read_text().startswith("### 1 of 3 specs pass")


def test_json_stays_alone_on_standard_output(
    write_spec: Write, job_summary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["run", "--json", str(write_spec(convention="doubled"))]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["runs"]) == 1
    assert len(commands(captured.err)) == 1


@pytest.mark.usefixtures("job_summary")
@pytest.mark.parametrize(
    "changes", [{}, {"convention": "doubled", "expect": {"verdict": "diverged"}}]
)
def test_what_is_as_expected_has_no_annotation(
    changes: dict[str, object], write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["run", str(write_spec(**changes))]) == 0
    assert "::" not in capsys.readouterr().err


def test_nothing_is_written_outside_of_github(
    write_spec: Write,
    job_summary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert cli.exit_code(["run", "--quiet", str(write_spec(convention="doubled"))]) == 1
    assert capsys.readouterr().err == ""
    assert not job_summary.exists()


@pytest.mark.parametrize("text", ["a:b,c%0A.yaml", "a\r\n::error::b", "100 %25", "::"])
def test_annotation_is_one_line_that_is_read_back(text: str) -> None:
    line = annotation(record_of_error(text, f"{text}: no", 3))
    assert len(line.splitlines()) == 1
    ((properties, message),) = commands(line)
    assert properties == {"file": text, "line": "3", "title": "regcheck: error"}
    assert message == f"{text}: no"


def test_annotation_goes_by_the_top_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "specs").mkdir()
    monkeypatch.chdir(tmp_path / "specs")
    record = record_of_error("a.yaml", "no")
    assert "file=specs/a.yaml," in annotation(record, str(tmp_path))
    assert "file=a.yaml," in annotation(record, str(tmp_path / "other"))


def test_job_summary_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    tell_github([run()], {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.read_text().startswith("before\n### EQUIVALENT")


@pytest.mark.slow
@pytest.mark.parametrize(("length", "lines"), [(400, 1000), (4000, 200)])
def test_large_job_summary_is_shortened_to_the_table_of_specs(
    length: int, lines: int, tmp_path: Path
) -> None:
    path = tmp_path / "summary.md"
    record = named(run(), "a" * length)
    tell_github([record] * 1000, {"GITHUB_STEP_SUMMARY": str(path)})
    text = path.read_text()
    assert MOST_BYTES // 3 < path.stat().st_size <= MOST_BYTES
    assert text.startswith("### 1,000 of 1,000 specs pass")
    assert "<details>" not in text
    assert text.endswith(SHORTENED)
    assert lines <= text.count("\n| ok |") <= 1000


def test_unwritable_job_summary_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_github([run()], {"GITHUB_STEP_SUMMARY": str(tmp_path)})
    assert "the job summary" in capsys.readouterr().err
