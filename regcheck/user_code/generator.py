"""A user's scratch function, driven one update at a time.

`UserFunction` and `imported` are handed on: they are what a user's code is called by.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from regcheck.errors import UserCodeError
from regcheck.numerics.packing import layout_of
from regcheck.problem.problem import Array
from regcheck.user_code.function import TIMEOUT, UserFunction, called, imported
from regcheck.user_code.problem_api import UserProblem
from regcheck.user_code.updates import Refused, Yielded, kind_of, pattern, read

__all__ = ["TIMEOUT", "ScratchSteps", "UserFunction", "Yielded", "imported"]

Result = TypeVar("Result")


class ScratchSteps:
    """The updates of a user's scratch function, one at a time.

    Args:
        function: called with `problem`, it gives a generator.
        problem: what it is called with.
        shapes: torch's shape of each parameter.
        steps: how many updates there must be.
        fixed: the parameters that nobody trains, which need not be yielded.

    Raises:
        UserCodeError: the function gives no generator, or fails.
    """

    def __init__(
        self,
        function: UserFunction,
        problem: UserProblem,
        shapes: Mapping[str, tuple[int, ...]],
        steps: int,
        fixed: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        self.function, self.problem, self.fixed = function, problem, fixed
        self.shapes, self.steps = dict(shapes), steps
        self.layout = layout_of(self.shapes)
        self.came = 0
        self.generator = self.run("at its start", self.begin)

    def next(self) -> Yielded:
        """Let the function take its next step.

        Raises:
            UserCodeError: it fails, ends too early, or yields something else.
        """
        return self.run(f"step {self.came + 1} of {self.steps}", self.advance)

    def finish(self) -> None:
        """Let the function end after its last step.

        Raises:
            UserCodeError: it fails, or yields once more.
        """
        self.run("after its last step", self.end)

    def close(self) -> None:
        """End the function early; whatever it does is no concern any more."""
        close = getattr(getattr(self, "generator", None), "close", None)
        if close is not None:
            with contextlib.suppress(UserCodeError):
                self.function.run("at its end", close)

    def run(self, moment: str, work: Callable[[], Result]) -> Result:
        """Run a part of the function under guard; close it where that fails."""
        try:
            return self.function.run(moment, work)
        except UserCodeError:
            self.close()
            raise

    def begin(self) -> Iterator[object]:
        """Call the function."""
        made = called(self.function.label, self.function.function, (self.problem,), "scratch")
        if isinstance(made, Iterator):
            return made
        raise self.complaint("", no_generator(made, pattern(self.shapes)))

    def advance(self) -> Yielded:
        """Take one step and read what is yielded."""
        try:
            value = next(self.generator)
        except StopIteration:
            raise self.complaint("", self.too_few()) from None
        self.came += 1
        try:
            return read(value, self.layout, self.fixed)
        except Refused as refused:
            raise self.complaint(f"step {self.came} of {self.steps}: ", str(refused)) from None

    def end(self) -> None:
        """Run what follows the last yield."""
        for _ in self.generator:
            raise self.complaint("", self.too_many())

    def complaint(self, moment: str, text: str) -> UserCodeError:
        """Make an error about the function."""
        return UserCodeError(f"{self.function.label}: {moment}{text}")

    def too_few(self) -> str:
        """Tell that the function ended early."""
        came = "without a single `yield`" if not self.came else f"after {self.came} of them"
        return (
            f"must yield {self.steps} times, and ended {came}\n"
            f"  There is one step for each of problem.batches, {self.epochs()}:\n"
            f"  `{pattern(self.shapes)}` once after each update in "
            "`for rows in problem.batches:`."
        )

    def too_many(self) -> str:
        """Tell that the function goes on."""
        return (
            f"must yield {self.steps} times, and yields once more\n"
            f"  There is one step for each of problem.batches, {self.epochs()}:\n"
            "  yield once after each update and not before the first, and put no loop over epochs\n"
            "  around `for rows in problem.batches:`."
        )

    def epochs(self) -> str:
        """Say which epochs the batches are of."""
        count = self.problem.epochs
        return "which are those of the one epoch" if count == 1 else f"over all {count:,} epochs"


def no_generator(made: object, example: str) -> str:
    """Tell that a function gave something else than a generator."""
    if isinstance(made, Coroutine):
        made.close()
    if isinstance(made, AsyncIterable | Coroutine):
        return f"is an async function; write `def` for `async def`, and\n  `{example}` in it"
    return (
        f"must be a generator, and returned {kind_of(made)}\n"
        f"  Put `{example}` after each update, in place of what it returns at the end."
    )
