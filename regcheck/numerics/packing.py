"""All tensors' entries in one vector: many small tensors, or a large one, at the cost of one."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Kind = TypeVar("Kind", bound=np.generic)
Tensors = Mapping[str, Array]
"""Tensors by torch's names."""

FEW_TENSORS = 2
"""Up to so many, each on its own takes no longer than all together."""

BLOCK = 2**14
"""Entries that are worked through at once: some arrays of them stay in the processor's cache."""


STARTS: dict[np.ufunc, float] = {np.maximum: -math.inf, np.fmax: math.nan, np.add: 0.0}
"""What each of these leaves a number as it is with."""


class Block(NamedTuple):
    """Some entries of a vector, and the tensors they are of.

    Attributes:
        part: the entries.
        tensors: the places of the tensors.
        starts: where the entries of each of these begin, counted from the block's first.
        spans: the place of each, and from where to where its entries are, counted likewise.
    """

    part: slice
    tensors: slice
    starts: list[int]
    spans: list[tuple[int, int, int]]


def parts_of(count: int) -> list[slice]:
    """Return so many entries in parts of `BLOCK`."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


class Layout:
    """Where the entries of named tensors stand in one vector that holds them all, in turn."""

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.starts, self.count = [], 0
        for size in self.sizes:
            self.starts.append(self.count)
            self.count += size
        self.places = [
            (name, slice(start, start + size), shape)
            for (name, shape), start, size in zip(
                self.shapes.items(), self.starts, self.sizes, strict=True
            )
        ]
        self.place_of = {name: (part, shape) for name, part, shape in self.places}
        self.blocks = [self.block(part) for part in parts_of(self.count)]

    def block(self, part: slice) -> Block:
        """Return a part with the tensors that its entries are of."""
        first, end = bisect_right(self.starts, part.start) - 1, bisect_left(self.starts, part.stop)
        starts = [max(begin - part.start, 0) for begin in self.starts[first:end]]
        ends = [*starts[1:], part.stop - part.start]
        spans = list(zip(range(first, end), starts, ends, strict=True))
        return Block(part, slice(first, end), starts, spans)

    def at(self, place: int) -> tuple[str, tuple[int, ...]]:
        """Return the tensor that an entry of the vector is of, and its index there."""
        name, part, shape = self.places[bisect_right(self.starts, place) - 1]
        return name, position(place - part.start, shape)

    def vector(self, tensors: Tensors) -> Array:
        """Return the vector of all tensors' entries; what is packed is not copied."""
        if isinstance(tensors, Packed) and tensors.layout is self:
            return tensors.vector
        return np.concatenate([tensors[name] for name in self.shapes], axis=None)

    def split(self, vector: Array) -> Packed:
        """Return the tensors that a vector holds."""
        return Packed(self, vector)

    def join(self, tensors: Iterable[Array]) -> Tensors:
        """Copy tensors, in the layout's order; more than a few, of one dtype, into one vector."""
        each = list(tensors)
        if len(each) > FEW_TENSORS and len({x.dtype for x in each}) == 1:
            return Packed(self, np.concatenate(each, axis=None))
        return {name: x.copy() for name, x in zip(self.shapes, each, strict=True)}

    def packed(self, tensors: Tensors) -> Tensors:
        """Return tensors as they are; more than a few, as views of one vector."""
        few = isinstance(tensors, Packed) or len(tensors) <= FEW_TENSORS
        return tensors if few else self.join(tensors.values())

    def scaled(self, factors: Mapping[str, float], tensors: Tensors) -> Tensors:
        """Multiply each tensor by its own factor."""
        each = [factors[name] for name in self.shapes]
        if isinstance(tensors, Packed) and len(set(each)) == 1:
            return self.split(each[0] * tensors.vector)
        pairs = zip(each, tensors.values(), strict=True)
        return self.join(factor * w for factor, w in pairs)

    def less(self, tensors: Tensors, others: Tensors) -> Tensors:
        """Subtract tensors from tensors."""
        if isinstance(tensors, Packed) and isinstance(others, Packed):
            return self.split(tensors.vector - others.vector)
        return {name: tensors[name] - others[name] for name in self.shapes}

    def entries_in(self, tensors: Sequence[Array], part: slice) -> Array:
        """Return a part of the vector that tensors would make, in float64, without making it.

        Args:
            tensors: all of them, in the layout's order.
            part: the entries.
        """
        if part == slice(0, self.count):
            return np.concatenate(tensors, axis=None, dtype=np.float64)
        first, end = bisect_right(self.starts, part.start) - 1, bisect_left(self.starts, part.stop)
        some = [
            x.ravel()[max(part.start - start, 0) : part.stop - start]
            for x, start in zip(tensors[first:end], self.starts[first:end], strict=True)
        ]
        joined = some[0] if len(some) == 1 else np.concatenate(some)
        return joined.astype(np.float64, copy=False)

    def reduced(self, entries: Callable[[slice], Array], by: np.ufunc = np.maximum) -> Array:
        """Reduce each tensor's entries to one number, such as the largest.

        Args:
            entries: gives those that it is asked for.
            by: np.maximum, which is NaN where there is one; or np.fmax, which ignores it, or
                np.add for the sum.
        """
        each = [by.reduceat(entries(part), starts) for part, _, starts, _ in self.blocks]
        if len(each) == 1:
            return each[0]
        found = np.full(len(self.sizes), STARTS[by])
        for block, some in zip(self.blocks, each, strict=True):
            by(found[block.tensors], some, out=found[block.tensors])
        return found


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Return the layout of tensors: the same one for the same names and shapes."""
    return known_layout(tuple(shapes.items()))


@lru_cache
def known_layout(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Layout:
    """Make a layout once."""
    return Layout(shapes)


class Packed(Mapping[str, Array]):
    """Tensors by name that are views of one vector. They are read, and not written to.

    Most are worked with as the vector alone: the views are made once one is asked for.
    """

    __slots__ = ("_entries", "_finite", "_views", "layout", "vector")

    def __init__(self, layout: Layout, vector: Array) -> None:
        self.layout, self.vector = layout, vector
        self._views: dict[str, Array] | None = None
        self._entries: Array | None = vector if vector.dtype == np.float64 else None
        self._finite: bool | None = None

    @property
    def views(self) -> dict[str, Array]:
        """The tensors."""
        if self._views is None:
            vector, places = self.vector, self.layout.places
            self._views = {name: vector[part].reshape(shape) for name, part, shape in places}
        return self._views

    def __getitem__(self, name: str) -> Array:
        return (self._views or self.views)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.shapes)

    def __len__(self) -> int:
        return len(self.layout.shapes)

    def items(self) -> ItemsView[str, Array]:
        """Return the tensors with their names, as fast as a dict."""
        return self.views.items()

    def values(self) -> ValuesView[Array]:
        """Return the tensors, as fast as a dict."""
        return self.views.values()

    @property
    def entries(self) -> Array:
        """The vector in float64."""
        if self._entries is None:
            self._entries = self.vector.astype(np.float64)
        return self._entries

    @property
    def is_finite(self) -> bool:
        """Whether all entries are finite, and their sum; asked once."""
        if self._finite is None:
            self._finite = finite(self.entries)
        return self._finite


def flat(tensors: Tensors) -> Array:
    """Put all tensors' entries one after the other, in float64; what is packed is not copied."""
    if isinstance(tensors, Packed):
        return tensors.entries
    return np.concatenate(list(tensors.values()), axis=None, dtype=np.float64)


def are_finite(tensors: Tensors) -> bool:
    """Whether all entries are finite, and their sum; of what is packed it is asked once."""
    return tensors.is_finite if isinstance(tensors, Packed) else finite(flat(tensors))


def joined(parts: Sequence[NDArray[Kind]]) -> NDArray[Kind]:
    """Put the parts of a vector together; one alone is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def common_layout(*each: Tensors) -> Layout | None:
    """Return the layout that packed tensors have in common; None where they have none."""
    first = each[0]
    if not isinstance(first, Packed):
        return None
    for one in each:
        if not isinstance(one, Packed) or one.layout is not first.layout:
            return None
    return first.layout


def position(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of an entry that is counted along the rows.

    >>> position(7, (2, 4))
    (1, 3)
    """
    index: tuple[int, ...] = ()
    for size in reversed(shape):
        place, at = divmod(place, size)
        index = (at, *index)
    return index


def finite(x: Array) -> bool:
    """Whether all entries are finite, and their sum."""
    return math.isfinite(np.add.reduce(x))
