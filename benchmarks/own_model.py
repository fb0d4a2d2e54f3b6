"""An MLP of one's own twice, in torch and by hand, with Adam and cross entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8


class OwnModel:
    """Layers of the given sizes with tanh between them."""

    def __init__(self, sizes: tuple[int, ...], rows: int, batch: int, epochs: int) -> None:
        draw = np.random.default_rng(0)
        self.sizes = sizes
        self.X = draw.normal(size=(rows, sizes[0]))
        self.y = draw.integers(sizes[-1], size=rows).astype(np.float64)
        self.spec = {"lr": LR, "batch_size": batch, "epochs": epochs}

    def build(self, _: Any) -> tuple[nn.Module, Any, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for one, two in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            layers += [nn.Linear(one, two, dtype=torch.float64), nn.Tanh()]
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        return model, lambda z, y: nn.functional.cross_entropy(z, y.long()), optimizer

    def torch_alone(self, problem: Any) -> None:
        """Train in torch and nothing else."""
        model, loss_of, optimizer = self.build(problem)
        X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
        for rows in problem.batches:
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            loss = loss_of(model(X[index]), y[index])
            loss.backward()
            optimizer.step()
            float(loss.detach())

    def train(self, problem: Any) -> Iterator[dict[str, Any]]:
        """Train by hand."""
        w = {name: x.copy() for name, x in problem.initial.items()}
        m = {name: np.zeros_like(x) for name, x in w.items()}
        v = {name: np.zeros_like(x) for name, x in w.items()}
        for t, rows in enumerate(problem.batches, 1):
            loss, g = self.gradients(w, problem.X[rows], problem.y[rows].astype(int))
            for name in w:
                m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * g[name]
                v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * g[name] ** 2
                size = np.sqrt(v[name] / (1 - BETAS[1] ** t)) + EPS
                w[name] = w[name] - LR * (m[name] / (1 - BETAS[0] ** t)) / size
            yield {**w, "loss": loss}

    def gradients(
        self, w: dict[str, np.ndarray], X: np.ndarray, y: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        layers = [2 * k for k in range(len(self.sizes) - 1)]
        inputs = [X]
        for k in layers:
            z = inputs[-1] @ w[f"{k}.weight"].T + w[f"{k}.bias"]
            inputs.append(np.tanh(z))
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss = float(-np.log(p[np.arange(len(y)), y]).mean())
        p[np.arange(len(y)), y] -= 1
        dz, g = p / len(y), {}
        for place, k in reversed(list(enumerate(layers))):
            g[f"{k}.weight"], g[f"{k}.bias"] = dz.T @ inputs[place], dz.sum(axis=0)
            if place:
                dz = (dz @ w[f"{k}.weight"]) * (1 - inputs[place] ** 2)
        return loss, g
