"""The command line: arguments, output streams, exit codes."""

from __future__ import annotations

import importlib
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regcheck import checking, cli
from regcheck.report.result import Report
from regcheck.spec import LoadedSpec
from tests.conftest import ROOT, run_of, runs_of

Write = Callable[..., Path]

DIVERGED = {"convention": "doubled"}


def test_run_bad_spec_exits_2_and_prints_to_standard_error_alone(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["run", str(write_spec(lr="O.1"))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lr: must be a number" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage"),
        (["run"], "Missing argument"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file or directory"),
        (["run", "x" * 5000], "file name too long"),
        (["run", "a\0b"], "no such file or folder"),
        (["runn"], "No such command"),
        (["run", "--steps", "0", "x.yaml"], "whole number ≥ 1"),
        (["run", "--steps", "few", "x.yaml"], "whole number ≥ 1"),
        (["run", "--report", "x.gif", "x.yaml"], "no format has this suffix"),
        (
            ["run", "--report", "a.md", "--report", "./a.md", "x.yaml"],
            "`--report a.md` writes",
        ),
        (["run", "--report", "a.md", "--write-fixed", "a.md", "x.yaml"], "name another"),
        (["convert", "0.1"], "`regcheck convert` is planned"),
        (
            ["explain", "decoupld"],
            "did you mean `decoupled`, `doubled`, `penalty-decoupled`? `regcheck explain",
        ),
        (["explain", "weight decay"], "`decay`"),
        (["explain", "n" * 9999], "nn..`; `regcheck explain --list` lists all names"),
        (["explain", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["explain", "--format", "xml"], "xml"),
    ],
)
def test_bad_usage_exits_2_with_a_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.out + captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("there", "asked"), [("a.yml", "a.yaml"), ("a.yaml", "a.yml")])
def test_missing_spec_names_the_one_of_the_other_suffix(
    there: str, asked: str, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(there)
    for command in ("run", "explain"):
        assert cli.exit_code([command, str(path.with_name(asked))]) == 2
        assert f"o such file or directory; did you mean {path}?\n" in capsys.readouterr().err


def test_run_folder_runs_every_spec_below_it(
    write_spec: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    write_spec("one.yaml")
    write_spec("deep/two.yml")
    (tmp_path / "notes.txt").write_text("no spec", encoding="utf-8")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "schema.yaml").write_text("no: spec", encoding="utf-8")
    (tmp_path / ".hidden.yaml").write_text("no: spec", encoding="utf-8")
    assert cli.exit_code(["run", "--quiet", "--jobs", "1", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["two.yml", "one.yaml"]


def test_run_empty_folder_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", str(tmp_path)]) == 2
    assert "no *.yaml or *.yml file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([{}, {}], 0),
        ([{}, {"batch_size": 9, "drop_last": True}], 4),
        ([{"batch_size": 9, "drop_last": True}, DIVERGED], 1),
        ([DIVERGED, {"lr": "x"}], 2),
    ],
)
def test_several_specs_all_run_and_the_gravest_code_wins(
    changes: list[dict[str, object]],
    code: int,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [str(write_spec(f"{number}.yaml", **change)) for number, change in enumerate(changes)]
    assert cli.exit_code(["run", "--quiet", "--jobs", "1", *paths]) == code
    captured = capsys.readouterr()
    assert len((captured.out + captured.err).splitlines()) == len(paths)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("planted"), 3, ["internal error", "planted", "Traceback"]),
        (MemoryError(), 2, ["broken.yaml: not enough memory"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
    ids=repr,
)
def test_error_in_one_spec_has_its_exit_code_and_keeps_what_was_printed(
    error: BaseException,
    code: int,
    says: list[str],
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [str(write_spec(f"{name}.yaml")) for name in ("first", "broken", "last")]
    real = checking.check_loaded

    def fail(loaded: LoadedSpec, *rest: Any) -> Report:
        if loaded.name == paths[1]:
            raise error
        return real(loaded, *rest)

    monkeypatch.setattr(checking, "check_loaded", fail)
    assert cli.exit_code(["run", "--json", "--jobs", "1", *paths]) == code
    captured = capsys.readouterr()
    assert [one for one in says if one not in captured.err] == []
    first, *others = runs_of(captured.out)  # the array is closed
    assert first["verdict"] == "equivalent"
    assert [one.get("verdict") for one in others] == ([] if code == 130 else [None, "equivalent"])


def raises_end_of_file() -> None:
    raise EOFError


@pytest.mark.parametrize("fails", [lambda: 1 / 0, raises_end_of_file])
def test_internal_error_outside_a_run_exits_3(
    fails: Callable[[], object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from regcheck import explain

    monkeypatch.setattr(explain, "explain_all", fails)
    assert cli.exit_code(["explain"]) == 3
    assert "internal error" in capsys.readouterr().err


def test_compiled_file_that_is_cut_off_is_named(
    write_spec: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from regcheck import explain, spec

    whole = tmp_path / "whole.py"
    whole.touch()
    compiled = Path(py_compile.compile(str(whole), cfile=str(tmp_path / "cut.pyc")) or "")
    compiled.write_bytes(compiled.read_bytes()[:-10])
    monkeypatch.syspath_prepend(tmp_path)
    for owner, name, command in (
        (explain, "explain_all", ["explain"]),
        (spec, "read_spec", ["run", str(write_spec())]),
    ):
        monkeypatch.setattr(owner, name, lambda *args: importlib.import_module("cut"))
        assert cli.exit_code(command) == 2
        assert f"{compiled}: this compiled file is cut off" in capsys.readouterr().err


def test_json_is_all_that_standard_output_holds(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["run", "--json", str(write_spec(**DIVERGED))]) == 1
    captured = capsys.readouterr()
    report = run_of(captured.out)
    assert report["verdict"] == "diverged"
    assert [row["step"] for row in report["rows"]] == [1, 2, 3]
    assert captured.err == ""


def test_json_of_several_specs_is_an_array_with_errors_in_their_places(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_spec("a.yaml"), write_spec("b.yaml", lr="x"), write_spec("c.yaml", **DIVERGED)]
    assert cli.exit_code(["run", "--json", "--jobs", "1", "missing.yaml", *map(str, paths)]) == 2
    captured = capsys.readouterr()
    found = runs_of(captured.out)
    assert [one.get("verdict") for one in found] == [None, "equivalent", None, "diverged"]
    assert "no such file" in found[0]["error"]
    assert "lr: must be a number" in found[2]["error"]
    assert "missing.yaml: no such file" in captured.err


@pytest.mark.parametrize(("steps", "shown"), [("1", 1), ("4", 4), ("all", 30), ("1000", 30)])
def test_steps_says_how_many_steps_the_table_shows(
    steps: str, shown: int, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["run", "--steps", steps, str(write_spec(epochs=30))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" weight " in line and "e" in line for line in lines if line[:2] == "  ") == shown
    assert any("not shown" in line for line in lines) == (shown < 30)


@pytest.mark.slow
def test_pipe_that_closes_early_leaves_no_traceback(write_spec: Write) -> None:
    command = f"{sys.executable} -m regcheck run {write_spec(epochs=50)} --json | head -c 10"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert len(done.stdout) == 10
    assert done.stderr == ""


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_output_without_a_terminal_has_no_colour_in_any_encoding(
    encoding: str, write_spec: Write
) -> None:
    done = run_process("run", str(write_spec(**DIVERGED)), PYTHONIOENCODING=encoding)
    assert done.returncode == 1
    assert "DIVERGED at step 1" in done.stdout
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert done.stderr == ""


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "regcheck", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | environment,
    )


@pytest.mark.parametrize("given", [["--timeout", "7"], ["--patience", "9", "--patience", "7"]])
def test_timeout_may_go_by_its_old_name_and_the_last_one_counts(
    given: list[str], write_spec: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[object] = []
    monkeypatch.setattr(checking, "check_loaded", lambda *passed: seconds.append(passed[2]))
    cli.exit_code(["run", *given, str(write_spec())])
    cli.exit_code(["run", "--timeout", "8", *given, str(write_spec())])
    assert seconds == [7.0, 7.0]


def test_help_hides_the_old_name_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--timeout SECONDS" in text
    assert "patience" not in text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_told_and_is_no_internal_error(write_spec: Write) -> None:
    command = f"{sys.executable} -m regcheck run {write_spec()} > /dev/full"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert "standard output cannot be written to" in done.stderr
    assert "Traceback" not in done.stderr


def test_labels_that_yaml_reads_as_truth_values_are_asked_for_in_quotes(
    write_spec: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flags.csv").write_text("flag,x\nTrue,1\nFalse,2\nTrue,3\n", encoding="utf-8")
    data: dict[str, object] = {"csv": "flags.csv", "target": "flag"}
    settings = {"model": "logistic", "init": "zeros"}
    assert cli.exit_code(["run", str(write_spec(data=data, **settings))]) == 2
    assert "holds labels ('False', 'True'); name the one that is 1" in capsys.readouterr().err
    assert cli.exit_code(["run", str(write_spec(data=data | {"positive": False}, **settings))]) == 2
    assert "quote it as in the file: 'False'" in capsys.readouterr().err
    assert (
        cli.exit_code(["run", str(write_spec(data=data | {"positive": "True"}, **settings))]) == 0
    )
