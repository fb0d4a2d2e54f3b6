"""From which parameters, and on which rows, a scratch side takes the losses that it reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History
from regcheck.diagnosis.records import Explanation, Run
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters
from regcheck.problem.row_orders import other_orders
from regcheck.trainers.numpy_trainer import NumpyTrainer

FOUND_START = 64.0
"""How much less well the loss of step 1 is known from a start that had to be found."""


class Place(NamedTuple):
    """Where the scratch side takes its losses: torch's there, at some steps, and their limits."""

    framework: Array
    limit: Array
    batches: tuple[Batch, ...]
    before: Array

    def at(self, kept: NDArray[np.bool_]) -> Place:
        """Return some of the steps."""
        batches = tuple(compress(self.batches, kept))
        return Place(self.framework[kept], self.limit[kept], batches, self.before[kept])

    @property
    def rows(self) -> Array:
        """The number of rows of each step."""
        return np.array([float(batch.size) for batch in self.batches])


def places(run: Run, found: Sequence[Explanation], start: Parameters | None) -> Iterator[Place]:
    """Yield where the scratch side may take its losses: from its start, on its rows, as torch."""
    history = run.history
    limit = run.limits["loss"] * history.loss("bound")
    batches = tuple(record.batch for record in history.records())
    own = Place(history.loss("framework"), limit, batches, history.all("before"))
    if start is not None:
        framework, before = own.framework.copy(), own.before.copy()
        framework[0] = run.torch.forward_backward(start, batches[0]).loss
        before[0] = history.flat(start)
        # It is known to rounding alone, and the bound of its loss is that of another start.
        limit = limit.copy()
        limit[0] = FOUND_START * limit[0] + 1e-9 * abs(framework[0])
        yield Place(framework, limit, batches, before)
        return
    for one in found:
        if "row-order" in one.causes:
            order = other_orders(run.torch.problem.schedule)[one.note]
            batches = tuple(islice(order, len(history)))
            losses = losses_of(run.torch, history, own.before, batches)
            yield own._replace(framework=losses, batches=batches)
    yield own  # the rows of the loss may not be those of the gradient


def losses_of(
    rule: NumpyTrainer, history: History, parameters: Array, batches: Sequence[Batch]
) -> Array:
    """Return a rule's mean loss over micro-batches, from the rows, at each step."""
    pairs = zip(parameters, batches, strict=True)
    return np.array([rule.forward_backward(history.split(w), batch).loss for w, batch in pairs])
