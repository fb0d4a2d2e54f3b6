"""Random modules of a user's own, with a user's own NumPy code of each; half with a planted fault.

Run as a program it checks as many as one likes, and prints whatever is wrong:

    python tests/random_modules.py --seed 0 --count 2000

A case is an MLP of 0 to 3 hidden layers with any activation, loss, optimizer and dtype, in torch,
and the same in NumPy in one of several numerical styles. Right code must be found equivalent (or
inconclusive, with a reason); code with a fault must not. For each equivalent, six more runs say
whether doubling or dropping the lr, the gradient or the weight decay would have been found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from regcheck.checking import check
from regcheck.report.result import Report

Array = NDArray[np.floating]
Tensors = dict[str, Array]
State = dict[str, Any]

erf = np.vectorize(math.erf, otypes=[np.float64])


class Activation(NamedTuple):
    """An activation in torch, and in NumPy with its derivative, both of z and a = f(z)."""

    module: Callable[[], nn.Module]
    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def stable_sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def normal_cdf(z: Array) -> Array:
    return np.asarray(0.5 * (1 + erf(z / math.sqrt(2))), z.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "elu": Activation(
        nn.ELU,
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z, a: np.where(z > 0, 1, a + 1).astype(z.dtype),
    ),
    "gelu": Activation(
        nn.GELU,
        lambda z: z * normal_cdf(z),
        lambda z, a: (
            normal_cdf(z) + z * np.exp(-z * z / 2) * z.dtype.type(1 / math.sqrt(2 * math.pi))
        ),
    ),
    "identity": Activation(nn.Identity, lambda z: z, lambda z, a: np.ones_like(z)),
    "leaky": Activation(
        lambda: nn.LeakyReLU(0.01),
        lambda z: np.where(z > 0, z, z * z.dtype.type(0.01)),
        lambda z, a: np.where(z > 0, z.dtype.type(1), z.dtype.type(0.01)),
    ),
    "relu": Activation(nn.ReLU, lambda z: np.maximum(z, 0), lambda z, a: (z > 0).astype(z.dtype)),
    "sigmoid": Activation(nn.Sigmoid, sigmoid, lambda z, a: a * (1 - a)),
    "silu": Activation(
        nn.SiLU,
        lambda z: z * sigmoid(z),
        lambda z, a: sigmoid(z) * (1 + z * (1 - sigmoid(z))),
    ),
    "softplus": Activation(  # above its threshold of 20, torch's is z itself
        nn.Softplus,
        lambda z: np.where(z > 20, z, np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))),
        lambda z, a: np.where(z > 20, z.dtype.type(1), sigmoid(z)),
    ),
    "tanh": Activation(nn.Tanh, np.tanh, lambda z, a: 1 - a * a),
    "tanh by cosh": Activation(nn.Tanh, np.tanh, lambda z, a: 1 / np.cosh(z) ** 2),
}

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
        """Draw X and y."""
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
        """Write the spec."""
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
        """Make the torch side, as a user would."""
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
        """Take the loss."""
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
        """Make the optimizer."""
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

    # --- NumPy ----------------------------------------------------------------------------------

    def train(self, problem: Any) -> Iterator[dict[str, Any]]:
        """Train as a user would, by hand."""
        w = {name: x.copy() for name, x in problem.initial.items()}
        state: State = {}
        for t, rows in enumerate(problem.batches, 1):
            w, state, loss = self.step(w, state, problem.X[rows], problem.y[rows], t)
            yield {**w, "loss": loss}

    def step(
        self, w: Tensors, state: State, X: Array, y: Array, t: int
    ) -> tuple[Tensors, State, float]:
        """Take one step: (parameters, what is remembered, loss).

        A fault may let the numbers grow beyond all bounds.
        """
        with np.errstate(all="ignore"):
            loss, g = self.gradients(w, X, y, t)
            stale = state.get("last")
            used = stale if self.fault == "stale gradient" and stale is not None else g
            moved, state = self.update(w, used, {**state, "last": g}, t)
        return moved, state, loss

    def gradients(self, w: Tensors, X: Array, y: Array, t: int) -> tuple[float, Tensors]:
        """Forward and backward."""
        f, layers = ACTIVATIONS[self.activation], len(self.sizes) - 1
        a, kept = X, []
        for k in range(layers):
            z = self.product(a, w[f"{2 * k}.weight"].T)
            if self.bias:
                z = z + w[f"{2 * k}.bias"]
            kept.append((a, z))
            a = f.value(z).astype(z.dtype, copy=False) if k < layers - 1 else z
        loss, dz = self.head(a, y)
        g: Tensors = {}
        for k in reversed(range(layers)):
            a, z = kept[k]
            g[f"{2 * k}.weight"] = self.product(dz.T, a)
            if self.bias:
                g[f"{2 * k}.bias"] = self.total(dz)
            if k == 0:
                break
            dz = self.product(dz, w[f"{2 * k}.weight"])
            before = kept[k - 1][1]
            slope = f.slope(before, a).astype(z.dtype, copy=False)
            if self.fault == "wrong slope":
                slope = slope * slope
            if self.fault == "missing slope":
                slope = np.ones_like(slope)
            dz = dz * slope
        return loss, {name: self.times[1] * one for name, one in self.faulty(g, len(y)).items()}

    def faulty(self, g: Tensors, rows: int) -> Tensors:
        """Put those faults into the gradients that are about whole tensors."""
        first, last = "0.weight", f"{2 * len(self.sizes) - 4}.weight"
        factors = {
            "first layer halved": {first: 0.5},
            "first layer frozen": {first: 0.0},
            "last layer doubled": {last: 2.0},
            "bias frozen": {last.replace("weight", "bias"): 0.0},
            "summed": dict.fromkeys(g, float(rows)),
            "nominal divisor": dict.fromkeys(g, rows / self.batch),
        }.get(self.fault, {})
        g = {name: factors.get(name, 1) * one for name, one in g.items()}
        if self.fault == "one entry":
            g[last] = g[last].copy()
            g[last].flat[0] = 0
        return g

    def product(self, a: Array, b: Array) -> Array:
        """Multiply matrices in the style of the case."""
        if self.style % 3 == 1:
            return np.asarray(np.einsum("ij,jk->ik", a, b))
        if self.style % 3 == 2 and a.shape[1] > 1:  # in the other order
            return np.asarray(np.ascontiguousarray(a[:, ::-1]) @ np.ascontiguousarray(b[::-1]))
        return np.asarray(a @ b)

    def total(self, dz: Array) -> Array:
        """Add rows up in the style of the case."""
        if self.style % 2:
            found = np.zeros_like(dz[0])
            for row in dz:
                found = found + row
            return np.asarray(found)
        return np.asarray(dz.sum(axis=0))

    def head(self, z: Array, y: Array) -> tuple[float, Array]:
        """Take the loss and its derivative with respect to z."""
        n = len(y)
        if self.loss == "cross_entropy":
            labels = y.astype(int)
            if self.fault == "wrong labels":
                labels = (labels + 1) % self.sizes[-1]
            e = np.exp(z - z.max(axis=1, keepdims=True)) if self.style % 2 else np.exp(z)
            p = e / e.sum(axis=1, keepdims=True)
            picked = p[np.arange(n), labels]
            dz = p - np.eye(self.sizes[-1], dtype=z.dtype)[labels]
            return float(-np.mean(np.log(picked))), dz / n
        z = z[:, 0]
        if self.fault == "wrong labels":
            y = 1 - y
        if self.loss == "mse":
            r = z - y
            half = 0.5 if self.fault == "half loss" else 1.0
            dz = r * (2 * half / n) if self.style % 2 else 2 * half * r / n
            return float(np.mean(r**2)), dz[:, None].astype(z.dtype)
        p = stable_sigmoid(z) if self.style % 2 else sigmoid(z)
        if self.loss == "bce":  # torch's own floors, which are a rule
            log_p, log_q = np.maximum(np.log(p), -100), np.maximum(np.log(1 - p), -100)
            loss = -np.mean(y * log_p + (1 - y) * log_q)
        elif self.style % 4 < 2:
            loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        else:
            loss = np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))
        slope = p - y
        if self.loss == "bce":
            q = p * (1 - p)
            slope = slope * q / np.maximum(q, np.float32(1e-12))
        return float(loss), (slope / n)[:, None].astype(z.dtype)

    def update(self, w: Tensors, g: Tensors, state: State, t: int) -> tuple[Tensors, State]:
        """Take the optimizer's step."""
        lr = self.lr * self.times[0] * LR_FAULTS.get(self.fault, 1.0)
        decay = self.decay * self.times[2] * DECAY_FAULTS.get(self.fault, 1.0)
        found: Tensors = {}
        state = dict(state)
        for name, x in w.items():
            own = decay
            if self.fault == "decay without bias" and name.endswith("bias"):
                own = 0.0
            grad = g[name]
            if self.optimizer == "adamw" and self.fault != "decay coupled":
                shrink = own if self.fault == "decay without lr" else lr * own
                x = x * (1 - shrink) if self.style % 2 else x - shrink * x
            else:
                grad = grad + own * x
            direction, state[name] = self.direction(grad, state.get(name), t)
            found[name] = (x - lr * direction).astype(x.dtype, copy=False)
        return found, state

    def direction(self, g: Array, kept: Any, t: int) -> tuple[Array, Any]:
        """Turn a gradient into a direction; what is remembered with it."""
        if self.optimizer == "sgd":
            return g, None
        if self.optimizer in ("momentum", "nesterov"):
            mu = 0.9
            if self.fault == "momentum missing":
                mu = 0.0
            if self.fault == "momentum dampened":
                v = (1 - mu) * g if kept is None else mu * kept + (1 - mu) * g
            else:
                v = g if kept is None else mu * kept + g
            nesterov = self.optimizer == "nesterov" and self.fault != "nesterov missing"
            return (g + mu * v if nesterov else v), v
        if self.optimizer == "rmsprop":
            s = np.zeros_like(g) if kept is None else kept
            s = 0.99 * s + 0.01 * g * g
            eps = 1e-8
            if self.fault == "epsilon inside":
                return g / np.sqrt(s + eps), s
            return g / (np.sqrt(s) + eps), s
        one, two = (0.999, 0.9) if self.fault == "betas swapped" else (0.9, 0.999)
        m, v = (np.zeros_like(g), np.zeros_like(g)) if kept is None else kept
        m, v = one * m + (1 - one) * g, two * v + (1 - two) * g * g
        c1, c2 = 1 - one**t, 1 - two**t
        if self.fault == "no bias correction":
            c1 = c2 = 1.0
        if self.fault == "correction late":
            c1, c2 = 1 - one ** (t + 1), 1 - two ** (t + 1)
        eps = 1e-4 if self.fault == "large epsilon" else 1e-8
        if self.style % 2:
            return m * (math.sqrt(c2) / c1) / (np.sqrt(v) + eps * math.sqrt(c2)), (m, v)
        return (m / c1) / (np.sqrt(v / c2) + eps), (m, v)


LR_FAULTS = {"lr tripled": 3.0, "lr halved": 0.5, "lr one percent": 1.01}
DECAY_FAULTS = {"decay doubled": 2.0, "decay missing": 0.0, "decay flipped": -1.0}

FAULTS: dict[str, Callable[[Case], bool]] = {
    "betas swapped": lambda c: c.optimizer in ("adam", "adamw"),
    "bias frozen": lambda c: c.bias,
    "correction late": lambda c: c.optimizer in ("adam", "adamw"),
    "decay coupled": lambda c: c.optimizer == "adamw",
    "decay doubled": lambda c: c.decay > 0,
    "decay flipped": lambda c: c.decay > 0,
    "decay missing": lambda c: c.decay > 0,
    "decay without bias": lambda c: c.decay > 0 and c.bias and c.seed % 2 == 1,
    "decay without lr": lambda c: c.optimizer == "adamw",
    "epsilon inside": lambda c: c.optimizer == "rmsprop",
    "first layer frozen": lambda c: True,
    "first layer halved": lambda c: c.optimizer in ("sgd", "momentum", "nesterov"),
    "half loss": lambda c: c.loss == "mse" and c.optimizer in ("sgd", "momentum", "nesterov"),
    "large epsilon": lambda c: c.optimizer in ("adam", "adamw"),
    "last layer doubled": lambda c: c.optimizer in ("sgd", "momentum", "nesterov"),
    "lr halved": lambda c: True,
    "lr one percent": lambda c: True,
    "lr tripled": lambda c: True,
    "missing slope": lambda c: len(c.sizes) > 2 and c.activation != "identity",
    "momentum dampened": lambda c: c.optimizer in ("momentum", "nesterov"),
    "momentum missing": lambda c: c.optimizer in ("momentum", "nesterov"),
    "nesterov missing": lambda c: c.optimizer == "nesterov",
    "no bias correction": lambda c: c.optimizer in ("adam", "adamw"),
    "nominal divisor": lambda c: (
        c.rows % c.batch > 0 and c.optimizer in ("sgd", "momentum", "nesterov")
    ),
    "one entry": lambda c: True,
    "stale gradient": lambda c: c.epochs * math.ceil(c.rows / c.batch) > 1,
    "summed": lambda c: c.batch > 1 and c.optimizer in ("sgd", "momentum", "nesterov"),
    "wrong labels": lambda c: c.loss != "mse",
    "wrong slope": lambda c: len(c.sizes) > 2 and c.activation not in ("identity", "relu"),
}
"""The faults, and which cases they are faults of."""


def random_case(seed: int) -> Case:
    """Draw a case."""
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


def run(case: Case) -> Report:
    """Compare the two sides of a case."""
    return check(case.spec(), scratch=case.train, framework=case.build)


def effect(case: Case) -> float:
    """Return how large a fault is: its part of a tensor's largest step, at most, in any step.

    Taken in float64 from the parameters of the faulty training, in the order of its batches.
    """
    right, wrong = (replace(case, fault=f, dtype="float64") for f in ("", case.fault))
    X, y = case.data
    w, states, largest, t = case.start, [dict[str, Any](), dict[str, Any]()], 0.0, 0
    with np.errstate(all="ignore"):
        for _ in range(case.epochs):
            for first in range(0, case.rows, case.batch):
                t, part = t + 1, slice(first, first + case.batch)
                one, states[0], _ = right.step(w, states[0], X[part], y[part], t)
                two, states[1], _ = wrong.step(w, states[1], X[part], y[part], t)
                for name in w:
                    step = np.abs(one[name] - w[name]).max()
                    if step > 0:
                        largest = max(largest, float(np.abs(two[name] - one[name]).max() / step))
                w = two
    return largest


CLEAR = 0.02
"""The effect of a fault, as a share of the step, from which on no run may call it equivalent."""

DOUBLINGS: dict[str, tuple[float, float, float]] = {
    "lr doubled": (2.0, 1.0, 1.0),
    "lr missing": (0.0, 1.0, 1.0),
    "gradient doubled": (1.0, 2.0, 1.0),
    "gradient missing": (1.0, 0.0, 1.0),
    "decay doubled": (1.0, 1.0, 2.0),
    "decay missing": (1.0, 1.0, 0.0),
}


def doublings(case: Case) -> dict[str, tuple[float, float, float]]:
    """Return those that change a case's steps.

    Adam and RMSprop divide by the gradient's size: a doubled one changes nothing but the share of
    ε, which only float64 shows.
    """
    found = dict(DOUBLINGS)
    if not case.decay:
        del found["decay doubled"], found["decay missing"]
    if case.optimizer in ("adam", "adamw", "rmsprop") and case.dtype == "float32":
        del found["gradient doubled"]
    return found


def out_of_range(report: Report) -> bool:
    """Return whether the NumPy side's numbers left the range of its dtype: exp or log did."""
    at = report.first_divergence.at if report.first_divergence else None
    at = at or (report.first_loss_divergence.at if report.first_loss_divergence else None)
    return at is not None and not math.isfinite(at.scratch)


def faults_of(case: Case, *, doubled: bool = True) -> tuple[Report, list[str]]:
    """Check a case; what is wrong with what was found."""
    report = run(case)
    found = []
    if report.verdict == "inconclusive" and not report.reason:
        found.append("inconclusive without a reason")
    if not case.fault:
        if report.verdict == "diverged" and not out_of_range(report):
            at = report.first_divergence
            where = (at.step, at.stage, at.at) if at else report.first_loss_divergence
            found.append(f"false alarm: {where}")
        if report.verdict == "equivalent" and doubled:
            for name, times in doublings(case).items():
                verdict = run(replace(case, times=times)).verdict
                if verdict != "diverged":
                    found.append(f"equivalent, but with {name} it is {verdict}")
    elif report.verdict == "equivalent":
        size = effect(case)
        if size > CLEAR or (size > 1e-3 and case.dtype == "float64"):
            found.append(f"false equivalent: {case.fault}, {size:.2g} of a step")
    return report, found
