"""Run code that is not regcheck's: it cannot print into the report, end the program or hang.

`Guard.run` runs one call into a user's code in its own surroundings (`surroundings`), for so long
as it may take (`alarm`), and tells what went wrong in the user's own lines (`telling`).
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
from regcheck.user_code.alarm import Deadline, Ended, alarm_here
from regcheck.user_code.surroundings import Surroundings
from regcheck.user_code.tracebacks import Own, hung, raised

__all__ = ["Guard"]

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
        self.label, self.timeout = label, timeout
        self.own = Own(folder)
        self.surroundings = surroundings or Surroundings()
        self.deadline = Deadline(timeout, self.last_words)
        self.alarm = alarm_here(self.deadline)
        # NumPy's errstate and print options live in it: what the code sets stays in it, between
        # calls too, and what regcheck sets does not reach it.
        self.context = contextvars.copy_context()
        self.context.run(numpy_defaults)

    def run(self, moment: str, work: Callable[..., Result], *args: object) -> Result:
        """Run one call into the user's code.

        Args:
            moment: when it is, as messages say it, such as `step 3 of 12`.
            work: what to call; a UserCodeError that it raises is passed on.
            args: what to call it with.

        Raises:
            UserCodeError: the code raised something, tried to end the program, or took too long.
        """
        self.moment = moment
        self.alarm = self.alarm.here()
        self.surroundings.swap_in()
        try:
            try:
                self.alarm.start()
                return self.context.run(self.told, work, args)
            finally:
                self.alarm.stop()
        except Ended:
            self.alarm.stop()
            text = hung(self.where(), self.timeout, self.deadline.place, self.own)
            raise UserCodeError(text) from None
        finally:
            self.surroundings.swap_out()

    def told(self, work: Callable[..., Result], args: tuple[object, ...]) -> Result:
        """Run the call, and turn what it raises into a UserCodeError."""
        try:
            result = work(*args)
            if self.deadline.struck is not None:  # it went on all the same
                raise Ended
            return result
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.deadline.struck is not None:  # whatever it made of being ended
                raise Ended from None
            if isinstance(error, UserCodeError):
                raise
            raise UserCodeError(raised(self.where(), error, self.own)) from error

    def where(self) -> str:
        """Say which code it is, and when."""
        return f"{self.label}: {self.moment}" if self.moment else self.label

    def last_words(self) -> None:
        """End the program: the code catches even what is raised to end it."""
        text = hung(self.where(), self.timeout, self.deadline.place, self.own)
        more = "It catches every exception, so regcheck has to end itself with it."
        self.surroundings.swap_out()
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        os.write(2, f"{text}\n{more}\n".encode())
        os._exit(2)


def numpy_defaults() -> None:
    """Set NumPy's own error handling."""
    np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
