"""`run --write-fixed FILE`: the file that is written, and what is left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import run_of
from tests.fixed_specs import SPEC, Folder


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


@pytest.mark.parametrize("to", ["deep/er/fixed.yaml", "../beside/fixed.yaml"])
def test_paths_are_relative_to_the_new_file(to: str, folder: Folder) -> None:
    (folder.path / "deep" / "er").mkdir(parents=True)
    (folder.path / ".." / "beside").resolve().mkdir(exist_ok=True)
    rows = "x1,x2,y\n1,2,1\n3,-1,2\n-2,0.5,-1\n0.5,1.5,0.5\n"
    (folder.path / "rows.csv").write_text(rows, encoding="utf-8")
    spec = folder.path / "spec.yaml"
    spec.write_text(
        "data: {csv: rows.csv, target: y}\n"
        + SPEC.partition("y: [1.0, 2.0, -1.0, 0.5]\n")[2]
        + "scratch: mine.py:divided\n",
        encoding="utf-8",
    )
    fixed = folder.path / to
    assert folder.run(spec, "--write-fixed", fixed).code == 1
    content = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    for written, name in (
        (content["data"]["csv"], "rows.csv"),
        (content["scratch"].removesuffix(":divided"), "mine.py"),
    ):
        assert not Path(written).is_absolute()
        assert (fixed.parent / written).resolve() == (folder.path / name).resolve()
    assert content["data"]["target"] == "y"
    assert folder.run(fixed).code == 0


def test_absolute_paths_stay(folder: Folder) -> None:
    (folder.path / "deep").mkdir()
    code = f"{folder.path / 'mine.py'}:divided"
    _, fixed = folder.fix(f"scratch: {code}\n", to="deep/fixed.yaml")
    assert yaml.safe_load(fixed.read_text(encoding="utf-8"))["scratch"] == code
    assert folder.run(fixed).code == 0


def test_own_file_is_overwritten(folder: Folder) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided\n")
    first = fixed.read_text(encoding="utf-8")
    done, _ = folder.fix("convention: doubled\n")
    assert done.code == 1
    second = fixed.read_text(encoding="utf-8")
    assert first != second
    assert "convention: pytorch" in second
    assert folder.files() == {"mine.py", "spec.yaml", "fixed.yaml"}


@pytest.mark.parametrize("foreign", ["lr: 0.1\n", "# mine\n", "# Written by hand\n"])
def test_foreign_file_is_not_overwritten(foreign: str, folder: Folder) -> None:
    there = folder.path / "fixed.yaml"
    there.write_text(foreign, encoding="utf-8")
    done, _ = folder.fix("scratch: mine.py:divided\n")
    assert done.code == 2
    assert f"{there}: exists already; `--write-fixed` does not overwrite it" in done.err
    assert there.read_text(encoding="utf-8") == foreign


def test_spec_itself_is_not_overwritten(folder: Folder) -> None:
    done, spec = folder.fix("scratch: mine.py:divided\n", to="spec.yaml")
    assert done.code == 2
    assert spec.read_text(encoding="utf-8") == SPEC + "scratch: mine.py:divided\n"


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("nowhere/fixed.yaml", "cannot be written: No such file or directory"),
        ("mine.py/fixed.yaml", "cannot be written: Not a directory"),
        (".", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_file_that_cannot_be_written_is_told_and_leaves_nothing(
    to: str, says: str, folder: Folder
) -> None:
    os.mkfifo(folder.path / "pipe")
    done, _ = folder.fix("scratch: mine.py:divided\n", to=to)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert folder.files() == {"mine.py", "spec.yaml"}


def test_failure_while_writing_leaves_nothing_half_written(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided\n")
    before = fixed.read_text(encoding="utf-8")

    def fail(path: object, other: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    done, _ = folder.fix("convention: doubled\n")
    assert done.code == 2
    assert f"{fixed}: cannot be written: Permission denied" in done.err
    assert fixed.read_text(encoding="utf-8") == before
    assert folder.files() == {"mine.py", "spec.yaml", "fixed.yaml"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_to_is_told(folder: Folder) -> None:
    closed = folder.path / "closed"
    closed.mkdir(mode=0o500)
    done, _ = folder.fix("scratch: mine.py:divided\n", to="closed/fixed.yaml")
    assert done.code == 2
    assert "cannot be written: Permission denied" in done.err
    assert not any(closed.iterdir())


def test_several_specs_are_refused(folder: Folder) -> None:
    one, two = folder.write(name="one.yaml"), folder.write(name="two.yaml")
    for specs, count in (([one, two], 2), ([folder.path], 2)):
        done = folder.run(*specs, "--write-fixed", folder.path / "fixed.yaml")
        assert (done.code, done.out) == (2, "")
        assert f"--write-fixed: takes one spec, got {count}" in done.err
    assert folder.files() == {"mine.py", "one.yaml", "two.yaml"}


def test_folder_of_one_spec_is_one_spec(folder: Folder) -> None:
    deep = folder.path / "deep"
    deep.mkdir()
    shutil.move(folder.write("convention: doubled\n"), deep)
    assert folder.run(deep, "--write-fixed", folder.path / "fixed.yaml").code == 1
    assert folder.run(folder.path / "fixed.yaml").code == 0


def test_spec_that_cannot_be_run_writes_nothing(folder: Folder) -> None:
    done, _ = folder.fix("scratch: mine.py:nobody\n")
    assert done.code == 2
    assert folder.files() == {"mine.py", "spec.yaml"}


@pytest.mark.parametrize("function", ["divided", "right", "nonsense"])
def test_standard_output_is_the_report_alone_with_json(function: str, folder: Folder) -> None:
    spec, fixed = folder.write(f"scratch: mine.py:{function}\n"), folder.path / "fixed.yaml"
    done = folder.run(spec, "--json", "--write-fixed", fixed)
    report = run_of(done.out)
    assert done.code == (0 if function == "right" else 1)
    assert report["verdict"] == ("equivalent" if function == "right" else "diverged")
    assert fixed.exists() is (function == "divided")
    assert done.err.startswith(f"{fixed}: ")
    assert len(done.err.splitlines()) == 1
