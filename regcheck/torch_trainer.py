"""The framework side: nn.Linear, torch's loss and the real torch.optim.SGD with parameter groups.

With `noise` the one module that imports torch; the one place where threads and determinism are set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it in any case
from threadpoolctl import threadpool_limits
from torch import nn

from regcheck.problem import Array, Parameters, Problem, Step
from regcheck.schedule import Batch

VERSION = str(torch.__version__)

SMALL = 2**18
"""Multiplications in a pass below which one thread is faster than handing work to several."""


@contextmanager
def torch_settings(multiplications: int) -> Iterator[int]:
    """Set threads and determinism for one training, and put them back; gives the threads.

    A pass over the rows that takes few multiplications runs on one thread, so that it does not
    pay for handing work to others. Larger ones keep torch's own number, and NumPy's BLAS gets one
    thread: the sides take turns, and two pools whose idle threads wait busily hold each other up
    (measured: four times slower).
    """
    small = multiplications < SMALL
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1 if small else threads)
    torch.use_deterministic_algorithms(True)
    try:
        # A small pass stays below the size from which BLAS uses threads at all.
        with torch.enable_grad(), nullcontext() if small else threadpool_limits(1, "blas"):
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


LOSSES: dict[tuple[str, str], tuple[type[nn.Module], type[nn.Module]]] = {
    ("linear", "mse"): (nn.Identity, nn.MSELoss),
    ("logistic", "bce"): (nn.Sigmoid, nn.BCELoss),
    ("logistic", "bce_with_logits"): (nn.Identity, nn.BCEWithLogitsLoss),
    ("logistic", "mse"): (nn.Sigmoid, nn.MSELoss),
}
"""By model and loss: what is put on z, and torch's loss of that."""


class TorchTrainer:
    """The training of a problem in torch, stepped one update at a time."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        dtype = getattr(torch, problem.framework_dtype)
        self.X = torch.from_numpy(problem.X).to(dtype)
        self.y = torch.from_numpy(problem.y).to(dtype)[:, None]
        self.largest = float(torch.finfo(dtype).max)
        # The start is the problem's; torch's own would only move its random numbers on.
        self.model: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, problem.X.shape[1], 1, dtype=dtype
        )
        with torch.no_grad():
            for name, tensor in self.model.named_parameters():
                tensor.copy_(torch.from_numpy(problem.initial[name]))
        link, loss = LOSSES[problem.model, problem.loss]
        self.link, self.loss = link(), loss()
        groups: list[dict[str, Any]] = [
            {"params": [tensor], "weight_decay": problem.weight_decay[name]}
            for name, tensor in self.model.named_parameters()
        ]
        options = problem.optimizer
        self.optimizer = torch.optim.SGD(
            groups,
            lr=problem.schedule.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            dampening=options.dampening,
        )
        # Views of the parameters' memory: reading them costs no call into torch.
        self.tensors = dict(self.model.named_parameters())
        self.views: dict[str, Array] = {
            name: tensor.detach().numpy() for name, tensor in self.tensors.items()
        }

    def parameters(self) -> Parameters:
        """Copy the parameters as they are now."""
        return {name: view.copy() for name, view in self.views.items()}

    def step(self, batch: Batch) -> Step:
        """Take one update."""
        before = self.parameters()
        outputs, loss = self.backward(batch)
        gradient = {name: grad_of(tensor).copy() for name, tensor in self.tensors.items()}
        used = gradient
        if self.clip():
            used = {name: grad_of(tensor).copy() for name, tensor in self.tensors.items()}
        for group in self.optimizer.param_groups:
            # A schedule may outgrow float32, where torch would raise; NumPy's lr is infinite then.
            group["lr"] = batch.lr if batch.lr <= self.largest else math.inf
        self.optimizer.step()
        self.optimizer.zero_grad()
        velocity = self.velocity()
        weight_decay = self.problem.weight_decay
        return Step(
            before=before,
            outputs=outputs,
            loss=loss,
            gradient=gradient,
            penalty={name: batch.lr * (weight_decay[name] * w) for name, w in before.items()},
            velocity=velocity,
            shift={
                name: batch.lr
                * self.direction(velocity.get(name), used[name] + weight_decay[name] * w)
                for name, w in before.items()
            },
            after=self.parameters(),
        )

    def backward(self, batch: Batch) -> tuple[tuple[Array, ...], float]:
        """Run each micro-batch forward and backward; their mean gradients are averaged."""
        outputs, total = [], 0.0
        parts = len(batch.parts)
        for index in batch.parts:
            rows = index if isinstance(index, slice) else torch.from_numpy(index)
            z = self.model(self.X[rows])
            outputs.append(z.detach().numpy()[:, 0])
            loss = self.measure(z, self.y[rows])
            if parts > 1:
                loss = loss / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return tuple(outputs), total

    def measure(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Take the loss; where the outputs are not numbers, neither is the loss.

        (torch's BCELoss raises there, in the place of giving NaN.)
        """
        try:
            loss: torch.Tensor = self.loss(self.link(z), y)
        except RuntimeError:
            if not torch.isnan(z).any():
                raise
            loss = (z * torch.nan).sum()
        return loss

    def clip(self) -> bool:
        """Clip the gradients where the problem says so; say whether it does."""
        if self.problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.problem.clip_norm)
        elif self.problem.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.problem.clip_value)
        else:
            return False
        return True

    def velocity(self) -> Parameters:
        """Copy torch's own momentum buffers; none without momentum."""
        if self.problem.optimizer.momentum == 0:
            return {}
        state = self.optimizer.state
        return {
            name: state[tensor]["momentum_buffer"].numpy().copy()
            for name, tensor in self.tensors.items()
        }

    def direction(self, velocity: Array | None, coupled: Array) -> Array:
        """Give d: g + λ w without momentum, the buffer v with it, g + λ w + μ v with Nesterov."""
        if velocity is None:
            return coupled
        options = self.problem.optimizer
        return coupled + options.momentum * velocity if options.nesterov else velocity


def grad_of(tensor: torch.Tensor) -> Array:
    """View a parameter's gradient as an array."""
    assert tensor.grad is not None
    grad: Array = tensor.grad.numpy()
    return grad


def environment() -> dict[str, str]:
    """Name the versions that numbers depend on."""
    return {"numpy": np.__version__, "torch": VERSION}
