"""The GitHub action and the pre-commit hook, run as GitHub's runner and pre-commit run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import yaml

from tests.conftest import ROOT, SMALL

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
INSTALL, RUN = (step for step in ACTION["runs"]["steps"] if "run" in step)
BIN = Path(sys.executable).parent
OFFLINE = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
"""What makes pip take what is installed already, and nothing from an index."""
INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")

pytestmark = pytest.mark.slow


class Done(NamedTuple):
    code: int
    output: str
    set: str


def run_step(step: dict[str, Any], folder: Path, inputs: dict[str, str], **more: str) -> Done:
    """Run a step's script as the runner does: expressions first, then bash with its own options."""
    given = {name: one.get("default", "") for name, one in ACTION["inputs"].items()} | inputs
    values = {
        key: INPUT.sub(lambda found: given[found[1]], text)
        for key, text in step.get("env", {}).items()
    }
    script, outputs = folder / "step.sh", folder / "outputs"
    script.write_text(step["run"], encoding="utf-8")
    outputs.write_text("", encoding="utf-8")
    environment = dict(os.environ) | values
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"GITHUB_ACTION_PATH": str(ROOT), "GITHUB_OUTPUT": str(outputs)}
    environment |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder,
        env=environment | more,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout + done.stderr, outputs.read_text(encoding="utf-8"))


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    return path


@pytest.mark.whole
def test_action_runs_each_spec_and_writes_the_reports(tmp_path: Path) -> None:
    write(tmp_path / "specs" / "doubled.yaml", convention="doubled")
    write(tmp_path / "a b.yaml", convention="doubled", expect={"verdict": "diverged"})
    reports = {"args": " --quiet\n--timeout 60 ", "reports": "r.json\nr.xml"}
    done = run_step(RUN, tmp_path, {"specs": "specs\na b.yaml\n", **reports})
    assert (done.code, done.set) == (1, "exit-code=1\n"), done.output
    lines = [line for line in done.output.splitlines() if line.startswith(("specs/", "a b"))]
    assert [line.partition(" at")[0] for line in lines] == [
        "specs/doubled.yaml: DIVERGED",
        "a b.yaml: DIVERGED",
    ]
    assert [len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["runs"])] == [2]
    assert len(list(ElementTree.parse(tmp_path / "r.xml").iter("testcase"))) == 2
    assert "::error file=specs/doubled.yaml" in done.output
    assert (tmp_path / "summary.md").stat().st_size > 0


@pytest.mark.whole
@pytest.mark.parametrize("key", ["specs", "args", "reports"])
def test_no_input_is_taken_for_a_part_of_the_script(key: str, tmp_path: Path) -> None:
    for hostile in (
        '$(touch taken)"; touch taken; `touch taken`',
        "--help; touch taken",
        "* & >taken",
    ):
        inputs = {"specs": str(write(tmp_path / "agrees.yaml"))} | {key: hostile}
        done = run_step(RUN, tmp_path, inputs)
        assert not (tmp_path / "taken").exists()
        assert done.code == 2, done.output
        assert done.set == "exit-code=2\n"


def test_scripts_hold_no_expression_and_every_input_is_used() -> None:
    for step in (INSTALL, RUN):
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"
    steps = yaml.safe_dump(ACTION["runs"])
    assert {*ACTION["inputs"]} == {*INPUT.findall(steps)}
    assert all(one["description"] for one in ACTION["inputs"].values())


@pytest.mark.whole
def test_action_installs_the_package_that_it_stands_in(tmp_path: Path) -> None:
    target = tmp_path / "installed"
    done = run_step(INSTALL, tmp_path, {"torch-index": ""}, PIP_TARGET=str(target), **OFFLINE)
    assert done.code == 0, done.output
    assert (target / "regcheck" / "starters" / "own-code" / "train.py").is_file()
    done = run_step(
        RUN, tmp_path, {"specs": str(write(tmp_path / "agrees.yaml"))}, PYTHONPATH=str(target)
    )
    assert (done.code, done.set) == (0, "exit-code=0\n"), done.output


@pytest.mark.whole
def test_hook_is_installed_and_runs_the_specs_of_a_commit(tmp_path: Path) -> None:
    site_packages = str(Path(yaml.__file__).parent.parent)
    environment = dict(os.environ) | OFFLINE
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": site_packages,  # what regcheck needs, and the backend that builds it
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    source, work = tmp_path / "regcheck", tmp_path / "work"
    source.mkdir()
    shutil.copytree(ROOT / "regcheck", source / "regcheck")
    for name in (".pre-commit-hooks.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    run(source, "git", "init", "-q")
    run(source, "git", "add", ".")
    run(source, "git", "commit", "-q", "-m", "all")
    write(work / "agrees.regcheck.yaml")
    write(work / "doubled.regcheck.yml", convention="doubled")
    write(work / "no-spec.yaml", lrr=1)
    run(work, "git", "init", "-q")
    run(work, "git", "add", ".")
    done = run(work, "pre-commit", "try-repo", str(source), "regcheck")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Installing environment" in done.stdout
    assert "FAIL doubled.regcheck.yml: DIVERGED at step 1: scratch doubles" in done.stdout
    assert "ok   agrees.regcheck.yaml: EQUIVALENT" in done.stdout
    assert "no-spec" not in done.stdout
