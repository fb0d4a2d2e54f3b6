"""`regcheck init` and `demo`: what they write and print runs as it is said to."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from regcheck import cli, writing
from regcheck.cli.starting import NEXT, STARTERS
from regcheck.errors import UsageError
from regcheck.spec.json_schema import spec_schema
from regcheck.spec.yaml_text import parse
from tests.conftest import ROOT

OWN = {
    "question": set[str](),
    "own-code": {"train.py"},
    "own-model": {"model.py"},
}
EVERY = {"training.yaml", "test_training.py", "regcheck.schema.json"}
CODES = {"question": 1, "own-code": 0, "own-model": 0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


def test_of_a_file(path: Path) -> Any:
    found = importlib.util.spec_from_file_location("test_training", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.test_numpy_and_torch_agree


test_of_a_file.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("start", NEXT)
def test_what_is_written_runs_as_it_is(
    start: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["init", "--from", start]) == 0
    printed = capsys.readouterr().out
    assert set(written(here)) == EVERY | OWN[start]
    assert all(name in printed for name in written(here))
    command = re.search(r"^  regcheck (run .*?)    (.*)$", printed, flags=re.MULTILINE)
    assert command is not None
    assert ("diverge" in command[2]) == bool(CODES[start])
    assert ("as a test, which fails until they agree" in printed) == bool(CODES[start])
    assert cli.exit_code(command[1].split()) == CODES[start]
    text = capsys.readouterr().out
    assert ("DIVERGED at step 2: " if CODES[start] else "EQUIVALENT over ") in text
    test = test_of_a_file(here / "test_training.py")
    if CODES[start]:
        with pytest.raises(AssertionError, match=r"^DIVERGED at step 2: .*divided-by-batch"):
            test()
        spec = here / "training.yaml"
        spec.write_text(
            spec.read_text(encoding="utf-8").replace("divided-by-batch ", "pytorch "),
            encoding="utf-8",
        )
    test()


def test_the_starts_mistake_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["init", "--from", "own-code"]) == 0
    train = here / "train.py"
    text = train.read_text(encoding="utf-8")
    wrong = re.sub(r"problem\.weight_decay \* (\w)\)", r"problem.weight_decay * \1 / len(y))", text)
    assert wrong != text
    train.write_text(wrong, encoding="utf-8")
    assert cli.exit_code(["run", "--quiet", "training.yaml"]) == 1
    assert "(penalty-divided-by-batch)" in capsys.readouterr().out


@pytest.mark.parametrize("start", NEXT)
def test_starts_are_valid_by_the_schema_that_their_first_line_names(start: str, here: Path) -> None:
    assert cli.exit_code(["init", "deep/folder", "--from", start]) == 0
    spec = here / "deep" / "folder" / "training.yaml"
    text = spec.read_text(encoding="utf-8")
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((spec.parent / named).read_text(encoding="utf-8"))
    assert schema == spec_schema()
    for content in (yaml.safe_load(text), parse(text, "").content):
        jsonschema.Draft202012Validator(schema).validate(content)


def test_spec_may_have_a_name_of_its_own(here: Path) -> None:
    assert cli.exit_code(["init", "sub/mine.regcheck.yaml", "--from", "own-code"]) == 0
    files = written(here / "sub")
    assert set(files) == EVERY - {"training.yaml"} | {"mine.regcheck.yaml", "train.py"}
    assert not [name for name, text in files.items() if "training.yaml" in text]
    assert cli.exit_code(["run", "--quiet", "sub/mine.regcheck.yaml"]) == 0
    test_of_a_file(here / "sub" / "test_training.py")()


def test_nothing_is_overwritten_without_force(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "test_training.py").write_text("mine", encoding="utf-8")
    (here / "regcheck.schema.json").symlink_to("nowhere")
    assert cli.exit_code(["init"]) == 2
    error = capsys.readouterr().err
    assert "test_training.py, regcheck.schema.json: there already" in error
    assert "--force" in error
    assert sorted(file.name for file in here.iterdir()) == [
        "regcheck.schema.json",
        "test_training.py",
    ]
    assert (here / "test_training.py").read_text(encoding="utf-8") == "mine"
    assert cli.exit_code(["init", "--force"]) == 0
    assert "def test" in (here / "test_training.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("failing", ["test_training.py", "regcheck.schema.json"])
def test_what_cannot_be_written_leaves_nothing_behind(
    failing: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = writing.write_whole

    def full(path: Path, chunks: Any) -> None:
        if path.name == failing:
            raise UsageError(f"{path}: cannot be written: no space left on device")
        real(path, chunks)

    monkeypatch.setattr("regcheck.cli.starting.write_whole", full)
    (here / "there").mkdir()
    for folder in (".", "new/folder", "there", "there/new"):
        assert cli.exit_code(["init", folder]) == 2
        assert f"{failing}: cannot be written" in capsys.readouterr().err
        assert [*here.rglob("*")] == [here / "there"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("file.txt", "file.txt: cannot be a folder: file exists"),
        ("file.txt/deeper", "cannot be a folder: not a directory"),
        ('a"b.yaml', "name the spec by letters"),
    ],
)
def test_bad_path_is_told(
    path: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file.txt").write_text("mine", encoding="utf-8")
    assert cli.exit_code(["init", path]) == 2
    assert says in capsys.readouterr().err
    assert written(here) == {"file.txt": "mine"}


@pytest.mark.slow
def test_demo_is_the_questions_own_case_and_needs_no_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(["demo"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("regcheck demo: logistic, bce, float64, 1,096 samples")
    assert lines[2].startswith("DIVERGED at step 2: scratch divides the weight decay")
    assert lines[-1].startswith("Try next: regcheck init --from own-code")
    assert (captured.err, written(here)) == ("", {})
    case = (STARTERS / "question" / "training.yaml").read_text(encoding="utf-8")
    config = (ROOT / "configs" / "stackoverflow.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(case) == yaml.safe_load(config)
