"""A multi-layer perceptron in NumPy as a user writes it: in several styles, with planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

if TYPE_CHECKING:
    from tests.random_modules import Case

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


LR_FAULTS = {"lr tripled": 3.0, "lr halved": 0.5, "lr one percent": 1.01}
DECAY_FAULTS = {"decay doubled": 2.0, "decay missing": 0.0, "decay flipped": -1.0}


class Mlp:
    def __init__(self, case: Case) -> None:
        self.case = case

    def train(self, problem: Any) -> Iterator[dict[str, Any]]:
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
            used = stale if self.case.fault == "stale gradient" and stale is not None else g
            moved, state = self.update(w, used, {**state, "last": g}, t)
        return moved, state, loss

    def gradients(self, w: Tensors, X: Array, y: Array, t: int) -> tuple[float, Tensors]:
        f, layers = ACTIVATIONS[self.case.activation], len(self.case.sizes) - 1
        a, kept = X, []
        for k in range(layers):
            z = self.product(a, w[f"{2 * k}.weight"].T)
            if self.case.bias:
                z = z + w[f"{2 * k}.bias"]
            kept.append((a, z))
            a = f.value(z).astype(z.dtype, copy=False) if k < layers - 1 else z
        loss, dz = self.head(a, y)
        g: Tensors = {}
        for k in reversed(range(layers)):
            a, z = kept[k]
            g[f"{2 * k}.weight"] = self.product(dz.T, a)
            if self.case.bias:
                g[f"{2 * k}.bias"] = self.total(dz)
            if k == 0:
                break
            dz = self.product(dz, w[f"{2 * k}.weight"])
            before = kept[k - 1][1]
            slope = f.slope(before, a).astype(z.dtype, copy=False)
            if self.case.fault == "wrong slope":
                slope = slope * slope
            if self.case.fault == "missing slope":
                slope = np.ones_like(slope)
            dz = dz * slope
        return loss, {
            name: self.case.times[1] * one for name, one in self.faulty(g, len(y)).items()
        }

    def faulty(self, g: Tensors, rows: int) -> Tensors:
        """Put those faults into the gradients that are about whole tensors."""
        first, last = "0.weight", f"{2 * len(self.case.sizes) - 4}.weight"
        factors = {
            "first layer halved": {first: 0.5},
            "first layer frozen": {first: 0.0},
            "last layer doubled": {last: 2.0},
            "bias frozen": {last.replace("weight", "bias"): 0.0},
            "summed": dict.fromkeys(g, float(rows)),
            "nominal divisor": dict.fromkeys(g, rows / self.case.batch),
        }.get(self.case.fault, {})
        g = {name: factors.get(name, 1) * one for name, one in g.items()}
        if self.case.fault == "one entry":
            g[last] = g[last].copy()
            g[last].flat[0] = 0
        return g

    def product(self, a: Array, b: Array) -> Array:
        """Multiply matrices in the style of the case."""
        if self.case.style % 3 == 1:
            return np.asarray(np.einsum("ij,jk->ik", a, b))
        if self.case.style % 3 == 2 and a.shape[1] > 1:  # in the other order
            return np.asarray(np.ascontiguousarray(a[:, ::-1]) @ np.ascontiguousarray(b[::-1]))
        return np.asarray(a @ b)

    def total(self, dz: Array) -> Array:
        """Add rows up in the style of the case."""
        if self.case.style % 2:
            found = np.zeros_like(dz[0])
            for row in dz:
                found = found + row
            return np.asarray(found)
        return np.asarray(dz.sum(axis=0))

    def head(self, z: Array, y: Array) -> tuple[float, Array]:
        """Take the loss and its derivative with respect to z."""
        n = len(y)
        if self.case.loss == "cross_entropy":
            labels = y.astype(int)
            if self.case.fault == "wrong labels":
                labels = (labels + 1) % self.case.sizes[-1]
            e = np.exp(z - z.max(axis=1, keepdims=True)) if self.case.style % 2 else np.exp(z)
            p = e / e.sum(axis=1, keepdims=True)
            picked = p[np.arange(n), labels]
            dz = p - np.eye(self.case.sizes[-1], dtype=z.dtype)[labels]
            return float(-np.mean(np.log(picked))), dz / n
        z = z[:, 0]
        if self.case.fault == "wrong labels":
            y = 1 - y
        if self.case.loss == "mse":
            r = z - y
            half = 0.5 if self.case.fault == "half loss" else 1.0
            dz = r * (2 * half / n) if self.case.style % 2 else 2 * half * r / n
            return float(np.mean(r**2)), dz[:, None].astype(z.dtype)
        p = stable_sigmoid(z) if self.case.style % 2 else sigmoid(z)
        if self.case.loss == "bce":  # torch's own floors, which are a rule
            log_p, log_q = np.maximum(np.log(p), -100), np.maximum(np.log(1 - p), -100)
            loss = -np.mean(y * log_p + (1 - y) * log_q)
        elif self.case.style % 4 < 2:
            loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        else:
            loss = np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))
        slope = p - y
        if self.case.loss == "bce":
            q = p * (1 - p)
            slope = slope * q / np.maximum(q, np.float32(1e-12))
        return float(loss), (slope / n)[:, None].astype(z.dtype)

    def update(self, w: Tensors, g: Tensors, state: State, t: int) -> tuple[Tensors, State]:
        lr = self.case.lr * self.case.times[0] * LR_FAULTS.get(self.case.fault, 1.0)
        decay = self.case.decay * self.case.times[2] * DECAY_FAULTS.get(self.case.fault, 1.0)
        found: Tensors = {}
        state = dict(state)
        for name, x in w.items():
            own = decay
            if self.case.fault == "decay without bias" and name.endswith("bias"):
                own = 0.0
            grad = g[name]
            if self.case.optimizer == "adamw" and self.case.fault != "decay coupled":
                shrink = own if self.case.fault == "decay without lr" else lr * own
                x = x * (1 - shrink) if self.case.style % 2 else x - shrink * x
            else:
                grad = grad + own * x
            direction, state[name] = self.direction(grad, state.get(name), t)
            end = x - lr * direction
            if self.case.fault == "decay late":
                end = (w[name] - lr * direction) * (1 - lr * own)
            found[name] = end.astype(x.dtype, copy=False)
        return found, state

    def direction(self, g: Array, kept: Any, t: int) -> tuple[Array, Any]:
        """Turn a gradient into a direction; what is remembered with it."""
        if self.case.optimizer == "sgd":
            return g, None
        if self.case.optimizer in ("momentum", "nesterov"):
            mu = 0.9
            if self.case.fault == "momentum missing":
                mu = 0.0
            if self.case.fault == "momentum dampened":
                v = (1 - mu) * g if kept is None else mu * kept + (1 - mu) * g
            else:
                v = g if kept is None else mu * kept + g
            nesterov = self.case.optimizer == "nesterov" and self.case.fault != "nesterov missing"
            return (g + mu * v if nesterov else v), v
        if self.case.optimizer == "rmsprop":
            s = np.zeros_like(g) if kept is None else kept
            s = 0.99 * s + 0.01 * g * g
            eps = 1e-8
            if self.case.fault == "epsilon inside":
                return g / np.sqrt(s + eps), s
            return g / (np.sqrt(s) + eps), s
        return self.adam(g, (np.zeros_like(g),) * 3 if kept is None else kept, t)

    def adam(self, g: Array, kept: Any, t: int) -> tuple[Array, Any]:
        """Turn a gradient into Adam's direction; kept are both moments, and the largest second."""
        fault = self.case.fault
        one, two = (0.999, 0.9) if fault == "betas swapped" else (0.9, 0.999)
        m, v = one * kept[0] + (1 - one) * g, two * kept[1] + (1 - two) * g * g
        later = t + (fault == "correction late")
        c1, c2 = 1 - one**later, 1 - two**later
        if fault == "no bias correction":
            c1 = c2 = 1.0
        if fault == "correction compounded":
            m, v, c1, c2 = m / c1, v / c2, 1.0, 1.0
        now = m, v, np.maximum(kept[2], v)
        if fault == "moments stale":
            m, v = kept[:2]
        if fault == "amsgrad added":
            v = now[2]
        eps = 1e-4 if fault == "large epsilon" else 1e-8
        if fault == "root missing":
            return (m / c1) / (v / math.sqrt(c2) + eps), now
        if fault == "epsilon inside":
            return (m / c1) / np.sqrt(v / c2 + eps), now
        if fault == "epsilon first":
            return m * (math.sqrt(c2) / c1) / (np.sqrt(v) + eps), now
        if self.case.style % 2:
            return m * (math.sqrt(c2) / c1) / (np.sqrt(v) + eps * math.sqrt(c2)), now
        return (m / c1) / (np.sqrt(v / c2) + eps), now
