"""The framework side: model, loss and optimizer in torch, stepped one update at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from regcheck.numerics.packing import Packed, layout_of
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem, Step
from regcheck.trainers.framework.built_in import built_in
from regcheck.trainers.framework.memory import Buffers, ParameterViews, Views
from regcheck.trainers.framework.schedulers import GroupSchedulers
from regcheck.trainers.framework.torch_model import Module, dense, eager_step, is_torchs
from regcheck.trainers.framework.user_module import check_loss


class Taken(NamedTuple):
    """What an update took: the loss, the gradient, and `used`, as the optimizer was given it.

    `outputs` are None where they are no z; `skipped` tensors had no gradient.
    """

    outputs: tuple[Array, ...] | None
    loss: float
    gradient: Parameters
    used: Parameters
    skipped: frozenset[str]


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
        self.schedulers: GroupSchedulers | None = None
        if problem.schedule.lr_schedule is not None:
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            self.schedulers = GroupSchedulers(problem.schedule, lrs)
        # Of SGD's steps, penalty and delta are known; another optimizer's are known as a whole.
        self.groups = self.module.groups()
        self.group_of = [self.groups.get(name, {}) for name in self.tensors]
        self.left_out = [x for name, x in self.tensors.items() if name not in self.groups]
        self.sgd_groups = self.groups if self.module.is_plain_sgd() else {}
        self.loss_checked = module is None
        self.used: Parameters = {}
        self.placed: Parameters | None = None  # what is known to be there, exactly
        self.skipped: frozenset[str] = frozenset()  # tensors without a gradient, at the last step
        self.buffers = Buffers(self.module.model)
        self.buffers_before: dict[str, torch.Tensor] = {}
        self.views = ParameterViews(self.tensors)
        self.remembered: defaultdict[str, Views] = defaultdict(Views)
        self.layout = layout_of({name: tuple(x.shape) for name, x in self.tensors.items()})

    def parameters(self) -> Parameters:
        """Copy the parameters as they are now."""
        return self.layout.join(self.views.now().values())

    def place(self, parameters: Parameters) -> None:
        """Put other parameters in the place of its own; what the optimizer remembers stays."""
        views = self.views.now()
        with np.errstate(all="ignore"):  # float64 may overflow in float32
            for name, view in views.items():
                np.copyto(view, parameters[name].reshape(view.shape), casting="same_kind")
        alike = isinstance(parameters, Packed) and parameters.layout is self.layout
        alike = alike and all(w.dtype == views[name].dtype for name, w in parameters.items())
        self.placed = parameters if alike else None

    def advance(self, batch: Batch) -> Step:
        """Take one update of which nothing but its end and its loss is asked."""
        self.placed = None
        _, loss = self.backward(batch)
        self.clip()
        self.update(batch)
        return Step({}, None, loss, None, None, {}, None, self.parameters())

    def loss_at(self, parameters: Parameters, batch: Batch) -> float:
        """Return the loss of a step's rows at any parameters."""
        self.place(parameters)
        with torch.no_grad():
            losses = []
            for index in batch.micro_batches:
                rows = index if isinstance(index, slice) else torch.from_numpy(index)
                losses.append(float(self.module.guard(self.forward, self.X[rows], self.y[rows])[1]))
        return sum(losses) / len(losses)

    def pass_at(self, parameters: Parameters, batch: Batch) -> Step:
        """Return the loss and the clipped gradient of a step's rows at any parameters: no update.

        The optimizer remembers nothing of it; the model's buffers go on.
        """
        self.place(parameters)
        _, loss = self.backward(batch)
        self.clip()
        skipped, gradient = self.without_gradient(), self.gradients()
        self.forget_gradients()
        return Step({}, None, loss, gradient, None, {}, None, {}, skipped)

    def without_gradient(self) -> frozenset[str]:
        """Return the tensors that have no gradient, or that the optimizer does not have."""
        return frozenset(
            [name for name, x in self.tensors.items() if x.grad is None or name not in self.groups]
        )

    def step(self, batch: Batch) -> Step:
        """Take one update."""
        before = self.parameters() if self.placed is None else self.placed
        self.buffers_before = self.buffers.copy()
        taken = self.take(batch)
        self.used, self.skipped = taken.used, taken.skipped
        after = self.placed = self.parameters()
        penalty = delta = None
        if self.module.outputs_are_z and not self.sgd_groups:
            penalty = self.layout.scaled(self.decays(), before)
            delta = self.layout.less(before, after)
        step = Step(before, *taken[:3], penalty, self.memory(), delta, after, taken.skipped)
        return self.with_parts(step) if self.sgd_groups else step

    def decays(self) -> dict[str, float]:
        """Return each tensor's lr λ."""
        return {
            name: float(group["lr"]) * float(group.get("weight_decay", 0.0))
            for name, group in self.groups.items()
        }

    def take(self, batch: Batch) -> Taken:
        """Move the parameters by one update."""
        outputs, loss = self.backward(batch)
        skipped = self.without_gradient()
        gradient = used = self.gradients()
        if self.clip():
            used = self.gradients()
        self.update(batch)
        return Taken(outputs, loss, gradient, used, skipped)

    def with_parts(self, step: Step) -> Step:
        """Return a step of SGD with what the penalty and the whole step subtract."""
        penalty, delta = {}, {}
        for name, w in step.before.items():
            group = self.sgd_groups[name]
            lr, decay = float(group["lr"]), float(group["weight_decay"])  # either may be a tensor
            d = self.used[name] + decay * w
            v = step.memory[name].get("momentum_buffer")
            if v is not None:
                d = d + group["momentum"] * v if group["nesterov"] else v
            penalty[name] = lr * (decay * w)
            delta[name] = lr * d
        packed = self.layout.packed
        return step._replace(penalty=packed(penalty), delta=packed(delta))

    def backward(self, batch: Batch) -> tuple[tuple[Array, ...] | None, float]:
        """Run each micro-batch forward and backward; their mean gradients are averaged."""
        outputs, loss = self.module.guard(self.passes, *self.pairs(batch))
        at = (slice(None), 0) if self.module.column else slice(None)
        known = self.module.outputs_are_z
        return (tuple(z.detach().numpy()[at] for z in outputs) if known else None), loss

    def pairs(self, batch: Batch) -> list[torch.Tensor]:
        """Return X and y of each micro-batch in turn."""
        rows = [i if isinstance(i, slice) else torch.from_numpy(i) for i in batch.micro_batches]
        pairs = [one[index] for index in rows for one in (self.X, self.y)]
        if not self.loss_checked:
            for X, y in zip(pairs[::2], pairs[1::2], strict=True):
                with self.buffers.kept():
                    check_loss(self.module, X, y)
                self.loss_checked = len(y) > 1
        return pairs

    def passes(self, *pairs: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        """Run micro-batches forward and backward; returns the outputs, and the mean of the losses.

        Their mean gradients are averaged.
        """
        torch.set_grad_enabled(True)  # a user's code may have turned it off
        outputs, total, count = [], 0.0, len(pairs) // 2
        for X, y in zip(pairs[::2], pairs[1::2], strict=True):
            z, loss = self.forward(X, y)
            if count > 1:
                loss = loss / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            outputs.append(z)
        return outputs, total

    def forward(self, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch's outputs and loss."""
        z = self.module.model(X)
        return z, self.module.loss(z, y)

    def gradients(self) -> Parameters:
        """Copy the parameters' gradients; 0 where there is none."""
        return self.layout.join(
            np.zeros_like(x.detach().numpy()) if (g := x.grad) is None else dense(name, g)
            for name, x in self.tensors.items()
        )

    def given_gradients(self) -> dict[str, Array | None]:
        """Return what the optimizer was given at the last step; None for tensors without one."""
        return {name: None if name in self.skipped else g for name, g in self.used.items()}

    def optimizer_options(self) -> dict[str, Any]:
        """Return the optimizer's options; a list of each tensor's lr and weight decay, or 0.

        `of_tensors` are those of each, which may differ.
        """
        found = {key: x for key, x in next(iter(self.groups.values())).items() if key != "params"}
        for key in ("lr", "weight_decay"):
            found[key] = [float(group.get(key, 0)) for group in self.group_of]
        found["of_tensors"] = [group or found for group in self.group_of]
        return found

    def optimizer_state(self, keys: Iterable[str]) -> tuple[dict[str, list[Array]], float]:
        """Return what the optimizer remembers of each tensor, or 0, and the step it counts."""
        states = [self.optimizer.state.get(w, {}) for w in self.tensors.values()]
        found = {}
        for key in keys:
            known = [x for state in states if (x := state.get(key)) is not None]
            views = self.remembered[key].of(known)
            if len(known) == len(states):
                found[key] = views
            elif known:
                each, sizes = iter(views), zip(states, self.layout.sizes, strict=True)
                found[key] = [
                    np.zeros(size) if state.get(key) is None else next(each)
                    for state, size in sizes
                ]
        return found, next((float(state["step"]) for state in states if "step" in state), 1.0)

    def clip(self) -> bool:
        """Clip the gradients where the problem says so; return whether it does."""
        if self.problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.tensors.values(), self.problem.clip_norm)
        elif self.problem.clip_value is not None:
            nn.utils.clip_grad_value_(self.tensors.values(), self.problem.clip_value)
        else:
            return False
        return True

    def update(self, batch: Batch) -> None:
        """Let the optimizer update the parameters, at the step's lr."""
        if self.schedulers is not None:
            lrs = self.schedulers.now(batch)
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                # A schedule may outgrow float32, where torch would raise; NumPy's lr is inf then.
                group["lr"] = lr if lr <= self.largest else math.inf
        self.module.guard(eager_step(self.optimizer))
        if self.schedulers is not None:
            self.schedulers.step(batch)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Do what zero_grad does; torch's own goes through its compiler at each call.

        Of tensors that the optimizer does not have, gradients would pile up.
        """
        if "zero_grad" in vars(self.optimizer) or not is_torchs(type(self.optimizer).zero_grad):
            self.module.guard(self.optimizer.zero_grad)
        else:
            for group in self.optimizer.param_groups:
                for tensor in group["params"]:
                    tensor.grad = None
        for tensor in self.left_out:
            tensor.grad = None

    def memory(self) -> dict[str, dict[str, Array]]:
        """Copy what the optimizer remembers of each tensor, where anybody asks for it.

        It is asked for by the parts of an SGD step, one vector's bounds, and trials of bce's floor.
        """
        model = self.problem.architecture
        asked = model is not None and (model.is_one_vector or self.problem.loss == "bce")
        if not self.sgd_groups and not asked:
            return {}
        found = {}
        for name, tensor in self.tensors.items():
            state = self.optimizer.state.get(tensor, {})
            known = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
            found[name] = {key: x.numpy().copy() for key, x in known.items() if key != "step"}
        return found
