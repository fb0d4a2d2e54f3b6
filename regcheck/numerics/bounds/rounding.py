"""How large a local difference rounding can make, one step of a one-layer model.

With u the unit roundoff of the coarser dtype, B rows, d features, ‖x_j‖ the norm of X's column j
over the step's rows and ‖x_i‖ that of row i, Cauchy-Schwarz gives, with the probabilistic √n u
for a sum of n terms (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019):

    output      δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|)           √d, or more: `features_alike`
    dℓ/dz       δs_i ≤ L_i δz_i + 2u (|s_i| + |y_i|)        `loss_rounding`
    gradient    δg_j ≤ ‖x_j‖ (‖δs‖ + u (√B + 5 + a) ‖s‖)/B  the residuals are s_i/B
    penalty     δp ≤ 4u lr λ |w|
    velocity    δv ← μ δv + (1 − τ) δG + 2u |v|             δG = δg + 5u λ |w|
    delta       δ(lr d) ≤ lr δd + 2u lr |d|
    update      δw ≤ δ(lr d) + 2u (|w| + lr |d|)

The bias is the weight of a column of ones, so that ‖x_j‖ = √B. Of the 5 in the gradient, 3 are the
residuals and the products, and 2 the addition of the penalty; a is the mean over micro-batches
(`averaging`), 2 where there is one or two.

The terms are those of the framework's rule at the framework's parameters. A local difference of
several bounds is what rounding cannot explain; the tolerance says how many. Where numbers may leave
the range of the dtype, nothing is known: the bound is inf, since of two sides in one dtype either
may overflow first. Of two in different dtypes the coarser does, and that is no rounding: there the
bound is NaN, which allows no side to be infinite alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regcheck.numerics.bounds.loss_rounding import LossRounding, gram_error, precision_of
from regcheck.numerics.bounds.step_rounding import allowed
from regcheck.numerics.bounds.update_rounding import RoundingState, UpdateRounding
from regcheck.numerics.losses import sigmoid
from regcheck.numerics.norms import chosen, close_pairs, norm, norms
from regcheck.numerics.packing import flat
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem, Step

if TYPE_CHECKING:
    from regcheck.problem.batches import RowIndex

FEW = 256
"""Rows below which B and √B are too close together for the difference to matter."""


class Bounds(NamedTuple):
    """The largest differences that rounding can cause in one step, shaped like what they bound."""

    outputs: tuple[Array, ...]
    loss: float
    gradient: Parameters
    penalty: Parameters
    delta: Parameters
    after: Parameters


class Sizes(NamedTuple):
    """The largest sizes that |z|, the loss, v, the direction and any number of a step can have."""

    output: float
    loss: float
    velocity: float
    direction: float
    all: float


class RoundingModel:
    """Bounds for the steps of one problem. Norms of the data are taken once."""

    def __init__(self, problem: Problem, own: Collection[str] = ()) -> None:
        """Take a problem; `own` are the sides that are a user's code, scratch or framework.

        That may evaluate σ and the loss by any of the usual formulas.
        """
        self.problem, self.own_code = problem, bool(own)
        self.precision = precision_of(problem.scratch_dtype, problem.framework_dtype)
        self.u, self.floor = self.precision.u, self.precision.floor
        self.loss = LossRounding(problem.model, problem.loss, self.precision, own)
        X = problem.X
        self.row_norms, column_norms, peaks = norms(X)
        # A bias is the weight of a column of ones.
        ones = [1.0] if "bias" in problem.initial else []
        self.biases = len(ones)
        self.column_norms = np.append(column_norms, math.sqrt(len(X)) * np.array(ones))
        self.column_peaks = np.append(peaks, ones)
        # Some features of some rows, (features, rows), to see which are alike.
        self.chosen_features = chosen(X.shape[1])
        self.some_features = X[chosen(len(X))][:, self.chosen_features].T
        self.largest_row = float(self.row_norms.max())
        self.largest_x = float(self.column_peaks.max())
        self.y_sizes = np.abs(problem.y)
        self.largest_y = float(self.y_sizes.max())
        decays = problem.weight_decay
        self.decay = flat(
            {name: np.full_like(w, decays[name]) for name, w in problem.initial.items()}
        )
        self.largest_decay = float(self.decay.max())
        self.update = UpdateRounding(problem, self.u, self.floor, self.decay)

    def bounds(
        self, state: RoundingState, batch: Batch, step: Step, dloss_dz: Sequence[Array]
    ) -> tuple[Bounds, RoundingState]:
        """Bound a step's errors; with the state after it.

        Args:
            state: what the step before carried on.
            batch: the step's rows and lr.
            step: the framework's step.
            dloss_dz: dℓ_i/dz_i of the rows of each micro-batch, at the same parameters.
        """
        u, lr = self.u, batch.lr
        largest = self.largest_sizes(state, batch, step)
        outputs, loss, gradient = self.pass_bounds(batch, step, dloss_dz, largest.output)
        decay = self.decay * np.abs(flat(step.before))
        penalty = (4 * u * lr) * decay + self.floor * (1 + lr)
        noise = self.clipped(gradient, step)
        delta, after, state = self.update.bounds(
            state, batch, step, noise, (largest.direction, largest.velocity)
        )
        total = float(np.sum(after)) if self.precision.mixed else 0.0
        tensors = (split(vector, step.before) for vector in (gradient, penalty, delta, after))
        bounds = Bounds(outputs, loss, *tensors)
        if not largest.all < self.precision.finer_top:
            bounds = replaced(bounds, lambda bound: np.full_like(bound, math.inf))
        elif not largest.loss < self.precision.finer_top:
            bounds = bounds._replace(loss=math.inf)
        if self.precision.mixed and not math.isfinite(bounds.loss + total):
            bounds = replaced(bounds, lambda bound: np.where(np.isfinite(bound), bound, math.nan))
        return bounds, state

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each dtype can do: u |w|."""
        return {name: self.u * np.abs(w) + self.floor for name, w in start.items()}

    def pass_bounds(
        self, batch: Batch, step: Step, dloss_dz: Sequence[Array], largest_z: float
    ) -> tuple[tuple[Array, ...], float, Array]:
        """Bound outputs, loss and gradient; those of micro-batches add up, and are averaged."""
        u, count = self.u, len(batch.micro_batches)
        assert step.outputs is not None
        assert step.loss is not None
        outputs, loss, gradient = [], 0.0, np.zeros(len(self.column_norms))
        few = 5 + averaging(count, self.problem.schedule.processes)
        for index, z, s in zip(batch.micro_batches, step.outputs, dloss_dz, strict=True):
            rows, y = len(s), self.y_sizes[index]
            dz = self.output_bound(index, step.before)
            if self.loss.may_fade(dz, largest_z):
                # No rule has a steeper one, and the loss is as steep where BCELoss passes nothing.
                s = sigmoid(z) - y
            size, target = norm(s), norm(y)
            error = self.loss.derivative_error(z, y, dz, largest_z) + 2 * u * (size + target)
            columns = np.minimum(self.column_norms, math.sqrt(rows) * self.column_peaks)
            gradient += columns * ((error + u * (self.terms(index, s) + few) * size) / rows)
            outputs.append(dz)
            # ℓ(z + δz) − ℓ(z) ≤ (|s| + L δz) δz, and what y's own rounding makes of it.
            loss += ((size + error) * norm(dz) + 2 * u * size * target) / rows
            loss += self.loss.loss_error(z, y, dz, step.loss * count)
            if self.own_code and self.problem.model == "linear":
                loss += gram_error(u, columns, np.abs(flat(step.before)), target, rows)
            loss += u * (self.losses_alike(s) + 7) * abs(step.loss)
        return tuple(outputs), loss / count + self.floor, gradient / count + self.floor

    def terms(self, index: RowIndex, s: Array) -> Array | float:
        """Return how many terms' roundings add up in each column's sum, √B where they are random.

        Rounding a partial sum depends on the term just added, so that terms round alike which
        differ by less than the last digit of the sum, about u B of one. With groups of n_k such
        terms it is √(Σ n_k²), between √B and B; and Σ n_k² is B + B² times the share of pairs
        that are so close, both in x_j and in s.

        Args:
            index: the rows of X.
            s: their dℓ_i/dz_i.
        """
        rows = len(s)
        if rows < FEW:
            return math.sqrt(rows)
        tolerance, places = self.u * rows / 4, chosen(rows)
        some_s = s[places]
        ranked = np.sort(some_s)
        if np.min(ranked[1:] - ranked[:-1]) > tolerance * max(-ranked[0], ranked[-1]):
            return math.sqrt(rows)
        X = self.problem.X
        some = X[index][places] if isinstance(index, slice) else X[index[places]]
        columns = np.column_stack((some, np.ones((len(some), self.biases))))
        share = close_pairs(tolerance, columns, some_s[:, None])
        return np.asarray(np.sqrt(rows + rows**2 * share))

    def losses_alike(self, s: Array) -> float:
        """Return how many roundings add up in the loss: as in `terms`, of the rows' losses.

        Rows of one |s| have equal losses, but where targets are no labels.
        """
        rows = len(s)
        if rows < FEW:
            return math.sqrt(rows)
        share = close_pairs(self.u * rows / 4, np.abs(s[chosen(rows)])[:, None])
        return math.sqrt(rows + rows**2 * float(share.max()))

    def features_alike(self, weight: Array) -> float:
        """Return how many roundings add up in z_i: as in `terms`, but along a row."""
        features = weight.size
        if features < FEW:
            return math.sqrt(features)
        some = weight[0, self.chosen_features]
        share = close_pairs(self.u * features / 4, self.some_features, some[:, None])
        return math.sqrt(features + features**2 * float(share.max()))

    def output_bound(self, index: RowIndex, parameters: Parameters) -> Array:
        """δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|), with more than √d where terms round alike."""
        weight, bias = sizes_of(parameters)
        factor = self.u * (self.features_alike(parameters["weight"]) + 2)
        bound: Array = self.row_norms[index] * (factor * weight) + (factor * bias + self.floor)
        return bound

    def clipped(self, gradient: Array, step: Step) -> Array:
        """Carry the gradient's bound through clipping.

        With f = min(1, C/(‖g‖ + 1e-6)): δ(f g) ≤ f δg + |g| δf, where f can change at all
        δf ≤ f (δ‖g‖/‖g‖ + 3u), and δ‖g‖ ≤ ‖δg‖ + u (√N + 2)‖g‖ over all N entries; where ‖g‖²
        overflows, f is anything down to 0. Clipping each entry makes no error larger.
        """
        limit = self.problem.clip_norm
        if limit is None:
            return gradient
        assert step.gradient is not None
        g = flat(step.gradient)
        size = norm(g)
        error = norm(gradient) + self.u * (math.sqrt(len(g)) + 2) * size
        factor = min(1.0, limit / (size + 1e-6))
        if (size + error) * (1 + 4 * self.u) < limit - 1e-6:
            return gradient
        factor_error = factor * (error / (size + 1e-6) + 3 * self.u) + self.floor
        if size * size > self.precision.top:
            factor_error = factor
        return factor * gradient + factor_error * np.abs(g)

    def largest_sizes(self, state: RoundingState, batch: Batch, step: Step) -> Sizes:
        """Bound how large numbers can be, by the parameters before the step.

        What they have become in the step says nothing of what they should be.
        """
        options = self.problem.settings
        weight, bias = sizes_of(step.before)
        z = self.largest_row * weight + bias
        s = 2 * (z + self.largest_y) if self.problem.model == "linear" else 1.0
        g = self.largest_x * s + self.largest_decay * (weight + bias)
        gain = max(1.0, abs(1 - options.dampening))
        v = options.momentum * state.largest_velocity + gain * g
        d = g + v
        largest = max(z, d, batch.lr, weight + bias + batch.lr * d)
        return Sizes(z, batch.size * s * s, v, d, largest)


def averaging(count: int, processes: int) -> float:
    """Return how many roundings the mean of several gradients adds up to.

    The sum has √(k − 1) of its k − 1, in whatever order they are; its factor 1/k is one more. By R
    processes torch has 1/a for the a shares of each rank, and then a rounded 1/R: three.
    """
    return max(2.0, (3 if processes > 1 else 1) + math.sqrt(count - 1))


def allowing(bounds: Bounds, state: RoundingState, *sides: Parameters) -> Bounds:
    """Allow entries to be no number on either side where rounding alone may make them so."""
    if state.lost is None:
        return bounds
    ends = (flat({name: side[name] for name in bounds.after}) for side in sides)
    after = split(allowed(flat(bounds.after), state.lost, *ends), bounds.after)
    return bounds._replace(delta=after, after=after)


def replaced(bounds: Bounds, change: Callable[[Array], Array]) -> Bounds:
    """Change each bound."""
    outputs, loss, *tensors = bounds
    return Bounds(
        tuple(map(change, outputs)),
        float(change(np.asarray(loss))),
        *({name: change(bound) for name, bound in each.items()} for each in tensors),
    )


def sizes_of(parameters: Parameters) -> tuple[float, float]:
    """Return ‖w‖ and |b|, which is 0 where there is no bias."""
    bias = parameters.get("bias")
    return norm(parameters["weight"][0]), 0.0 if bias is None else abs(bias.item())


def split(vector: Array, like: Parameters) -> Parameters:
    """Undo `flat`, for parameters like some."""
    features = like["weight"].size
    tensors = {"weight": vector[None, :features]}
    return tensors | {"bias": vector[features:]} if "bias" in like else tensors
