"""What torch trains: a model, its loss and its optimizer, by default torch's own."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regcheck.errors import UserCodeError
from regcheck.numerics.packing import flat
from regcheck.problem.problem import Array, Parameters
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.optimizers.update_rule import Own
from regcheck.rules.settings import Settings
from regcheck.trainers.framework.memory import ParameterViews


@dataclass
class Module:
    """A model with its loss and optimizer.

    Attributes:
        model: gives the outputs of rows of X, (B, d).
        loss: of outputs and targets, as torch takes it.
        optimizer: of the model's parameters.
        tensors: the parameters by regcheck's names.
        column: whether the targets are (B, 1), and not (B,).
        guard: calls a function of tensors that is the user's, and turns what it does into errors.
        outputs_are_z: whether the model's outputs are z of the one-layer models, (B, 1).
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    tensors: dict[str, nn.Parameter]
    column: bool
    guard: Callable[..., Any]
    outputs_are_z: bool

    def clone(self) -> Module:
        """Copy it as it is; the copy trains on its own.

        Raises:
            UserCodeError: something in it cannot be copied.
        """
        try:
            same: Module = copy.deepcopy(self)
        except Exception as error:
            raise UserCodeError(
                f"framework: the model, the loss function or the optimizer cannot be copied "
                f"({type(error).__name__}: {error})\n  Make all three inside the function, so that "
                "each call returns new ones."
            ) from error
        return same

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype of its parameters."""
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return the optimizer's settings of each tensor that it updates."""
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        return {
            names[id(tensor)]: group
            for group in self.optimizer.param_groups
            for tensor in group["params"]
            if id(tensor) in names
        }

    def untrained(self) -> list[str]:
        """Name the tensors that are frozen, or that the optimizer does not have."""
        groups = self.groups()
        frozen = {name for name, tensor in self.tensors.items() if not tensor.requires_grad}
        return [name for name in self.tensors if name in frozen or name not in groups]

    def is_plain_sgd(self) -> bool:
        """Whether its optimizer is torch.optim.SGD going downhill, on all tensors."""
        groups = self.groups()
        return (
            optimizer_class(self.optimizer) is torch.optim.SGD
            and groups.keys() == self.tensors.keys()
            and not any(group["maximize"] for group in groups.values())
        )

    def settings(self) -> Settings | None:
        """Return the settings that a user's own optimizer has.

        None where its class has no update rule, or where it maximizes. The common lr and options
        are the first group's, or those of the first whose lr is not 0.
        """
        kind, groups = optimizer_class(self.optimizer), self.groups()
        # (An older torch does not have them all.)
        classes = {name: getattr(torch.optim, one.torch, None) for name, one in OPTIMIZERS.items()}
        name = next((name for name, one in classes.items() if one is kind), None)
        maximizes = any(group.get("maximize", False) for group in groups.values())
        if name is None or maximizes:
            return None
        defaults = OPTIMIZERS[name].defaults
        each = {
            tensor: Own(
                float(group["lr"]), {key: as_number(group[key], x) for key, x in defaults.items()}
            )
            for tensor, group in groups.items()
        }
        lr, options = next((one for one in each.values() if one.lr), next(iter(each.values())))
        own = {tensor: one for tensor, one in each.items() if one != Own(lr, options)}
        decays = {
            tensor: float(groups.get(tensor, {}).get("weight_decay", 0.0))
            for tensor in self.tensors
        }
        return Settings(lr, decays, options, name, own)


def dense(name: str, gradient: torch.Tensor) -> Array:
    """Return a gradient's entries.

    Raises:
        UserCodeError: it holds some of them alone.
    """
    if gradient.is_sparse:
        raise UserCodeError(
            f"framework: the gradient of {name} is sparse; regcheck compares all entries: remove "
            "`sparse=True`, which does not change the updates of torch.optim.SGD"
        )
    found: Array = gradient.numpy()
    return found


def as_number(value: Any, default: Any) -> Any:
    """Return an option as a spec has it: tensors and whole numbers as floats, but for counts."""
    if isinstance(value, tuple | list):
        return tuple(map(as_number, value, default))
    if isinstance(value, bool | str) or value is None:
        return value
    return int(value) if type(default) is int else float(value)


def plainly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of regcheck's own."""
    return function(*args)


class EagerSGD(torch.optim.SGD):
    """torch.optim.SGD, its own code, without the decorators that only torch.compile needs.

    They import torch._dynamo, which takes almost as long as torch itself (1.2 s beside 1.4 s).
    Methods are looked up when they are called, so that a patched torch.optim.SGD is that patch.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, as torch.optim.SGD does."""
        return torchs_own(torch.optim.SGD.step)(self, closure)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim.SGD does."""
        torchs_own(torch.optim.SGD.add_param_group)(self, param_group)


def optimizer_class(optimizer: Optimizer) -> type[Optimizer]:
    """Return an optimizer's class, torch's own where it is that without decorators."""
    return torch.optim.SGD if type(optimizer) is EagerSGD else type(optimizer)


def optimizer_class_name(optimizer: Optimizer) -> str:
    """Return the module and the name of an optimizer's class."""
    kind = optimizer_class(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def eager_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the step of an optimizer; of torch's own, a sixth faster without these decorators.

    Where somebody hooks into the step or has put another in its place, it is taken as it is.
    """
    module = sys.modules[Optimizer.__module__]
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    shared = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    hooks = [getattr(optimizer, name, True) for name in names]
    hooks += [getattr(module, name, True) for name in shared]
    own = torchs_own(type(optimizer).step)
    replaced = "step" in vars(optimizer) or not is_torchs(own)
    if replaced or any(hooks) or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return partial(without_gradients(own), optimizer)


@cache
def without_gradients(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that records no gradients."""
    return torch.no_grad()(method)


@cache
def torchs_own(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method without the decorators that are torch's; others' stay."""
    own: Callable[..., Any] = inspect.unwrap(method, stop=lambda one: not is_torchs(one))
    return own


def is_torchs(function: Callable[..., Any]) -> bool:
    """Whether a function was written in torch; a decorator may bear another's name."""
    return bool(getattr(function, "__globals__", {}).get("__name__", "").startswith("torch."))


class OptimizerClone:
    """A copy of an optimizer that takes each of its steps with something changed.

    It is the user's own on parameters of its own. At each step it is given the training's
    parameters and gradients, and keeps a state of its own. So it shows what a doubled lr, gradient
    or weight decay would have made of a run, or an error of the gradients, whatever the optimizer.
    The settings named in `times` are multiplied, and so is the gradient.
    """

    def __init__(self, module: Module, *, gradient: float = 1.0, **times: float) -> None:
        """Copy a module's optimizer before its first step."""
        self.module, self.gradient, self.times = module, gradient, times
        originals = list(module.tensors.values())
        self.tensors, self.optimizer = copy.deepcopy((originals, module.optimizer))
        self.views = ParameterViews(dict(zip(module.tensors, self.tensors, strict=True)))
        self.kept: dict[Tensor, Any] = {}

    def keep(self) -> None:
        """Keep what the optimizer remembers, to take the next step more than once."""
        self.kept = copied(self.optimizer.state)

    def rewind(self) -> None:
        """Let the optimizer remember what it did when that was kept."""
        self.optimizer.state.clear()
        self.optimizer.state.update(copied(self.kept))

    def step(
        self,
        before: Parameters,
        gradients: Mapping[str, Array | None],
        error: Array | None = None,
    ) -> Array:
        """Take a step; returns the parameters after it, one after the other, in float64.

        Args:
            before: the training's parameters, by name.
            gradients: what its optimizer was given; None for tensors without a gradient.
            error: what is added to the gradients, all entries one after the other.
        """
        start = 0
        views = self.views.now()
        for tensor, (name, view) in zip(self.tensors, views.items(), strict=True):
            np.copyto(view, before[name].reshape(view.shape), casting="same_kind")
            stop, given = start + view.size, gradients[name]
            tensor.grad = None
            if given is not None:
                g = self.gradient * given
                if error is not None:
                    g = g + error[start:stop].reshape(g.shape)
                tensor.grad = torch.from_numpy(np.asarray(g)).to(tensor.dtype)
            start = stop
        own: dict[str, Any]
        groups = zip(self.optimizer.param_groups, self.module.optimizer.param_groups, strict=True)
        for own, theirs in groups:
            for key in ("lr", "weight_decay"):
                if key in own:
                    own[key] = theirs[key] * self.times.get(key, 1.0)
        self.module.guard(self.optimizer.step)
        return flat(self.views.now())


def copied(state: Mapping[Tensor, Any]) -> dict[Tensor, Any]:
    """Copy what an optimizer remembers of each parameter."""
    return {
        w: {key: x.clone() if isinstance(x, Tensor) else x for key, x in own.items()}
        if type(own) is dict
        else copy.deepcopy(own)
        for w, own in state.items()
    }
