"""Whether a user's code follows a rule from other inputs: another start, other rows, or rounded.

Data, gradients or parameters that are kept in float32, in a computation that else is in float64,
are known by what a step comes to from them: from rounded data or gradients all of it, to the
rounding of float64; from rounded parameters it is within half a unit in the last place of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.fits.first_starts import first_starts, from_start
from regcheck.diagnosis.records import Explanation, Run
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Array, Parameters
from regcheck.problem.row_orders import other_orders
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change
from regcheck.rules.words import all_of
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer


def from_other_inputs(
    run: Run, replay: Replay
) -> tuple[tuple[Explanation, ...], Parameters | None]:
    """Find other rows, or another start, from which a user's code makes its steps by the rule."""
    if run.sees_rows and run.training.batch_rows[0] < run.training.train_rows:
        found = tuple(in_other_orders(replay))
        if found:
            return found, None
    if run.first == 1 and run.sees_rows and moves_later(replay):
        for causes, change in single_causes(run):
            elsewhere = from_elsewhere(replay, causes, change)
            if elsewhere is not None and not starts_as_torch(run, elsewhere[1]):
                return (elsewhere[0],), elsewhere[1]
    return (), None


def in_other_orders(replay: Replay) -> Iterator[Explanation]:
    """Find the orders of the rows in which torch's rule makes the scratch side's steps."""
    for note, batches in other_orders(replay.torch.problem.schedule).items():
        pairs = zip(replay.history.records(), batches, strict=False)
        reordered = (record._replace(batch=batch) for record, batch in pairs)
        residual = replay.largest(afters(replay, replay.torch, reordered))
        if residual <= 1:
            yield Explanation(("row-order",), {}, residual, note=note)


def afters(
    replay: Replay,
    rule: NumpyTrainer,
    records: Iterable[Record] | None = None,
    known: Callable[[Record], ForwardBackward | None] = lambda _: None,
) -> Iterator[tuple[Record, Array]]:
    """Yield each record, with torch's own bounds, and the parameters after a rule's step.

    `known` is the pass over a step's rows, or None for the rule's own.
    """
    for record, update in replay.updates(rule, records, known):
        assert update is not None
        yield record, replay.history.flat(update.step.after)


def from_rounded(run: Run, replay: Replay) -> Explanation | None:
    """Find data, parameters or gradients in float32 where torch computes in float64."""
    problem = run.torch.problem
    if problem.scratch_dtype != "float64" or problem.framework_dtype != "float64":
        return None
    if not np.isfinite(replay.history.all("scratch")).all():  # no number is rounded to NaN
        return None
    found = parameters_rounded(replay) or gradient_rounded(replay)
    if found is not None or not run.sees_rows or not run.scratch_is_reference:
        return found
    X, y = as_float32(problem.X), as_float32(problem.y)
    for note, inputs in {
        "the data X are rounded to float32": replace(problem, X=X),
        "the targets y are rounded to float32": replace(problem, y=y),
        "the data X and y are rounded to float32": replace(problem, X=X, y=y),
    }.items():
        residual = replay.largest(afters(replay, NumpyTrainer(inputs)))
        if residual <= 1:
            return Explanation(("precision",), {}, residual, note=note)
    return None


def as_float32(numbers: Array) -> Array:
    """Round numbers to float32; labels are whole."""
    if numbers.dtype.kind == "i":
        return numbers
    return numbers.astype(np.float32).astype(np.float64)


def gradient_rounded(replay: Replay) -> Explanation | None:
    """Return whether the steps are torch's from a gradient that is rounded to float32."""

    def known(record: Record) -> ForwardBackward:
        return replay.pass_with(record, as_float32(record.gradient))

    residual = replay.largest(afters(replay, replay.torch, known=known))
    note = "the gradient is rounded to float32"
    return Explanation(("precision",), {}, residual, note=note) if residual <= 1 else None


def parameters_rounded(replay: Replay) -> Explanation | None:
    """Return whether the steps are torch's, with some tensors rounded to float32 after each."""
    history = replay.history
    same = (history.all("scratch") == as_float32(history.all("scratch"))).all(axis=0)
    names = [name for name, part in history.slices.items() if same[part].all()]
    rounded = np.zeros(history.entries, dtype=bool)
    for name in names:
        rounded[history.slices[name]] = True
    if not names:
        return None
    residual = min(residual_rounded(replay, rounded, start) for start in (True, False))
    if residual > 1:
        return None
    which = all_of(names) if len(names) < len(history.slices) else "the parameters"
    verb = "is" if len(names) == 1 < len(history.slices) else "are"
    return Explanation(("precision",), {}, residual, note=f"{which} {verb} rounded to float32")


def residual_rounded(replay: Replay, rounded: NDArray[np.bool_], start: bool) -> float:
    """Return the largest ratio left beyond half a unit of float32 in the rounded entries, or inf.

    `start` is whether they are rounded before step 1 too.
    """
    problem, before = replay.torch.problem, replay.history.all("before")
    if start:
        before = np.where(rounded, as_float32(before), before)
    unchanged = (before == replay.history.all("before")).all(axis=1)

    def known(record: Record) -> ForwardBackward | None:
        here = unchanged[record.batch.step - 1] or not replay.sees_rows
        return replay.scaled_pass(problem, record) if here else None

    def to_float32() -> Iterator[tuple[Record, Array]]:
        records = replay.history.records()
        moved = (record._replace(before=w) for record, w in zip(records, before, strict=True))
        for record, after in afters(replay, replay.torch, moved, known):
            half = np.spacing(np.abs(record.scratch).astype(np.float32)).astype(np.float64) / 2
            within = np.clip(record.scratch, after - half, after + half)
            yield record, np.where(rounded, within, after)

    return replay.largest(to_float32())


def single_causes(run: Run) -> Iterator[tuple[tuple[str, ...], Change]]:
    """Yield torch's own rule, and then each cause that concerns the run by itself."""
    yield (), {}
    visible, convention = run.visible, run.spec.named_convention()
    for name, cause in CAUSES.items():
        if cause.fitted or (visible is not None and name not in visible):
            continue
        if cause.concerns(run.training, convention):
            yield from (((name,), change) for change in cause.changes)


def moves_later(replay: Replay) -> bool:
    """Whether torch moves a parameter beyond rounding in some step but the first."""
    history = replay.history
    moved = np.abs(history.all("framework") - history.all("before"))[1:]
    return bool((moved > history.all("bound")[1:] * replay.limits).any())


def starts_as_torch(run: Run, start: Parameters) -> bool:
    """Whether the loss reported in step 1 is that of the spec's start, and not of another start."""
    record = next(run.history.records())
    reported, torch, bound = (
        float(run.history.loss(what)[0]) for what in ("scratch", "framework", "bound")
    )
    limit = run.limits["loss"] * bound
    there = run.torch.forward_backward(start, record.batch).loss
    return abs(reported - torch) <= limit < abs(reported - there)


NOISE = 1e-12
"""The share of the largest parameter below which an entry of a start may be rounding."""


def from_elsewhere(
    replay: Replay, causes: tuple[str, ...], change: Change
) -> tuple[Explanation, Parameters] | None:
    """Return whether the steps are a rule's, but for where the first one starts.

    Its start is what the rule takes to the end of step 1; all later steps must agree, and some
    must show that.
    """
    rule = replay.by(change)
    for solved in first_starts(replay, rule, turned=not causes):
        start = without_noise(replay, rule, solved)
        steps = islice(afters(replay, rule, *from_start(replay, rule, start)), 1, None)
        residual = replay.largest(steps)
        if residual <= 1:
            found = Explanation(("initial-parameters", *causes), change, residual)
            return found, replay.history.split(start)
    return None


def without_noise(replay: Replay, rule: NumpyTrainer, start: Array) -> Array:
    """Return a start with zeros for what may be rounding, where that is as good."""
    first = next(replay.history.records())
    noise = np.abs(start) <= NOISE * np.abs(first.scratch).max()
    plain = np.where(noise, 0.0, start)
    return (
        plain
        if replay.largest(afters(replay, rule, [first._replace(before=plain)])) <= 1
        else start
    )
