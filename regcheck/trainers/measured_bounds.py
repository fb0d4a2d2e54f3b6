"""Bounds on the rounding of a user's own model: measured now and then, and derived in between.

Random rounding (`noise`) gives the error N of each entry of the gradient at a step; what an
optimizer makes of it is worked out (`optimizer_rounding`), or for optimizers without a formula
seen from copies that are given g + N and g − N. Measuring costs dozens of passes, so that it is
done at steps 1, 4, 16, 64, .., where the gradient has become much smaller, and wherever a step
looks like a divergence. In between, per tensor,

    N ≈ max(ρ A, r N_s)

with A the largest recent |g| of each entry, ρ the median of N_s/A and r the ratio of the
gradient's root mean square to that at the step s that was measured last.

This is sound in both directions. A difference beyond the derived bound convicts nobody: the step
is measured, with more samples as long as it stays near the limit. And a difference within a bound
passes only where the bound is a small share of the step (`power`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from regcheck.numerics.optimizer_rounding import RULES, Carried, OptimizerStep, Propagated
from regcheck.numerics.packing import finite, flat, parts_of
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.trainers.lockstep import Steps
from regcheck.trainers.monte_carlo import RandomRounding
from regcheck.trainers.optimizer_clone import Shadow
from regcheck.trainers.torch_model import kind_of_optimizer
from regcheck.trainers.torch_trainer import TorchTrainer

Array = NDArray[np.floating]

SAMPLES = 4
"""Passes with random rounding that a regular measurement takes."""

MORE = (24, 96)
"""Samples that a step is measured with where it looks like a divergence, and again where it is
still near the limit."""

APART = 4
"""Each regular measurement is at a step this many times as late as the one before."""

SHRUNK = 1 / 16
"""A gradient that is so much smaller than when it was measured last is measured anew."""

DEVIATIONS = 3.0
"""Root mean squares of the samples' errors that count as noise: fewer samples hold no extremes."""

RECENT = 0.99
"""What the largest recent gradient of an entry is multiplied by at each step."""

LEAST = 1e-300
"""A gradient's least root mean square: of a tensor that is not trained, 0 has not shrunk from 0."""

ONLY_LR_AND_DECAY = frozenset({"lr", "weight_decay", "params"})
"""Options of which a formula takes one for each entry."""


class Entries(NamedTuple):
    """One step of torch's, all tensors' entries one after the other, in float64."""

    before: Array
    after: Array
    gradient: Array
    used: Array


class Noise:
    """The rounding noise of one step's gradients and loss, from some samples so far.

    The gradients are those that come, and those that are used, where they are clipped.
    """

    def __init__(self, loss: float, gradients: list[Array]) -> None:
        self.loss, self.gradients = loss, gradients
        self.loss_error = 0.0
        self.count = 0
        self.largest = [np.zeros_like(g) for g in gradients]
        self.squares = [np.zeros_like(g) for g in gradients]

    def add(self, loss: float, gradients: list[Array]) -> None:
        """Take in a sample."""
        self.count += 1
        off = abs(loss - self.loss)
        self.loss_error = max(self.loss_error, np.inf if np.isnan(off) else off)
        each = zip(gradients, self.gradients, self.largest, self.squares, strict=True)
        for sample, plain, largest, squares in each:
            for part in parts_of(len(plain)):
                error = np.abs(sample[part] - plain[part])
                error[np.isnan(error)] = np.inf
                np.maximum(largest[part], error, out=largest[part])
                squares[part] += error * error

    def sizes(self) -> list[Array]:
        """Return the noise of the gradients, as they come and, where clipped, as they are used."""
        with np.errstate(invalid="ignore", over="ignore"):
            return [
                np.maximum(most, DEVIATIONS * np.sqrt(square / max(1, self.count)))
                for most, square in zip(self.largest, self.squares, strict=True)
            ]


class MeasuredBounds:
    """Bounds for the steps of a trainer of torch's, in order."""

    def __init__(self, trainer: TorchTrainer, dtype: str, *, mixed: bool) -> None:
        """Take the trainer whose steps are compared, before its first.

        Args:
            trainer: torch's side, at the leader's parameters.
            dtype: the coarser one of the two sides.
            mixed: whether the sides' dtypes differ.
        """
        self.trainer, self.mixed = trainer, mixed
        self.rule = rule_of(trainer)
        self.groups = trainer.module.groups()
        info = np.finfo(dtype)
        self.u, self.tiny, self.eps = float(info.eps) / 2, float(info.tiny), float(info.eps)
        self.random = torch.Generator().manual_seed(0)
        self.layout = trainer.layout
        self.tensor_of = np.repeat(np.arange(len(self.layout.sizes)), self.layout.sizes)
        problem = trainer.problem
        self.parts = [block.part for block in self.layout.blocks]
        if self.rule is None:  # copies of an optimizer take all entries at once
            self.parts = [slice(0, self.layout.count)]
        self.ratio: Array = np.ones(len(self.layout.sizes))
        self.clips = problem.clip_norm is not None or problem.clip_value is not None
        self.entries = Entries(*(np.zeros(0),) * 4)
        self.carried: Carried = {}
        self.proposed: Carried = {}
        self.shadows: list[Shadow] = []
        if self.rule is None:
            self.shadows = [Shadow(trainer) for _ in range(4)]
        self.next_due = 1
        self.recent: Array = np.zeros(self.layout.count)
        self.measured: tuple[Array, Array] | None = None
        self.share = np.zeros(len(self.layout.sizes))
        self.rms: Array = np.ones(len(self.layout.sizes))
        self.loss_share = 8 * self.eps
        self.noise: Noise | None = None
        self.random_model = False
        self.gradient_noise: Array = np.zeros(0)

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""
        return {name: self.u * np.abs(w) + self.tiny for name, w in start.items()}

    def bounds(self, batch: Batch, steps: Steps, forward_backward: object) -> Bounds:  # noqa: ARG002
        """Bound what rounding can do in a step."""
        self.carried = self.proposed
        self.noise = None
        self.entries = self.entries_of(steps)
        for shadow in self.shadows:
            shadow.keep()
        with np.errstate(all="ignore"):
            used = self.entries.used
            for part in self.parts:
                recent = self.recent[part]
                np.maximum(recent * RECENT, np.abs(used[part]), out=recent)
            rms = self.root_mean_squares(used)
            due = batch.step >= self.next_due or bool((rms < SHRUNK * self.rms).any())
            if due or self.measured is None:
                while self.next_due <= batch.step:
                    self.next_due *= APART
                return self.measure(batch, steps, SAMPLES)
            self.ratio = np.minimum(rms / self.rms, 64.0)
            return self.put_together(batch, steps, self.derived)

    def derived(self, part: slice) -> tuple[Array, Array]:
        """Derive the noise of some entries' gradients from what was measured last."""
        assert self.measured is not None
        r = self.of_entries(self.ratio, part)
        typical = self.of_entries(self.share, part) * self.recent[part]
        of_used = np.maximum(typical, r * self.measured[1][part])
        if not self.clips:
            return of_used, of_used
        of_gradient = np.maximum(typical, r * self.measured[0][part])
        rounded = self.eps * np.abs(self.entries.gradient[part])
        return np.maximum(of_gradient, rounded), of_used

    def of_entries(self, values: Array, part: slice) -> Array:
        """Return for each entry what its tensor has; one number where all are of one tensor."""
        first, last = self.tensor_of[part.start], self.tensor_of[part.stop - 1]
        found: Array = values[first] if first == last else values[self.tensor_of[part]]
        return found

    def entries_of(self, steps: Steps) -> Entries:
        """Put a step's tensors into one vector each."""
        framework, used = steps.framework, self.trainer.used
        assert framework.gradient is not None
        gradient = flat(framework.gradient)
        return Entries(
            flat(framework.before),
            flat(framework.after),
            gradient,
            flat(used) if used is not framework.gradient else gradient,
        )

    def closer(self, batch: Batch, steps: Steps) -> Bounds | None:
        """Measure the step at hand, or measure it better; None where that has been done."""
        count = self.noise.count if self.noise is not None else 0
        more = next((number for number in MORE if number > count), None)
        if more is None:
            return None
        for shadow in self.shadows:
            shadow.rewind()
        with np.errstate(all="ignore"):
            return self.measure(batch, steps, more - count)

    def measure(self, batch: Batch, steps: Steps, samples: int) -> Bounds:
        """Take some more passes with random rounding at a step, and bound it by them."""
        framework, entries = steps.framework, self.entries
        if self.noise is None:
            plain = self.trainer.sample(framework.before, batch, None, mixed=self.mixed)
            # A pass that does not come out again is random; the first batch alone may hide it.
            self.random_model |= plain.gradient.tobytes() != entries.gradient.tobytes()
            gradients = [entries.gradient, entries.used] if self.clips else [entries.gradient]
            self.noise = Noise(plain.loss, gradients)
        for _ in range(samples):
            rounding = RandomRounding(self.u, self.random, alike=not self.mixed)
            found = self.trainer.sample(framework.before, batch, rounding, mixed=self.mixed)
            self.noise.add(found.loss, [found.gradient, found.used][: len(self.noise.gradients)])
        sizes = self.noise.sizes()
        self.calibrate(sizes)
        return self.put_together(batch, steps, lambda part: (sizes[0][part], sizes[-1][part]))

    def calibrate(self, sizes: list[Array]) -> None:
        """Keep what a measurement found, for the steps after it."""
        assert self.noise is not None
        used = self.entries.used
        self.measured = sizes[0], np.maximum(sizes[-1], self.eps * np.abs(used))
        self.rms = self.root_mean_squares(used)
        for place, (_, part, _) in enumerate(self.layout.places):
            some = sizes[-1][part] / self.recent[part]
            some = some[np.isfinite(some)]
            self.share[place] = np.median(some) if len(some) else 0.0
        loss = abs(self.noise.loss)
        if loss:
            self.loss_share = max(self.noise.loss_error / loss, 4 * self.eps)

    def root_mean_squares(self, entries: Array) -> Array:
        """Take each tensor's root mean square."""
        squares = self.layout.reduced(lambda part: np.square(entries[part]), np.add)
        return np.maximum(np.sqrt(np.divide(squares, self.layout.sizes)), LEAST)

    def put_together(
        self, batch: Batch, steps: Steps, noise: Callable[[slice], tuple[Array, Array]]
    ) -> Bounds:
        """Propagate a gradient's noise to the parameters, and bound all that is compared.

        Entry by entry the formulas do not look at each other, so that a large model is worked
        through in blocks which stay in the processor's cache.
        """
        framework, layout = steps.framework, self.layout
        options, state, t = {}, {}, float(batch.step)
        if self.rule is not None:
            options, state, t = self.options(), self.state(), self.count()

        def worked_through(part: slice) -> tuple[Array, Array, Array, Carried]:
            of_gradient, own = noise(part)
            own, found = self.propagated(part, steps, own, options, state, t)
            return of_gradient, own, found.after, found.carried

        gradients, noises, bounds, carries = zip(*map(worked_through, self.parts), strict=True)
        bound, own = joined(bounds), joined(noises)
        carried = {key: joined([each[key] for each in carries]) for key in carries[0]}
        self.proposed, self.gradient_noise = carried, own
        bound += self.tiny
        if not np.isfinite(np.add.reduce(bound)):
            bound[np.isnan(bound)] = np.inf
            if self.mixed:  # a side that overflows alone does so by its dtype: no rounding
                bound[np.isinf(bound)] = np.nan
        if not finite(self.entries.gradient, self.entries.after):
            # Once numbers have overflowed, the rest depends on the order of computation.
            bound[np.isfinite(bound)] = np.nan
        assert framework.loss is not None
        loss = self.loss_share * abs(framework.loss) + self.tiny
        if self.noise is not None:
            loss = max(self.noise.loss_error, 4 * self.eps * abs(framework.loss)) + self.tiny
        tensors = layout.split(bound)
        of_stage: Parameters = {}
        if steps.scratch.gradient is not None:
            rounded = 4 * self.eps * np.abs(self.entries.gradient)
            of_stage = layout.split(joined(gradients) + rounded + self.tiny)
        return Bounds((), loss, of_stage, tensors, tensors, tensors)

    def propagated(
        self,
        part: slice,
        steps: Steps,
        noise: Array,
        options: Mapping[str, Any],
        state: Mapping[str, list[Array]],
        t: float,
    ) -> tuple[Array, Propagated]:
        """Propagate the noise of some entries; gives it too, 0 where no gradient comes."""
        entries, trained = self.entries, self.trainer.has_gradient.values()
        if not all(trained):
            noise = noise * self.of_entries(np.array(list(trained)), part)
        step = OptimizerStep(
            entries.before[part],
            entries.after[part],
            entries.used[part],
            {k: x[part] if isinstance(x, np.ndarray) else x for k, x in options.items()},
            {key: self.layout.entries_in(each, part) for key, each in state.items()},
            t,
        )
        if self.rule is None:
            return noise, self.seen_from_shadows(steps, step, noise)
        before = {key: one[part] for key, one in self.carried.items()}
        return noise, self.rule(self.u, step, noise, before)

    def gradient_noise_of(self) -> Parameters:
        """Return the noise of the gradient that the optimizer was given at the last step."""
        return self.layout.split(self.gradient_noise)

    def seen_from_shadows(self, steps: Steps, step: OptimizerStep, noise: Array) -> Propagated:
        """Take the step with g + N and g − N, and with both at random, by copies of the optimizer.

        Entries may act on each other, as in Muon, which random signs show.
        """
        draw = torch.randint(2, (len(noise),), generator=self.random).double().numpy() * 2 - 1
        finite = np.where(np.isfinite(noise), noise, 0.0)
        errors = (finite, -finite, draw * finite, -draw * finite)
        ends = [
            shadow.step(steps.framework.before, self.trainer.used, error)
            for shadow, error in zip(self.shadows, errors, strict=True)
        ]
        moved = np.max([np.abs(end - step.after) for end in ends], axis=0)
        size, shift = np.abs(step.before), np.abs(step.after - step.before)
        bound = moved + self.u * (2 * size + 8 * shift)
        return Propagated(np.where(np.isfinite(noise), bound, np.inf), {})

    def options(self) -> dict[str, Any]:
        """Return the optimizer's options: one number where all tensors have the same."""
        found = dict(next(iter(self.groups.values())))
        del found["params"]
        for key in ("lr", "weight_decay"):
            values = {float(group[key]) for group in self.groups.values()}
            if len(values) > 1 or len(self.groups) < len(self.trainer.tensors):
                each = [
                    float(self.groups[name][key]) if name in self.groups else 0.0
                    for name in self.trainer.tensors
                ]
                found[key] = np.array(each)[self.tensor_of]
            else:
                found[key] = values.pop()
        return found

    def state(self) -> dict[str, list[Array]]:
        """Return what the optimizer remembers, flat, of each tensor; 0 where it has nothing."""
        kept = self.trainer.optimizer.state
        each = [kept.get(w, {}) for w in self.trainer.tensors.values()]
        found: dict[str, list[Array]] = {}
        for what in RULES[class_name(self.trainer.optimizer)][1]:
            tensors = [own.get(what) for own in each]
            if any(x is not None for x in tensors):
                found[what] = [
                    np.zeros(size) if x is None else x.numpy().ravel()
                    for x, size in zip(tensors, self.layout.sizes, strict=True)
                ]
        return found

    def count(self) -> float:
        """Return the number of steps that the optimizer has taken."""
        kept = self.trainer.optimizer.state
        for w in self.trainer.tensors.values():
            if w in kept and "step" in kept[w]:
                return float(kept[w]["step"])
        return 1.0


def joined(parts: Sequence[Array]) -> Array:
    """Put the parts of a vector together."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def class_name(optimizer: torch.optim.Optimizer) -> str:
    """Name an optimizer's class."""
    kind = kind_of_optimizer(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def rule_of(trainer: TorchTrainer) -> Any:
    """Return the propagation through a trainer's optimizer; None where there is no formula.

    There is none for several groups that differ in more than lr and weight decay either.
    """
    groups = trainer.optimizer.param_groups
    options = [{k: v for k, v in one.items() if k not in ONLY_LR_AND_DECAY} for one in groups]
    alike = all(one == options[0] for one in options)
    plain = all(not isinstance(value, torch.Tensor) for one in groups for value in one.values())
    return RULES.get(class_name(trainer.optimizer), (None,))[0] if alike and plain else None
