"""End a call that takes too long.

In the main thread the system's timer interrupts it, as Ctrl-C would; elsewhere, and where there
is no such timer, a second thread does.
"""

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
from typing import Any, Protocol

AGAIN = 0.5
"""Seconds after which a call that goes on is interrupted again."""

GRACE = 3.0
"""Seconds that a call has to end once it was interrupted."""

LONGEST_TIMER = 1e8
"""Seconds that the system's timer can hold on every platform; three years."""


class Ended(BaseException):
    """Raised in code that has had its time. `except Exception` does not catch it."""


class Deadline:
    """How long a call has, and where it was when its time was over."""

    def __init__(self, timeout: float, last_words: Callable[[], None]) -> None:
        self.timeout = min(max(timeout, 1e-3), LONGEST_TIMER)
        self.last_words = last_words
        self.running = False
        self.struck: float | None = None
        self.place: traceback.StackSummary | None = None

    def begin(self) -> None:
        """Begin a call."""
        self.struck = self.place = None
        self.running = True

    def strike(self, frame: FrameType | None) -> None:
        """Note where the call is at its end; end the program where it does not heed that."""
        now = time.monotonic()
        if self.struck is None:
            self.struck = now
            walk = traceback.walk_stack(frame)
            self.place = traceback.StackSummary.extract(walk, lookup_lines=False)
            self.place.reverse()
        elif now - self.struck > GRACE:
            self.last_words()


class Alarm(Protocol):
    """Interrupts the call between `start` and `stop` once its time is over."""

    def start(self) -> None:
        """Begin a call."""

    def stop(self) -> None:
        """End it; nothing is raised afterwards. May be called again."""

    def here(self) -> Alarm:
        """Give the alarm for the thread that this is called in."""


def alarm_here(deadline: Deadline) -> Alarm:
    """Make the alarm for the thread that this is called in."""
    return Timer(deadline) if timer_works() else Watchdog(deadline)


def timer_works() -> bool:
    """Say whether the system's timer can interrupt this thread."""
    return hasattr(signal, "setitimer") and (threading.get_ident() == threading.main_thread().ident)


class Timer:
    """The system's timer; what used it before goes on afterwards."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.former: tuple[Any, float, float, float] | None = None

    def here(self) -> Alarm:
        """Give the alarm for the thread that this is called in."""
        return self if timer_works() else Watchdog(self.deadline)

    def start(self) -> None:
        """Begin a call."""
        handler = signal.signal(signal.SIGALRM, self.ring)
        delay, interval = signal.setitimer(signal.ITIMER_REAL, self.deadline.timeout, AGAIN)
        self.former = (handler, delay, interval, time.monotonic())
        self.deadline.begin()

    def stop(self) -> None:
        """End the call, and give the timer back."""
        self.deadline.running = False
        if self.former is None:
            return
        (handler, delay, interval, since), self.former = self.former, None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if delay:
            left = max(delay - (time.monotonic() - since), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)

    def ring(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the call."""
        del number
        if self.deadline.running:
            self.deadline.strike(frame)
            raise Ended


class Watchdog:
    """A thread that interrupts the thread which starts it. It ends when it has nothing to do."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.thread = threading.get_ident()
        self.lock = threading.Lock()
        self.due = 0.0
        self.raised = self.alive = False

    def here(self) -> Alarm:
        """Give the alarm for the thread that this is called in."""
        right = threading.get_ident() == self.thread and not timer_works()
        return self if right else alarm_here(self.deadline)

    def start(self) -> None:
        """Begin a call."""
        with self.lock:
            self.due = time.monotonic() + self.deadline.timeout
            self.raised = False
            self.deadline.begin()
            begin, self.alive = not self.alive, True
        if begin:
            threading.Thread(target=self.watch, daemon=True).start()

    def stop(self) -> None:
        """End the call. What was to be raised and is still under way arrives here.

        (Taking it back leaves a flag set in Python 3.11, on which code that is traced spins.)
        """
        with self.lock:
            self.deadline.running = False
        if self.raised:
            with contextlib.suppress(Ended):
                for _ in range(10):  # each turn looks whether there is something to raise
                    pass
            self.raised = False

    def watch(self) -> None:
        """Wait until a call's time is over; end once no call has run for a while."""
        # Traced, it would spin in Python 3.11 while what it raised has not yet arrived.
        sys.settrace(None)
        idle = 0
        while idle < 4:
            time.sleep(min(AGAIN, self.deadline.timeout / 4))
            with self.lock:
                idle = 0 if self.deadline.running else idle + 1
                if self.deadline.running and time.monotonic() >= self.due:
                    self.interrupt()
                self.alive = idle < 4

    def interrupt(self) -> None:
        """Interrupt the call."""
        self.due = time.monotonic() + AGAIN
        self.raised = True
        self.deadline.strike(sys._current_frames().get(self.thread))
        raise_in(self.thread, Ended)


def raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in a thread at one of its next instructions."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
