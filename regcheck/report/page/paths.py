"""The parameters' paths: what both sides' entries are along a run, each side by itself, thinned.

A path has fewer than `MOST_POINTS` points, `every` steps apart: once they are so many, every second
goes. Of large models, `MOST_ENTRIES` entries are followed, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.packing import flat
from regcheck.problem.problem import Parameters
from regcheck.trainers.lockstep import Steps

Array = NDArray[np.floating]

MOST_POINTS, MOST_ENTRIES = 400, 2000
"""Points of a path, and entries that are followed."""

SHOWN = 6
"""Paths that are kept at the end: of those entries that are farthest apart."""


class EntryPath(NamedTuple):
    """One entry's path on both sides."""

    name: str
    scratch: tuple[float, ...]
    torch: tuple[float, ...]


class Paths(NamedTuple):
    """The paths of some entries, and the steps after which they are taken."""

    steps: tuple[int, ...]
    entries: tuple[EntryPath, ...]


class PathMeter:
    """Follow the parameters of both sides."""

    def __init__(self) -> None:
        self.every, self.count = 1, 0
        self.names: list[str] = []
        self.chosen: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
        self.points: list[tuple[int, Array, Array]] = []

    def take(self, steps: Steps) -> None:
        """Take in the next step."""
        scratch, torch = steps.scratch_own, steps.framework_own
        if not self.names:
            self.choose(torch.after)
        self.count += 1
        if self.count % self.every:
            return
        own, theirs = (flat(side.after)[self.chosen] for side in (scratch, torch))
        self.points.append((self.count, own, theirs))
        if len(self.points) == MOST_POINTS:
            self.points = self.points[1::2]
            self.every *= 2

    def choose(self, parameters: Parameters) -> None:
        """Choose the entries that are followed."""
        self.names = list(entry_names(parameters))
        many = len(self.names)
        self.chosen = np.unique(np.linspace(0, many - 1, min(many, MOST_ENTRIES)).astype(np.intp))

    def result(self) -> Paths | None:
        """Return the paths of the entries that end farthest apart; None without a step."""
        if not self.points:
            return None
        steps, scratch, torch = zip(*self.points, strict=True)
        own, theirs = np.array(scratch, dtype=np.float64), np.array(torch, dtype=np.float64)
        with np.errstate(all="ignore"):
            apart = np.nan_to_num(np.abs(own - theirs).max(axis=0), nan=np.inf)
        farthest = np.argsort(-apart, kind="stable")[:SHOWN]
        entries = [
            EntryPath(self.names[self.chosen[at]], tuple(own[:, at]), tuple(theirs[:, at]))
            for at in farthest
        ]
        return Paths(steps, tuple(entries))


def entry_names(parameters: Parameters) -> Iterator[str]:
    """Yield a name for each entry of all tensors, in their order: `weight[0, 1]`, `bias`."""
    for name, w in parameters.items():
        for index in np.ndindex(w.shape):
            yield f"{name}[{', '.join(map(str, index))}]" if w.size > 1 else name
