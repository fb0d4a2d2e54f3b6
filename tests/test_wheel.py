"""The wheel, away from the repository: from the first command to a test suite of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Build and install the wheel, and run commands by it in an empty folder."""
    offline = ("--quiet", "--no-deps", "--no-index")
    pip = (sys.executable, "-m", "pip")
    built, installed = tmp_path / "built", tmp_path / "installed"
    build = (*pip, "wheel", *offline, "--no-build-isolation", "-w", str(built), str(ROOT))
    subprocess.run(build, check=True)
    (wheel,) = built.glob("regcheck-*.whl")
    subprocess.run((*pip, "install", *offline, "--target", str(installed), str(wheel)), check=True)
    here = tmp_path / "here"
    here.mkdir()
    # As installed, before what the environment itself may have of it.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "GITHUB"))
    } | {"PYTHONPATH": str(installed), "COLUMNS": "80"}

    def in_folder(*command: str) -> subprocess.CompletedProcess[str]:
        program = [str(installed / "bin" / "regcheck")]
        if command[0] == "python":
            program = [sys.executable]
        return subprocess.run(
            [*program, *command[1:]],
            cwd=here,
            env=environment | {"CI": "1"},  # pytest then cuts no line of its summary
            capture_output=True,
            text=True,
            check=False,
        )

    return in_folder


@pytest.mark.whole
@pytest.mark.slow
def test_from_the_first_command_to_a_test_suite(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    found = run("python", "-c", "import regcheck; print(regcheck.__file__)").stdout
    assert found.startswith(str(tmp_path / "installed"))

    demo = run("regcheck", "demo")
    assert (demo.returncode, demo.stderr, [*here.iterdir()]) == (0, "", [])
    assert (
        "\nDIVERGED at step 2: scratch divides the weight decay by the batch size\n" in demo.stdout
    )

    assert run("regcheck", "init").returncode == 0
    first = run("regcheck", "run", "training.yaml")
    assert first.returncode == 1
    assert first.stdout.splitlines()[2:] == demo.stdout.splitlines()[2:-1]

    # A trainer of one's own, one with a mistake in it, and one whose mistake is known.
    assert (
        run("regcheck", "init", "suite/agrees.regcheck.yaml", "--from", "own-code").returncode == 0
    )
    suite = here / "suite"
    spec = (suite / "agrees.regcheck.yaml").read_text(encoding="utf-8")
    loop = (suite / "train.py").read_text(encoding="utf-8")
    (suite / "test_training.py").unlink()
    wrong = loop.replace("problem.weight_decay * w", "problem.weight_decay / len(y) * w")
    assert wrong != loop
    (suite / "wrong.py").write_text(wrong, encoding="utf-8")
    differs = spec.replace("train.py:train", "wrong.py:train")
    (suite / "differs.regcheck.yaml").write_text(differs, encoding="utf-8")
    known = differs + "expect: {verdict: diverged, step: 1}\n"
    (suite / "known.regcheck.yaml").write_text(known, encoding="utf-8")

    tests = run("python", "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "suite")
    assert tests.returncode == 1, tests.stdout
    summary = tests.stdout.splitlines()
    assert "1 failed, 2 passed" in summary[-1]
    (failed,) = (line for line in summary if line.startswith("FAILED "))
    name = "suite/differs.regcheck.yaml::differs"
    assert failed.startswith(
        f"FAILED {name} - DIVERGED at step 1: scratch divides the weight decay"
    )
    assert "penalty-divided-by-batch" in failed
    assert "Traceback" not in tests.stdout + tests.stderr
