"""Several specs at once: no worker outlives the command, and nothing that it prints is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from regcheck.cli.one_run import failed
from regcheck.cli.outputs import Ended
from tests.conftest import ROOT

OWN = """
import os, time
from pathlib import Path


def train(problem):
    Path(f"{os.getpid()}.pid").touch()
    print("no line's end", end="")
    while SLOW:
        time.sleep(0.1)
    1 / 0
    yield
"""

pytestmark = pytest.mark.slow


def started(folder: Path, write_spec: Callable[..., Path], slow: bool) -> subprocess.Popen[str]:
    """Start a run of two specs, each in a worker that leaves its id as a file."""
    (folder / "own.py").write_text(OWN.replace("SLOW", str(slow)), encoding="utf-8")
    paths = [write_spec(f"{name}.yaml", scratch="own.py:train") for name in "ab"]
    return subprocess.Popen(
        [sys.executable, "-m", "regcheck", "run", "--jobs", "2", *map(str, paths)],
        cwd=folder,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.pid")]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    due = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < due
        time.sleep(0.05)


@pytest.mark.whole
def test_run_waits_for_its_workers_and_keeps_what_they_print(
    tmp_path: Path, write_spec: Callable[..., Path]
) -> None:
    run = started(tmp_path, write_spec, slow=False)
    # Ends only once nobody holds the pipes: a worker that stayed would make this time out.
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 2
    assert errors.count("ZeroDivisionError: division by zero\n") >= 2
    assert errors.count("no line's end") == 2
    assert "semaphore" not in errors
    assert len(workers(tmp_path)) >= 1
    assert not any(map(alive, workers(tmp_path)))


@pytest.mark.whole
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_command(
    sent: signal.Signals, tmp_path: Path, write_spec: Callable[..., Path]
) -> None:
    run = started(tmp_path, write_spec, slow=True)
    try:
        wait_until(lambda: len(workers(tmp_path)) == 2)
    finally:
        run.send_signal(sent)
    # It ends with the last process that holds the pipes.
    _, errors = run.communicate(timeout=120)
    assert len(workers(tmp_path)) == 2
    if sent != signal.SIGKILL:
        assert run.returncode == 130
        assert errors.replace("no line's end", "").split() == ["interrupted"]


def test_ended_specs_are_counted_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = failed(Path("a.yaml"), 2, "a.yaml: wrong")
    for terminal, line in ((False, ""), (True, "\r\x1b[K1 of 2 specs: a.yaml error\r\x1b[K")):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        ended = Ended(2)
        ended.clear()
        ended.add(one)
        ended.clear()
        assert capsys.readouterr() == ("", line)
