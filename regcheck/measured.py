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

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from regcheck.lockstep import Steps
from regcheck.noise import RandomRounding
from regcheck.optimizer_rounding import RULES, STATE, Carried, OptimizerStep, Propagated
from regcheck.packing import flat
from regcheck.problem import Parameters
from regcheck.rounding import Bounds
from regcheck.schedule import Batch
from regcheck.shadow import Shadow
from regcheck.torch_trainer import TorchTrainer

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

BLOCK = 2**14
"""Entries that are worked through at once."""

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
    """The rounding noise of one step's gradients and loss, from some samples so far."""

    def __init__(self, loss: float, gradient: Array, used: Array) -> None:
        self.loss, self.gradient, self.used = loss, gradient, used
        self.loss_error = 0.0
        self.count = 0
        self.largest = [np.zeros_like(gradient), np.zeros_like(used)]
        self.squares = [np.zeros_like(gradient), np.zeros_like(used)]

    def add(self, loss: float, gradient: Array, used: Array) -> None:
        """Take in a sample."""
        self.count += 1
        off = abs(loss - self.loss)
        self.loss_error = max(self.loss_error, np.inf if np.isnan(off) else off)
        for place, (one, plain) in enumerate(
            zip((gradient, used), (self.gradient, self.used), strict=True)
        ):
            error = np.abs(one - plain)
            error[np.isnan(error)] = np.inf
            np.maximum(self.largest[place], error, out=self.largest[place])
            self.squares[place] += error * error

    def sizes(self) -> tuple[Array, Array]:
        """Return the noise of the gradients as they come, and as they are clipped."""
        with np.errstate(invalid="ignore", over="ignore"):
            found = [
                np.maximum(most, DEVIATIONS * np.sqrt(square / max(1, self.count)))
                for most, square in zip(self.largest, self.squares, strict=True)
            ]
        return found[0], found[1]


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
        info = np.finfo(dtype)
        self.u, self.tiny, self.eps = float(info.eps) / 2, float(info.tiny), float(info.eps)
        self.random = torch.Generator().manual_seed(0)
        self.sizes = [view.size for view in trainer.views.values()]
        self.starts = np.cumsum([0, *self.sizes[:-1]])
        self.tensor_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        problem = trainer.problem
        # Copies of an optimizer take all entries at once.
        self.block = BLOCK if self.rule is not None else max(1, len(self.tensor_of))
        self.ratio: Array = np.ones(len(self.sizes))
        self.clips = problem.clip_norm is not None or problem.clip_value is not None
        self.entries = Entries(*(np.zeros(0),) * 4)
        self.carried: Carried = {}
        self.proposed: Carried = {}
        self.shadows: list[Shadow] = []
        if self.rule is None:
            self.shadows = [Shadow(trainer) for _ in range(4)]
        self.next_due = 1
        self.recent: Array = np.zeros(sum(self.sizes))
        self.measured: tuple[Array, Array] | None = None
        self.share = np.zeros(len(self.sizes))
        self.rms: Array = np.ones(len(self.sizes))
        self.loss_share = 8 * self.eps
        self.noise: Noise | None = None
        self.random_model = False
        self.gradient_noise: Array = np.zeros(0)

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""
        return {name: self.u * np.abs(w) + self.tiny for name, w in start.items()}

    def bounds(self, batch: Batch, steps: Steps, seen: object) -> Bounds:  # noqa: ARG002
        """Bound what rounding can do in a step."""
        self.carried = self.proposed
        self.noise = None
        self.entries = self.entries_of(steps)
        for shadow in self.shadows:
            shadow.keep()
        with np.errstate(all="ignore"):
            used = self.entries.used
            self.recent *= RECENT
            np.maximum(self.recent, np.abs(used), out=self.recent)
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
        tensor = self.tensor_of[part]
        r, typical = self.ratio[tensor], self.share[tensor] * self.recent[part]
        of_used = np.maximum(typical, r * self.measured[1][part])
        if not self.clips:
            return of_used, of_used
        of_gradient = np.maximum(typical, r * self.measured[0][part])
        rounded = self.eps * np.abs(self.entries.gradient[part])
        return np.maximum(of_gradient, rounded), of_used

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
            self.noise = Noise(plain.loss, entries.gradient, entries.used)
        for _ in range(samples):
            rounding = RandomRounding(self.u, self.random)
            self.noise.add(
                *self.trainer.sample(framework.before, batch, rounding, mixed=self.mixed)
            )
        self.calibrate(entries.used, self.root_mean_squares(entries.used))
        of_gradient, of_used = self.noise.sizes()
        return self.put_together(batch, steps, lambda part: (of_gradient[part], of_used[part]))

    def calibrate(self, used: Array, rms: Array) -> None:
        """Keep what a measurement found, for the steps after it."""
        assert self.noise is not None
        of_gradient, of_used = self.noise.sizes()
        self.measured = of_gradient, np.maximum(of_used, self.eps * np.abs(used))
        self.rms = rms
        ratios = of_used / self.recent
        for place, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            some = ratios[start : start + size]
            some = some[np.isfinite(some)]
            self.share[place] = np.median(some) if len(some) else 0.0
        loss = abs(self.noise.loss)
        if loss:
            self.loss_share = max(self.noise.loss_error / loss, 4 * self.eps)

    def root_mean_squares(self, entries: Array) -> Array:
        """Take each tensor's root mean square."""
        squares = np.add.reduceat(entries * entries, self.starts) / self.sizes
        return np.maximum(np.sqrt(squares), LEAST)

    def put_together(
        self, batch: Batch, steps: Steps, noise: Callable[[slice], tuple[Array, Array]]
    ) -> Bounds:
        """Propagate a gradient's noise to the parameters, and bound all that is compared.

        Entry by entry the formulas do not look at each other, so that a large model is worked
        through in blocks which stay in the processor's cache.
        """
        framework, entries = steps.framework, self.entries
        trained = list(self.trainer.has_gradient.values())
        count = len(entries.before)
        bound, stage, own = np.empty(count), np.empty(count), np.empty(count)
        options, state, t = {}, {}, float(batch.step)
        if self.rule is not None:
            options, state, t = self.options(), self.state(), self.count()
        carried: dict[str, Array] = {}
        for start in range(0, count, self.block):
            part = slice(start, min(start + self.block, count))
            of_gradient, own[part] = noise(part)
            if not all(trained):
                own[part] *= np.array(trained)[self.tensor_of[part]]
            gradient = entries.gradient[part]
            stage[part] = of_gradient + 4 * self.eps * np.abs(gradient) + self.tiny
            step = OptimizerStep(
                entries.before[part],
                entries.after[part],
                entries.used[part],
                {
                    key: one[part] if isinstance(one, np.ndarray) else one
                    for key, one in options.items()
                },
                {key: one[part] for key, one in state.items()},
                t,
            )
            if self.rule is None:
                propagated = self.seen_from_shadows(steps, step, own)
            else:
                before = {key: one[part] for key, one in self.carried.items()}
                propagated = self.rule(self.u, step, own[part], before)
            bound[part] = propagated.after + self.tiny
            for key, one in propagated.carried.items():
                carried.setdefault(key, np.empty(count))[part] = one
        self.proposed, self.gradient_noise = carried, own
        if not np.isfinite(np.add.reduce(bound)):
            bound[np.isnan(bound)] = np.inf
            if self.mixed:  # a side that overflows alone does so by its dtype: no rounding
                bound[np.isinf(bound)] = np.nan
        assert framework.loss is not None
        loss = self.loss_share * abs(framework.loss) + self.tiny
        if self.noise is not None:
            loss = max(self.noise.loss_error, 4 * self.eps * abs(framework.loss)) + self.tiny
        tensors = self.split(bound)
        return Bounds((), loss, self.split(stage), tensors, tensors, tensors)

    def gradient_noise_of(self) -> Parameters:
        """Return the noise of the gradient that the optimizer was given at the last step."""
        return self.split(self.gradient_noise)

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
        groups = self.trainer.module.groups()
        first = next(iter(groups.values()))
        found: dict[str, Any] = {key: value for key, value in first.items() if key != "params"}
        for key in ("lr", "weight_decay"):
            values = [
                float(groups[name][key]) if name in groups else 0.0 for name in self.trainer.tensors
            ]
            alike = len(set(values)) == 1
            found[key] = values[0] if alike else np.array(values)[self.tensor_of]
        return found

    def state(self) -> dict[str, Array]:
        """Return what the optimizer remembers; 0 where it has nothing of a tensor."""
        kept = self.trainer.optimizer.state
        name_of = STATE[class_name(self.trainer.optimizer)]
        found: dict[str, Array] = {}
        for what in name_of:
            parts = [
                kept[w].get(what) if w in kept else None for w in self.trainer.tensors.values()
            ]
            if all(part is None for part in parts):
                continue
            pairs = zip(parts, self.sizes, strict=True)
            found[what] = np.concatenate(
                [
                    np.zeros(size) if part is None else part.detach().numpy().ravel()
                    for part, size in pairs
                ]
            ).astype(np.float64, copy=False)
        return found

    def count(self) -> float:
        """Return the number of steps that the optimizer has taken."""
        kept = self.trainer.optimizer.state
        for w in self.trainer.tensors.values():
            if w in kept and "step" in kept[w]:
                return float(kept[w]["step"])
        return 1.0

    def split(self, entries: Array) -> Parameters:
        """Return each tensor's entries in its shape."""
        found: Parameters = {}
        for (name, view), start in zip(self.trainer.views.items(), self.starts, strict=True):
            found[name] = entries[start : start + view.size].reshape(view.shape)
        return found


def class_name(optimizer: object) -> str:
    """Name an optimizer's class."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def rule_of(trainer: TorchTrainer) -> Any:
    """Return the propagation through a trainer's optimizer; None where there is no formula.

    There is none for several groups that differ in more than lr and weight decay either.
    """
    groups = trainer.optimizer.param_groups
    options = [{k: v for k, v in one.items() if k not in ONLY_LR_AND_DECAY} for one in groups]
    alike = all(one == options[0] for one in options)
    plain = all(not isinstance(value, torch.Tensor) for one in groups for value in one.values())
    return RULES.get(class_name(trainer.optimizer)) if alike and plain else None
