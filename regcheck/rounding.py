"""How large a local difference rounding can make, one step of a one-layer model.

With u the unit roundoff of the coarser dtype, B rows, d features, ‖x_j‖ the norm of X's column j
over the step's rows and ‖x_i‖ that of row i, Cauchy-Schwarz gives, with the probabilistic √n u
for a sum of n terms (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019):

    output      δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|)
    slope       δs_i ≤ L δz_i + 2u (|s_i| + |y_i|)              L bounds |ds/dz|
    residual    δr_i ≤ δs_i/B + 2u |r_i|                        r_i = s_i/B
    gradient    δg_j ≤ ‖x_j‖ (‖δr‖ + u (√B + 3) ‖r‖)            bias: ‖x_j‖ = √B
    penalty     δp ≤ 4u lr λ |w|
    velocity    δv ← μ δv + (1 − τ) δG + 2u |v|                 G = g + λ w
    shift       δ(lr d) ≤ lr δd + 2u lr |d|
    update      δw ≤ δ(lr d) + 2u |w|

The terms are those of the framework's rule at the framework's parameters. A local difference of
several bounds is what rounding cannot explain; the tolerance says how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regcheck.problem import Array, Parameters, Problem, Step
from regcheck.schedule import Batch

if TYPE_CHECKING:
    from regcheck.schedule import RowIndex

SLOPE_OF_SLOPE = {
    ("linear", "mse"): 2.0,
    ("logistic", "bce"): 0.25,
    ("logistic", "bce_with_logits"): 0.25,
    ("logistic", "mse"): 0.5,
}
"""The largest |d²ℓ/dz²| of each model and loss."""


class Bounds(NamedTuple):
    """The largest differences that rounding can cause in one step, shaped like what they bound."""

    outputs: tuple[Array, ...]
    loss: float
    gradient: Parameters
    penalty: Parameters
    shift: Parameters
    after: Parameters


class RoundingModel:
    """Bounds for the steps of one problem, in order.

    Norms of the data are taken once. The error of the velocity is carried from step to step.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        dtypes = (np.dtype(problem.scratch_dtype), np.dtype(problem.framework_dtype))
        coarser = max((np.finfo(dtype) for dtype in dtypes), key=lambda info: float(info.eps))
        self.u = float(coarser.eps) / 2
        # Below the smallest normal number, errors are absolute.
        self.floor = float(coarser.tiny)
        self.single = coarser.dtype == np.dtype(np.float32)
        self.row_norms = norms(problem.X, axis=1)
        self.column_norms = norms(problem.X, axis=0)
        self.column_peaks = np.abs(problem.X).max(axis=0)
        self.y_sizes = np.abs(problem.y)
        self.key = (problem.model, problem.loss)
        self.velocity_error: Parameters | None = None

    def bounds(self, batch: Batch, step: Step, slopes: Sequence[Array]) -> Bounds:
        """Bound the step's errors.

        Args:
            batch: the step's rows and lr.
            step: the framework's step.
            slopes: dℓ_i/dz_i of the rows of each micro-batch, at the same parameters.
        """
        with np.errstate(all="ignore"):
            outputs, loss, gradient = self.pass_bounds(batch, step, slopes)
            seen = self.clipped(gradient, step)
            penalty: Parameters = {}
            shift: Parameters = {}
            after: Parameters = {}
            directions = self.direction_bounds(seen, step)
            for name, w in step.before.items():
                strength = self.problem.weight_decay[name]
                penalty[name] = 4 * self.u * batch.lr * strength * np.abs(w) + self.floor
                shift[name] = (
                    batch.lr * directions[name] + 2 * self.u * np.abs(step.shift[name]) + self.floor
                )
                sizes = np.maximum(np.abs(w), np.abs(step.after[name]))
                after[name] = shift[name] + 2 * self.u * sizes
        return Bounds(outputs, loss, gradient, penalty, shift, after)

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each dtype can do: u |w|."""
        return {name: self.u * np.abs(w) + self.floor for name, w in start.items()}

    def pass_bounds(
        self, batch: Batch, step: Step, slopes: Sequence[Array]
    ) -> tuple[tuple[Array, ...], float, Parameters]:
        """Bound outputs, loss and gradient; those of micro-batches add up, and are averaged."""
        u, parts = self.u, len(batch.parts)
        outputs, loss, weight, bias = [], 0.0, 0.0, 0.0
        for index, z, s in zip(batch.parts, step.outputs, slopes, strict=True):
            rows = len(s)
            y = self.y_sizes[index]
            dz = self.output_bound(index, step.before)
            ds = SLOPE_OF_SLOPE[self.key] * dz + self.slope_rounding(z, s, y)
            dr = norm(ds) / rows + 2 * u * norm(s) / rows
            total = dr + u * (math.sqrt(rows) + 3) * norm(s) / rows
            columns = np.minimum(self.column_norms, math.sqrt(rows) * self.column_peaks)
            weight = weight + columns * total
            bias = bias + math.sqrt(rows) * total
            outputs.append(dz)
            loss += self.loss_bound(z, s, y, dz, step.loss)
        gradient = {
            "weight": (np.asarray(weight) / parts)[None, :],
            "bias": np.asarray([bias / parts]),
        }
        extra = {name: u * np.abs(g) + self.floor for name, g in step.gradient.items()}
        return (
            tuple(outputs),
            loss / parts,
            {name: gradient[name] + extra[name] for name in gradient},
        )

    def output_bound(self, index: RowIndex, parameters: Parameters) -> Array:
        """δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|)."""
        features = parameters["weight"].size
        size = self.row_norms[index] * norm(parameters["weight"][0]) + abs(
            float(parameters["bias"][0])
        )
        bound: Array = self.u * (math.sqrt(features) + 2) * size + self.floor
        return bound

    def slope_rounding(self, z: Array, s: Array, y: Array) -> Array:
        """What evaluating s(z) adds: 2u (|s_i| + |y_i|), since |σ(z) − y| and |y| bound |σ(z)|.

        Where σ(z) is within rounding of 0 or 1, BCELoss's backward pass divides by p (1 − p) or
        by its floor of 1e-12, whichever rounding leaves larger, and the slope is anything up to
        |p − y|. The squared error's factor p (1 − p) has rounding of its own size there.
        """
        u = self.u
        rounding: Array = 2 * u * (np.abs(s) + y)
        if self.key == ("logistic", "mse"):
            return rounding + 3 * u
        if self.key == ("logistic", "bce"):
            edge = -math.log(1e-12 + 8 * u)
            if np.max(np.abs(z)) > edge:
                lost = min(1.0, 8 * u / 1e-12)
                wrong = np.abs((z > 0) - y)
                rounding = rounding + np.where(np.abs(z) > edge, lost * wrong, 0.0)
        return rounding

    def loss_bound(self, z: Array, s: Array, y: Array, dz: Array, loss: float) -> float:
        """Bound the mean loss of one micro-batch.

        δℓ_i ≤ |s_i| δz_i + L δz_i²/2 + evaluation, and u (√B + 3)|loss| for the sum. Evaluating
        takes 4u (|s_i|(|z_i| + |y_i|) + ℓ_i); BCELoss's log(1 − p) has the relative error of
        1 − p besides, u e^z_i, and no more than the floor of 100.
        """
        u, rows = self.u, len(s)
        each = np.abs(s)
        total = float(each @ dz) + SLOPE_OF_SLOPE[self.key] / 2 * float(dz @ dz)
        total += 4 * u * float(each @ (np.abs(z) + y))
        if self.key == ("logistic", "mse"):
            total += 8 * u * rows
        elif self.key == ("logistic", "bce_with_logits"):
            total += 4 * u * float(np.abs(z).sum())
        elif self.key == ("logistic", "bce"):
            total += float(np.minimum(4 * u * (1 + np.exp(z)), 100.0) @ (y < 1))
            if self.single:
                # σ(z) is denormal in float32 there, with few bits left for its logarithm.
                total += 15.0 * float(np.count_nonzero((z < -85) & (y > 0)))
        return total / rows + u * (math.sqrt(rows) + 7) * abs(loss) + self.floor

    def clipped(self, gradient: Parameters, step: Step) -> Parameters:
        """Carry the gradient's bound through clipping.

        With f = min(1, C/(‖g‖ + 1e-6)): δ(f g) ≤ f δg + |g| δf, where f can change at all
        δf ≤ f (δ‖g‖/‖g‖ + 3u), and δ‖g‖ ≤ ‖δg‖ + u (√N + 2)‖g‖ over all N entries.
        Clipping each entry makes no error larger.
        """
        limit = self.problem.clip_norm
        if limit is None:
            return gradient
        entries = sum(g.size for g in gradient.values())
        size = math.hypot(*(norm(g.ravel()) for g in step.gradient.values()))
        error = math.hypot(*(norm(d.ravel()) for d in gradient.values()))
        error += self.u * (math.sqrt(entries) + 2) * size
        factor = min(1.0, limit / (size + 1e-6))
        wobble = (
            factor * (error / (size + 1e-6) + 3 * self.u) if size + error >= limit - 1e-6 else 0.0
        )
        return {
            name: factor * gradient[name] + wobble * np.abs(g) for name, g in step.gradient.items()
        }

    def direction_bounds(self, seen: Parameters, step: Step) -> Parameters:
        """Carry the bound on the gradient through penalty and momentum."""
        u, options = self.u, self.problem.optimizer
        coupled: Parameters = {}
        for name, bound in seen.items():
            pull = self.problem.weight_decay[name] * np.abs(step.before[name])
            coupled[name] = bound + 3 * u * pull + 2 * u * (np.abs(step.gradient[name]) + pull)
        if options.momentum == 0:
            return coupled
        gain = abs(1 - options.dampening)
        if self.velocity_error is None:
            velocity = coupled
        else:
            velocity = {
                name: options.momentum * self.velocity_error[name]
                + gain * bound
                + 2 * u * np.abs(step.velocity[name])
                for name, bound in coupled.items()
            }
        self.velocity_error = velocity
        if not options.nesterov:
            return velocity
        return {name: bound + options.momentum * velocity[name] for name, bound in coupled.items()}


def norm(vector: Array) -> float:
    """‖v‖ in float64; computed from v over its largest entry where squares would overflow."""
    size = math.sqrt(float(np.dot(vector, vector)))
    if math.isfinite(size) and size > 1e-140:
        return size
    peak = float(np.abs(vector).max(initial=0.0))
    if not 0 < peak < math.inf:
        return peak
    scaled = vector / peak
    return peak * math.sqrt(float(np.dot(scaled, scaled)))


def norms(X: Array, axis: int) -> Array:
    """‖x‖ along an axis of X, safe against overflow; X is read block by block."""
    peak = float(np.abs(X).max())
    if peak == 0:
        return np.zeros(X.shape[1 - axis])
    scale = peak if not 1e-100 < peak < 1e100 else 1.0
    X = X / scale if scale != 1.0 else X
    size: Array = scale * np.sqrt(np.einsum("ij,ij->i" if axis else "ij,ij->j", X, X))
    return size
