"""Random modules of a user's own, with a user's own NumPy code of each; half with a planted fault.

A case is an MLP of 0 to 3 hidden layers with any activation, loss, optimizer and dtype, in torch,
and the same in NumPy in one of several numerical styles. Right code must be found equivalent (or
inconclusive, with a reason); code with a fault must not. For each equivalent, six more runs say
whether doubling or dropping the lr, the gradient or the weight decay would have been found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from tests.mlp import ACTIVATIONS, Array, Tensors

CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "int": lambda y: y.int().long(),
    "long": lambda y: y.long(),
    "one hot": lambda y: y,  # made in the loss
    "round": lambda y: y.round().long(),
    "to": lambda y: y.to(torch.int64),
    "type": lambda y: y.type("torch.LongTensor"),
}
"""The usual ways from float targets to the integers that cross_entropy takes."""

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        style: of the NumPy code; changes rounding, and nothing else.
        fault: the planted one; empty for right code.
        times: factors on the lr, the gradient and the weight decay of the NumPy code.
    """

    seed: int
    sizes: tuple[int, ...]
    activation: str
    loss: str
    cast: str
    bias: bool
    optimizer: str
    lr: float
    decay: float
    dtype: str
    rows: int
    batch: int
    epochs: int
    style: int
    fault: str = ""
    times: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def data(self) -> tuple[Array, Array]:
        random = np.random.default_rng([self.seed, 1])
        X = random.normal(size=(self.rows, self.sizes[0]))
        if self.seed % 3 == 0:
            X = X * 10 ** random.uniform(-1, 1, size=self.sizes[0]) + random.normal()
        if self.loss == "mse":
            return X, random.normal(size=self.rows)
        return X, random.integers(max(2, self.sizes[-1]), size=self.rows).astype(np.float64)

    @property
    def start(self) -> Tensors:
        """Draw the start; biases are zero in every other case."""
        random = np.random.default_rng([self.seed, 2])
        found: Tensors = {}
        for k, (one, two) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            found[f"{2 * k}.weight"] = random.normal(size=(two, one)) / math.sqrt(one)
            if self.bias:
                found[f"{2 * k}.bias"] = random.normal(size=two) * (self.seed % 2)
        return found

    def spec(self) -> dict[str, Any]:
        X, y = self.data
        return {
            "data": {"X": X.tolist(), "y": y.tolist()},
            "lr": self.lr,
            "weight_decay": self.decay,
            "epochs": self.epochs,
            "batch_size": self.batch,
            "dtype": self.dtype,
        }

    # --- torch ----------------------------------------------------------------------------------

    def build(self, problem: Any) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
        layers: list[nn.Module] = []
        pairs = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        for k, (one, two) in enumerate(pairs):
            layers.append(nn.Linear(one, two, bias=self.bias))
            if k < len(pairs) - 1:
                layers.append(ACTIVATIONS[self.activation].module())
        if self.loss == "bce":
            layers.append(nn.Sigmoid())
        model = nn.Sequential(*layers).to(getattr(torch, self.dtype))
        with torch.no_grad():
            for name, w in model.named_parameters():
                w.copy_(torch.from_numpy(self.start[name]))
        return model, self.torch_loss, self.torch_optimizer(model)

    def torch_loss(self, z: Tensor, y: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            target = CASTS[self.cast](y)
            if self.cast == "one hot":
                target = functional.one_hot(y.long(), self.sizes[-1]).to(z.dtype)
            return functional.cross_entropy(z, target)
        if self.cast == "int" and self.loss != "mse":
            y = torch.where(y == 1, torch.ones_like(y), torch.zeros_like(y))
        of: Any = {
            "bce": functional.binary_cross_entropy,
            "bce_with_logits": functional.binary_cross_entropy_with_logits,
            "mse": functional.mse_loss,
        }[self.loss]
        loss: Tensor = of(z.squeeze(1), y)
        return loss

    def torch_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        given: dict[str, Any] = {"lr": self.lr, "weight_decay": self.decay}
        w = list(model.parameters())
        if self.optimizer in ("sgd", "momentum", "nesterov"):
            momentum = 0.0 if self.optimizer == "sgd" else 0.9
            return torch.optim.SGD(
                w, momentum=momentum, nesterov=self.optimizer == "nesterov", **given
            )
        of: Any = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }[self.optimizer]
        made: torch.optim.Optimizer = of(w, **given)
        return made


ADAMS = ("adam", "adamw")

FAULTS: dict[str, Callable[[Case], bool]] = {
    "amsgrad added": lambda c: c.optimizer in ADAMS,
    "betas swapped": lambda c: c.optimizer in ("adam", "adamw"),
    "bias frozen": lambda c: c.bias,
    "correction compounded": lambda c: c.optimizer in ADAMS,
    "correction late": lambda c: c.optimizer in ADAMS,
    "decay coupled": lambda c: c.optimizer == "adamw",
    "decay doubled": lambda c: c.decay > 0,
    "decay flipped": lambda c: c.decay > 0,
    "decay late": lambda c: c.optimizer == "adamw",
    "decay missing": lambda c: c.decay > 0,
    "decay without bias": lambda c: c.decay > 0 and c.bias and c.seed % 2 == 1,
    "decay without lr": lambda c: c.optimizer == "adamw",
    "epsilon first": lambda c: c.optimizer in ADAMS,
    "epsilon inside": lambda c: c.optimizer in (*ADAMS, "rmsprop"),
    "first layer frozen": lambda c: True,
    "first layer halved": lambda c: c.optimizer in ("sgd", "momentum", "nesterov"),
    "half loss": lambda c: c.loss == "mse" and c.optimizer in ("sgd", "momentum", "nesterov"),
    "large epsilon": lambda c: c.optimizer in ("adam", "adamw"),
    "last layer doubled": lambda c: c.optimizer in ("sgd", "momentum", "nesterov"),
    "lr halved": lambda c: True,
    "lr one percent": lambda c: True,
    "lr tripled": lambda c: True,
    "missing slope": lambda c: len(c.sizes) > 2 and c.activation != "identity",
    "moments stale": lambda c: c.optimizer in ADAMS,
    "momentum dampened": lambda c: c.optimizer in ("momentum", "nesterov"),
    "momentum missing": lambda c: c.optimizer in ("momentum", "nesterov"),
    "nesterov missing": lambda c: c.optimizer == "nesterov",
    "no bias correction": lambda c: c.optimizer in ("adam", "adamw"),
    "nominal divisor": lambda c: (
        c.rows % c.batch > 0 and c.optimizer in ("sgd", "momentum", "nesterov")
    ),
    "one entry": lambda c: True,
    "root missing": lambda c: c.optimizer in ADAMS,
    "stale gradient": lambda c: c.epochs * math.ceil(c.rows / c.batch) > 1,
    "summed": lambda c: c.batch > 1 and c.optimizer in ("sgd", "momentum", "nesterov"),
    "wrong labels": lambda c: c.loss != "mse",
    "wrong slope": lambda c: len(c.sizes) > 2 and c.activation not in ("identity", "relu"),
}
"""The faults, and which cases they are faults of."""


CAUSES: dict[str, str] = {
    "amsgrad added": "adam-amsgrad-added",
    "betas swapped": "adam-betas-swapped",
    "correction compounded": "adam-bias-correction-compounded",
    "correction late": "adam-bias-correction-late",
    "decay coupled": "penalty-coupled",
    "decay doubled": "penalty-doubled",
    "decay flipped": "penalty-sign-flipped",
    "decay late": "decay-after-update",
    "decay missing": "penalty-missing",
    "decay without bias": "bias-not-penalized",
    "decay without lr": "decay-not-scaled-by-lr",
    "epsilon first": "adam-epsilon-uncorrected",
    "epsilon inside": "adam-epsilon-inside",
    "lr halved": "learning-rate-scaled",
    "lr one percent": "learning-rate-scaled",
    "lr tripled": "learning-rate-scaled",
    "moments stale": "moments-stale",
    "no bias correction": "adam-bias-correction-missing",
}
"""The causes of those faults that are of Adam's step.

Without the root, steps are a million times the lr, and what rounding is in them is not known.
"""


def cause_of(case: Case) -> str:
    """Return the cause of a case's fault that must be named; empty where none need be.

    SGD's steps may blow up, and their rounding with them; Adam's are never much larger than the lr.
    """
    return CAUSES.get(case.fault, "") if case.optimizer in ADAMS else ""


def random_case(seed: int) -> Case:
    random = np.random.default_rng([seed, 0])
    loss = pick(random, ("mse", "bce", "bce_with_logits", "cross_entropy", "cross_entropy"))
    out = int(random.integers(2, 6)) if loss == "cross_entropy" else 1
    hidden = [int(random.integers(1, 17)) for _ in range(random.integers(4))]
    optimizer = pick(random, OPTIMIZERS)
    adaptive = optimizer in ("adam", "adamw", "rmsprop")
    rows = int(random.integers(2, 60))
    case = Case(
        seed=seed,
        sizes=(int(random.integers(1, 9)), *hidden, out),
        activation=pick(random, tuple(ACTIVATIONS)),
        loss=loss,
        cast=pick(random, tuple(CASTS)),
        bias=random.random() < 0.7,
        optimizer=optimizer,
        lr=float(10 ** random.uniform(-3, -1.5 if adaptive else -0.5)),
        decay=float(pick(random, (0.0, 0.0, 1e-3, 1e-2, 0.1))),
        dtype=pick(random, ("float64", "float64", "float32")),
        rows=rows,
        batch=int(random.integers(1, rows + 1)),
        epochs=int(random.integers(1, 6)),
        style=int(random.integers(12)),
    )
    if random.random() < 0.5:
        fitting = [name for name, fits in FAULTS.items() if fits(case)]
        case = replace(case, fault=pick(random, tuple(fitting)))
    return case


def pick(random: Generator, among: tuple[Any, ...]) -> Any:
    return among[random.integers(len(among))]
