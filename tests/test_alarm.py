"""Calls into a user's code that take too long are ended, and say where they were."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regcheck.errors import UserCodeError
from regcheck.user_code.alarm import Alarm, TimedOut
from regcheck.user_code.function import UserFunction, imported
from tests.conftest import ROOT
from tests.user_files import STEPS, TRAIN, run_all, run_file, stepping, write

ENDLESS = {
    "busy": "while True: pass",
    "sleep": "time.sleep(1e6)",
    "swallowing Exception": """while True:
            try: time.sleep(9)
            except Exception: pass""",
    "swallowing once": """try: time.sleep(9)
        except BaseException: pass
        while True: pass""",
    "going on": """try: time.sleep(9)
        except BaseException: pass""",
    "going on wrongly": """try: time.sleep(9)
        except BaseException: yield""",
    "raising something else": """try: time.sleep(9)
        except BaseException: raise ValueError""",
    "waiting for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waiting for a child": "subprocess.run(['sleep', '99'])",
}


def endless(act: str) -> str:
    return stepping(act, "import subprocess, threading, time")


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", ENDLESS)
def test_endless_step_is_ended(tmp_path: Path, name: str) -> None:
    before = time.monotonic()
    with pytest.raises(UserCodeError) as raised:
        run_file(tmp_path, endless(ENDLESS[name]), timeout=0.2)
    assert 0.2 <= time.monotonic() - before < 3
    text = str(raised.value)
    assert text.startswith("mine.py:train: step 1 of 4: took longer than 0.2 seconds")
    assert "--timeout SECONDS" in text
    assert "timeout=" in text
    assert f'{tmp_path}/mine.py", line ' in text
    assert "in train" in text
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_endless_import_is_ended(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "import math\n\nwhile True:\n    math.sqrt(2)\n")
    with (
        pytest.raises(UserCodeError, match=r"at its import: took longer than 0\.2 sec") as raised,
        imported("mine.py:train", tmp_path, 0.2),
    ):
        raise AssertionError("imported")
    assert 'mine.py", line ' in str(raised.value)


@pytest.mark.slow
def test_each_step_has_its_own_time(tmp_path: Path) -> None:
    assert len(run_file(tmp_path, endless("time.sleep(0.2)"), timeout=0.5)) == STEPS


@pytest.mark.slow
def test_thread_that_nothing_interrupts_is_ended_with_regcheck() -> None:
    script = (
        "import threading, time; from regcheck.user_code import alarm\n"
        "from regcheck.user_code.function import UserFunction\n"
        "alarm.GRACE = 0.5\n"
        "function = UserFunction(time.sleep, 'mine.py:train', 0.3)\n"
        "threading.Thread(target=function.call, args=[1e6]).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mine.py:train: took longer than 0.3 seconds")


@pytest.mark.slow
def test_callers_timer_and_handler_come_back() -> None:
    rung: list[int] = []

    def ring(number: int, frame: object) -> None:
        rung.append(number)

    former = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert UserFunction(time.sleep, "sleep").call(0.1) is None
        delay, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < delay <= 0.21
        assert signal.getsignal(signal.SIGALRM) is ring
        assert UserFunction(time.sleep, "sleep").call(0.3) is None
        time.sleep(0.05)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_alarm_that_rings_after_the_call_raises_nothing() -> None:
    alarm = Alarm(1.0, lambda: None)
    alarm.running = True
    with pytest.raises(TimedOut):
        alarm.ring(signal.SIGALRM, sys._getframe())
    alarm.running, alarm.expired = False, None
    alarm.ring(signal.SIGALRM, sys._getframe())
    assert alarm.expired is None


def in_thread(work: Callable[[], Any]) -> Any:
    """Run work in a second thread; return its result or what it raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return results[0]


def test_endless_step_is_ended_in_another_thread(tmp_path: Path) -> None:
    error = in_thread(lambda: run_file(tmp_path, endless(ENDLESS["busy"]), timeout=0.2))
    assert isinstance(error, UserCodeError)
    assert "step 1 of 4: took longer than 0.2 seconds" in str(error)
    assert 'mine.py", line ' in str(error)


def test_function_may_move_between_threads(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", TRAIN)
    with imported("mine.py:train", tmp_path, 0.5) as function:
        for call in (lambda work: work(), in_thread, lambda work: work()):
            assert len(call(lambda: run_all(function))) == STEPS
