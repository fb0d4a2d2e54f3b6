"""What the scratch side keeps from step to step, and what it returns of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from regcheck.numerics.losses import Array, RowLosses
from regcheck.numerics.packing import Layout
from regcheck.problem.problem import Parameters, Step
from regcheck.rules.optimizers.update import TensorUpdate
from regcheck.rules.optimizers.update_rule import Memory

Decays = dict[str, float]
"""κ λ of each tensor, its effective decay."""


class PackedMemory(Mapping[str, Memory]):
    """What an optimizer remembers of each tensor, kept of all of them as one.

    Attributes:
        layout: where each tensor's entries are.
        whole: by torch's names, of the vector of all entries; a number, (), is each tensor's.
    """

    def __init__(self, layout: Layout, whole: Memory) -> None:
        self.layout, self.whole = layout, whole

    def __getitem__(self, name: str) -> Memory:
        part, shape = self.layout.place_of[name]
        return {key: x[part].reshape(shape) if x.ndim else x for key, x in self.whole.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.shapes)

    def __len__(self) -> int:
        return len(self.layout.shapes)


class State(NamedTuple):
    """Where a training is: its parameters, and what its optimizer remembers.

    `unzeroed` is the sum of all gradients so far, kept only where they are never zeroed; `missed`
    counts the steps in which a tensor was skipped, and `steps_before` those before the optimizer
    was made.
    """

    parameters: Parameters
    memory: Mapping[str, Memory]
    unzeroed: Parameters | None = None
    missed: Mapping[str, int] = MappingProxyType({})
    steps_before: int = 0


class ForwardBackward(NamedTuple):
    """One pass over a step's rows: z and row losses of each micro-batch, loss and gradient.

    `skipped` tensors have no gradient, which an optimizer does not take for a gradient of 0.
    """

    outputs: tuple[Array, ...]
    rows: tuple[RowLosses, ...]
    loss: float
    gradient: Parameters
    skipped: frozenset[str] = frozenset()


class Update(NamedTuple):
    """One update: the new state, what happened, and the pass over the rows before it."""

    state: State
    step: Step
    forward_backward: ForwardBackward

    @property
    def dloss_dz(self) -> tuple[Array, ...]:
        """The rows' dℓ_i/dz_i of each micro-batch."""
        return tuple(part.dloss_dz for part in self.forward_backward.rows)


class Updates(NamedTuple):
    """What an optimizer's step made of all tensors, by name; the fields are `TensorUpdate`'s."""

    parameter: Parameters
    memory: Mapping[str, Memory]
    penalty: Parameters
    delta: Parameters

    @classmethod
    def of_vector(cls, layout: Layout, whole: TensorUpdate) -> Updates:
        """Return the update of one vector as that of the tensors in it."""
        parameter, penalty, delta = map(layout.split, (whole.parameter, whole.penalty, whole.delta))
        return cls(parameter, PackedMemory(layout, whole.memory), penalty, delta)

    @classmethod
    def of_each(cls, each: Mapping[str, TensorUpdate]) -> Updates:
        """Put together the updates of tensors."""
        return cls(
            {name: one.parameter for name, one in each.items()},
            {name: one.memory for name, one in each.items()},
            {name: one.penalty for name, one in each.items()},
            {name: one.delta for name, one in each.items()},
        )

    def replacing(self, other: Updates, names: Collection[str]) -> Updates:
        """Return the updates with some tensors' taken from others."""
        return Updates(
            {**self.parameter, **{name: other.parameter[name] for name in names}},
            {**self.memory, **{name: other.memory[name] for name in names}},
            {**self.penalty, **{name: other.penalty[name] for name in names}},
            {**self.delta, **{name: other.delta[name] for name in names}},
        )
