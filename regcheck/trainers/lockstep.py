"""One rule trained twice, and one step of both sides."""

from __future__ import annotations

from typing import NamedTuple

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Step
from regcheck.trainers.numpy_state import ForwardBackward, Update
from regcheck.trainers.numpy_trainer import NumpyTrainer


class Lockstep:
    """One rule trained twice: on its own trajectory, and from the reference's parameters."""

    def __init__(self, trainer: NumpyTrainer) -> None:
        self.trainer = trainer
        self.own = self.from_reference = trainer.start()

    def step_own(self, batch: Batch, known: ForwardBackward | None = None) -> Update:
        """Take the next step of its own trajectory."""
        update = self.trainer.step(self.own, batch, known)
        self.own = update.state
        return update

    def step_from(
        self, parameters: Parameters, batch: Batch, known: ForwardBackward | None = None
    ) -> Update:
        """Take a step from the reference's parameters, its optimizer fed by them all along."""
        state = self.from_reference._replace(parameters=parameters)
        update = self.trainer.step(state, batch, known)
        self.from_reference = update.state
        return update

    def follow(self, step: Step) -> None:
        """Take over a step of the reference's that is known to be its own too."""
        self.from_reference = self.from_reference._replace(
            parameters=step.after, memory=step.memory
        )


class Steps(NamedTuple):
    """One step of both sides.

    Attributes:
        scratch_own, framework_own: the scratch side's and torch's, each on its own trajectory.
        scratch, framework: both from the reference's parameters.
        forward_backward: the NumPy side's pass over the rows there; None where it has taken none.
    """

    scratch_own: Step
    framework_own: Step
    scratch: Step
    framework: Step
    forward_backward: ForwardBackward | None
