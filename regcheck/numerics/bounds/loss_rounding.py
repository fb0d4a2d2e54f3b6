"""How far rounding can move a row's loss and dℓ/dz, where its output z is known to δz.

    dℓ/dz   δs_i ≤ L_i δz_i + 2u (|s_i| + |y_i|)             L_i bounds |d²ℓ/dz²| around z_i
    loss    what its evaluation adds, by `LossRounding.loss_error`

Where a sigmoid saturates, nearly all digits of 1 − p are lost, and BCELoss's floors are met: then
the bounds are by what the smaller one of p and 1 − p can be on either side, its `Tails`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from regcheck.numerics.losses import DENOMINATOR_FLOOR, LOG_FLOOR, Array
from regcheck.numerics.norms import norm
from regcheck.rules.losses import LOSSES


class Precision(NamedTuple):
    """What the dtypes of both sides hold.

    Attributes:
        u, finer_u: the unit roundoff of the coarser and of the finer dtype.
        floor: the coarser one's smallest normal number; below it, errors are absolute.
        top, finer_top: an eighth of either one's largest number. Sums of a few terms that are
            smaller cannot overflow.
        mixed: whether the dtypes differ.
        float32: whether the coarser one is float32.
    """

    u: float
    finer_u: float
    floor: float
    top: float
    finer_top: float
    mixed: bool
    float32: bool


def precision_of(scratch: str, framework: str) -> Precision:
    """Return what the sides' dtypes hold."""
    finer, coarser = sorted(map(np.finfo, (scratch, framework)), key=lambda info: float(info.eps))
    return Precision(
        u=float(coarser.eps) / 2,
        finer_u=float(finer.eps) / 2,
        floor=float(coarser.tiny),
        top=float(coarser.max) / 8,
        finer_top=float(finer.max) / 8,
        mixed=finer.dtype != coarser.dtype,
        float32=coarser.dtype == np.float32,
    )


class Tails(NamedTuple):
    """The least and the most that the smaller of p and 1 − p can be on either side, row by row."""

    least: Array
    most: Array


class LossRounding:
    """The rounding of one loss, of rows z and y with an error δz, (B,) each."""

    def __init__(
        self, model: str, loss: str, precision: Precision, own: Collection[str] = ()
    ) -> None:
        """Take a loss; of the sides in `own`, the user's code may evaluate it by any formula."""
        self.model, self.loss, self.precision = model, loss, precision
        self.u, self.own_code = precision.u, bool(own)
        # Up to it, BCELoss meets no floor, whatever rounding does to 1 − p.
        self.edge = -math.log(DENOMINATOR_FLOOR + 8 * self.u)
        # A user's module may have a sigmoid of its own, whose derivative is not p (1 − p).
        self.own_sigmoid = "framework" in own and self.u < DENOMINATOR_FLOOR
        if self.own_sigmoid:
            self.edge = 0.0

    def derivative_error(self, z: Array, y: Array, dz: Array, largest_z: float) -> float:
        """Bound ‖δs‖, but for 2u (‖s‖ + ‖y‖): δs_i ≤ L_i δz_i + 2u (|s_i| + |y_i|).

        Evaluating s(z) adds 2u (|s_i| + |y_i|), since |σ(z) − y| and |y| bound |σ(z)|; the squared
        error of a sigmoid adds 4u more σ(z), from its factor 1 − p. For the logistic model L_i is
        at most c σ′ in z_i ± δz_i, and so c e^(δz_i − |z_i|), or 3c e^(−|z_i|) where δz_i ≤ 1.
        """
        steepest = LOSSES[self.loss].steepest[self.model]
        if self.model == "linear":
            return steepest * norm(dz)
        odds = np.exp(z)
        tail = LOSSES[self.loss].tail
        steep = np.minimum((3 * tail) * np.minimum(odds, 1 / odds), steepest)
        if float(dz.max()) > 1:
            far = dz > 1
            nearest = np.minimum(dz[far] - np.abs(z[far]), 0)
            steep[far] = np.minimum(tail * np.exp(nearest), steepest)
        error = steep * dz + self.precision.floor  # σ(z) may underflow, and x_ij be large
        if self.loss == "mse":
            error += (4 * self.u) * np.minimum(odds, 1)
        elif self.may_fade(dz, largest_z):
            error += self.fading(z, y, dz)
        return norm(error)

    def may_fade(self, dz: Array, largest_z: float) -> bool:
        """Whether any row's output may be so large that BCELoss's floor is met."""
        return self.loss == "bce" and largest_z + float(dz.max()) > self.edge

    def tails(self, z: Array, dz: Array) -> Tails:
        """Bound t = e^(−|z|), the smaller of p and 1 − p where |z| is large, as a side has it.

        p = t is right to a few u of itself. 1 − p is t to 1.5u, which are the roundings of 1 + t
        and of the quotient; with t ≤ u/2, p is 1 by every formula, and 1 − p is 0: in the coarser
        dtype, and with t ≤ u/2 of the finer one's in both.
        """
        finer_u = self.precision.finer_u
        near, far = np.exp(dz - np.abs(z)), np.exp(-dz - np.abs(z))
        right = z > 0
        most = near + right * np.where(near > self.u / 2, 1.5 * self.u, 1.5 * finer_u)
        most[right & (near <= finer_u / 2)] = 0.0
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

    def loss_error(self, z: Array, y: Array, dz: Array, loss: float) -> float:
        """Bound what evaluating the row losses adds to the mean loss of one micro-batch.

        Linear: nothing more than the relative error of the sum has. With p = σ(z):

        - mse: p has the error 3u p, so δ(r²) ≤ 8u (|r| + u), and Cauchy-Schwarz bounds the mean
          of |r| by the root of the mean loss, of which `loss` is an upper bound
        - bce_with_logits: 4u |z|, the terms of which it is the sum; a user's code may take it from
          p, and then as bce
        - bce: 4u for log p, and what `log_error` has for log(1 − p) where y < 1. In float32, p
          is denormal for z < −85, with few bits left for its logarithm.
        """
        u, rows = self.u, len(z)
        match self.model, self.loss:
            case "logistic", "mse":
                return 8 * u * (math.sqrt(abs(loss)) + u)
            case "logistic", "bce_with_logits":
                error = 4 * u * norm(z) / math.sqrt(rows)
                if self.own_code:
                    of_log = np.abs(1 - y) * self.log_error(z, dz, math.log(u))
                    error += float(np.add.reduce(of_log)) / rows + 4 * u
                return error
            case "logistic", "bce":
                of_log = (y < 1) * self.log_error(z, dz, LOG_FLOOR)
                if self.precision.float32:
                    of_log += 15.0 * ((z < -85) & (y > 0))
                return float(np.add.reduce(of_log)) / rows + 4 * u
        return 0.0

    def log_error(self, z: Array, dz: Array, lowest: float) -> Array:
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
        ends = [np.log(np.maximum(tail, math.exp(lowest))) for tail in (least, most)]
        error[lost] = ends[1] - ends[0]
        if self.own_code and lowest == LOG_FLOOR:
            error[lost] = np.where(most == 0, -LOG_FLOOR, error[lost])
        return error


def gram_error(u: float, columns: Array, size: Array, target: float, rows: int) -> float:
    """Bound the rounding of a mean squared error that is summed as θᵀXᵀXθ − 2θᵀXᵀy + yᵀy.

    Its terms are as large as (Σ_j ‖x_j‖ |θ_j| + ‖y‖)², however small the residuals are.
    """
    largest = float(columns @ size) + target
    square = largest * largest  # inf where ** would raise
    return u * (math.sqrt(rows) + 2 * math.sqrt(len(columns)) + 6) * square / rows
