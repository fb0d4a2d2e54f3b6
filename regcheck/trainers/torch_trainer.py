"""The framework side: a model, its loss and its optimizer in torch, stepped one update at a time.

With `modules`, `noise` and `shadow` the modules that import torch; the one place where threads
and determinism are set.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from regcheck.errors import UserCodeError
from regcheck.numerics.packing import Packed, flat, layout_of
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem, Step
from regcheck.trainers.monte_carlo import RandomRounding
from regcheck.trainers.torch_model import (
    Module,
    ShapeTrap,
    TrappedError,
    built_in,
    eager_step,
    is_torchs,
    plain_sgd,
    trap_text,
)

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
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1 if small else threads)
    # As use_deterministic_algorithms(True), which imports torch's compiler: a second more.
    torch.set_deterministic_debug_mode("error")
    try:
        # A small pass stays below the size from which BLAS uses threads at all.
        with torch.enable_grad(), nullcontext() if small else threadpool_limits(1, "blas"):
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


class Sample(NamedTuple):
    """One pass with random rounding: the loss, and the gradients as they come and as clipped.

    All tensors' entries stand one after the other, in float64.
    """

    loss: float
    gradient: Array
    used: Array


class TorchTrainer:
    """The training of a problem in torch, stepped one update at a time."""

    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        """Take what is to be trained: a user's module, or else the problem's own.

        Raises:
            UserCodeError: in any step, where a user's module cannot take it.
        """
        self.problem = problem
        self.module = built_in(problem) if module is None else module
        dtype = self.module.dtype
        self.X, y = (
            data if data.dtype == torch.int64 else data.to(dtype)  # indices and labels stay
            for data in map(torch.from_numpy, (problem.X, problem.y))
        )
        self.y = y[:, None] if self.module.column else y
        self.largest = float(torch.finfo(dtype).max)
        self.optimizer, self.tensors = self.module.optimizer, self.module.tensors
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        # SGD's steps can be told in parts; another optimizer's is told as a whole.
        self.groups = self.module.groups() if plain_sgd(self.module) else {}
        self.trapped = module is None
        self.used: Parameters = {}
        # What was put in the place of its parameters, exactly, and is there still.
        self.placed: Parameters | None = None
        self.has_gradient = dict.fromkeys(self.tensors, True)
        self.buffers = dict(self.module.model.named_buffers())
        self.buffers_before: dict[str, torch.Tensor] = {}
        # Views of the parameters' memory: reading them costs no call into torch.
        self.views: dict[str, Array] = {
            name: tensor.detach().numpy() for name, tensor in self.tensors.items()
        }
        self.layout = layout_of({name: view.shape for name, view in self.views.items()})

    def parameters(self) -> Parameters:
        """Copy the parameters as they are now."""
        return self.layout.join(self.views.values())

    def place(self, parameters: Parameters) -> None:
        """Put other parameters in the place of its own; what the optimizer remembers stays."""
        with np.errstate(all="ignore"):  # float64 may overflow in float32
            for name, view in self.views.items():
                np.copyto(view, parameters[name].reshape(view.shape), casting="same_kind")
        exact = isinstance(parameters, Packed) and parameters.layout is self.layout
        exact = exact and all(w.dtype == self.views[name].dtype for name, w in parameters.items())
        self.placed = parameters if exact else None

    def sample(
        self, parameters: Parameters, batch: Batch, rounding: RandomRounding | None, *, mixed: bool
    ) -> Sample:
        """Take a step's gradients once more, with random rounding; the training goes on as it was.

        Args:
            parameters: where to take them.
            batch: the rows.
            rounding: rounds at random; without it, the pass is the step's own.
            mixed: whether the sides' dtypes differ, so that each has data and parameters that are
                rounded otherwise.
        """
        try:
            found: Sample = self.module.guard(
                lambda: self.sampled(parameters, batch, rounding, mixed=mixed)
            )
        except UserCodeError:
            if rounding is not None and rounding.failure is not None:
                raise rounding.failure from None
            raise
        return found

    def sampled(
        self, parameters: Parameters, batch: Batch, rounding: RandomRounding | None, *, mixed: bool
    ) -> Sample:
        """Take the sample."""
        kept, X, y = self.parameters(), self.X, self.y
        buffers = {name: x.detach().clone() for name, x in self.buffers.items()}
        grads = [tensor.grad for tensor in self.tensors.values()]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                self.place(parameters)
                for name, x in self.buffers_before.items():
                    self.buffers[name].copy_(x)
                if mixed and rounding is not None:
                    self.X, self.y = (recast(one, rounding) for one in (X, y))
                    for tensor in self.tensors.values():
                        tensor.copy_(recast(tensor, rounding))
                self.forget_gradients()
                with rounding or nullcontext():
                    _, loss = self.backward(batch)
                gradient = used = flat(self.gradients())
                if self.clip():
                    used = flat(self.gradients())
                return Sample(loss, gradient, used)
        finally:
            self.X, self.y = X, y
            self.place(kept)
            with torch.no_grad():
                for name, x in buffers.items():
                    self.buffers[name].copy_(x)
            for tensor, grad in zip(self.tensors.values(), grads, strict=True):
                tensor.grad = grad

    def is_random(self) -> bool:
        """Return whether two passes over the same rows give different outputs, or losses."""
        found = []
        buffers = {name: x.detach().clone() for name, x in self.buffers.items()}
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for batch in islice(self.problem.schedule.batches(), 1):
                X, y = self.pairs(batch)[:2]
                for _ in range(2):
                    for name, x in buffers.items():
                        self.buffers[name].copy_(x)
                    z, loss = self.module.guard(self.forward, X, y)
                    parts = [x for x in (z, loss) if isinstance(x, torch.Tensor)]
                    found.append([x.detach().numpy().tobytes() for x in parts])
            for name, x in buffers.items():
                self.buffers[name].copy_(x)
        random.setstate(states[0])
        np.random.set_state(states[1])
        return len(found) == 2 and found[0] != found[1]

    def advance(self, batch: Batch) -> Step:
        """Take one update of which nothing but its end and its loss is asked."""
        self.placed = None
        _, loss = self.backward(batch)
        self.clip()
        self.move(batch)
        return Step({}, None, loss, None, None, {}, None, self.parameters())

    def loss_at(self, parameters: Parameters, batch: Batch) -> float:
        """Give the loss of a step's rows at any parameters."""
        self.place(parameters)
        with torch.no_grad():
            losses = []
            for index in batch.micro_batches:
                rows = index if isinstance(index, slice) else torch.from_numpy(index)
                losses.append(float(self.module.guard(self.forward, self.X[rows], self.y[rows])[1]))
        return sum(losses) / len(losses)

    def step(self, batch: Batch) -> Step:
        """Take one update."""
        before, self.placed = self.placed or self.parameters(), None
        self.buffers_before = {name: x.detach().clone() for name, x in self.buffers.items()}
        outputs, loss = self.backward(batch)
        self.has_gradient = {name: x.grad is not None for name, x in self.tensors.items()}
        gradient = used = self.gradients()
        if self.clip():
            used = self.gradients()
        self.used = used
        self.move(batch)
        after, velocity = self.parameters(), self.velocity()
        step = Step(
            before=before,
            outputs=outputs,
            loss=loss,
            gradient=gradient,
            penalty=None,
            velocity=velocity,
            delta=None,
            after=after,
        )
        if not self.groups:
            return step
        lrs = {name: group["lr"] for name, group in self.groups.items()}
        decays = {name: group["weight_decay"] for name, group in self.groups.items()}
        return step._replace(
            penalty={name: lrs[name] * (decays[name] * w) for name, w in before.items()},
            delta={
                name: lrs[name]
                * self.direction(name, velocity.get(name), used[name] + decays[name] * w)
                for name, w in before.items()
            },
        )

    def backward(self, batch: Batch) -> tuple[tuple[Array, ...] | None, float]:
        """Run each micro-batch forward and backward; their mean gradients are averaged."""
        outputs, loss = self.module.guard(self.passes, *self.pairs(batch))
        if not self.module.outputs_are_z:
            return None, loss
        return tuple(z.detach().numpy()[:, 0] for z in outputs), loss

    def pairs(self, batch: Batch) -> list[torch.Tensor]:
        """Return X and y of each micro-batch in turn."""
        rows = [i if isinstance(i, slice) else torch.from_numpy(i) for i in batch.micro_batches]
        pairs = [one[index] for index in rows for one in (self.X, self.y)]
        if not self.trapped:
            for place in range(0, len(pairs), 2):
                self.look_for_trap(pairs[place], pairs[place + 1])
        return pairs

    def passes(self, *pairs: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        """Run micro-batches forward and backward; returns the outputs, and the mean of the losses.

        Their mean gradients are averaged.
        """
        torch.set_grad_enabled(True)  # a user's code may have turned it off
        outputs, total, parts = [], 0.0, len(pairs) // 2
        for X, y in zip(pairs[::2], pairs[1::2], strict=True):
            z, loss = self.forward(X, y)
            if parts > 1:
                loss = loss / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            outputs.append(z)
        return outputs, total

    def forward(self, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give a batch's outputs and loss."""
        z = self.module.model(X)
        return z, self.module.loss(z, y)

    def look_for_trap(self, X: torch.Tensor, y: torch.Tensor) -> None:
        """Point out targets that broadcast against predictions; and a loss that is no loss."""
        label, rows = "framework", len(y)

        trapped = False

        def trial() -> object:
            nonlocal trapped
            with torch.random.fork_rng(devices=[]), ShapeTrap(rows), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of the trap, and then uses it
                torch.set_grad_enabled(True)
                try:
                    return self.forward(X, y)[1]
                except TrappedError:
                    trapped = True
                    return None

        def alone() -> object:
            torch.set_grad_enabled(True)
            return self.forward(X, y)[1]

        with self.keeping_buffers():
            loss = self.module.guard(trial if rows > 1 else alone)
        if trapped:
            raise UserCodeError(trap_text(label, rows))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            found = f"{loss!r}; is a `return` missing?" if loss is None else repr(loss)
            if isinstance(loss, torch.Tensor):
                found = f"a tensor of shape {tuple(loss.shape)}"
                if not loss.requires_grad:
                    found += ", cut off from the parameters (by detach, no_grad or item)"
            raise UserCodeError(
                f"{label}: loss_function(model(X), y) gave {found}\n"
                "It must give one number that torch can differentiate, like the mean of the rows' "
                "losses"
            )
        self.trapped = rows > 1

    @contextmanager
    def keeping_buffers(self) -> Iterator[None]:
        """Put the model's buffers back as they were, after passes that are no step of it."""
        kept = {name: x.detach().clone() for name, x in self.buffers.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, x in kept.items():
                    self.buffers[name].copy_(x)

    def gradients(self) -> Parameters:
        """Copy the parameters' gradients; 0 where there is none."""
        return self.layout.join(
            np.zeros_like(self.views[name]) if tensor.grad is None else dense(name, tensor.grad)
            for name, tensor in self.tensors.items()
        )

    def clip(self) -> bool:
        """Clip the gradients where the problem says so; say whether it does."""
        if self.problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.tensors.values(), self.problem.clip_norm)
        elif self.problem.clip_value is not None:
            nn.utils.clip_grad_value_(self.tensors.values(), self.problem.clip_value)
        else:
            return False
        return True

    def move(self, batch: Batch) -> None:
        """Let the optimizer move the parameters, at the step's lr."""
        schedule = self.problem.schedule
        if schedule.lr_schedule is not None:
            for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
                # A user's own lr keeps its proportion to the spec's.
                now = schedule.lr_at(batch.step)
                now = now if lr == schedule.lr else lr * (now / schedule.lr)
                # A schedule may outgrow float32, where torch would raise; NumPy's lr is inf then.
                group["lr"] = now if now <= self.largest else math.inf
        self.module.guard(eager_step(self.optimizer))
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Do what zero_grad does; torch's own goes through its compiler at each call."""
        if "zero_grad" in vars(self.optimizer) or not is_torchs(type(self.optimizer).zero_grad):
            self.module.guard(self.optimizer.zero_grad)
            return
        for group in self.optimizer.param_groups:
            for tensor in group["params"]:
                tensor.grad = None

    def velocity(self) -> Parameters:
        """Copy torch's own momentum buffers; none without momentum."""
        if not any(group["momentum"] for group in self.groups.values()):
            return {}
        state = self.optimizer.state
        return {
            name: state[tensor]["momentum_buffer"].numpy().copy()
            for name, tensor in self.tensors.items()
            if state[tensor].get("momentum_buffer") is not None
        }

    def direction(self, name: str, velocity: Array | None, coupled: Array) -> Array:
        """Give d: g + λ w without momentum, the buffer v with it, g + λ w + μ v with Nesterov."""
        if velocity is None:
            return coupled
        group: dict[str, Any] = self.groups[name]
        return coupled + group["momentum"] * velocity if group["nesterov"] else velocity


def dense(name: str, gradient: torch.Tensor) -> Array:
    """Give a gradient's entries.

    Raises:
        UserCodeError: it holds some of them alone.
    """
    if gradient.is_sparse:
        raise UserCodeError(
            f"framework: the gradient of {name} is sparse; regcheck compares all entries: leave "
            "out `sparse=True`, which changes no step of torch.optim.SGD"
        )
    found: Array = gradient.numpy()
    return found


def recast(x: torch.Tensor, rounding: RandomRounding) -> torch.Tensor:
    """Move those numbers that are no whole ones as a cast to another dtype may have rounded them.

    Whole numbers, labels among them, are the same in both dtypes.
    """
    if not x.is_floating_point():
        return x
    return torch.where(x == x.round(), x, x + x * rounding.signs(x))


def environment() -> dict[str, str]:
    """Name the versions that numbers depend on."""
    return {"numpy": np.__version__, "torch": VERSION}
