"""Several specs and report files: what stands at the end, and that one failure stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from regcheck import check, cli
from regcheck.cli.outputs import MOST_PASSED
from regcheck.errors import UsageError
from regcheck.report.files import writing
from regcheck.writing import write_whole
from tests.conftest import SMALL

Write = Callable[..., Path]


@pytest.mark.slow
def test_summary_is_the_worst_first_then_few_that_pass_then_a_count(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(write_spec(f"{number:02}.yaml")) for number in range(MOST_PASSED + 2)]
    paths.append(str(write_spec("bad.yaml", convention="doubled")))
    assert cli.exit_code(["run", "--jobs", "1", *paths]) == 1
    *_, before, more, total = capsys.readouterr().out.splitlines()
    assert before.startswith("ok   ")
    assert (more, total) == ("ok   and 2 more", "12 of 13 specs pass")


def test_report_that_cannot_be_written_stops_no_other(
    write_spec: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = write_whole

    def full(path: Path, chunks: Iterable[str | bytes]) -> None:
        if path.suffix == ".json":
            raise UsageError(f"{path}: cannot be written: planted")
        real(path, chunks)

    monkeypatch.setattr(writing, "write_whole", full)
    files = [tmp_path / name for name in ("a.json", "b.csv")]
    options = [part for file in files for part in ("--report", str(file))]
    assert cli.exit_code(["run", "--quiet", str(write_spec()), *options]) == 2
    assert "planted" in capsys.readouterr().err
    assert [file.exists() for file in files] == [False, True]


def test_start_that_is_rounding_is_zero_in_the_fix() -> None:
    def train(problem):  # type: ignore[no-untyped-def]
        w, b = problem.initial["weight"] * 0, problem.initial["bias"] * 0
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            r = 2 * (X @ w + b - y) / len(y)
            w, b = w - problem.lr * (X.T @ r), b - problem.lr * r.sum()
            yield {"weight": w, "bias": b}

    report = check(SMALL | {"weight_decay": 0, "epochs": 6}, scratch=train)
    assert report.diagnosis is not None
    assert report.diagnosis.causes == ("initial-parameters",)
    assert report.diagnosis.start is not None
    assert not any(start.any() for start in report.diagnosis.start.values())


def test_wrong_sign_of_the_bias_stands_in_the_headline() -> None:
    def train(problem):  # type: ignore[no-untyped-def]
        w, b = problem.initial["weight"], problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            r = 2 * (X @ w + b - y) / len(y)
            w, b = w - problem.lr * (X.T @ r), b + problem.lr * r.sum()
            yield {"weight": w, "bias": b}

    report = check(SMALL | {"weight_decay": 0}, scratch=train)
    headline = report.to_dict()["summary"]["headline"]
    assert headline.startswith("DIVERGED at step 1: bias is updated by −1 times torch's update")
