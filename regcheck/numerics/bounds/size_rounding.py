"""Error propagation through the steps that divide by the size of the gradients so far.

    RMSprop     δv ← α δv + (1 − α)(2|G| + δG) δG + 3u v
                δΔ = lr δ(G/D), D = √v + ε, by `quotient`; a buffer as SGD's velocity
    Adagrad     δs ← δs + (2|G| + δG) δG + 3u s             δ(G/D) likewise, D = √s + ε
    Adadelta    RMSprop's δv with α = ρ; d = q G, q = N/R; N = √(a + ε), a of the step before;
                R = √(v + ε)
                δq = (δN + q δR)/R⁻ + 3u q                  δd = (q + δq) δG + |G| δq
                δa ← ρ δa + (1 − ρ)(2|d| + δd) δd + 3u a
    Adamax      δm ← β₁ δm + (1 − β₁) δG + 3u (|m| + (1 − β₁)|G|)
                δn ← max(β₂ δn, δG) + 2u n                  δΔ = lr/(1 − β₁ᵗ) (δm + |m| δn/n)/n⁻

R⁻ = R − δR, no less than √ε, and n⁻ = n − δn, no less than ε. The rest is as in
`optimizer_rounding`; no step is larger than by

    |G| ≤ √(v/(1 − α))    |G| ≤ √s    |G| ≤ R/√(1 − ρ)    |m| ≤ (1 − β₁) n Σ (β₁/β₂)ᵏ over k < t

so that no difference is larger than twice that. Centered, RMSprop has v − ḡ² in the place of v:
rounding can take that below 0, where its root is no number.
"""

from __future__ import annotations

import math

import numpy as np

from regcheck.numerics.bounds.step_rounding import (
    Array,
    Carried,
    OptimizerStep,
    Propagated,
    coupled,
    quotient,
    settled,
    some,
)


def propagate_rmsprop(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.RMSprop."""
    option, lost = step.options, None
    alpha, momentum = option["alpha"], option["momentum"]
    G, error = coupled(u, step, noise)
    zero = np.zeros(())
    v = step.state["square_avg"]
    dv = of_squares(u, alpha, G, error, v, carried)
    carry = {"square_avg": dv}
    if "grad_avg" in step.state:
        mean = np.abs(step.state["grad_avg"])
        dmean = alpha * carried.get("grad_avg", zero) + abs(1 - alpha) * error
        carry["grad_avg"] = dmean = dmean + 3 * u * (mean + abs(1 - alpha) * G)
        dv = dv + (2 * mean + dmean) * dmean + 2 * u * v
        v = np.maximum(v - mean * mean, 0.0)
        lost = v < 2 * dv
    ddelta = quotient(u, G, error, v, dv, option["eps"])
    if "grad_avg" not in step.state:
        ddelta = np.minimum(ddelta, 2 / math.sqrt(max(1 - alpha, 1e-30)))
    if some(momentum):
        buffer = np.abs(step.state["momentum_buffer"])
        ddelta = momentum * carried.get("momentum_buffer", zero) + ddelta + 2 * u * buffer
        carry["momentum_buffer"] = ddelta
    return Propagated(settled(u, step, option["lr"] * ddelta), carry, lost)


def propagate_adagrad(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adagrad."""
    option = step.options
    G, error = coupled(u, step, noise)
    s = step.state["sum"]
    ds = carried.get("sum", np.zeros(())) + (2 * G + error) * error + 3 * u * s
    rate = option["lr"] / (1 + (step.t - 1) * option["lr_decay"])
    ddelta = np.minimum(quotient(u, G, error, s, ds, option["eps"]), 2.0)
    return Propagated(settled(u, step, rate * ddelta), {"sum": ds})


def propagate_adadelta(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adadelta; what is carried is the next step's a too."""
    rho, eps = step.options["rho"], step.options["eps"]
    G, error = coupled(u, step, noise)
    zero = np.zeros(())
    v, a = step.state["square_avg"], step.state["acc_delta"]
    dv, da = of_squares(u, rho, G, error, v, carried), carried.get("acc_delta", zero)
    N, dN = root_of(carried.get("acc_delta before", zero), da, eps)
    R, dR = root_of(v, dv, eps)
    q = N / R
    dq = (dN + q * dR) / np.maximum(R - dR, math.sqrt(eps)) + 3 * u * q
    dd = (q + dq) * error + G * dq
    dd = np.fmin(dd, 2 * (N + dN) / math.sqrt(max(1 - rho, 1e-30)))
    dd[np.isnan(dd)] = np.inf  # once anything may have become of a
    da = rho * da + ((1 - rho) * (2 * q * G + dd)) * dd + 3 * u * a
    da[np.isnan(da)] = np.inf
    carry = {"square_avg": dv, "acc_delta": da, "acc_delta before": a}
    return Propagated(settled(u, step, step.options["lr"] * dd), carry)


def propagate_adamax(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adamax."""
    (beta1, beta2), t = step.options["betas"], step.t
    G, error = coupled(u, step, noise)
    zero = np.zeros(())
    m, n = np.abs(step.state["exp_avg"]), step.state["exp_inf"]
    dm = beta1 * carried.get("exp_avg", zero) + (1 - beta1) * error
    dm = dm + 3 * u * (m + (1 - beta1) * G)
    dn = np.maximum(beta2 * carried.get("exp_inf", zero), error) + 2 * u * n
    ddelta = (dm + m * (dn / n)) / np.maximum(n - dn, step.options["eps"])
    ddelta = np.fmin(ddelta, 2 * (1 - beta1) * powers(beta1, beta2, t))
    rate = step.options["lr"] / (1 - beta1**t)
    return Propagated(settled(u, step, rate * ddelta), {"exp_avg": dm, "exp_inf": dn})


def of_squares(u: float, decay: float, G: Array, error: Array, v: Array, carried: Carried) -> Array:
    """Return the error of an average of squares: β δv + (1 − β)(2|G| + δG) δG + 3u v."""
    known = carried.get("square_avg", np.zeros(()))
    found: Array = decay * known + (abs(1 - decay) * (2 * G + error)) * error + 3 * u * v
    return found


def root_of(x: Array, dx: Array, eps: float) -> tuple[Array, Array]:
    """Return √(x + ε), and how far off it is where x ≥ 0 is off by δx.

        down to √(x₋ + ε), x₋ = max(0, x − δx), by (x − x₋)/(√(x + ε) + √(x₋ + ε))
        up to √(x + δx + ε), by δx/(√(x + ε) + √(x + δx + ε))

    The second is less than √δx. Adadelta's error of one step is in all that follow: were it
    doubled, it would be so in each, and squared, where x is nearly 0.
    """
    root, down = np.sqrt(x + eps), np.minimum(dx, x)
    return root, np.maximum(
        down / (root + np.sqrt(x - down + eps)), dx / (root + np.sqrt(x + dx + eps))
    )


def powers(beta1: float, beta2: float, t: float) -> float:
    """Return Σ (β₁/β₂)ᵏ over k < t, with 0⁰ = 1."""
    if beta2 == 0:
        return 1.0 if beta1 == 0 or t == 1 else math.inf
    ratio = np.float64(beta1 / beta2)
    return float(t if ratio == 1 else (1 - ratio**t) / (1 - ratio))
