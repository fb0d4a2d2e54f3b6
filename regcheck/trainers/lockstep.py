"""Both sides' updates, step by step: each on its own, and both from the same parameters.

One side leads: it trains, and the other follows from its parameters. A user's scratch code leads,
since nobody can give it other parameters, and torch follows; else torch leads and NumPy, which is
cheap, follows. Optimizer state is each side's own, fed by the leader's parameters.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Step
from regcheck.trainers.numpy_trainer import ForwardBackward, Lockstep, NumpyTrainer
from regcheck.trainers.torch_trainer import TorchTrainer
from regcheck.user_code.generator import ScratchSteps


class Steps(NamedTuple):
    """One step of both sides.

    Attributes:
        scratch_own, framework_own: the scratch side's and torch's, each on its own trajectory.
        scratch, framework: both from the leader's parameters.
        forward_backward: the NumPy side's pass over the rows there; None where it has taken none.
    """

    scratch_own: Step
    framework_own: Step
    scratch: Step
    framework: Step
    forward_backward: ForwardBackward | None


class Pair(Protocol):
    """Two sides that train in lockstep."""

    def start(self) -> tuple[Parameters, Parameters]:
        """Give the parameters that the scratch side and torch start from."""

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""

    def finish(self) -> None:
        """End after the last step."""

    def close(self) -> None:
        """Let go of what is held, whether or not all steps were taken."""

    def ends(self) -> tuple[Parameters, Parameters]:
        """Give the parameters where both are now, each on its own trajectory."""


class NumpyFollowsTorch:
    """The built-in scratch side follows torch."""

    def __init__(self, trainer: NumpyTrainer, framework: TorchTrainer) -> None:
        self.rule, self.framework = Lockstep(trainer), framework

    def start(self) -> tuple[Parameters, Parameters]:
        """Give the parameters that the scratch side and torch start from."""
        return self.rule.own.parameters, self.framework.parameters()

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""
        framework = self.framework.step(batch)
        own = self.rule.step_own(batch)
        local = self.rule.step_from(framework.before, batch)
        return Steps(own.step, framework, local.step, framework, local.forward_backward)

    def ends(self) -> tuple[Parameters, Parameters]:
        """Give where both are now, each on its own trajectory."""
        return self.rule.own.parameters, self.framework.parameters()

    def finish(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class TorchFollowsScratch:
    """Torch follows a user's scratch code.

    It has no start of its own to be compared: it is handed torch's.
    """

    def __init__(self, code: ScratchSteps, framework: TorchTrainer, beside: TorchTrainer) -> None:
        """Take the code, and torch twice: for its own trajectory, and beside the code."""
        self.code, self.framework, self.beside = code, framework, beside
        self.now = framework.parameters()
        self.fits_float32 = True

    def start(self) -> tuple[Parameters, Parameters]:
        """Give the parameters that the scratch side and torch start from."""
        return self.now, self.framework.parameters()

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""
        own = self.take()
        # Each call into a user's code is watched at a cost: both of torch's steps are one.
        alone, framework = self.framework.module.guard(lambda: self.follow(own, batch))
        if own.gradient is not None and framework.gradient is not None:
            own = own._replace(gradient=self.of_data(own, framework.gradient))
        return Steps(own, alone, own, framework, None)

    def follow(self, own: Step, batch: Batch) -> tuple[Step, Step]:
        """Let torch take the step, on its own trajectory and from the code's parameters."""
        alone = self.framework.advance(batch)
        self.beside.place(own.before)
        return alone, self.beside.step(batch)

    def of_data(self, own: Step, gradient: Parameters) -> Parameters:
        """Give the code's data gradient: what it yields, without λ w where that is in it."""
        told = own.gradient
        assert told is not None
        decays = {name: group["weight_decay"] for name, group in self.beside.groups.items()}
        bare = {name: g - decays.get(name, 0.0) * own.before[name] for name, g in told.items()}
        off = [
            max(float(np.abs(one[name] - g).max()) for name, g in gradient.items())
            for one in (told, bare)
        ]
        return bare if off[1] < off[0] else told

    def take(self) -> Step:
        """Take the code's next step, as far as it tells it."""
        yielded = self.code.next()
        before, self.now = self.now, yielded.parameters
        self.fits_float32 = self.fits_float32 and yielded.fits_float32
        return Step(
            before=before,
            outputs=None,
            loss=yielded.loss,
            gradient=yielded.gradient,
            penalty=None,
            velocity={},
            delta=None,
            after=self.now,
        )

    def ends(self) -> tuple[Parameters, Parameters]:
        """Give where both are now, each on its own trajectory."""
        return self.now, self.framework.parameters()

    def finish(self) -> None:
        """See that the code ends after its last step."""
        self.code.finish()

    def close(self) -> None:
        """End the code, wherever it is."""
        self.code.close()
