"""The losses of one row with their derivatives, as functions of a model's output z.

Each takes z and y of shape (B,), or z (B, K) and labels y (B,), and returns the rows' losses ℓ_i,
(B,), and dℓ_i/dz_i, shaped as z, both in z's dtype. Sums, means and factors are the trainer's:
conventions differ in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.rules.losses import NO_OPTIONS, LossOptions

Array = NDArray[np.floating]

LOG_FLOOR = -100.0
"""torch.nn.BCELoss takes no logarithm below this (torch's docs; aten/native/Loss.cpp)."""

DENOMINATOR_FLOOR = float(np.float32(1e-12))
"""BCELoss's backward divides by p (1 − p), but by no less than this (aten/native/Loss.cpp).

There it is `constexpr float EPSILON`: float32's 1e-12, which is 4e-9 of it less, in float64 too.
"""

UNSATURATED = 16.0
"""The |z| up to which p (1 − p) is far above that floor in float32 too: e^(−16) is 1.9 units of 1's
last place there."""


class RowLosses(NamedTuple):
    """The rows' losses (B,), and their derivatives with respect to z."""

    values: Array
    dloss_dz: Array


def sigmoid(z: Array) -> Array:
    """σ(z) = 1/(1 + e^(−z)). Where e^(−z) overflows, the result is the right one, 0."""
    p: Array = 1 / (1 + np.exp(-z))
    return p


def mse(z: Array, y: Array) -> RowLosses:
    """ℓ = (z − y)², dℓ/dz = 2 (z − y). torch.nn.MSELoss: no ½."""
    r = z - y
    return RowLosses(r * r, 2 * r)


def bce(z: Array, y: Array) -> RowLosses:
    """ℓ = −y log p − (1 − y) log(1 − p) with p = σ(z); dℓ/dz = p − y.

    torch.nn.BCELoss's floors are part of it: logarithms stop at −100, and dℓ/dz is
    (p − y) q/max(q, 1e-12) with q = p (1 − p), which fades out where p is 0 or 1 to rounding.
    """
    p = sigmoid(z)
    other = 1 - p
    log_p, log_other, dloss_dz = np.log(p), np.log(other), p - y
    q = p * other
    if not q.min() >= DENOMINATOR_FLOOR:  # else no floor is met, since log 1e-12 > −100
        log_p, log_other = np.maximum(log_p, LOG_FLOOR), np.maximum(log_other, LOG_FLOOR)
        dloss_dz = dloss_dz * q / np.maximum(q, DENOMINATOR_FLOOR)
    return RowLosses((y - 1) * log_other - y * log_p, dloss_dz)


def bce_plain(z: Array, y: Array) -> RowLosses:
    """ℓ as `bce` has it; dℓ/dz = p − y, as a derivation by hand gives it: no floor."""
    return bce(z, y)._replace(dloss_dz=sigmoid(z) - y)


def saturated(z: Array) -> NDArray[np.bool_]:
    """Return of which rows BCELoss passes less than p − y: where p (1 − p) < 1e-12.

    That is beyond z = ±27.6; in float32 from z = 17.3 on, where p is 1 to rounding.
    """
    if not float(np.abs(z).max()) > UNSATURATED:
        return np.zeros(z.shape, np.bool_)
    with np.errstate(over="ignore"):
        p = sigmoid(z)
    found: NDArray[np.bool_] = p * (1 - p) < DENOMINATOR_FLOOR
    return found


def bce_with_logits(z: Array, y: Array) -> RowLosses:
    """ℓ = max(z, 0) − z y + log(1 + e^(−|z|)), dℓ/dz = σ(z) − y. torch.nn.BCEWithLogitsLoss."""
    return RowLosses(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))), sigmoid(z) - y)


def brier(z: Array, y: Array) -> RowLosses:
    """ℓ = (p − y)² with p = σ(z), dℓ/dz = 2 (p − y) p (1 − p). torch.nn.MSELoss of a sigmoid."""
    p = sigmoid(z)
    r = p - y
    return RowLosses(r * r, 2 * r * p * (1 - p))


def log_softmax(z: Array) -> Array:
    """Log p = z − m − log Σⱼ e^(zⱼ − m) with m = max z, for z (B, K)."""
    shifted = z - z.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def cross_entropy(z: Array, y: Array, options: LossOptions = NO_OPTIONS) -> RowLosses:
    """ℓ = −Σⱼ tⱼ log pⱼ with p = softmax(z); dℓ/dz = p Σⱼ tⱼ − t. torch.nn.CrossEntropyLoss.

    tⱼ = (1 − ε) wⱼ [j = y] + ε wⱼ/K with the classes' weights w, for labels y from 0 to K − 1
    (aten/native/LossNLL.cpp, `cross_entropy_loss_label_smoothing`).
    """
    targets, totals = targets_by_label(z.shape[1], options, z.dtype)
    t, log_p = targets[y], log_softmax(z)
    return RowLosses(-(t * log_p).sum(axis=1), np.exp(log_p) * totals[y] - t)


def class_targets(z: Array, y: Array, options: LossOptions) -> Array:
    """Return tⱼ of `cross_entropy`, (B, K), in z's dtype."""
    t: Array = targets_by_label(z.shape[1], options, z.dtype)[0][y]
    return t


@lru_cache
def targets_by_label(
    classes: int, options: LossOptions, dtype: np.dtype[np.floating]
) -> tuple[Array, Array]:
    """Return tⱼ of `cross_entropy` for each label in turn, (K, K), and Σⱼ tⱼ, (K, 1)."""
    t: Array = np.eye(classes, dtype=dtype)
    if options.label_smoothing:
        t = (1 - options.label_smoothing) * t + options.label_smoothing / classes
    if options.weight is not None:
        t = t * np.array(options.weight, dtype)
    return t, t.sum(axis=1, keepdims=True)


def total_weight(y: Array, options: LossOptions) -> float:
    """Return what a mean over rows divides by: their number, or Σ w_y with classes' weights."""
    return len(y) if options.weight is None else float(np.array(options.weight)[y].sum())


LOSSES: dict[tuple[str, str], Callable[[Array, Array], RowLosses]] = {
    ("linear", "mse"): mse,
    ("logistic", "bce"): bce,
    ("logistic", "bce_with_logits"): bce_with_logits,
    ("logistic", "mse"): brier,
    ("softmax", "cross_entropy"): cross_entropy,
}
"""By head and loss: what turns z and y into the rows' losses."""


def loss_of(head: str, loss: str, options: LossOptions) -> Callable[[Array, Array], RowLosses]:
    """Return what turns z and y into the rows' losses."""
    if loss == "cross_entropy":
        return partial(cross_entropy, options=options)
    return LOSSES[head, loss]


Logarithms = Callable[[Array, float], tuple[Array, Array]]
"""Returns log p and log(1 − p), which are kept from log 0 by a small δ."""

KEPT_FROM_ZERO: dict[str, tuple[Logarithms, ...]] = {
    "p kept between {0} and 1 − {0}": (
        lambda p, d: (np.log(np.clip(p, d, 1 - d)), np.log(1 - np.clip(p, d, 1 - d))),
        lambda p, d: (np.log(np.maximum(p, d)), np.log(np.maximum(1 - p, d))),
    ),
    "{0} added to {1}": (lambda p, d: (np.log(p + d), np.log(1 - p + d)),),
}
"""By how it is said, of δ and of what: each form that losses by hand take.

(1 − δ is rounded, and δ is not.)
"""

FLOORS = (
    *(10.0**-k for k in range(3, 21)),
    float(np.finfo(np.float32).eps),
    float(np.finfo(np.float64).eps),
)
"""What people take for δ."""


def probabilities(z: Array) -> Array:
    """Return p = σ(z) for z (B,), and softmax(z) for z (B, K)."""
    return sigmoid(z) if z.ndim == 1 else np.exp(log_softmax(z))


def mean_by_logarithms(
    logarithms: Logarithms, floor: float, z: Array, y: Array, options: LossOptions = NO_OPTIONS
) -> float:
    """Return the mean of −y log p − (1 − y) log(1 − p), or of −Σⱼ tⱼ log pⱼ for z (B, K).

    The logarithms are kept from log 0; t is that of `cross_entropy`, and so is the mean.
    """
    log_p, log_other = logarithms(probabilities(z), floor)
    if z.ndim == 1:
        return float(np.mean((y - 1) * log_other - y * log_p))
    return float(-(class_targets(z, y, options) * log_p).sum()) / total_weight(y, options)


def running_mean(values: Array, epochs: Array) -> Array:
    """Return the mean of an epoch's values so far, at each of its steps."""
    found = np.empty_like(values)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = np.cumsum(values[here]) / np.arange(1, here.sum() + 1)
    return found
