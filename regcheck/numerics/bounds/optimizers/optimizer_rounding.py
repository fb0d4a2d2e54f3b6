"""What rounding of a gradient becomes in an optimizer's step: error propagation, entry by entry.

With u the unit roundoff, δg the error of the gradient g that the optimizer is given, w the
parameter before the step, Δ what the step subtracts, and λ a coupled weight decay, G = g + λ w:

    δG = δg + u (3 λ|w| + |G|)
    after       δw = δΔ + 2u |w| + 6u |Δ|, and 2u |w| more where w (1 − lr λ) is a product

    SGD         δv ← μ δv + |1 − τ| δG + 2u |v|         δΔ = lr δv, or lr (δG + μ δv) with Nesterov
    ASGD        δΔ = η δG + (2u₃₂ + 8u) η (|G| + δG + ν |w|)         η in float32, of unit u₃₂
    Adam ..     a first moment over the root of a second: `moment_rounding`
    RMSprop ..  the gradient over a size of those so far: `size_rounding`
    Muon        sampled: `orthogonal_rounding`
    Rprop       as far as the signs are certain: `sign_rounding`

δD = δ√v/√(1 − β₂ᵗ) + 3u D with δ√v ≤ min(δv/√v, √(v + δv)), and D⁻ = D − δD, no less than ε. Where
the gradient is rounding alone, D⁻ is ε and that says nothing: of two steps that are each no larger
than the largest that the optimizer can take, the difference is no more than twice that. With
|m|/√v ≤ (1 − β₁)/√((1 − β₂)(1 − β₁²/β₂)) by Cauchy and Schwarz, that is where the bound stops.

Sources of the steps: torch/optim/*.py, `_single_tensor_*`, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from regcheck.numerics.bounds.optimizers.moment_rounding import (
    U32,
    propagate_adam,
    propagate_nadam,
    propagate_radam,
)
from regcheck.numerics.bounds.optimizers.orthogonal_rounding import propagate_muon
from regcheck.numerics.bounds.optimizers.sign_rounding import propagate_rprop
from regcheck.numerics.bounds.size_rounding import (
    propagate_adadelta,
    propagate_adagrad,
    propagate_adamax,
    propagate_rmsprop,
)
from regcheck.numerics.bounds.step_rounding import (
    Array,
    Carried,
    OptimizerStep,
    Propagated,
    coupled,
    settled,
    some,
)
from regcheck.numerics.packing import parts_of

LEAST32 = 2.0**-149
"""The smallest number of float32."""


def propagate_sgd(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.SGD."""
    option = step.options
    _, error = coupled(u, step, noise)
    momentum, lr = option["momentum"], option["lr"]
    if not some(momentum):
        return Propagated(settled(u, step, lr * error), {})
    velocity = error
    if "momentum_buffer" in carried:
        velocity = momentum * carried["momentum_buffer"] + np.abs(1 - option["dampening"]) * error
        velocity = velocity + 2 * u * np.abs(step.state["momentum_buffer"])
    direction = np.where(option["nesterov"], error + momentum * velocity, velocity)
    return Propagated(settled(u, step, lr * direction), {"momentum_buffer": velocity})


def propagate_asgd(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.ASGD; what is carried is the next step's η."""
    option, size = step.options, np.abs(step.before)
    G, error = coupled(u, step, noise)
    lr, own = option["lr"], option["lambd"]
    eta, pull = carried.get("eta", lr), G + error + own * size
    ddelta = eta * error + ((2 * U32 + 8 * u) * eta + LEAST32) * pull
    ddelta = ddelta + 2 * u * size  # w (1 − η ν) is a product
    later = lr / (1 + own * lr * step.t) ** option["alpha"] + np.zeros(noise.shape)
    return Propagated(settled(u, step, ddelta), {"eta": later})


class Formula(NamedTuple):
    """How rounding propagates through an optimizer.

    Attributes:
        propagate: of a step with the noise of its gradient.
        state: what the optimizer remembers, by torch's names.
        elementwise: whether an entry's bound needs no other entry; else it takes whole tensors.
    """

    propagate: Callable[[float, OptimizerStep, Array, Carried], Propagated]
    state: tuple[str, ...]
    elementwise: bool = True


MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM = Formula(propagate_adam, (*MOMENTS, "max_exp_avg_sq"))

FORMULAS: dict[str, Formula] = {
    "ASGD": Formula(propagate_asgd, ()),
    "Adadelta": Formula(propagate_adadelta, ("square_avg", "acc_delta")),
    "Adagrad": Formula(propagate_adagrad, ("sum",)),
    "Adam": ADAM,
    "AdamW": ADAM,
    "Adamax": Formula(propagate_adamax, ("exp_avg", "exp_inf")),
    "Muon": Formula(propagate_muon, ("momentum_buffer",), elementwise=False),
    "NAdam": Formula(propagate_nadam, MOMENTS),
    "RAdam": Formula(propagate_radam, MOMENTS),
    "RMSprop": Formula(propagate_rmsprop, ("square_avg", "grad_avg", "momentum_buffer")),
    "Rprop": Formula(propagate_rprop, ()),
    "SGD": Formula(propagate_sgd, ("momentum_buffer",)),
}
"""By the optimizer's class in torch.optim."""

ONLY_LR_AND_DECAY = frozenset({"lr", "weight_decay", "params"})
"""Options of which a formula takes one for each entry."""


def formula_of(name: str, groups: Sequence[Mapping[str, Any]]) -> Formula | None:
    """Return the formula for a class of optimizers and its parameter groups; None where none is.

    There is none for groups that differ in more than lr and weight decay, unless it goes through
    tensor by tensor; and none for options that are tensors.
    """
    options = [{k: v for k, v in one.items() if k not in ONLY_LR_AND_DECAY} for one in groups]
    alike = all(one == options[0] for one in options)
    values = [value for one in groups for key, value in one.items() if key != "params"]
    module, _, kind = name.rpartition(".")
    formula = FORMULAS.get(kind) if f"{module}.".startswith("torch.optim.") else None
    tensors = any(hasattr(x, "numpy") for x in values)
    one_for_all = formula is not None and formula.elementwise
    return None if tensors or (one_for_all and not alike) else formula


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
        return [
            np.maximum(most, DEVIATIONS * np.sqrt(square / max(1, self.count)))
            for most, square in zip(self.largest, self.squares, strict=True)
        ]
