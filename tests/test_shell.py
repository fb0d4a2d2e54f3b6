"""What a shell shows: help that begins with examples, and completion in bash, zsh and fish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

from regcheck import cli
from regcheck.cli import commands
from regcheck.cli.exit_codes import MEANINGS
from regcheck.cli.main import HOMES
from regcheck.rules.causes.catalogue import CAUSES
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELLS = ["bash", "zsh", "fish"]


def completed(line: str, shell: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the kind and the value of what a shell is offered behind a line."""
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
    found = get_completion_class(shell)
    assert found is not None
    text = found(commands, {}, "regcheck", "_REGCHECK_COMPLETE").complete()
    if not text:
        return []
    if shell == "zsh":  # kind, value and help, a line each
        lines = text.split("\n")
        return list(zip(lines[::3], lines[1::3], strict=True))
    pairs = (one.partition("\t")[0].split(",") for one in text.splitlines())
    return [(kind, value) for kind, value in pairs]


@pytest.mark.parametrize("shell", SHELLS)
def test_names_to_explain_are_completed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = completed("regcheck explain pen", shell, monkeypatch)
    names = [name for name in CAUSES if name.startswith("pen")]
    assert set(names) <= {value for _, value in found}
    assert {kind for kind, _ in found} == {"plain"}
    assert all(value.startswith("pen") for _, value in found)
    assert ("plain", "adamw") in completed("regcheck explain ad", shell, monkeypatch)


SCRIPTS = {
    "bash": 'eval "$(_REGCHECK_COMPLETE=bash_source regcheck)"; COMP_WORDS=(regcheck explain pen);'
    " COMP_CWORD=2; $(complete -p regcheck | grep -o '[^ ]*_completion') regcheck;"
    ' printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": "_REGCHECK_COMPLETE=fish_source regcheck | source; complete -C 'regcheck explain pen'",
}


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("shell", SCRIPTS)
def test_shell_itself_completes_by_the_line_in_the_readme(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = SCRIPTS[shell]
    (line,) = (
        row.split("|", 3)[3] for row in README.splitlines() if row.startswith(f"| {shell} |")
    )
    assert script.partition(";")[0] in line.replace("\\|", "|")
    environment = dict(os.environ) | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    offered = {one.partition("\t")[0] for one in done.stdout.splitlines()}
    assert {name for name in CAUSES if name.startswith("pen")} <= offered, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", ["run", "explain"])
def test_spec_files_are_completed(
    command: str, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("specs/one.yaml", "specs/two.yml", "specs/x.py", "specs/.y.yaml", "specs/a/b.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "specs.yaml").touch()

    def offered(word: str) -> list[tuple[str, str]]:
        return completed(f"regcheck {command} {word}", shell, monkeypatch)

    inside = ["specs/a/", "specs/one.yaml", "specs/two.yml"]
    assert offered("specs/") == [("plain", name) for name in inside]
    assert offered("specs/o") == [("plain", "specs/one.yaml")]
    assert offered("spe") == [("plain", "specs/"), ("plain", "specs.yaml")]
    assert offered("./spe") == [("plain", "./specs/"), ("plain", "./specs.yaml")]
    assert offered("nowhere/") == [("file", "nowhere/")]
    assert offered(f"{tmp_path}/specs/t") == [("plain", f"{tmp_path}/specs/two.yml")]


def test_several_specs_and_options_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    options = completed("regcheck run a.yaml --q", "zsh", monkeypatch)
    assert options == [("plain", "--quiet")]
    assert ("plain", "demo") in completed("regcheck d", "zsh", monkeypatch)
    starts = completed("regcheck init --from own", "zsh", monkeypatch)
    assert [value for _, value in starts] == ["own-code", "own-model"]


def test_planned_commands_are_completed_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("regcheck convert 1", "zsh", monkeypatch) == []


def test_completion_loads_neither_numpy_nor_torch() -> None:
    script = (
        "import os, sys\n"
        "os.environ.update(COMP_WORDS='regcheck explain pen', COMP_CWORD='2',"
        " _REGCHECK_COMPLETE='bash_complete')\n"
        "from regcheck.cli import commands\n"
        "try:\n    commands.main(prog_name='regcheck')\n"
        "finally:\n    print(sorted({'numpy', 'torch', 'pydantic'} & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    *names, loaded = done.stdout.splitlines()
    assert "plain,penalty-missing" in names
    assert loaded == "[]"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"]])
def test_help_begins_with_three_examples_and_ends_with_the_exit_codes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(arguments) == (0 if arguments else 2)
    captured = capsys.readouterr()
    blocks = (captured.out + captured.err).strip().split("\n\n")
    title, *examples = blocks[0].splitlines()
    assert title == "Examples:"
    assert [line.split()[0] for line in examples] == ["regcheck"] * 3
    assert blocks[1].startswith("Usage: regcheck")
    codes = blocks[-1].splitlines()
    assert codes[0] == "Exit codes:"
    assert [line.split()[0] for line in codes[1:]] == [*map(str, MEANINGS)]
    if arguments[:1] != ["run"]:
        assert [line.split()[1] for line in examples] == ["run", "explain", "init"]
        listed = next(block for block in blocks if block.startswith("Commands:"))
        assert [line.split()[0] for line in listed.splitlines()[1:]] == [*HOMES]
        assert "..." not in listed.replace("SPEC...", "")


def test_examples_are_commands_that_there_are() -> None:
    context = click.Context(commands)
    by_name = {name: commands.get_command(context, name) for name in HOMES}
    found = [commands, *by_name.values()]
    examples = [one for command in found for one in getattr(command, "examples", {})]
    assert len(examples) > len(found)
    for example in examples:
        words = example.partition(" > ")[0].split()
        assert words[0] == "regcheck"
        command = by_name[words[1]]
        assert command is not None
        with command.make_context(words[1], words[2:], resilient_parsing=True) as inner:
            known = {name for one in command.params for name in one.opts}
            assert {word for word in words if word.startswith("-")} <= known, inner
    assert isinstance(commands, click.Group)
