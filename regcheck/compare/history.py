"""What a run's steps did, kept as numbers for the diagnosis."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from regcheck.numerics.packing import Packed, layout_of
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch, Schedule
from regcheck.problem.problem import Array, Parameters
from regcheck.trainers.sides import Steps

MOST_BYTES = 2**24
"""What is kept at most; the steps after that are compared, and not diagnosed."""

MOST_AFTER = 4096
"""Steps from the first divergence on that are kept at most: they tell what later ones would."""

KEPT = ("before", "scratch", "framework", "gradient", "bound")
"""What is kept of each tensor's entries: the parameters before the step (both sides'), those after
it on either side, the data gradient of torch, and the rounding bound of the parameters after."""

LOSSES = ("scratch", "framework", "bound")


class Record(NamedTuple):
    """One step: its rows and lr, and what is kept of it, (entries,) each."""

    batch: Batch
    before: Array
    scratch: Array
    framework: Array
    gradient: Array
    bound: Array


class History:
    """The first steps of a run, as many as fit: to the first divergence, and so many from it on.

    They begin with step 1, since what an optimizer remembers is made by all steps before.

    All tensors' entries stand one after the other; `split` gives them back.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], schedule: Schedule) -> None:
        self.shapes, self.schedule = dict(shapes), schedule
        self.layout = layout_of(self.shapes)
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        ends = list(accumulate(sizes))
        self.slices = {
            name: slice(end - size, end)
            for name, size, end in zip(self.shapes, sizes, ends, strict=True)
        }
        self.entries = ends[-1]
        self.most = max(2, MOST_BYTES // (8 * len(KEPT) * self.entries))
        # Memory that is not written to yet is none.
        self.numbers: Array = np.empty((self.most, len(KEPT), self.entries))
        self.losses = array("d")

    def note_divergence(self) -> None:
        """Note that the next step to be kept is the first at which the sides diverge."""
        self.most = min(self.most, len(self) + MOST_AFTER)

    def append(self, steps: Steps, bounds: Bounds) -> None:
        """Keep a step; where there is no room, or it was not taken in full, it is left out."""
        framework, scratch = steps.framework, steps.scratch
        if len(self) >= self.most or framework.gradient is None:
            return
        kept = (
            framework.before,
            scratch.after,
            framework.after,
            framework.gradient,
            bounds.after,
        )
        count = len(self)
        for place, tensors in enumerate(kept):
            self.numbers[count, place] = self.flat(tensors)
        losses = (scratch.loss, framework.loss, bounds.loss)
        self.losses.extend(math.nan if loss is None else loss for loss in losses)

    def __len__(self) -> int:
        return len(self.losses) // len(LOSSES)

    def flat(self, tensors: Parameters) -> Array:
        """Put all tensors' entries one after the other, in float64."""
        if isinstance(tensors, Packed) and tensors.layout is self.layout:
            return tensors.entries
        parts = [np.ravel(tensors[name]) for name in self.shapes]
        return np.concatenate(parts, dtype=np.float64)

    def split(self, entries: Array) -> Parameters:
        """Undo `flat`."""
        return {
            name: entries[self.slices[name]].reshape(shape) for name, shape in self.shapes.items()
        }

    def all(self, what: str) -> Array:
        """Return one thing that is kept, of all steps: (steps, entries)."""
        return self.numbers[: len(self), KEPT.index(what)]

    def loss(self, what: str) -> Array:
        """Return the reported losses of a side, or their bounds: (steps,); NaN where missing."""
        return np.frombuffer(self.losses).reshape(len(self), len(LOSSES))[:, LOSSES.index(what)]

    def records(self) -> Iterator[Record]:
        """Return the steps in order."""
        parts = [self.all(what) for what in KEPT]
        for index, batch in zip(range(len(self)), self.schedule.batches(), strict=False):
            yield Record(batch, *(part[index] for part in parts))
