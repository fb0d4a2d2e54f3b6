"""What the scratch side keeps from step to step, and what it returns of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from regcheck.numerics.losses import Array, RowLosses
from regcheck.problem.problem import Parameters, Step
from regcheck.rules.optimizers.update import TensorUpdate
from regcheck.rules.optimizers.update_rule import Memory


class State(NamedTuple):
    """Where a training is: its parameters, and what its optimizer remembers.

    `unzeroed` is the sum of all gradients so far, kept only where they are never zeroed; `missed`
    counts the steps in which a tensor was skipped.
    """

    parameters: Parameters
    memory: Mapping[str, Memory]
    unzeroed: Parameters | None = None
    missed: Mapping[str, int] = MappingProxyType({})


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


def unchanged(state: State, name: str) -> TensorUpdate:
    """Return the update of a tensor that is skipped."""
    w = state.parameters[name]
    return TensorUpdate(w, state.memory[name], np.zeros_like(w), np.zeros_like(w))
