"""Bounds on the rounding of a user's own model: measured now and then, and derived in between.

Random rounding (`monte_carlo`) gives the error N of each entry of the gradient at a step; what an
optimizer makes of it is worked out (`optimizer_rounding`), or for optimizers without a formula
shown by clones that are given g + N and g − N. Measuring costs dozens of passes: it is done at
steps 1, 4, 16, 64, .., where the gradient has become much smaller, and wherever a step looks like
a divergence. In between, per tensor,

    N ≈ max(ρ A, r N_s)

with A the largest recent |g| of each entry, ρ the median of N_s/A and r the ratio of the
gradient's root mean square to that at the step s that was measured last.

A difference beyond the derived bound convicts nobody: the step is measured, with more samples as
long as it stays near the limit. And a difference within a bound passes only where the bound is a
small share of the step (`detectability`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from regcheck.numerics.bounds.optimizers.optimizer_rounding import Noise, formula_of
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.bounds.step_rounding import (
    Carried,
    OptimizerStep,
    Propagated,
    allowed,
    overflowing,
)
from regcheck.numerics.packing import finite, flat, joined
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.trainers.framework.torch_model import OptimizerClone, optimizer_class_name
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.measured.monte_carlo import RandomRounding, sample

if TYPE_CHECKING:
    from regcheck.trainers.lockstep import Steps

Array = NDArray[np.floating]

SAMPLES = 4
"""Passes with random rounding that a regular measurement takes."""

MORE = (24, 96)
"""Samples of a step that looks like a divergence, and of one that still does with as many."""

APART = 4
"""Each regular measurement is at a step this many times as late as the one before."""

SHRUNK = 1 / 16
"""A gradient that is so much smaller than when it was measured last is measured anew."""

RECENT = 0.99
"""What the largest recent gradient of an entry is multiplied by at each step."""

LEAST = 1e-300
"""A gradient's least root mean square: of a tensor that is not trained, 0 has not shrunk from 0."""
Propagate = Callable[[slice, Array], Propagated]
"""What an optimizer's step makes of some entries' gradient noise."""


class Entries(NamedTuple):
    """One step of torch's, all tensors' entries one after the other, in float64."""

    before: Array
    after: Array
    gradient: Array
    used: Array


class MeasuredBounds:
    """Bounds for the steps of a trainer of torch's, in order.

    `noise` is the measurement of the present step, None where it is derived; `random_model` is
    whether a step's pass has not come out again.
    """

    def __init__(self, trainer: TorchTrainer, *dtypes: str) -> None:
        """Take the trainer whose steps are compared, before its first, and both sides' dtypes."""
        self.trainer, self.layout, self.mixed = trainer, trainer.layout, len(set(dtypes)) > 1
        coarser = max(map(np.finfo, dtypes), key=lambda info: float(info.eps))
        self.eps, self.tiny = float(coarser.eps), float(coarser.tiny)
        self.u, self.loss_share = self.eps / 2, 8 * self.eps
        self.clips = trainer.problem.clip_norm is not None or trainer.problem.clip_value is not None
        self.random = torch.Generator().manual_seed(0)
        groups = trainer.optimizer.param_groups
        self.formula = formula_of(optimizer_class_name(trainer.optimizer), groups)
        self.clones = [OptimizerClone(trainer.module) for _ in range(0 if self.formula else 4)]
        self.parts = [slice(0, self.layout.count)]
        if self.formula is not None and self.formula.elementwise:
            self.parts = [block.part for block in self.layout.blocks]
        self.sizes, tensors = np.array(self.layout.sizes), len(self.layout.sizes)
        self.tensor_of = np.repeat(np.arange(tensors), self.sizes)
        self.carried: Carried = {}
        self.carried_on: Carried = {}
        self.next_due = 1
        self.entries: Entries
        self.recent: Array = np.zeros(self.layout.count)
        self.measured: tuple[Array, Array] | None = None
        self.share: Array = np.zeros(self.layout.count)
        self.rms: Array = np.ones(tensors)
        self.noise: Noise | None = None
        self.random_model = False
        self.noise_used: Array = np.zeros(0)

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""
        return {name: self.u * np.abs(w) + self.tiny for name, w in start.items()}

    def bounds(self, batch: Batch, steps: Steps, forward_backward: object) -> Bounds:  # noqa: ARG002
        """Bound what rounding can do in a step."""
        framework, given = steps.framework, self.trainer.used
        assert framework.gradient is not None
        gradient = flat(framework.gradient)
        self.entries = Entries(
            flat(framework.before),
            flat(framework.after),
            gradient,
            flat(given) if given is not framework.gradient else gradient,
        )
        self.carried, self.noise = self.carried_on, None
        for clone in self.clones:
            clone.keep()
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
        ratio = np.minimum(rms / self.rms, 64.0)
        return self.put_together(steps, lambda part: self.derived(ratio, part))

    def derived(self, ratio: Array, part: slice) -> tuple[Array, Array]:
        """Derive the noise of some entries' gradients from what was measured last."""
        assert self.measured is not None
        r = self.of_entries(ratio, part)
        typical = self.share[part] * self.recent[part]
        of_used = np.maximum(typical, r * self.measured[1][part])
        if not self.clips:
            return of_used, of_used
        of_gradient = np.maximum(typical, r * self.measured[0][part])
        rounded = self.eps * np.abs(self.entries.gradient[part])
        return np.maximum(of_gradient, rounded), of_used

    def of_entries(self, values: Array, part: slice) -> Array:
        """Return for each entry what its tensor has; one number where all are of one tensor."""
        if len(self.parts) == 1:
            return np.repeat(values, self.layout.sizes)
        first, last = self.tensor_of[part.start], self.tensor_of[part.stop - 1]
        found: Array = values[first] if first == last else values[self.tensor_of[part]]
        return found

    def other_bounds(self, batch: Batch, steps: Steps) -> Bounds | None:
        """Measure the step at hand, or measure it better; None where that has been done."""
        count = self.noise.count if self.noise is not None else 0
        more = next((number for number in MORE if number > count), None)
        if more is None:
            return None
        for clone in self.clones:
            clone.rewind()
        return self.measure(batch, steps, more - count)

    def measure(self, batch: Batch, steps: Steps, samples: int) -> Bounds:
        """Take some more passes with random rounding at a step, and bound it by them."""
        before, entries, mixed = steps.framework.before, self.entries, self.mixed
        if self.noise is None:
            assert steps.framework.loss is not None
            # A pass that does not come out again is random; the first batch alone may hide it.
            # (A built-in model's never is, and processes add its gradients in another order.)
            if self.trainer.problem.architecture is None:
                again = sample(self.trainer, before, batch, None, mixed=mixed)
                self.random_model |= again.gradient.tobytes() != entries.gradient.tobytes()
            gradients = [entries.gradient, entries.used] if self.clips else [entries.gradient]
            self.noise = Noise(steps.framework.loss, gradients)
        for _ in range(samples):
            rounding = RandomRounding(self.u, self.random, alike=not mixed)
            found = sample(self.trainer, before, batch, rounding, mixed=mixed)
            self.noise.add(found.loss, [found.gradient, found.used][: len(self.noise.gradients)])
        sizes = self.noise.sizes()
        self.measured = sizes[0], np.maximum(sizes[-1], self.eps * np.abs(entries.used))
        self.rms = self.root_mean_squares(entries.used)
        for _, part, _ in self.layout.places:
            shares = sizes[-1][part] / self.recent[part]
            shares = shares[np.isfinite(shares)]
            self.share[part] = np.median(shares) if len(shares) else 0.0
        if self.noise.loss:
            self.loss_share = max(self.noise.loss_error / abs(self.noise.loss), 4 * self.eps)
        return self.put_together(steps, lambda part: (sizes[0][part], sizes[-1][part]))

    def gradient_noise(self) -> Parameters:
        """Return the noise of the gradient that the optimizer was given at the last step."""
        return self.layout.split(self.noise_used)

    def root_mean_squares(self, entries: Array) -> Array:
        """Return each tensor's root mean square."""
        squares = self.layout.reduced(lambda part: np.square(entries[part]), np.add)
        found: Array = np.maximum(np.sqrt(squares / self.sizes), LEAST)
        return found

    def put_together(self, steps: Steps, noise: Callable[[slice], tuple[Array, Array]]) -> Bounds:
        """Propagate a gradient's noise to the parameters, and bound all that is compared.

        Entry by entry the formulas do not look at each other, so that a large model is worked
        through in blocks which stay in the processor's cache.
        """
        framework, layout, skipped = steps.framework, self.layout, self.trainer.skipped
        propagate = self.by_clones(framework.before) if self.formula is None else self.by_formula()
        of_gradient, of_used, bounds = [], [], []
        for part in self.parts:
            coming, used = noise(part)
            if self.mixed:  # what underflows on one side is a gradient on the other
                used = np.maximum(used, self.tiny)
            if skipped:
                trained = np.array([name not in skipped for name in layout.shapes])
                used = used * self.of_entries(trained, part)
            of_gradient.append(coming)
            of_used.append(used)
            bounds.append(propagate(part, used))
        keys = bounds[0].carried
        self.carried_on = {key: joined([each.carried[key] for each in bounds]) for key in keys}
        self.noise_used = joined(of_used)
        tensors = layout.split(joined([each.after for each in bounds]) + self.tiny)
        all_finite = finite(self.entries.gradient) and finite(self.entries.after)
        if not (tensors.is_finite and all_finite):
            bound = overflowing(tensors.vector, all_finite=all_finite, mixed=self.mixed)
            tensors = layout.split(bound)
        if bounds[0].lost is not None:
            lost = joined([each.lost for each in bounds if each.lost is not None])
            scratch = flat({name: steps.scratch.after[name] for name in framework.after})
            tensors = layout.split(allowed(tensors.vector, lost, scratch, self.entries.after))
        assert framework.loss is not None
        loss = self.loss_share * abs(framework.loss) + self.tiny
        if self.noise is not None:
            loss = max(self.noise.loss_error, 4 * self.eps * abs(framework.loss)) + self.tiny
        of_stage: Parameters = {}
        if steps.scratch.gradient is not None:
            rounded = 4 * self.eps * np.abs(self.entries.gradient)
            rounded += joined(of_gradient)
            rounded += self.tiny
            of_stage = layout.split(rounded)
        return Bounds((), loss, of_stage, tensors, tensors, tensors)

    def by_formula(self) -> Propagate:
        """Return the propagation by the formula of the optimizer, as it is after the step."""
        assert self.formula is not None
        formula, entries, layout = self.formula, self.entries, self.layout
        state, t = self.trainer.optimizer_state(formula.state)
        options = self.trainer.optimizer_options()
        for key in ("lr", "weight_decay"):
            each = options[key]
            options[key] = each[0] if len(set(each)) == 1 else np.array(each)[self.tensor_of]

        def propagate(part: slice, noise: Array) -> Propagated:
            step = OptimizerStep(
                entries.before[part],
                entries.after[part],
                entries.used[part],
                {k: x[part] if isinstance(x, np.ndarray) else x for k, x in options.items()},
                {key: layout.entries_in(tensors, part) for key, tensors in state.items()},
                t,
                list(layout.shapes.values()),
            )
            carried = {key: error[part] for key, error in self.carried.items()}
            return formula.propagate(self.u, step, noise, carried)

        return propagate

    def by_clones(self, before: Parameters) -> Propagate:
        """Return the propagation by steps with g + N and g − N, and with both at random.

        Entries may act on each other, as in Adafactor, which random signs show.
        """
        gradients = self.trainer.given_gradients()

        def propagate(part: slice, noise: Array) -> Propagated:
            draw = torch.randint(2, (len(noise),), generator=self.random).double().numpy() * 2 - 1
            finite_noise = np.where(np.isfinite(noise), noise, 0.0)
            errors = (finite_noise, -finite_noise, draw * finite_noise, -draw * finite_noise)
            start, end = self.entries.before[part], self.entries.after[part]
            ends = [
                clone.step(before, gradients, error)
                for clone, error in zip(self.clones, errors, strict=True)
            ]
            off = np.max([np.abs(other - end) for other in ends], axis=0)
            bound = off + self.u * (2 * np.abs(start) + 8 * np.abs(end - start))
            return Propagated(np.where(np.isfinite(noise), bound, np.inf), {})

        return propagate
