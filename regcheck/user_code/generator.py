"""A user's scratch function, driven one update at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from regcheck.errors import UserCodeError
from regcheck.numerics.packing import layout_of
from regcheck.problem.problem import Array
from regcheck.user_code.function import UserFunction
from regcheck.user_code.problem_api import UserProblem
from regcheck.user_code.updates import Refused, Yielded, kind_of, pattern, read

Result = TypeVar("Result")


class ScratchSteps:
    """The updates of a user's scratch function, one at a time.

    Whatever goes wrong in making, `next` or `finish` is raised as a UserCodeError.

    Args:
        function: called with `problem`, it returns a generator.
        problem: what it is called with.
        shapes: torch's shape of each parameter.
        steps: how many updates there must be.
        fixed: the parameters that nobody trains, which need not be yielded.
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
        self.layout, self.steps = layout_of(dict(shapes)), steps
        self.pattern = pattern(shapes)
        self.taken = 0
        self.generator = self.run("at its start", self.begin)

    def next(self) -> Yielded:
        """Let the function take its next step."""
        return self.run(f"step {self.taken + 1} of {self.steps}", self.advance)

    def finish(self) -> None:
        """Let the function end after its last step."""
        self.run("after its last step", self.end)

    def close(self) -> None:
        """End the function early; whatever it does is no concern any more."""
        close = getattr(getattr(self, "generator", None), "close", None)
        if close is not None:
            with contextlib.suppress(UserCodeError):
                self.function.guard.run("at its end", close)

    def run(self, moment: str, work: Callable[[], Result]) -> Result:
        """Run a part of the function under guard; close it where that fails."""
        try:
            return self.function.guard.run(moment, work)
        except UserCodeError:
            self.close()
            raise

    def begin(self) -> Iterator[object]:
        """Call the function."""
        made = self.function.call_unguarded(self.problem)
        if isinstance(made, Iterator):
            return made
        if isinstance(made, Coroutine):
            made.close()
        if isinstance(made, AsyncIterable | Coroutine):
            text = "is an async function; write `def` instead of `async def`, and\n"
            raise UserCodeError(f"{self.function.label}: {text}  `{self.pattern}` in it")
        raise UserCodeError(
            f"{self.function.label}: must be a generator, but returned {kind_of(made)}\n"
            f"  Put `{self.pattern}` after each update, instead of returning at the end."
        )

    def advance(self) -> Yielded:
        """Take one step and read what is yielded."""
        try:
            value = next(self.generator)
        except StopIteration:
            taken = f"after {self.taken} of them" if self.taken else "without a single `yield`"
            todo = f"`{self.pattern}` once after each update in `for rows in problem.batches:`."
            raise self.wrong_count(f"ended {taken}", todo) from None
        self.taken += 1
        try:
            return read(value, self.layout, self.fixed)
        except Refused as refused:
            where = f"{self.function.label}: step {self.taken} of {self.steps}"
            raise UserCodeError(f"{where}: {refused}") from None

    def end(self) -> None:
        """Run what follows the last yield."""
        for _ in self.generator:
            raise self.wrong_count(
                "yields once more",
                "yield once after each update and not before the first, and put no loop over "
                "epochs\n  around `for rows in problem.batches:`.",
            )

    def wrong_count(self, found: str, todo: str) -> UserCodeError:
        """Make the error of a function that does not yield once for each step."""
        epochs = self.problem.epochs
        of_all = f"over all {epochs:,} epochs" if epochs > 1 else "which are those of the one epoch"
        return UserCodeError(
            f"{self.function.label}: must yield {self.steps} times, but {found}\n"
            f"  There is one step for each of problem.batches, {of_all}:\n  {todo}"
        )
