"""How large a local difference rounding can make, one step of a one-layer model.

With u the unit roundoff of the coarser dtype, B rows, d features, ‖x_j‖ the norm of X's column j
over the step's rows and ‖x_i‖ that of row i, Cauchy-Schwarz gives, with the probabilistic √n u
for a sum of n terms (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019):

    output      δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|)          √d, or more: `features_alike`
    slope       δs_i ≤ L_i δz_i + 2u (|s_i| + |y_i|)            L_i bounds |ds/dz| around z_i
    gradient    δg_j ≤ ‖x_j‖ (‖δs‖ + u (√B + 7) ‖s‖)/B          the residuals are s_i/B
    penalty     δp ≤ 4u lr λ |w|
    velocity    δv ← μ δv + (1 − τ) δG + 2u |v|                 δG = δg + 5u λ |w|
    shift       δ(lr d) ≤ lr δd + 2u lr |d|
    update      δw ≤ δ(lr d) + 2u (|w| + lr |d|)

The bias is the weight of a column of ones, so that ‖x_j‖ = √B. Of the 7 in the gradient, 3 are the
residuals and the products, 2 the addition of the penalty, and 2 the mean over micro-batches.

The terms are those of the framework's rule at the framework's parameters. A local difference of
several bounds is what rounding cannot explain; the tolerance says how many. Where numbers may leave
the range of the dtype, nothing is known: the bound is inf, since of two sides in one dtype either
may overflow first. Of two in different dtypes the coarser does, and that is no rounding: there the
bound is NaN, which allows no side to be infinite alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regcheck.numerics.losses import DENOMINATOR_FLOOR, LOG_FLOOR, sigmoid
from regcheck.numerics.norms import chosen, close_pairs, norm, norms
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem, Step

if TYPE_CHECKING:
    from regcheck.problem.batches import RowIndex

STEEPEST = {
    ("linear", "mse"): 2.0,
    ("logistic", "bce"): 0.25,
    ("logistic", "bce_with_logits"): 0.25,
    ("logistic", "mse"): 0.16,
}
"""The largest |d²ℓ/dz²| of each model and loss, over all z and all y from 0 to 1."""

TAIL = {"bce": 1.0, "bce_with_logits": 1.0, "mse": 2.5}
"""How many times σ′(z) ≤ e^(−|z|) the logistic model's |d²ℓ/dz²| can be, by loss."""


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
    """The largest sizes that |z|, the loss, the direction and any number of a step can have."""

    output: float
    loss: float
    direction: float
    all: float


class Tails(NamedTuple):
    """The least and the most that the smaller of p and 1 − p can be on either side, row by row."""

    least: Array
    most: Array


class RoundingModel:
    """Bounds for the steps of one problem, in order.

    Norms of the data are taken once. The error of the velocity is carried from step to step.
    """

    def __init__(self, problem: Problem, own: Collection[str] = ()) -> None:
        """Take a problem.

        Args:
            problem: what both sides train.
            own: which sides, of scratch and framework, are a user's own code, which may evaluate
                σ and the loss by any of the usual formulas.
        """
        self.problem, self.own_code = problem, bool(own)
        dtypes = (np.dtype(problem.scratch_dtype), np.dtype(problem.framework_dtype))
        finer, coarser = sorted(map(np.finfo, dtypes), key=lambda info: float(info.eps))
        self.mixed = finer.dtype != coarser.dtype
        self.u, self.finer_u = float(coarser.eps) / 2, float(finer.eps) / 2
        # Below the smallest normal number, errors are absolute.
        self.floor = float(coarser.tiny)
        # Sums of a few terms that are each below it cannot overflow: in any dtype, and in both.
        self.top = float(coarser.max) / 8
        self.common_top = float(finer.max) / 8
        # Up to it, BCELoss meets no floor, whatever rounding does to 1 − p.
        self.edge = -math.log(DENOMINATOR_FLOOR + 8 * self.u)
        # A user's module may have a sigmoid of its own, whose derivative is not p (1 − p).
        self.own_sigmoid = "framework" in own and self.u < DENOMINATOR_FLOOR
        if self.own_sigmoid:
            self.edge = 0.0
        self.fits_float32 = coarser.dtype == np.dtype(np.float32)
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
        self.velocity_error: Array | None = None
        self.largest_velocity = 0.0

    def bounds(self, batch: Batch, step: Step, slopes: Sequence[Array]) -> Bounds:
        """Bound the step's errors.

        Args:
            batch: the step's rows and lr.
            step: the framework's step.
            slopes: dℓ_i/dz_i of the rows of each micro-batch, at the same parameters.
        """
        u, lr = self.u, batch.lr
        assert step.delta is not None
        with np.errstate(all="ignore"):
            largest = self.largest_sizes(batch, step)
            outputs, loss, gradient = self.pass_bounds(batch, step, slopes, largest.output)
            size, moved = np.abs(flat(step.before)), np.abs(flat(step.delta))
            pull = self.decay * size
            penalty = (4 * u * lr) * pull + self.floor * (1 + lr)
            coupled = self.clipped(gradient, step) + (5 * u) * pull + self.floor
            shift = lr * self.direction_bound(coupled, step) + (2 * u) * moved + self.floor
            if lr < self.floor:  # the coarser dtype has few bits for it, or none
                shift += lr * largest.direction
            after = shift + (2 * u) * (size + moved)
        tensors = (split(vector, step.before) for vector in (gradient, penalty, shift, after))
        bounds = Bounds(outputs, loss, *tensors)
        if not largest.all < self.common_top:
            bounds = unbounded(bounds)
        elif not largest.loss < self.common_top:
            bounds = bounds._replace(loss=math.inf)
        return unknown_where_infinite(bounds) if self.mixed else bounds

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each dtype can do: u |w|."""
        return {name: self.u * np.abs(w) + self.floor for name, w in start.items()}

    def pass_bounds(
        self, batch: Batch, step: Step, slopes: Sequence[Array], largest_z: float
    ) -> tuple[tuple[Array, ...], float, Array]:
        """Bound outputs, loss and gradient; those of micro-batches add up, and are averaged."""
        u, parts = self.u, len(batch.micro_batches)
        assert step.outputs is not None
        assert step.loss is not None
        outputs, loss, gradient = [], 0.0, np.zeros(len(self.column_norms))
        for index, z, s in zip(batch.micro_batches, step.outputs, slopes, strict=True):
            rows, y = len(s), self.y_sizes[index]
            dz = self.output_bound(index, step.before)
            if self.may_fade(dz, largest_z):
                # No rule has steeper ones, and the loss is as steep where BCELoss passes nothing.
                s = sigmoid(z) - y
            slope, target = norm(s), norm(y)
            error = self.slope_error(z, y, dz, largest_z) + 2 * u * (slope + target)
            columns = np.minimum(self.column_norms, math.sqrt(rows) * self.column_peaks)
            gradient += columns * ((error + u * (self.terms(index, s) + 7) * slope) / rows)
            outputs.append(dz)
            # ℓ(z + δz) − ℓ(z) ≤ (|s| + L δz) δz, and what y's own rounding makes of it.
            loss += ((slope + error) * norm(dz) + 2 * u * slope * target) / rows
            loss += self.loss_rounding(z, y, dz, step.loss * parts)
            if self.own_code and self.problem.model == "linear":
                loss += self.gram_rounding(columns, target, rows, step.before)
            loss += u * (self.losses_alike(s) + 7) * abs(step.loss)
        return tuple(outputs), loss / parts + self.floor, gradient / parts + self.floor

    def terms(self, index: RowIndex, s: Array) -> Array | float:
        """Give how many terms' roundings add up in each column's sum, √B where they are random.

        Rounding a partial sum depends on the term just added, so that terms round alike which
        differ by less than the last digit of the sum, about u B of one. With groups of n_k such
        terms it is √(Σ n_k²), between √B and B; and Σ n_k² is B + B² times the share of pairs
        that are so close, both in x_j and in s.

        Args:
            index: the rows of X.
            s: their slopes.
        """
        rows = len(s)
        if rows < FEW:
            return math.sqrt(rows)
        tolerance, places = self.u * rows / 4, chosen(rows)
        slopes = s[places]
        ranked = np.sort(slopes)
        if np.min(ranked[1:] - ranked[:-1]) > tolerance * max(-ranked[0], ranked[-1]):
            return math.sqrt(rows)
        X = self.problem.X
        some = X[index][places] if isinstance(index, slice) else X[index[places]]
        columns = np.column_stack((some, np.ones((len(some), self.biases))))
        share = close_pairs(tolerance, columns, slopes[:, None])
        return np.asarray(np.sqrt(rows + rows**2 * share))

    def losses_alike(self, s: Array) -> float:
        """Give how many roundings add up in the loss: as in `terms`, of the rows' losses.

        Rows whose slopes are equally steep have equal losses, but where targets are no labels.
        """
        rows = len(s)
        if rows < FEW:
            return math.sqrt(rows)
        sizes = np.abs(s[chosen(rows)])[:, None]
        share = float(close_pairs(self.u * rows / 4, sizes, sizes).max())
        return math.sqrt(rows + rows**2 * share)

    def features_alike(self, weight: Array) -> float:
        """Give how many roundings add up in z_i: as in `terms`, but along a row."""
        features = weight.size
        if features < FEW:
            return math.sqrt(features)
        some = weight[0, self.chosen_features]
        share = float(close_pairs(self.u * features / 4, self.some_features, some[:, None]).max())
        return math.sqrt(features + features**2 * share)

    def output_bound(self, index: RowIndex, parameters: Parameters) -> Array:
        """δz_i ≤ u (√d + 2)(‖x_i‖‖w‖ + |b|), with more than √d where terms round alike."""
        weight, bias = sizes_of(parameters)
        factor = self.u * (self.features_alike(parameters["weight"]) + 2)
        bound: Array = self.row_norms[index] * (factor * weight) + (factor * bias + self.floor)
        return bound

    def slope_error(self, z: Array, y: Array, dz: Array, largest_z: float) -> float:
        """Bound ‖δs‖, but for 2u (‖s‖ + ‖y‖): δs_i ≤ L_i δz_i + 2u (|s_i| + |y_i|).

        Evaluating s(z) adds 2u (|s_i| + |y_i|), since |σ(z) − y| and |y| bound |σ(z)|; the squared
        error of a sigmoid adds 4u more σ(z), from its factor 1 − p. For the logistic model L_i is
        at most c σ′ in z_i ± δz_i, and so 3c e^(−|z_i|) where δz_i ≤ 1.
        """
        loss = self.problem.loss
        steepest = STEEPEST[self.problem.model, loss]
        if self.problem.model == "linear":
            return steepest * norm(dz)
        odds = np.exp(z)
        steep = np.minimum((3 * TAIL[loss]) * np.minimum(odds, 1 / odds), steepest)
        if float(dz.max()) > 1:
            steep[dz > 1] = steepest
        error = steep * dz + self.floor  # σ(z) may underflow, and x_ij be large
        if loss == "mse":
            error += (4 * self.u) * np.minimum(odds, 1)
        elif self.may_fade(dz, largest_z):
            error += self.fading(z, y, dz)
        return norm(error)

    def may_fade(self, dz: Array, largest_z: float) -> bool:
        """Say whether any row's output may be so large that BCELoss's floor is met."""
        return self.problem.loss == "bce" and largest_z + float(dz.max()) > self.edge

    def tails(self, z: Array, dz: Array) -> Tails:
        """Bound t = e^(−|z|), the smaller of p and 1 − p where |z| is large, as a side has it.

        p = t is right to a few u of itself. 1 − p is t to 1.5u, which are the roundings of 1 + t
        and of the quotient; with t ≤ u/2, p is 1 by every formula, and 1 − p is 0: in the coarser
        dtype, and with t ≤ u/2 of the finer one's in both.
        """
        near, far = np.exp(dz - np.abs(z)), np.exp(-dz - np.abs(z))
        right = z > 0
        most = near + right * np.where(near > self.u / 2, 1.5 * self.u, 1.5 * self.finer_u)
        most[right & (near <= self.finer_u / 2)] = 0.0
        return Tails(np.maximum(far - right * (1.5 * self.u), 0.0), most)

    def fading(self, z: Array, y: Array, dz: Array) -> Array:
        """Bound what BCELoss's floor does to δs, where s = (p − y) m with m = min(1, q/ε).

        q = p (1 − p) is the smaller of p and 1 − p where the floor of ε = 1e-12 can be met, so
        that δs ≤ |p − y| (m(most) − m(least)). A sigmoid of a user's own has the derivative
        t = e^(−z)/(1 + e^(−z))², without the rounding of 1 − p, so that m = t/max(q, ε).
        """
        least, most = self.tails(z, dz)
        high, low = (np.minimum(tail / DENOMINATOR_FLOOR, 1) for tail in (most, least))
        if self.own_sigmoid:
            near, far = np.exp(dz - np.abs(z)), np.exp(-dz - np.abs(z))
            rounding = np.where(z > 0, 1.5 * self.u, 0.0)
            ratios = [
                far / np.maximum(far + off, DENOMINATOR_FLOOR) for off in (-rounding, rounding)
            ]
            high = np.maximum(high, np.maximum(ratios[0], np.minimum(near / DENOMINATOR_FLOOR, 1)))
            low = np.minimum(low, ratios[1])
        return np.asarray(np.where(z > 0, np.abs(1 - y), y) * (high - low))

    def loss_rounding(self, z: Array, y: Array, dz: Array, loss: float) -> float:
        """Bound what evaluating the row losses adds to the mean loss of one micro-batch.

        Linear: nothing more than the relative error of the sum has. With p = σ(z):

        - mse: p has the error 3u p, so δ(r²) ≤ 8u (|r| + u), and Cauchy-Schwarz bounds the mean
          of |r| by the root of the mean loss, of which `loss` is an upper bound
        - bce_with_logits: 4u |z|, the terms of which it is the sum; a user's code may take it from
          p, and then as bce
        - bce: 4u for log p, and what `log_rounding` has for log(1 − p) where y < 1. In float32, p
          is denormal for z < −85, with few bits left for its logarithm.
        """
        u, rows = self.u, len(z)
        match self.problem.model, self.problem.loss:
            case "logistic", "mse":
                return 8 * u * (math.sqrt(abs(loss)) + u)
            case "logistic", "bce_with_logits":
                error = 4 * u * norm(z) / math.sqrt(rows)
                if self.own_code:
                    of_log = np.abs(1 - y) * self.log_rounding(z, dz, math.log(u))
                    error += float(np.add.reduce(of_log)) / rows + 4 * u
                return error
            case "logistic", "bce":
                of_log = (y < 1) * self.log_rounding(z, dz, LOG_FLOOR)
                if self.fits_float32:
                    of_log += 15.0 * ((z < -85) & (y > 0))
                return float(np.add.reduce(of_log)) / rows + 4 * u
        return 0.0

    def log_rounding(self, z: Array, dz: Array, lowest: float) -> Array:
        """Bound the error of log(1 − p), taken from p, beside that of z.

        a = 2u (1 + e^z) is the relative error of 1 − p, so that its logarithm's is 2a. Where that
        exceeds 1, 1 − p is anything within its `tails`, and the logarithm no less than `lowest`.
        Where p is 1 on both sides, so is the logarithm the same; but a user's code may have a
        floor of its own in the place of torch's.
        """
        error: Array = (4 * self.u) * (1 + np.exp(z))
        lost = error > 1
        if not lost.any():
            return error
        least, most = self.tails(z[lost], dz[lost])
        ends = [np.log(np.maximum(part, math.exp(lowest))) for part in (least, most)]
        error[lost] = ends[1] - ends[0]
        if self.own_code and lowest == LOG_FLOOR:
            error[lost] = np.where(most == 0, -LOG_FLOOR, error[lost])
        return error

    def gram_rounding(
        self, columns: Array, target: float, rows: int, parameters: Parameters
    ) -> float:
        """Bound the rounding of a mean squared error that is summed as θᵀXᵀXθ − 2θᵀXᵀy + yᵀy.

        Its terms are as large as (Σ_j ‖x_j‖ |θ_j| + ‖y‖)², however small the residuals are.
        """
        size = float(columns @ np.abs(flat(parameters))) + target
        return self.u * (math.sqrt(rows) + 2 * math.sqrt(len(columns)) + 6) * size**2 / rows

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
        wobble = factor * (error / (size + 1e-6) + 3 * self.u) + self.floor
        if size * size > self.top:
            wobble = factor
        return factor * gradient + wobble * np.abs(g)

    def direction_bound(self, coupled: Array, step: Step) -> Array:
        """Carry the bound on the gradient with its penalty through momentum."""
        options = self.problem.optimizer
        if options.momentum == 0:
            return coupled
        if self.velocity_error is None:
            velocity = coupled
        else:
            velocity = options.momentum * self.velocity_error + abs(1 - options.dampening) * coupled
            velocity += (2 * self.u) * np.abs(flat(step.velocity)) + self.floor
        self.velocity_error = velocity
        return coupled + options.momentum * velocity if options.nesterov else velocity

    def largest_sizes(self, batch: Batch, step: Step) -> Sizes:
        """Judge how large numbers can be by the parameters before the step.

        What they have become in the step tells nothing of what they should be.
        """
        options = self.problem.optimizer
        weight, bias = sizes_of(step.before)
        z = self.largest_row * weight + bias
        s = 2 * (z + self.largest_y) if self.problem.model == "linear" else 1.0
        g = self.largest_x * s + self.largest_decay * (weight + bias)
        gain = max(1.0, abs(1 - options.dampening))
        self.largest_velocity = options.momentum * self.largest_velocity + gain * g
        d = g + self.largest_velocity
        largest = max(z, d, batch.lr, weight + bias + batch.lr * d)
        return Sizes(z, batch.size * s * s, d, largest)


def unknown_where_infinite(bounds: Bounds) -> Bounds:
    """Put NaN in the place of infinite bounds."""
    if math.isfinite(bounds.loss + sum(float(np.sum(part)) for part in bounds.after.values())):
        return bounds

    def unknown(bound: Array) -> Array:
        return np.where(np.isfinite(bound), bound, math.nan)

    tensors = (
        {name: unknown(bound) for name, bound in part.items()}
        for part in (bounds.gradient, bounds.penalty, bounds.delta, bounds.after)
    )
    loss = bounds.loss if math.isfinite(bounds.loss) else math.nan
    return Bounds(tuple(map(unknown, bounds.outputs)), loss, *tensors)


def unbounded(bounds: Bounds) -> Bounds:
    """Give bounds of the same shapes that allow everything."""
    tensors = (
        {name: np.full_like(bound, math.inf) for name, bound in part.items()}
        for part in (bounds.gradient, bounds.penalty, bounds.delta, bounds.after)
    )
    return Bounds(tuple(np.full_like(dz, math.inf) for dz in bounds.outputs), math.inf, *tensors)


def sizes_of(parameters: Parameters) -> tuple[float, float]:
    """Give ‖w‖ and |b|, which is 0 where there is no bias."""
    bias = parameters.get("bias")
    return norm(parameters["weight"][0]), 0.0 if bias is None else abs(bias.item())


def flat(parameters: Parameters) -> Array:
    """Put the weight, and the bias where there is one, into one vector in float64."""
    parts = [parameters["weight"][0], *([parameters["bias"]] if "bias" in parameters else [])]
    vector: Array = np.concatenate(parts, dtype=np.float64, casting="same_kind")
    return vector


def split(vector: Array, like: Parameters) -> Parameters:
    """Undo `flat`, for parameters like some."""
    features = like["weight"].size
    tensors = {"weight": vector[None, :features]}
    return tensors | {"bias": vector[features:]} if "bias" in like else tensors
