"""Error propagation through the steps that divide a first moment by a second: Adam and its kin.

    δm ← β₁ δm + (1 − β₁) δG + 3u (|m| + (1 − β₁)|G|)
    δv ← β₂ δv + (1 − β₂)(2|G| + δG) δG + 3u v
    Adam        δΔ = lr/(1 − β₁ᵗ) (δm/D⁻ + |m| δD/(D D⁻))      D = √v/√(1 − β₂ᵗ) + ε
    RAdam       the same times r, with ε/√(1 − β₂ᵗ) in the place of ε; lr/(1 − β₁ᵗ) δm where N ≤ 5
    NAdam       the same D under a |G| + b |m|, with a = (1 − μₜ)/(1 − P), b = μₜ₊₁/(1 − P μₜ₊₁)

The rest is as in `optimizer_rounding`. A coefficient has an error too: 1 − βᵗ that of βᵗ, up to
(t + 2) 2⁻⁵³ βᵗ as a product; r that of N, a small difference of large numbers; and P, which torch
holds in float32, t roundings of μ and as many of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from regcheck.numerics.bounds.step_rounding import (
    Array,
    Carried,
    OptimizerStep,
    Propagated,
    coupled,
    quotient,
    settled,
)
from regcheck.rules.optimizers import nadam, radam

U32, U64 = 2.0**-24, 2.0**-53
"""Units of rounding of float32, and of Python's own numbers."""


def propagate_adam(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adam and AdamW."""
    option, t = step.options, step.t
    beta1, beta2 = option["betas"]
    G, error = coupled(u, step, noise)
    m, v = np.abs(step.state["exp_avg"]), step.state["exp_avg_sq"]
    carry = moments(u, step.options, (G, m, v), error, carried)
    dm, dv = carry["exp_avg"], carry["exp_avg_sq"]
    if "max_exp_avg_sq" in step.state:
        v, known = step.state["max_exp_avg_sq"], carried.get("max_exp_avg_sq", np.zeros(()))
        dv = carry["max_exp_avg_sq"] = np.maximum(dv, known)
    root = math.sqrt(1 - beta2**t)
    ddelta = quotient(u, m, dm, v, dv, root * option["eps"])
    np.minimum(ddelta, 2 * steepest(option), out=ddelta)
    ddelta *= root * option["lr"] / (1 - beta1**t)
    return Propagated(settled(u, step, ddelta), carry)


def propagate_radam(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.RAdam."""
    option, t = step.options, step.t
    beta1, beta2 = option["betas"]
    G, error = coupled(u, step, noise)
    m, v = np.abs(step.state["exp_avg"]), step.state["exp_avg_sq"]
    carry = moments(u, step.options, (G, m, v), error, carried)
    correction, rate = 1 - beta2**t, option["lr"] / (1 - beta1**t)
    length, most = radam.lengths(beta2, int(t))
    off = of_correction(beta1, t) + of_correction(beta2, t) / 2
    # N∞ − N is 2t βᵗ/(1 − βᵗ), in which 1 − βᵗ has few digits left.
    doff = (most - length) * ((t + 2) * U64 / correction + 4 * U64) + 4 * U64 * (most + 1)
    if abs(length - radam.FEWEST) <= doff:
        return Propagated(np.full_like(m, np.inf), carry)
    r = radam.rectification(beta2, int(t))
    if r is None:
        return Propagated(settled(u, step, rate * widened(carry["exp_avg"], m, off)), carry)
    root = math.sqrt(correction)
    dm = widened(carry["exp_avg"], m, off + 2 * doff)
    ddelta = quotient(u, m, dm, v, carry["exp_avg_sq"], option["eps"])
    np.minimum(ddelta, 2 * steepest(option), out=ddelta)
    ddelta *= root * r * rate
    return Propagated(settled(u, step, ddelta), carry)


def propagate_nadam(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.NAdam."""
    option, t = step.options, step.t
    beta2 = option["betas"][1]
    G, error = coupled(u, step, noise)
    m, v = np.abs(step.state["exp_avg"]), step.state["exp_avg_sq"]
    carry = moments(u, step.options, (G, m, v), error, carried)
    mu, mu_next = (nadam.momentum(option, int(t) + more) for more in (0, 1))
    product = product_of(option["betas"][0], option["momentum_decay"], int(t))
    a, b, root = (1 - mu) / (1 - product), mu_next / (1 - product * mu_next), 1 - beta2**t
    root = math.sqrt(root)
    off = 2 * t * U32 * product / (1 - product) + of_correction(beta2, t) / 2
    steep = a * G + b * m
    # Both parts are rounded, which may cancel each other; and so is w between them.
    dsteep = widened(a * error + b * carry["exp_avg"], steep, off + 6 * u)
    ddelta = quotient(u, steep, dsteep, v, carry["exp_avg_sq"], root * option["eps"])
    of_gradient = 1 / math.sqrt(max(1 - beta2, 1e-30))  # |G| ≤ √(v/(1 − β₂))
    np.minimum(ddelta, 2 * (a * of_gradient + b * steepest(option)), out=ddelta)
    ddelta *= root * option["lr"]
    ddelta += u * np.abs(step.before)
    return Propagated(settled(u, step, ddelta), carry)


def moments(
    u: float,
    options: Mapping[str, Any],
    sizes: tuple[Array, Array, Array],
    error: Array,
    carried: Carried,
) -> dict[str, Array]:
    """Carry the errors of both moments on, by |G|, |m| and v."""
    (beta1, beta2), (G, m, v) = options["betas"], sizes
    zero = np.zeros(())
    # In place: with this many operations, memory is what takes the time.
    dm = error + (3 * u) * G
    dm *= 1 - beta1
    dm += beta1 * carried.get("exp_avg", zero)
    dm += (3 * u) * m
    dv = 2 * G
    dv += error
    dv *= error
    dv *= 1 - beta2
    dv += beta2 * carried.get("exp_avg_sq", zero)
    dv += (3 * u) * v
    return {"exp_avg": dm, "exp_avg_sq": dv}


def widened(da: Array, a: Array, off: float) -> Array:
    """Bound δ(c a) for a coefficient c of 1 with an error: δa + (|a| + δa) δc."""
    return np.asarray(da + off * (a + da))


def steepest(option: Mapping[str, Any]) -> float:
    """Return the largest |m|/√v, (1 − β₁)/√((1 − β₂)(1 − β₁²/β₂))."""
    beta1, beta2 = option["betas"]
    ratio = beta1 * beta1 / beta2 if beta2 else 1.0
    return float((1 - beta1) / math.sqrt(max((1 - beta2) * (1 - ratio), 1e-30)))


def of_correction(beta: float, t: float) -> float:
    """Bound the relative error of 1 − βᵗ, whose power may be a product of t factors."""
    return float((t + 2) * U64 * beta**t / (1 - beta**t))


@lru_cache(maxsize=8)
def product_of(beta1: float, decay: float, t: int) -> float:
    """Return P = μ₁ μ₂ ⋯ μₜ; 0 where it is too small to matter."""
    if beta1**t < 1e-30:
        return 0.0
    return float(np.prod(beta1 * (1 - 0.5 * 0.96 ** (decay * np.arange(1, t + 1)))))
