"""What a run's steps did, kept as numbers for the diagnosis."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.packing import Packed, layout_of
from regcheck.problem.batches import Batch, Schedule
from regcheck.problem.problem import Array, Parameters
from regcheck.rules.words import all_of
from regcheck.trainers.lockstep import Steps

MOST_BYTES = 2**24
"""What is kept at most; the steps after that are compared, and not diagnosed."""

MOST_AFTER = 4096
"""Steps from the first divergence on that are kept at most: they tell what later ones would."""

KEPT = ("before", "scratch", "framework", "gradient", "bound")
"""What is kept of each tensor's entries: the parameters before the step (both sides'), those after
it on either side, the data gradient of torch, and the rounding bound of the parameters after."""

MOST_NAMED = 4
"""Slices of tensors that are named."""

LOSSES = ("scratch", "framework", "bound")


class Record(NamedTuple):
    """One step: its rows and lr, and what is kept of it, (entries,) each.

    `skipped` are the tensors that torch's optimizer left as they were, having no gradient.
    """

    batch: Batch
    before: Array
    scratch: Array
    framework: Array
    gradient: Array
    bound: Array
    skipped: frozenset[str] = frozenset()


class History:
    """The first steps of a run, as many as fit: to the first divergence, and so many from it on.

    They begin with step 1, since what an optimizer remembers is made by all steps before.

    All tensors' entries stand one after the other; `split` gives them back.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], schedule: Schedule) -> None:
        self.shapes, self.schedule = dict(shapes), schedule
        self.layout = layout_of(self.shapes)
        self.slices = {name: part for name, part, _ in self.layout.places}
        self.entries = self.layout.count
        self.most = max(2, MOST_BYTES // (8 * len(KEPT) * self.entries))
        # Memory that is not written to yet is none.
        self.numbers: Array = np.empty((self.most, len(KEPT), self.entries))
        self.losses = array("d")
        self.made: list[Record] = []
        self.skipped: list[frozenset[str]] = []

    def note_divergence(self) -> None:
        """Note that the next step to be kept is the first at which the sides diverge."""
        self.most = min(self.most, len(self) + MOST_AFTER)

    def append(self, steps: Steps, bounds: Bounds) -> None:
        """Keep a step; where there is no room, or it was not taken in full, it is left out."""
        framework, scratch = steps.framework, steps.scratch
        if len(self) >= self.most or framework.gradient is None:
            return
        kept = (framework.before, scratch.after, framework.after, framework.gradient, bounds.after)
        for place, tensors in enumerate(kept):
            self.numbers[len(self), place] = self.flat(tensors)
        self.skipped.append(framework.skipped)
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
        return self.layout.split(entries)

    def all(self, what: str) -> Array:
        """Return one thing that is kept, of all steps: (steps, entries)."""
        return self.numbers[: len(self), KEPT.index(what)]

    def loss(self, what: str) -> Array:
        """Return the reported losses of a side, or their bounds: (steps,); NaN where missing."""
        return np.frombuffer(self.losses).reshape(len(self), len(LOSSES))[:, LOSSES.index(what)]

    def records(self) -> Iterator[Record]:
        """Return the steps in order; made once, where their rows take no more than the numbers."""
        shuffled = self.schedule.shuffle_seed is not None
        if shuffled and 8 * len(self) * max(self.schedule.sizes()) > MOST_BYTES:
            return self.made_anew()
        if len(self.made) != len(self):
            self.made = list(self.made_anew())
        return iter(self.made)

    def made_anew(self) -> Iterator[Record]:
        """Make the steps, one after the other."""
        parts = [self.all(what) for what in KEPT]
        for index, batch in zip(range(len(self)), self.schedule.batches(), strict=False):
            kept = Record(batch, *(part[index] for part in parts))
            yield kept._replace(skipped=self.skipped[index])

    def record(self, step: int) -> Record | None:
        """Return a step by its number, from 1 on; None where it is not kept."""
        return next(islice(self.records(), step - 1, None), None)

    def tensor_at(self, entry: int) -> str:
        """Name the tensor that an entry is of."""
        return next(name for name, part in self.slices.items() if entry < part.stop)

    def named(self, entries: NDArray[np.intp]) -> str:
        """Name entries as slices: weight[0, 0:2]; a whole tensor by its name alone."""
        found = []
        for name, part in self.slices.items():
            inside = entries[(entries >= part.start) & (entries < part.stop)] - part.start
            if len(inside) == part.stop - part.start:
                found.append(name)
            elif len(inside):
                found += runs_of(name, self.shapes[name], inside)
        return all_of(found, most=MOST_NAMED)


def runs_of(name: str, shape: tuple[int, ...], inside: NDArray[np.intp]) -> Iterator[str]:
    """Name some entries of a tensor: runs of neighbours in its last dimension."""
    breaks = (np.diff(inside) != 1) | (inside[1:] % shape[-1] == 0)
    for run in np.split(inside, np.flatnonzero(breaks) + 1):
        *outer, first = (int(index) for index in np.unravel_index(run[0], shape))
        last = f"{first}:{first + len(run)}" if len(run) > 1 else f"{first}"
        yield f"{name}[{', '.join([*map(str, outer), last])}]"
