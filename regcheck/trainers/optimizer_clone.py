"""Copies of an optimizer that take each of its steps with something changed.

A shadow is torch's own optimizer on parameters of its own. At each step it is given the training's
parameters and gradients, and keeps a state of its own. So it shows what a doubled lr, gradient or
weight decay would have made of a run, or an error of the gradients, whatever the optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regcheck.numerics.packing import flat
from regcheck.problem.problem import Parameters
from regcheck.trainers.torch_trainer import TorchTrainer

Array = NDArray[np.floating]


class Shadow:
    """One copy. The settings named in `times` are multiplied, and so is the gradient."""

    def __init__(self, trainer: TorchTrainer, *, gradient: float = 1.0, **times: float) -> None:
        """Copy an optimizer before its first step."""
        self.trainer, self.gradient, self.times = trainer, gradient, times
        originals = list(trainer.tensors.values())
        self.tensors, self.optimizer = copy.deepcopy((originals, trainer.optimizer))
        self.views = [tensor.detach().numpy() for tensor in self.tensors]
        self.kept: dict[torch.Tensor, Any] = {}

    def keep(self) -> None:
        """Keep what the optimizer remembers, to take the next step more than once."""
        self.kept = copied(self.optimizer.state)

    def rewind(self) -> None:
        """Let the optimizer remember what it did when that was kept."""
        self.optimizer.state.clear()
        self.optimizer.state.update(copied(self.kept))

    def step(self, before: Parameters, gradients: Parameters, error: Array | None = None) -> Array:
        """Take a step; returns the parameters after it, one after the other, in float64.

        Args:
            before: the training's parameters, by name.
            gradients: what its optimizer was given.
            error: what is added to the gradients, all entries one after the other.
        """
        start = 0
        for name, tensor, view in zip(before, self.tensors, self.views, strict=True):
            np.copyto(view, before[name].reshape(view.shape), casting="same_kind")
            stop = start + view.size
            if self.trainer.has_gradient[name]:
                g = self.gradient * gradients[name]
                if error is not None:
                    g = g + error[start:stop].reshape(g.shape)
                tensor.grad = torch.from_numpy(np.asarray(g)).to(tensor.dtype)
            else:
                tensor.grad = None
            start = stop
        own: dict[str, Any]
        groups = zip(self.optimizer.param_groups, self.trainer.optimizer.param_groups, strict=True)
        for own, theirs in groups:
            for key in ("lr", "weight_decay"):
                if key in own:
                    own[key] = theirs[key] * self.times.get(key, 1.0)
        self.trainer.module.guard(self.optimizer.step)
        return flat(dict(zip(before, self.views, strict=True)))


def copied(state: Mapping[torch.Tensor, Any]) -> dict[torch.Tensor, Any]:
    """Copy what an optimizer remembers of each parameter."""
    return {
        w: {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in own.items()}
        if type(own) is dict
        else copy.deepcopy(own)
        for w, own in state.items()
    }
