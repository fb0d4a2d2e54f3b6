"""The GitHub action and the pre-commit hook, run as GitHub's runner and pre-commit run them."""

from __future__ import annotations

import json
import os
import re
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
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    target = tmp_path / "installed"
    done = run_step(INSTALL, tmp_path, {"torch-index": ""}, PIP_TARGET=str(target), **offline)
    assert done.code == 0, done.output
    assert (target / "regcheck" / "starters" / "own-code" / "train.py").is_file()
    done = run_step(
        RUN, tmp_path, {"specs": str(write(tmp_path / "agrees.yaml"))}, PYTHONPATH=str(target)
    )
    assert (done.code, done.set) == (0, "exit-code=0\n"), done.output


@pytest.mark.whole
def test_hook_runs_the_specs_of_a_commit(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["language"] == "python"
    # pre-commit would install regcheck from its repository; here it is installed already.
    config = {"repos": [{"repo": "local", "hooks": [hook | {"language": "system"}]}]}
    (tmp_path / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write(tmp_path / "agrees.regcheck.yaml")
    write(tmp_path / "no-spec.yaml", lrr=1)
    environment = dict(os.environ) | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    manifest = str(ROOT / ".pre-commit-hooks.yaml")
    assert run("pre-commit", "validate-manifest", manifest).returncode == 0
    run("git", "init", "-q")
    run("git", "add", "*.yaml")
    assert run("pre-commit", "run").returncode == 0
    write(tmp_path / "doubled.regcheck.yml", convention="doubled")
    run("git", "add", "*.yml")
    done = run("pre-commit", "run")
    assert done.returncode == 1
    assert "doubled.regcheck.yml: DIVERGED at step 1: scratch doubles" in done.stdout
    assert "no-spec" not in done.stdout
