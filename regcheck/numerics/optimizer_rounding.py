"""What rounding of a gradient becomes in an optimizer's step: error propagation, entry by entry.

With u the unit roundoff, δg the error of the gradient g that the optimizer is given, w the
parameter before the step, Δ what the step subtracts, and λ a coupled weight decay, G = g + λ w:

    δG = δg + u (3 λ|w| + |G|)
    after       δw = δΔ + 2u |w| + 6u |Δ|, and 2u |w| more where w (1 − lr λ) is a product

    SGD         δv ← μ δv + |1 − τ| δG + 2u |v|         δΔ = lr δv, or lr (δG + μ δv) with Nesterov
    Adam        δm ← β₁ δm + (1 − β₁) δG + 3u (|m| + (1 − β₁)|G|)
                δv ← β₂ δv + (1 − β₂)(2|G| + δG) δG + 3u v
                δΔ = lr/(1 − β₁ᵗ) (δm/D⁻ + |m| δD/(D D⁻))      D = √v/√(1 − β₂ᵗ) + ε
    RMSprop     the same δv with β₂ = α; δ(G/D) as in Adam; a buffer as SGD's velocity
    Adagrad     δs ← δs + (2|G| + δG) δG + 3u s

δD = δ√v/√(1 − β₂ᵗ) + 3u D with δ√v ≤ min(δv/√v, √(v + δv)), and D⁻ = D − δD, no less than ε. Where
the gradient is rounding alone, D⁻ is ε and that says nothing: of two steps that are each no larger
than the largest that the optimizer can take, the difference is no more than twice that. With
|m|/√v ≤ (1 − β₁)/√((1 − β₂)(1 − β₁²/β₂)) by Cauchy and Schwarz, that is where the bound stops.

Sources of the steps: torch/optim/{sgd,adam,rmsprop,adagrad}.py, `_single_tensor_*`, torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.packing import parts_of

Array = NDArray[np.floating]
Carried = Mapping[str, Array]
"""The errors of what an optimizer remembers, by name."""


class OptimizerStep(NamedTuple):
    """One step of an optimizer, all tensors' entries one after the other.

    Attributes:
        before, after: the parameters around it.
        gradient: what the optimizer was given, after clipping.
        options: its settings by torch's names: one number, or one an entry.
        state: what it remembers after the step, by torch's names.
        t: the number of the step, from 1.
    """

    before: Array
    after: Array
    gradient: Array
    options: Mapping[str, Any]
    state: Mapping[str, Array]
    t: float


class Propagated(NamedTuple):
    """The bound on the parameters after a step, and the errors that are carried on."""

    after: Array
    carried: Carried


def propagate_sgd(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.SGD."""
    option = step.options
    _, error = coupled(u, step, noise)
    momentum, lr = option["momentum"], option["lr"]
    if not np.any(momentum):
        return Propagated(settled(u, step, lr * error), {})
    velocity = error
    if "momentum_buffer" in carried:
        velocity = momentum * carried["momentum_buffer"] + np.abs(1 - option["dampening"]) * error
        velocity = velocity + 2 * u * np.abs(step.state["momentum_buffer"])
    direction = np.where(option["nesterov"], error + momentum * velocity, velocity)
    return Propagated(settled(u, step, lr * direction), {"momentum_buffer": velocity})


def propagate_adam(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adam and AdamW."""
    option, t = step.options, step.t
    beta1, beta2 = option["betas"]
    G, error = coupled(u, step, noise)
    m, v = np.abs(step.state["exp_avg"]), step.state["exp_avg_sq"]
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
    carry = {"exp_avg": dm, "exp_avg_sq": dv}
    if "max_exp_avg_sq" in step.state:
        v = step.state["max_exp_avg_sq"]
        dv = carry["max_exp_avg_sq"] = np.maximum(dv, carried.get("max_exp_avg_sq", zero))
    correction = 1 - beta2**t
    rate = option["lr"] / (1 - beta1**t)
    ddelta = quotient(u, m, dm, v, dv, option["eps"], math.sqrt(correction))
    ratio = beta1 * beta1 / beta2 if beta2 else 1.0
    steepest = (1 - beta1) / math.sqrt(max((1 - beta2) * (1 - ratio), 1e-30))
    most = 2 * steepest * math.sqrt(correction)
    np.minimum(ddelta, most, out=ddelta)
    ddelta *= rate
    return Propagated(settled(u, step, ddelta), carry)


def propagate_rmsprop(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.RMSprop."""
    option = step.options
    alpha, momentum = option["alpha"], option["momentum"]
    G, error = coupled(u, step, noise)
    zero = np.zeros(())
    v = step.state["square_avg"]
    dv = alpha * carried.get("square_avg", zero) + ((1 - alpha) * (2 * G + error)) * error
    dv = dv + 3 * u * v
    carry = {"square_avg": dv}
    if "grad_avg" in step.state:
        mean = np.abs(step.state["grad_avg"])
        dmean = alpha * carried.get("grad_avg", zero) + (1 - alpha) * error
        carry["grad_avg"] = dmean = dmean + 3 * u * (mean + (1 - alpha) * G)
        dv = dv + (2 * mean + dmean) * dmean + 2 * u * v
        v = np.maximum(v - mean * mean, 0.0)
    ddelta = quotient(u, G, error, v, dv, option["eps"])
    if "grad_avg" not in step.state:  # |G| ≤ √(v/(1 − α))
        ddelta = np.minimum(ddelta, 2 / math.sqrt(max(1 - alpha, 1e-30)))
    if np.any(momentum):
        buffer = np.abs(step.state["momentum_buffer"])
        ddelta = momentum * carried.get("momentum_buffer", zero) + ddelta + 2 * u * buffer
        carry["momentum_buffer"] = ddelta
    return Propagated(settled(u, step, option["lr"] * ddelta), carry)


def propagate_adagrad(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Adagrad."""
    option = step.options
    G, error = coupled(u, step, noise)
    s = step.state["sum"]
    ds = carried.get("sum", np.zeros(())) + (2 * G + error) * error + 3 * u * s
    rate = option["lr"] / (1 + (step.t - 1) * option["lr_decay"])
    ddelta = np.minimum(quotient(u, G, error, s, ds, option["eps"]), 2.0)  # |G| ≤ √s
    return Propagated(settled(u, step, rate * ddelta), {"sum": ds})


def coupled(u: float, step: OptimizerStep, noise: Array) -> tuple[Array, Array]:
    """Return |G| and δG, with the weight decay in the gradient unless it is decoupled."""
    decay = step.options["weight_decay"]
    if step.options.get("decoupled_weight_decay", False) or not np.any(decay):
        G = np.abs(step.gradient)
        return G, noise + u * G
    pull = decay * step.before
    if np.any(step.options.get("maximize", False)):
        pull = -pull
    G = np.abs(step.gradient + pull)
    return G, noise + u * (3 * np.abs(pull) + G)


def quotient(
    u: float, a: Array, da: Array, v: Array, dv: Array, eps: float, correction: float = 1.0
) -> Array:
    """Bound δ(a/D) = (δa + a δD/D)/D⁻, where a ≥ 0 and D = √v/correction + ε; 0/0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(v)
        droot = dv / root
        if not (dv < v).all():  # else δv/√v is the smaller one
            np.fmin(droot, np.sqrt(v + dv), out=droot)
        if correction != 1:
            root *= 1 / correction
            droot *= 1 / correction
        D, dD = root, droot
        D += eps
        dD += (3 * u) * D
        bound: Array = dD / D
        bound *= a
        bound += da
        D -= dD
        bound /= np.maximum(D, eps, out=D)
    return bound if eps else np.where((da == 0) & (a == 0), 0.0, bound)


def settled(u: float, step: OptimizerStep, ddelta: Array) -> Array:
    """Add the rounding of the update itself: δw = δΔ + 2u |w| + 6u |Δ|.

    A decoupled decay w (1 − lr λ) is one product more, of a factor that is rounded.
    """
    option = step.options
    decays = option.get("decoupled_weight_decay", False) and np.any(option["weight_decay"])
    delta = step.after - step.before
    bound: Array = np.abs(delta, out=delta)
    bound *= 6 * u
    bound += ((4 if decays else 2) * u) * np.abs(step.before)
    bound += ddelta
    return bound


class Formula(NamedTuple):
    """How rounding propagates through an optimizer, and what that remembers, by torch's names."""

    propagate: Callable[[float, OptimizerStep, Array, Carried], Propagated]
    state: tuple[str, ...]


ADAM = Formula(propagate_adam, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))

FORMULAS: dict[str, Formula] = {
    "Adagrad": Formula(propagate_adagrad, ("sum",)),
    "Adam": ADAM,
    "AdamW": ADAM,
    "RMSprop": Formula(propagate_rmsprop, ("square_avg", "grad_avg", "momentum_buffer")),
    "SGD": Formula(propagate_sgd, ("momentum_buffer",)),
}
"""By the optimizer's class in torch.optim."""

ONLY_LR_AND_DECAY = frozenset({"lr", "weight_decay", "params"})
"""Options of which a formula takes one for each entry."""


def formula_of(name: str, groups: Sequence[Mapping[str, Any]]) -> Formula | None:
    """Return the formula for a class of optimizers and its parameter groups; None where none is.

    There is none for groups that differ in more than lr and weight decay, or whose options are
    tensors.
    """
    options = [{k: v for k, v in one.items() if k not in ONLY_LR_AND_DECAY} for one in groups]
    alike = all(one == options[0] for one in options)
    values = [value for one in groups for key, value in one.items() if key != "params"]
    module, _, kind = name.rpartition(".")
    known = module.startswith("torch.optim.") and alike
    tensors = any(hasattr(x, "numpy") for x in values)
    return FORMULAS.get(kind) if known and not tensors else None


DEVIATIONS = 3.0
"""Root mean squares of the samples' errors that count as noise: fewer samples hold no extremes."""


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
        for sampled, plain, largest, squares in each:
            for part in parts_of(len(plain)):
                error = np.abs(sampled[part] - plain[part])
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
