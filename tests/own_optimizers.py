"""Optimizers as somebody writes them: subclasses of torch.optim.Optimizer, right and wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.own_rules import Mlp


class Own(Optimizer):
    """What the optimizers here share: a loop over the tensors that have gradients."""

    def __init__(self, params: Any, *, mistake: str = "", **options: Any) -> None:
        super().__init__(params, options)
        self.mistake = mistake

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    state = self.state[w]
                    state["t"] = state.get("t", 0) + 1
                    self.move(w, w.grad.clone(), group, state)

    def move(self, w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move one tensor."""
        raise NotImplementedError


class OwnAdamW(Own):
    """AdamW with a mistake in it, or none."""

    def move(self, w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move one tensor."""
        lr, decay, (b1, b2) = (group[key] for key in ("lr", "weight_decay", "betas"))
        lr = lr / 2 if self.mistake == "lr halved" else lr
        b1, b2 = (b2, b1) if self.mistake == "swapped" else (b1, b2)
        decay = self.decay_of(w, decay)
        if self.mistake == "coupled":
            g, decay = g + decay * w, 0.0
        if self.mistake != "decay late":
            w.mul_(1 - (decay if self.mistake == "unscaled" else lr * decay))
        m = state.setdefault("m", torch.zeros_like(w)).mul_(b1).add_(g, alpha=1 - b1)
        v = state.setdefault("v", torch.zeros_like(w)).mul_(b2).addcmul_(g, g, value=1 - b2)
        t = self.count(state["t"])
        c1, c2 = 1 - b1**t, 1 - b2**t
        if self.mistake == "no correction":
            c1 = c2 = 1.0
        w.addcdiv_(m / c1, self.divisor(v, c2, group["eps"], state), value=-lr)
        if self.mistake == "decay late":
            w.mul_(1 - lr * decay)
        if self.mistake == "noise":
            w.mul_(1 + 1e-4 * torch.sin(1e6 * w))

    def count(self, t: int) -> int:
        """Return t as the bias correction takes it; an epoch has three steps."""
        counts = {
            "t from 0": t - 1,
            "t late": max(1, t - 1),
            "t of the epoch": (t - 1) % 3 + 1,
            "t any": [1, 2, 2, 5, 3][min(t, 5) - 1],
        }
        return counts.get(self.mistake, t)

    def decay_of(self, w: Tensor, decay: float) -> float:
        """Return a tensor's weight decay."""
        if self.mistake == "no decay of biases" and w.ndim == 1:
            return 0.0
        return 2 * decay if self.mistake == "doubled" else decay

    def divisor(self, v: Tensor, c2: float, eps: float, state: dict[str, Any]) -> Tensor:
        """Return √(v/c₂) + ε."""
        if self.mistake == "eps first":
            return (v.sqrt() + eps) / math.sqrt(c2)
        if self.mistake == "eps inside":
            return (v / c2 + eps).sqrt()
        if self.mistake == "largest":
            v = state["top"] = torch.maximum(state.get("top", v), v)
        return (v / c2).sqrt() + eps


class OwnSGD(Own):
    """SGD with momentum, with a mistake in it, or none."""

    def move(self, w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move one tensor."""
        lr, decay, mu = (group[key] for key in ("lr", "weight_decay", "momentum"))
        if self.mistake != "decoupled":
            g = g + decay * w
        else:
            w.mul_(1 - lr * decay)
        share = 1 - mu if self.mistake == "dampened" else 1.0
        if "v" not in state:
            state["v"] = share * g
        else:
            state["v"].mul_(mu).add_(g, alpha=share)
        step = g + mu * state["v"] if self.mistake == "nesterov" else state["v"]
        w.sub_(lr * step)


def build(
    kind: Any,
    model: Callable[[], nn.Module] = Mlp,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Callable[[Any], Any]:
    """Write the function that a spec names as its framework side."""

    def made(problem: Any) -> Any:
        torch.manual_seed(2)
        own = model().to(dtype)
        return own, nn.MSELoss(), kind(own.parameters(), **{"lr": problem.lr} | options)

    return made


class MuonByHand(Own):
    """Muon as people write it, each operation in bfloat16 rounded by itself."""

    def move(self, w: Tensor, g: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move one tensor."""
        v = state.setdefault("v", torch.zeros_like(w)).lerp_(g, 0.05)
        E = orthogonal_by_hand(g.lerp(v, 0.95))
        w.mul_(1 - (1.0 if self.mistake else group["lr"]) * group["weight_decay"])
        w.sub_(group["lr"] * max(1, w.shape[0] / w.shape[1]) ** 0.5 * E)


def orthogonal_by_hand(Z: Tensor) -> Tensor:
    """Return E, in Z's dtype."""
    X = Z.bfloat16()
    X = X.mT if Z.shape[0] > Z.shape[1] else X
    X = X / (X.norm() + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        B = -4.7750 * A + 2.0315 * A @ A
        X = 3.4445 * X + B @ X
    found: Tensor = (X.mT if Z.shape[0] > Z.shape[1] else X).to(Z.dtype)
    return found
