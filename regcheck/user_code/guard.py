"""Run code that is not regcheck's: it cannot print into the report, end the program or hang.

`docs/user-code.md` has what is guarded against, and why this is no child process.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from regcheck.errors import UserCodeError
from regcheck.user_code.alarm import Alarm, TimedOut
from regcheck.user_code.surroundings import Surroundings
from regcheck.user_code.tracebacks import exception_text, timeout_text

Result = TypeVar("Result")


class Guard:
    """What stands between regcheck and one user's code.

    Args:
        label: how messages name the code, such as `my_train.py:train`.
        timeout: seconds that one call may take.
        folder: the code's own folder, whose frames are the user's; None where there is none.
        surroundings: what the code finds around it.
    """

    def __init__(
        self,
        label: str,
        timeout: float,
        folder: str | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.label, self.timeout, self.folder = label, timeout, folder
        self.surroundings = surroundings or Surroundings()
        self.alarm = Alarm(timeout, self.end_program)
        # NumPy's errstate and print options live in it: what the code sets stays in it, between
        # calls too, and what regcheck sets does not reach it.
        self.context = contextvars.copy_context()
        self.context.run(np.seterr, divide="warn", over="warn", under="ignore", invalid="warn")

    def run(self, moment: str, work: Callable[..., Result], *args: object) -> Result:
        """Run one call into the user's code.

        Args:
            moment: when it is, as messages say it, such as `step 3 of 12`.
            work: what to call; a UserCodeError that it raises is passed on.
            args: what to call it with.

        Raises:
            UserCodeError: the code raised something, tried to end the program, or took too long.
        """
        self.where = f"{self.label}: {moment}" if moment else self.label
        self.surroundings.swap_in()
        try:
            try:
                self.alarm.start()
                return self.context.run(self.call, work, args)
            finally:
                self.alarm.stop()
        except TimedOut:
            self.alarm.stop()
            raise UserCodeError(self.timeout_text()) from None
        finally:
            self.surroundings.swap_out()

    def call(self, work: Callable[..., Result], args: tuple[object, ...]) -> Result:
        """Call, and turn what is raised into a UserCodeError."""
        try:
            result = work(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.alarm.expired is not None:  # whatever it made of being interrupted
                raise TimedOut from None
            if isinstance(error, UserCodeError):
                raise
            raise UserCodeError(exception_text(self.where, error, self.folder)) from error
        if self.alarm.expired is not None:  # it went on all the same
            raise TimedOut
        return result

    def timeout_text(self) -> str:
        """Describe the call that took too long."""
        return timeout_text(self.where, self.timeout, self.alarm.stack, self.folder)

    def end_program(self) -> None:
        """End the program: the code catches even what is raised to end it."""
        more = "It catches every exception, so regcheck has to exit with it."
        self.surroundings.swap_out()
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        os.write(2, f"{self.timeout_text()}\n{more}\n".encode())
        os._exit(2)
