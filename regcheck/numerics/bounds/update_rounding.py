"""What rounding of a gradient becomes in a built-in model's update, the penalty and memory with it.

SGD's bounds are worked out here, with δG = δg + 5u λ |w| and the rest as in `rounding`; those of
other optimizers are propagated by their formulas (`optimizer_rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.bounds.optimizers.optimizer_rounding import FORMULAS
from regcheck.numerics.bounds.step_rounding import OptimizerStep
from regcheck.numerics.norms import clipped
from regcheck.numerics.packing import flat
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem, Step


@dataclass(frozen=True)
class RoundingState:
    """What is carried from step to step: the velocity's error, and its largest possible size.

    `carried` are the errors of what another optimizer than SGD remembers; `lost` are the entries
    that rounding alone may have made no number.
    """

    velocity_error: Array | None = None
    largest_velocity: float = 0.0
    carried: Mapping[str, Array] = field(default_factory=dict)
    lost: NDArray[np.bool_] | None = None


class UpdateRounding:
    """Bounds of the updates of one problem; `decay` is λ of each entry."""

    def __init__(self, problem: Problem, u: float, floor: float, decay: Array) -> None:
        self.problem, self.u, self.floor, self.decay = problem, u, floor, decay
        self.settings = problem.settings
        self.is_sgd = self.settings.optimizer == "sgd"

    def bounds(
        self,
        state: RoundingState,
        batch: Batch,
        step: Step,
        noise: Array,
        largest: tuple[float, float],
    ) -> tuple[Array, Array, RoundingState]:
        """Bound what a step subtracts, and the parameters after it; with the state after it.

        Args:
            state: what the step before carried on.
            batch: the step's rows and lr.
            step: the framework's step.
            noise: the bound of the clipped gradient.
            largest: sizes that a direction and a velocity can have.
        """
        if self.is_sgd:
            return self.of_sgd(state, batch.lr, step, noise, largest)
        return self.propagated(state, batch, step, noise + self.floor)

    def of_sgd(
        self,
        state: RoundingState,
        lr: float,
        step: Step,
        noise: Array,
        largest: tuple[float, float],
    ) -> tuple[Array, Array, RoundingState]:
        """Carry the bound on the gradient through the penalty, the velocity and the update."""
        options, u = self.settings, self.u
        assert step.delta is not None
        size, moved = np.abs(flat(step.before)), np.abs(flat(step.delta))
        direction = noise + (5 * u) * (self.decay * size) + self.floor
        velocity: Array | None = None
        if options.momentum:
            velocity = direction
            if state.velocity_error is not None:
                velocity = options.momentum * state.velocity_error
                velocity = velocity + abs(1 - options.dampening) * direction
                velocity += (2 * u) * np.abs(flat(step.velocity)) + self.floor
            direction = direction + options.momentum * velocity if options.nesterov else velocity
        delta = lr * direction + (2 * u) * moved + self.floor
        if lr < self.floor:  # the coarser dtype has few bits for it, or none
            delta += lr * largest[0]
        after = delta + (2 * u) * (size + moved)
        return delta, after, RoundingState(velocity, largest[1])

    def propagated(
        self, state: RoundingState, batch: Batch, step: Step, noise: Array
    ) -> tuple[Array, Array, RoundingState]:
        """Carry the bound on the gradient through another optimizer's step, by its formula."""
        assert step.gradient is not None
        settings, formula = self.settings, FORMULAS[self.settings.rule.torch]
        options = {
            **settings.options,
            "lr": batch.lr,
            "weight_decay": self.decay,
            "decoupled_weight_decay": settings.torchs.decay == "decoupled",
        }
        memory = {
            key: flat({name: known[key] for name, known in step.memory.items()})
            for key in formula.state
            if all(key in known for known in step.memory.values())
        }
        used = flat(clipped(step.gradient, self.problem.clip_norm, self.problem.clip_value))
        taken = OptimizerStep(
            flat(step.before),
            flat(step.after),
            used,
            options,
            memory,
            batch.step,
            [w.shape for w in step.before.values()],
        )
        bound, carried, lost = formula.propagate(self.u, taken, noise, state.carried)
        bound = bound + self.floor
        return bound, bound, RoundingState(carried=carried, lost=lost)
