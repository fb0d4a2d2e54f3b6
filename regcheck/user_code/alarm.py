"""End a call that takes too long."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

AGAIN = 0.5
"""Seconds after which a call that goes on is interrupted again."""

GRACE = 3.0
"""Seconds that a call has to end once it was interrupted."""

LONGEST_TIMER = 1e8
"""Seconds that the system's timer can hold on every platform; three years."""


class TimedOut(BaseException):
    """Raised in code that has had its time. `except Exception` does not catch it."""


class Alarm:
    """Raises TimedOut in a call that takes too long, and again until it ends.

    In the main thread the system's timer interrupts the call, as Ctrl-C would; elsewhere, and
    where there is no such timer, a second thread does, at the call's next Python instruction.

    Args:
        timeout: seconds that a call may take.
        end_program: called where a call still goes on `GRACE` seconds later.

    Attributes:
        expired: when the call's time was over; None before.
        stack: where the call was then.
    """

    def __init__(self, timeout: float, end_program: Callable[[], None]) -> None:
        self.timeout = min(max(timeout, 1e-3), LONGEST_TIMER)
        self.end_program = end_program
        self.running = False
        self.expired: float | None = None
        self.stack: traceback.StackSummary | None = None
        self.callers_timer: tuple[Any, float, float, float] | None = None
        self.lock = threading.Lock()
        self.watching = self.raised = False

    def start(self) -> None:
        """Begin a call in this thread."""
        self.expired = self.stack = None
        if timer_works():
            handler = signal.signal(signal.SIGALRM, self.ring)
            delay, interval = signal.setitimer(signal.ITIMER_REAL, self.timeout, AGAIN)
            self.callers_timer = (handler, delay, interval, time.monotonic())
            self.running = True
            return
        with self.lock:
            self.thread, self.due = threading.get_ident(), time.monotonic() + self.timeout
            self.raised, self.running = False, True
            watched, self.watching = self.watching, True
        if not watched:
            threading.Thread(target=self.watch, daemon=True).start()

    def stop(self) -> None:
        """End the call; nothing is raised afterwards. May be called again."""
        with self.lock:
            self.running = False
        if self.callers_timer is not None:
            (handler, delay, interval, since), self.callers_timer = self.callers_timer, None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if delay:
                left = max(delay - (time.monotonic() - since), 1e-6)
                signal.setitimer(signal.ITIMER_REAL, left, interval)
        if self.raised:
            # What is still under way arrives here: each turn looks for it. (Taking it back would
            # leave a flag set in Python 3.11, on which code that is traced spins.)
            with contextlib.suppress(TimedOut):
                for _ in range(10):
                    pass
            self.raised = False

    def expire(self, frame: FrameType | None) -> None:
        """Note where the call is; end the program where it has been interrupted in vain."""
        now = time.monotonic()
        if self.expired is None:
            self.expired = now
            walk = traceback.walk_stack(frame)
            self.stack = traceback.StackSummary.extract(walk, lookup_lines=False)
            self.stack.reverse()
        elif now - self.expired > GRACE:
            self.end_program()

    def ring(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the call: the timer's signal has come."""
        del number
        if self.running:
            self.expire(frame)
            raise TimedOut

    def watch(self) -> None:
        """Interrupt calls whose time is over; end once none has run for a while."""
        # Traced, it would spin in Python 3.11 while what it raised has not yet arrived.
        sys.settrace(None)
        idle = 0
        while idle < 4:
            time.sleep(min(AGAIN, self.timeout / 4))
            with self.lock:
                idle = 0 if self.running else idle + 1
                self.watching = idle < 4
                if self.running and time.monotonic() >= self.due:
                    self.due = time.monotonic() + AGAIN
                    self.raised = True
                    self.expire(sys._current_frames().get(self.thread))
                    raise_in(self.thread, TimedOut)


def timer_works() -> bool:
    """Whether the system's timer can interrupt this thread."""
    return hasattr(signal, "setitimer") and threading.get_ident() == threading.main_thread().ident


def raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in a thread at one of its next instructions."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
