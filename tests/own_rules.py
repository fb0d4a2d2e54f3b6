"""Adam and AdamW by hand, with a user's mistakes, over three small models of a user's own.

The gradients are written by hand too: an MLP, a convolution, and an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Spec = dict[str, Any]
Tensors = dict[str, Any]
Gradients = Callable[[Tensors, Any, Any], tuple[float, Tensors]]

ROWS = 20


# --- the models in torch --------------------------------------------------------------------------


class Mlp(nn.Module):
    """3 → 4 → 1, with a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.first(X)))[:, 0]
        return found


class Convolution(nn.Module):
    """Two filters of width 3 over a row of 6, a tanh, and a line."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.last = nn.Conv1d(1, 2, 3), nn.Linear(8, 1)

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.filters(X[:, None])).flatten(1))[:, 0]
        return found


class Embedding(nn.Module):
    """The mean of two of seven vectors, and a line; the last vector is never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.last = nn.Embedding(7, 3), nn.Linear(3, 1)

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.last(self.vectors(X.long()).mean(1))[:, 0]
        return found


# --- and in NumPy ---------------------------------------------------------------------------------


def mlp(P: Tensors, X: Any, y: Any) -> tuple[float, Tensors]:
    h = np.tanh(X @ P["first.weight"].T + P["first.bias"])
    r = (h @ P["last.weight"].T + P["last.bias"])[:, 0] - y
    dz = (2 * r / len(y))[:, None]
    da = (dz @ P["last.weight"]) * (1 - h**2)
    return float(np.mean(r**2)), {
        "first.weight": da.T @ X,
        "first.bias": da.sum(0),
        "last.weight": dz.T @ h,
        "last.bias": dz.sum(0),
    }


def convolution(P: Tensors, X: Any, y: Any) -> tuple[float, Tensors]:
    windows = np.stack([X[:, i : i + 3] for i in range(4)], axis=1)
    a = np.einsum("npk,fk->nfp", windows, P["filters.weight"][:, 0])
    h = np.tanh(a + P["filters.bias"][:, None])
    flat = h.reshape(len(y), -1)
    r = (flat @ P["last.weight"].T + P["last.bias"])[:, 0] - y
    dz = (2 * r / len(y))[:, None]
    da = (dz @ P["last.weight"]).reshape(h.shape) * (1 - h**2)
    return float(np.mean(r**2)), {
        "filters.weight": np.einsum("nfp,npk->fk", da, windows)[:, None],
        "filters.bias": da.sum((0, 2)),
        "last.weight": dz.T @ flat,
        "last.bias": dz.sum(0),
    }


def embedding(P: Tensors, X: Any, y: Any) -> tuple[float, Tensors]:
    ids = X.astype(int)
    e = P["vectors.weight"][ids].mean(1)
    r = (e @ P["last.weight"].T + P["last.bias"])[:, 0] - y
    dz = (2 * r / len(y))[:, None]
    G = np.zeros_like(P["vectors.weight"])
    for k in range(ids.shape[1]):
        np.add.at(G, ids[:, k], dz @ P["last.weight"] / ids.shape[1])
    return float(np.mean(r**2)), {
        "vectors.weight": G,
        "last.weight": dz.T @ e,
        "last.bias": dz.sum(0),
    }


class Kind(NamedTuple):
    """A model: in torch, its gradient in NumPy, and the rows that it takes."""

    module: Callable[[], nn.Module]
    gradients: Gradients
    X: Any


DRAW = np.random.default_rng(4)

KINDS: dict[str, Kind] = {
    "convolution": Kind(Convolution, convolution, DRAW.normal(size=(ROWS, 6))),
    "embedding": Kind(Embedding, embedding, DRAW.integers(6, size=(ROWS, 2))),
    "mlp": Kind(Mlp, mlp, DRAW.normal(size=(ROWS, 3))),
}

Y = DRAW.normal(size=ROWS)


def spec(kind: str, **changed: Any) -> Spec:
    """Write a spec of three batches an epoch: 8, 8 and 4 rows."""
    given = {"data": {"X": KINDS[kind].X.tolist(), "y": Y.tolist()}, "lr": 0.03}
    return given | {"weight_decay": 0.1, "epochs": 4, "batch_size": 8} | changed


def build(
    model: Callable[[], nn.Module],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float64,
) -> Callable[[Any], Any]:
    """Write the user's function of the framework side."""

    def made(problem: Any) -> Any:
        torch.manual_seed(2)
        own = model().to(dtype)
        return own, nn.MSELoss(), optimizer(own)

    return made


class Numbers(NamedTuple):
    """What one tensor's step is taken with."""

    lr: float
    decay: float
    betas: tuple[float, float]


class Rule(NamedTuple):
    """Adam by hand; the defaults are torch's AdamW with these numbers.

    Attributes:
        lr, decay, betas: of each tensor, by its name.
        eps: torch's.
        coupled: whether the decay is in the gradient.
        amsgrad: whether the largest second moment divides.
        mistakes: what is done wrong.
    """

    lr: Callable[[str], float] = lambda _: 0.03
    decay: Callable[[str], float] = lambda _: 0.1
    betas: Callable[[str], tuple[float, float]] = lambda _: (0.9, 0.99)
    eps: float = 1e-3
    coupled: bool = False
    amsgrad: bool = False
    mistakes: tuple[str, ...] = ()

    def numbers(self, name: str, rows: int) -> Numbers:
        """Return the numbers of a tensor, with the mistakes that are in them."""
        lr, decay, betas = self.lr(name), self.decay(name), self.betas(name)
        if "swapped betas" in self.mistakes:
            betas = betas[1], betas[0]
        if "no decay of biases" in self.mistakes and name.endswith("bias"):
            decay = 0.0
        factors = {"by batch": 1 / rows, "by data": 1 / ROWS, "decay doubled": 2, "no decay": 0}
        for mistake in self.mistakes:
            decay *= factors.get(mistake, 1)
        return Numbers(lr / 2 if "lr halved" in self.mistakes else lr, decay, betas)

    def corrections(self, betas: tuple[float, float], t: int) -> tuple[float, float]:
        """Return 1 − βᵗ of both moments."""
        if "no correction" in self.mistakes:
            return 1.0, 1.0
        t += "late correction" in self.mistakes
        return 1 - betas[0] ** t, 1 - betas[1] ** t

    def moments(
        self, g: Any, kept: Tensors, betas: tuple[float, float], t: int
    ) -> tuple[Any, Any, float, float]:
        """Return both moments, and what corrects them; `kept` is changed in place."""
        m, v = kept.get("m", 0 * g), kept.get("v", 0 * g)
        top = kept.get("top", 0 * g)
        stale = m, top if self.amsgrad else v
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        c1, c2 = self.corrections(betas, t)
        if "compounded" in self.mistakes:
            m, v, c1, c2 = m / c1, v / c2, 1, 1
        kept["m"], kept["v"] = m, v
        if self.amsgrad != ("amsgrad" in self.mistakes):
            v = kept["top"] = np.maximum(top, v)
        m, v = stale if "stale" in self.mistakes else (m, v)
        return m, v, c1, c2

    def divisor(self, v: Any, c2: float) -> Any:
        """Return √(v/c₂) + ε."""
        if "no root" in self.mistakes:
            return v / c2 + self.eps
        if "eps inside" in self.mistakes:
            return np.sqrt(v / c2 + self.eps)
        if "eps first" in self.mistakes:
            return (np.sqrt(v) + self.eps) / np.sqrt(c2)
        return np.sqrt(v / c2) + self.eps

    def step(self, name: str, w: Any, g: Any, kept: Tensors, t: int, rows: int) -> Any:
        """Take one tensor's step; `kept` is changed in place."""
        lr, decay, betas = self.numbers(name, rows)
        coupled = self.coupled != ("coupling" in self.mistakes)
        m, v, c1, c2 = self.moments(g + decay * w if coupled else g, kept, betas, t)
        u = lr * (m / c1) / self.divisor(v, c2)
        if coupled:
            return w - u
        if "decay after" in self.mistakes:
            return (w - u) * (1 - lr * decay)
        rate = lr
        if "decay unscaled" in self.mistakes:
            rate = 1.0
        if "decay corrected" in self.mistakes:
            rate = lr * np.sqrt(c2) / c1
        return w - rate * decay * w - u


def by_hand(
    gradients: Gradients,
    rule: Rule,
    *,
    told: bool = False,
    skips: Callable[[str, int], bool] = lambda name, step: False,
    dtype: type = np.float64,
) -> Callable[[Any], Iterator[Spec]]:
    """Write the user's NumPy code.

    Args:
        gradients: of the model.
        rule: the update.
        told: whether the gradients are yielded.
        skips: whether a tensor has no gradient at a step, from 1, and stays as it is.
        dtype: of all numbers.
    """

    def train(problem: Any) -> Iterator[Spec]:
        P = {name: w.astype(dtype) for name, w in problem.initial.items()}
        kept: dict[str, Tensors] = {name: {"t": 0} for name in P}
        for step, rows in enumerate(problem.batches, start=1):
            loss, G = gradients(P, problem.X[rows], problem.y[rows])
            for name, w in P.items():
                if not skips(name, step):
                    own = kept[name]
                    own["t"] += 1
                    moved = rule.step(name, w, G[name], own, own["t"], len(rows))
                    P[name] = moved.astype(dtype)
            yield {**P, "loss": loss, **({"grad": G} if told else {})}

    return train
