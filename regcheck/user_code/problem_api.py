"""What a user's own function is given: its side's own copy of the problem.

Nothing in it is shared with the other side or with regcheck: a function that changes an array in
place spoils its own training only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regcheck.problem.batches import Schedule
from regcheck.problem.problem import Array, Problem
from regcheck.rules.convention import is_bias
from regcheck.rules.words import all_of
from regcheck.spec import Spec

Rows = NDArray[np.intp]
"""Indices of rows of X."""

Item = TypeVar("Item", covariant=True)


class PerStep(Sequence[Item]):
    """One item a step, made when it is asked for; at most one epoch's order is held.

    Args:
        schedule: which rows are whose.
        item_of: makes a step's item of fresh index arrays of its micro-batches.
        steps: which steps, from 0; all without it.
    """

    def __init__(
        self,
        schedule: Schedule,
        item_of: Callable[[list[Rows]], Item],
        steps: range | None = None,
    ) -> None:
        self.schedule, self.item_of = schedule, item_of
        self.steps = range(schedule.steps) if steps is None else steps
        self.epoch = 0
        self.order: Rows | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PerStep(self.schedule, self.item_of, self.steps[index])
        try:
            step = self.steps[index]
        except IndexError:
            text = f"there is no batch {index}: there are {len(self)}, one for each step"
            raise IndexError(text) from None
        epoch, batch = divmod(step, self.schedule.steps_per_epoch)
        if epoch + 1 != self.epoch:
            self.epoch, self.order = epoch + 1, self.schedule.order(epoch + 1)
        micro_batches, _ = self.schedule.micro_batches(batch + 1, self.order)
        return self.item_of(
            [
                np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.copy()
                for rows in micro_batches
            ]
        )

    def __repr__(self) -> str:
        return f"<{len(self)} batches, one for each step>"


def joined(micro_batches: list[Rows]) -> Rows:
    """Return the rows of all micro-batches."""
    return micro_batches[0] if len(micro_batches) == 1 else np.concatenate(micro_batches)


class Start(dict[str, Array]):
    """The tensors that a training starts from."""

    def __missing__(self, name: str) -> Array:
        raise KeyError(f"{name}; the start has {all_of(self)}")


@dataclass(frozen=True, eq=False)
class UserProblem:
    """One training, as a user's function sees it.

    Attributes:
        X, y: the training rows, (n, d) and (n,), in the side's dtype; with a model of your own, as
            they are in an .npz file: of any shape, integers as int64.
        batches: an index array for each step, in order, over all epochs.
        micro_batches: a list of index arrays for each step, whose mean gradients are averaged: of
            micro-batches, or of the ranks' shares of each; None where there is one a step.
        initial: the start, by torch's names; no `bias` where the model has none.
        lr: the learning rate, before any schedule.
        lrs: the learning rate of each step, (steps,).
        weight_decay: λ; by name where the tensors' differ.
        epochs, batch_size, steps: numbers; `full` is the number of rows.
        optimizer: its options, `name` among them.
        clip_norm, clip_value: limits of the gradient, or None.
        model, loss: as the spec names them.
    """

    X: Array
    y: Array
    batches: Sequence[Rows]
    micro_batches: Sequence[list[Rows]] | None
    initial: dict[str, Array]
    lr: float
    lrs: NDArray[np.float64]
    weight_decay: float | Mapping[str, float]
    epochs: int
    batch_size: int
    optimizer: Mapping[str, Any]
    clip_norm: float | None
    clip_value: float | None
    model: str
    loss: str
    steps: int


def user_problem(problem: Problem, spec: Spec, *, framework: bool) -> UserProblem:
    """Make what one side's function is given; every call makes fresh copies.

    The scratch side's one-layer weight of one output is a vector (d,), so that `X @ w + b` is (n,);
    the framework's tensors keep torch's shapes.
    """
    schedule = problem.schedule
    dtype = problem.framework_dtype if framework else problem.scratch_dtype
    initial = Start({name: tensor.astype(dtype) for name, tensor in problem.initial.items()})
    one_vector = problem.architecture is None or problem.architecture.is_one_vector
    if not framework and one_vector and initial.keys() <= {"weight", "bias"}:
        w = initial["weight"]
        initial["weight"] = w[0] if w.ndim == 2 and len(w) == 1 else w
    return UserProblem(
        X=copied(problem.X, dtype),
        y=copied(problem.y, dtype),
        batches=PerStep(schedule, joined),
        micro_batches=PerStep(schedule, list) if schedule.averages else None,
        initial=initial,
        lr=schedule.lr,
        lrs=learning_rates(schedule),
        weight_decay=plain_decay(problem.weight_decay),
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        optimizer=spec.optimizer.model_dump(),
        clip_norm=problem.clip_norm,
        clip_value=problem.clip_value,
        model=problem.model,
        loss=problem.loss,
        steps=schedule.steps,
    )


def copied(data: Array, dtype: str) -> Array:
    """Copy data to a dtype; integers, which are indices and labels, stay what they are."""
    return data.copy() if data.dtype.kind == "i" else data.astype(dtype)


def learning_rates(schedule: Schedule) -> NDArray[np.float64]:
    """List the learning rate of each step."""
    if schedule.lr_schedule is None:
        return np.full(schedule.steps, schedule.lr)
    rates = (schedule.lr_at(step) for step in range(1, schedule.steps + 1))
    return np.fromiter(rates, np.float64, schedule.steps)


def plain_decay(weight_decay: Mapping[str, float]) -> float | dict[str, float]:
    """Return λ in the form that a spec has it.

    That is one number where the tensors' are the same, and `weight` and `bias` where all weights
    have one and all biases another, as in the usual parameter groups; else each tensor's by name.
    """
    kinds: dict[str, set[float]] = {"weight": set(), "bias": set()}
    for name, decay in weight_decay.items():
        kinds["bias" if is_bias(name) else "weight"].add(decay)
    if len(kinds["weight"] | kinds["bias"]) == 1:
        return next(iter(kinds["weight"] | kinds["bias"]))
    if all(len(values) == 1 for values in kinds.values()):
        return {kind: next(iter(values)) for kind, values in kinds.items()}
    return dict(weight_decay)
