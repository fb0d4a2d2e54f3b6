"""Holds what starts without torch, NumPy and workers; import-linter holds who imports whom."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["explain"],
        ["explain", "--list"],
        ["explain", "decoupled"],
        ["explain", "configs/penguins.yaml"],
        ["run", "no-such-file.yaml"],
    ],
    ids=" ".join,
)
def test_command_starts_without_what_takes_long_to_import(arguments: list[str]) -> None:
    script = (
        "import sys; from regcheck.cli import exit_code;"
        f"exit_code({arguments!r});"
        "late = {'torch', 'numpy', 'multiprocessing'} & {*sys.modules};"
        "sys.exit('+'.join(late) or 0)"
    )
    measured = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")  # coverage imports much itself
    bare = {name: value for name, value in os.environ.items() if name not in measured}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr
