"""The framework side by several processes, as the rest of regcheck sees it: one trainer.

By R ranks, of which rank r has the share r of each batch, DistributedDataParallel makes

    g = 1/R Σ_r g_r,    g_r the gradient of the mean loss of rank r's share,

and with a shares of a rank in a step g_r is their average: the mean over all a R shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem, Step
from regcheck.trainers.framework.distributed.launcher import process_error
from regcheck.trainers.framework.distributed.processes import Processes
from regcheck.trainers.framework.torch_trainer import Taken, TorchTrainer


class Moved(NamedTuple):
    """Where a step has come to: tensor by tensor in their order.

    Attributes:
        gradient, used: before and after clipping; the average over ranks.
        skipped: tensors that had none.
        parameters: after the step.
        state: what the optimizer remembers.
        lrs: that of each of its parameter groups.
    """

    gradient: list[Array]
    used: list[Array]
    skipped: frozenset[str]
    parameters: list[Array]
    state: list[dict[str, Any]]
    lrs: list[float]


class Answer(NamedTuple):
    """What one rank says of a step.

    Attributes:
        outputs: z of its shares.
        loss: the mean of its shares' mean losses.
        digest: of its parameters after the step.
        moved: rank 0's alone, since all ranks' are the same.
    """

    outputs: tuple[Array, ...] | None
    loss: float
    digest: bytes
    moved: Moved | None


class DataParallelTrainer(TorchTrainer):
    """The training of a problem by its processes.

    Every step is theirs. After it this object has what rank 0 has: the parameters, and what the
    optimizer remembers. What is no step of the training, as a loss elsewhere or a pass with random
    rounding, is computed here, from the same shares.
    """

    def __init__(self, problem: Problem, processes: Processes, number: int) -> None:
        """Take the processes that train it, and which of their trainings it is."""
        super().__init__(problem)
        self.processes, self.number = processes, number
        self.theirs = self.bits()

    def bits(self) -> list[bytes]:
        """Return the parameters as bytes."""
        return [view.tobytes() for view in self.views.now().values()]

    def take(self, batch: Batch) -> Taken:
        """Let the ranks move the parameters by one update."""
        other = None if self.bits() == self.theirs else list(self.views.now().values())
        moment = f"in step {batch.step:,}"
        answers = self.processes.ask((self.number, other, batch), moment)
        check_alike(answers, moment)
        moved = answers[0].moved
        for view, w in zip(self.views.now().values(), moved.parameters, strict=True):
            np.copyto(view, w)
        self.theirs = self.bits()
        for tensor, state in zip(self.tensors.values(), moved.state, strict=True):
            self.optimizer.state[tensor] = state
        for group, lr in zip(self.optimizer.param_groups, moved.lrs, strict=True):
            group["lr"] = lr
        outputs = [z for each in zip(*(one.outputs for one in answers), strict=True) for z in each]
        loss = sum(one.loss for one in answers) / len(answers)
        gradient, used = self.layout.join(moved.gradient), self.layout.join(moved.used)
        return Taken(tuple(outputs), loss, gradient, used, moved.skipped)

    def advance(self, batch: Batch) -> Step:
        """Take one update of which nothing but its end and its loss is asked."""
        self.placed = None
        taken = self.take(batch)
        return Step({}, None, taken.loss, None, None, {}, None, self.parameters())


def check_alike(answers: Sequence[Answer], moment: str) -> None:
    """See that all ranks have the same parameters, to the bit.

    Raises:
        ProcessError: one has others.
    """
    for rank, one in enumerate(answers):
        if one.digest != answers[0].digest:
            raise process_error(
                f"rank {rank} has other parameters than rank 0 {moment}",
                todo="All ranks have one gradient, and must make the same update: check this "
                "machine, and its torch.",
            )
