"""The built-in models in torch: layers of torch.nn, its loss, and an optimizer of torch.optim."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regcheck.errors import RunError
from regcheck.problem.problem import Problem
from regcheck.rules.formulas.torch_call import alike
from regcheck.rules.losses import LOSSES
from regcheck.rules.models import ACTIVATIONS, Architecture
from regcheck.trainers.framework.torch_model import EagerSGD, Module, plainly


class Layers(nn.Module):
    """One nn.Linear after the other, with an activation between two."""

    def __init__(
        self, architecture: Architecture, features: int, outputs: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        sizes = (features, *architecture.hidden, outputs)
        self.layers = nn.ModuleList(
            nn.Linear(wide, high, bias=architecture.bias, dtype=dtype)
            for wide, high in pairwise(sizes)
        )
        self.activation: nn.Module = getattr(nn, ACTIVATIONS[architecture.activation].torch)()

    def forward(self, X: Tensor) -> Tensor:
        """Return the last z of rows."""
        *hidden, last = self.layers
        a = X
        for layer in hidden:
            a = self.activation(layer(a))
        z: Tensor = last(a)
        return z


def model_of(architecture: Architecture, features: int, outputs: int, dtype: str) -> nn.Module:
    """Return a model of torch.nn; one layer is an nn.Linear by itself."""
    if architecture.hidden:
        return Layers(architecture, features, outputs, getattr(torch, dtype))
    bias = architecture.bias
    return nn.Linear(features, outputs, bias=bias, dtype=getattr(torch, dtype))


def loss_of(problem: Problem, head: str) -> OfLink:
    """Return torch's loss, of what the head makes of z."""
    loss = LOSSES[problem.loss]
    options: dict[str, Any] = {}
    if problem.loss == "cross_entropy":
        smoothing, weight = problem.loss_options
        options["label_smoothing"] = smoothing
        if weight is not None:
            dtype = getattr(torch, problem.framework_dtype)
            options["weight"] = torch.tensor(weight, dtype=dtype)
    return OfLink(getattr(nn, loss.of[head])(), getattr(nn, loss.torch)(**options))


def built_in(problem: Problem) -> Module:
    """Make a built-in model with torch's loss and optimizer, one parameter group a weight decay."""
    architecture, features = problem.architecture, problem.X.shape[1]
    assert architecture is not None
    outputs = 1 if architecture.gives_numbers else len(problem.classes)
    with torch.random.fork_rng(devices=[]):  # the start is the problem's: no random numbers used up
        model = model_of(architecture, features, outputs, problem.framework_dtype)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(problem.initial[name]))
    settings = problem.settings
    groups: list[dict[str, Any]] = [
        {"params": [tensors[name] for name in names]}
        | ({"weight_decay": decay} if settings.rule.weight_decay else {})
        for decay, names in alike(problem.weight_decay).items()
    ]
    known: dict[str, Any] = {"SGD": EagerSGD}
    kind = known.get(settings.rule.torch) or getattr(torch.optim, settings.rule.torch, None)
    if kind is None:
        raise RunError(
            f"torch {torch.__version__} has no torch.optim.{settings.rule.torch}; a later one has"
        )
    optimizer: Optimizer = kind(groups, lr=problem.schedule.lr, **settings.options)
    return Module(
        model,
        loss_of(problem, architecture.head),
        optimizer,
        tensors,
        column=architecture.gives_numbers,
        guard=plainly,
        outputs_are_z=True,
    )


class OfLink:
    """A loss of z: torch's loss of what the link makes of it."""

    def __init__(self, link: nn.Module, loss: nn.Module) -> None:
        self.link, self.loss = link, loss

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Take the loss; where the outputs are not numbers, neither is the loss.

        (torch's BCELoss raises there, in the place of giving NaN.)
        """
        try:
            loss: Tensor = self.loss(self.link(z), y)
        except RuntimeError:
            if not torch.isnan(z).any():
                raise
            loss = (z * torch.nan).sum()
        return loss
