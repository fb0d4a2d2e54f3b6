"""Steps of torch's optimizers with gradients that are off, beside the bounds on what that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from regcheck.numerics.bounds.optimizers.optimizer_rounding import FORMULAS
from regcheck.numerics.bounds.step_rounding import Carried, OptimizerStep

Array = NDArray[np.floating]
Make = Callable[[list[torch.Tensor]], Optimizer]
U32, U64 = 2.0**-24, 2.0**-53

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSPROP, ADAGRAD = torch.optim.RMSprop, torch.optim.Adagrad
ASGD, NADAM, RADAM = torch.optim.ASGD, torch.optim.NAdam, torch.optim.RAdam
ADADELTA, ADAMAX, RPROP = torch.optim.Adadelta, torch.optim.Adamax, torch.optim.Rprop

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda w: SGD(w, lr=0.1),
    "sgd decay": lambda w: SGD(w, lr=0.1, weight_decay=0.3),
    "sgd maximize": lambda w: SGD(w, lr=0.1, weight_decay=0.3, maximize=True),
    "momentum": lambda w: SGD(w, lr=0.1, momentum=0.9, weight_decay=0.1),
    "dampening": lambda w: SGD(w, lr=0.1, momentum=0.9, dampening=0.4),
    "negative dampening": lambda w: SGD(w, lr=0.1, momentum=0.5, dampening=-0.5),
    "nesterov": lambda w: SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda w: ADAM(w, lr=0.01),
    "adam decay": lambda w: ADAM(w, lr=0.01, weight_decay=0.3),
    "adam maximize": lambda w: ADAM(w, lr=0.01, weight_decay=0.3, maximize=True),
    "adam betas": lambda w: ADAM(w, lr=0.01, betas=(0.5, 0.8), eps=1e-3),
    "adam without memory": lambda w: ADAM(w, lr=0.01, betas=(0.0, 0.0)),
    "amsgrad": lambda w: ADAM(w, lr=0.01, betas=(0.9, 0.9), amsgrad=True),
    "adamw": lambda w: ADAMW(w, lr=0.01, weight_decay=0.3),
    "adamw amsgrad": lambda w: ADAMW(w, lr=0.01, betas=(0.9, 0.9), amsgrad=True),
    "rmsprop": lambda w: RMSPROP(w, lr=0.01, weight_decay=0.1),
    "rmsprop centered": lambda w: RMSPROP(w, lr=0.01, alpha=0.9, centered=True),
    "rmsprop momentum": lambda w: RMSPROP(w, lr=0.01, momentum=0.9),
    "rmsprop both": lambda w: RMSPROP(w, lr=0.01, alpha=0.9, momentum=0.9, centered=True),
    "adagrad": lambda w: ADAGRAD(w, lr=0.1, weight_decay=0.1),
    "asgd": lambda w: ASGD(w, lr=0.1),
    "asgd decay": lambda w: ASGD(w, lr=0.1, lambd=0.3, alpha=2.0, weight_decay=0.1),
    "asgd maximize": lambda w: ASGD(w, lr=0.1, weight_decay=0.1, maximize=True),
    "nadam": lambda w: NADAM(w, lr=0.01),
    "nadam decay": lambda w: NADAM(w, lr=0.01, weight_decay=0.3, maximize=True),
    "nadam decoupled": lambda w: NADAM(
        w, lr=0.01, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.3, decoupled_weight_decay=True
    ),
    "nadam momentum": lambda w: NADAM(w, lr=0.01, betas=(0.99, 0.999), momentum_decay=2.0),
    "radam": lambda w: RADAM(w, lr=0.01),
    "radam decay": lambda w: RADAM(w, lr=0.01, weight_decay=0.3, maximize=True),
    "radam decoupled": lambda w: RADAM(
        w, lr=0.01, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.3, decoupled_weight_decay=True
    ),
    "radam unrectified": lambda w: RADAM(w, lr=0.01, betas=(0.9, 0.6)),
    "rprop": lambda w: RPROP(w, lr=0.01),
    "rprop limits": lambda w: RPROP(w, lr=0.01, etas=(0.3, 1.7), step_sizes=(0.005, 0.03)),
    "rprop maximize": lambda w: RPROP(w, lr=0.01, maximize=True),
    "adadelta": lambda w: ADADELTA(w, lr=0.5, weight_decay=0.1),
    "adadelta rho": lambda w: ADADELTA(w, lr=0.5, rho=0.5, eps=1e-3, maximize=True),
    "adadelta without memory": lambda w: ADADELTA(w, lr=0.5, rho=0.0),
    "adadelta keeping": lambda w: ADADELTA(w, lr=0.5, rho=1.0),
    "adamax": lambda w: ADAMAX(w, lr=0.01, weight_decay=0.3),
    "adamax betas": lambda w: ADAMAX(w, lr=0.01, betas=(0.9, 0.5), eps=1e-3),
    "adamax maximize": lambda w: ADAMAX(w, lr=0.01, betas=(0.5, 0.9), maximize=True),
    "adamax without memory": lambda w: ADAMAX(w, lr=0.01, betas=(0.0, 0.0)),
    "adagrad decay": lambda w: ADAGRAD(w, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
}


def type_name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


class Side:
    """One optimizer with a state of its own, on parameters that are placed."""

    def __init__(self, make: Make, size: int, dtype: torch.dtype) -> None:
        self.w = torch.zeros(size, dtype=dtype, requires_grad=True)
        self.optimizer = make([self.w])

    def step(self, before: Array, gradient: Array) -> Array:
        """Take a step from anywhere; returns where it ends."""
        with torch.no_grad():
            self.w.copy_(torch.from_numpy(before))
        self.w.grad = torch.from_numpy(gradient).to(self.w.dtype)
        self.optimizer.step()
        return self.w.detach().double().numpy().copy()

    def remembered(self) -> dict[str, Array]:
        """Return what it remembers, by torch's names."""
        state = self.optimizer.state[self.w]
        names = FORMULAS[type_name(self.optimizer)].state
        kept = {name: state[name] for name in names if state.get(name) is not None}
        return {name: x.double().numpy().copy() for name, x in kept.items()}


class Found(NamedTuple):
    """Entries of all steps: real differences, bounds, and how far the step went."""

    real: Array
    bound: Array
    moved: Array


def along(
    make: Make,
    gradients: Array,
    errors: Array,
    noise: Array,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float64, torch.float64),
    u: float = U64,
) -> Found:
    """Take steps with g and g + e, |e| ≤ δ, from the same parameters; and propagate δ."""
    steps, size = gradients.shape
    one, other = (Side(make, size, dtype) for dtype in dtypes)
    w = np.asarray(np.random.default_rng(9).normal(size=size), np.float32).astype(np.float64)
    carried: Carried = {}
    real, bound, moved = [], [], []
    for t in range(steps):
        after = one.step(w, gradients[t])
        off = other.step(w, gradients[t] + errors[t])
        options = one.optimizer.param_groups[0]
        step = OptimizerStep(w, after, gradients[t], options, one.remembered(), t + 1.0)
        with np.errstate(all="ignore"):
            found = FORMULAS[type_name(one.optimizer)].propagate(u, step, noise[t], carried)
        carried = found.carried
        real.append(np.abs(off - after))
        bound.append(found.after)
        moved.append(np.abs(after - w))
        # Both dtypes can hold where the next step begins.
        w = after.astype(np.float32).astype(np.float64)
    return Found(np.array(real), np.array(bound), np.array(moved))


def drawn(seed: int, steps: int = 20, size: int = 40) -> tuple[Array, np.random.Generator]:
    """Draw gradients whose entries are of many sizes, and some of them 0."""
    draws = np.random.default_rng(seed)
    gradients = draws.normal(size=(steps, size)) * np.logspace(-4, 2, size)
    gradients[draws.random(gradients.shape) < 0.05] = 0
    return gradients, draws
