"""The README is true: its printed output, its commands, its tables."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from regcheck import cli
from regcheck.rules.convention import KEYS, NAMED, Convention
from regcheck.spec import from_mapping
from regcheck.spec.schema import Spec
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_printed_output_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    (block,) = blocks("console")
    command, _, output = block.partition("\n")
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "regcheck"
    assert cli.exit_code(arguments) == 1
    printed = capsys.readouterr().out
    assert [told(line) for line in printed.splitlines()] == [
        told(line) for line in output.splitlines()
    ]


def told(line: str) -> str:
    """Give a line without what is rounding's own: another BLAS may round otherwise."""
    agreeing = re.match(r"(.* (?:weight|bias) +).*(?<!!)$", line)
    return agreeing[1] if agreeing and "[" not in line else line


def test_there_are_two_commands_for_the_set_up() -> None:
    install, test = blocks("sh")
    assert "regcheck run configs/stackoverflow.yaml" in install
    assert "pytest" in test


def test_spec_in_the_readme_is_a_valid_one_and_names_every_key() -> None:
    (block,) = blocks("yaml")
    content = yaml.safe_load(block)
    assert from_mapping(content).spec.model == "logistic"
    assert set(content) == set(Spec.model_fields)


def test_every_convention_and_key_is_in_the_readme() -> None:
    assert set(KEYS) == set(Convention._fields)
    for name in [*NAMED, *KEYS]:
        assert f"`{name}`" in README


@pytest.mark.slow
def test_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(block, names)
    assert names["report"].verdict == "diverged"  # type: ignore[attr-defined]
