"""What torch trains: the one-layer models of a spec, or a user's own model, loss and optimizer."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from regcheck.errors import UserCodeError
from regcheck.problem.problem import OWN_MODEL, Array, Problem
from regcheck.rules.settings import SGD_DEFAULTS, SgdSettings
from regcheck.user_code.updates import EXAMPLES, kind_of

LOSSES: dict[tuple[str, str], tuple[type[nn.Module], type[nn.Module]]] = {
    ("linear", "mse"): (nn.Identity, nn.MSELoss),
    ("logistic", "bce"): (nn.Sigmoid, nn.BCELoss),
    ("logistic", "bce_with_logits"): (nn.Identity, nn.BCEWithLogitsLoss),
    ("logistic", "mse"): (nn.Sigmoid, nn.MSELoss),
}
"""By model and loss: what is put on z, and torch's loss of that."""

Guard = Callable[..., Any]
"""Calls a function with arguments; one that guards turns what a user's code does into errors."""


@dataclass
class Module:
    """A model with its loss and optimizer.

    Attributes:
        model: gives the outputs of rows of X, (B, d).
        loss: of outputs and targets, as torch takes it.
        optimizer: of the model's parameters.
        tensors: the parameters by regcheck's names.
        column: whether the targets are (B, 1), and not (B,).
        guard: calls what is the user's.
        outputs_are_z: whether the model's outputs are z of the one-layer models, (B, 1).
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    tensors: dict[str, nn.Parameter]
    column: bool
    guard: Guard
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
                "each call gives new ones."
            ) from error
        return same

    def shares(self, other: Module) -> bool:
        """Say whether it has a parameter in common with another."""
        return not {id(w) for w in self.model.parameters()}.isdisjoint(
            id(w) for w in other.model.parameters()
        )

    def take_state(self, other: Module) -> None:
        """Copy another's parameters and buffers, before any step.

        Raises:
            UserCodeError: the other is not of the same kind.
        """
        if shapes_of(self.model) != shapes_of(other.model):
            raise UserCodeError(
                "framework: gave another model when it was called again, with "
                f"{shapes_of(self.model)} where it had {shapes_of(other.model)}\n  regcheck calls "
                "it once for each training: let it make the same model each time."
            )
        with torch.no_grad():
            for name, value in state_of(other.model).items():
                state_of(self.model)[name].copy_(value)

    @property
    def dtype(self) -> torch.dtype:
        """Give the coarsest dtype of its parameters."""
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def groups(self) -> dict[str, dict[str, Any]]:
        """Give the optimizer's settings of each tensor; nothing for those that it does not move."""
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
        return [
            name
            for name, tensor in self.tensors.items()
            if not tensor.requires_grad or name not in groups
        ]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Give a model's parameters and buffers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give the shapes of a model's parameters and buffers."""
    return {name: tuple(value.shape) for name, value in state_of(model).items()}


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


def kind_of_optimizer(optimizer: Optimizer) -> type[Optimizer]:
    """Give an optimizer's class, by torch's name."""
    return torch.optim.SGD if type(optimizer) is EagerSGD else type(optimizer)


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
    """Say whether a function was written in torch; a decorator may bear another's name."""
    return bool(getattr(function, "__globals__", {}).get("__name__", "").startswith("torch."))


def built_in(problem: Problem) -> Module:
    """Make nn.Linear with torch's loss and torch.optim.SGD, one parameter group a tensor."""
    with torch.random.fork_rng(devices=[]):  # the start is the problem's: no random numbers used up
        model = nn.Linear(
            problem.X.shape[1],
            1,
            bias="bias" in problem.initial,
            dtype=getattr(torch, problem.framework_dtype),
        )
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(problem.initial[name]))
    link, measure = (make() for make in LOSSES[problem.model, problem.loss])
    groups: list[dict[str, Any]] = [
        {"params": [tensor], "weight_decay": problem.weight_decay[name]}
        for name, tensor in tensors.items()
    ]
    optimizer = EagerSGD(groups, lr=problem.schedule.lr, **problem.sgd.options())
    return Module(
        model, OfLink(link, measure), optimizer, tensors, True, plainly, outputs_are_z=True
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


def import_compiler() -> None:
    """Import what a user's first optimizer imports: it counts to neither their modules nor time."""
    import torch._dynamo  # noqa: F401


def wrap_user_module(made: object, label: str, guard: Guard, problem: Problem) -> Module:
    """Take what a user's function made: (model, loss_function, optimizer).

    Where the spec has a one-layer model, so has it: its one weight and its one bias go by these
    names. Else its parameters keep their own.

    Raises:
        UserCodeError: it is no such triple, or cannot be trained.
    """
    returns = f"it must return (model, loss_function, optimizer), like{EXAMPLES['framework']}"
    if not isinstance(made, tuple | list) or len(made) != 3:
        found = f"{len(made)} things" if isinstance(made, tuple | list) else kind_of(made)
        raise UserCodeError(f"{label}: gave {found}; {returns}")
    model, loss, optimizer = made
    wanted = {
        "model, a torch.nn.Module": isinstance(model, nn.Module),
        "loss_function, which is called with predictions and targets": callable(loss),
        "optimizer, a torch.optim.Optimizer": isinstance(optimizer, Optimizer),
    }
    for (what, right), one in zip(wanted.items(), made, strict=True):
        if isinstance(one, type):
            text = f"gave the class {one.__name__} in the place of the {what.partition(',')[0]}"
            raise UserCodeError(f"{label}: {text}; make one of it: {one.__name__}(..)")
        if not right:
            found = f"gave {kind_of(one)} in the place of the {what}"
            raise UserCodeError(f"{label}: {found}; {returns}")
    tensors = named_tensors(model, label, problem)
    check_tensors(tensors, optimizer, label)
    return Module(model, loss, optimizer, tensors, False, guard, outputs_are_z=False)


def named_tensors(model: nn.Module, label: str, problem: Problem) -> dict[str, nn.Parameter]:
    """Give a user's parameters by regcheck's names."""
    own = dict(model.named_parameters())
    if not own:
        raise UserCodeError(f"{label}: the model has no parameters; there is nothing to train")
    if problem.model == OWN_MODEL:
        return own
    found: dict[str, list[str]] = {name: [] for name in problem.initial}
    for name, tensor in own.items():
        # Where the sizes do not tell them apart, the names do.
        alike = problem.initial["weight"].size == 1
        bias = name.rpartition(".")[2].startswith("b") if alike else tensor.numel() == 1
        named = "bias" if bias and "bias" in found else "weight"
        if tensor.numel() == problem.initial[named].size:
            found[named].append(name)
    if len(own) != len(found) or any(len(names) != 1 for names in found.values()):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own.items())
        other = "one bias" if "bias" in found else "no bias (`bias: false`)"
        raise UserCodeError(
            f"{label}: the model has {shapes}; the spec's {problem.model} model has one weight of "
            f"{problem.initial['weight'].size} entries and {other}. To compare another model, "
            "leave `model` and `loss` out of the spec and give `scratch` too"
        )
    tensors = {kind: own[names[0]] for kind, names in found.items()}
    for kind, tensor in tensors.items():
        if tuple(tensor.shape) != problem.initial[kind].shape:
            raise UserCodeError(
                f"{label}: {found[kind][0]} has shape {tuple(tensor.shape)}; the spec's "
                f"{problem.model} model has it as nn.Linear does, {problem.initial[kind].shape}. "
                "Use nn.Linear, or leave `model` and `loss` out of the spec and give `scratch` too"
            )
    return tensors


def check_tensors(tensors: Mapping[str, nn.Parameter], optimizer: Optimizer, label: str) -> None:
    """Refuse parameters that regcheck cannot follow."""
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise UserCodeError(
                f"{label}: {name} is on {tensor.device}; regcheck trains on the CPU: "
                "leave out .to(device)"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise UserCodeError(
                f"{label}: {name} is {tensor.dtype}; it must be torch.float32 or torch.float64"
            )
    known = {id(tensor) for tensor in tensors.values()}
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    if not any(id(tensor) in known for tensor in trained):
        raise UserCodeError(
            f"{label}: the optimizer has none of the model's parameters; give it model.parameters()"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserCodeError(
            f"{label}: torch.optim.LBFGS takes the loss several times in one step; regcheck takes "
            "optimizers of one gradient a step, such as torch.optim.SGD"
        )


def plain_sgd(module: Module) -> bool:
    """Say whether a module's optimizer is torch.optim.SGD going downhill, on all tensors."""
    if kind_of_optimizer(module.optimizer) is not torch.optim.SGD:
        return False
    groups = module.groups()
    return groups.keys() == module.tensors.keys() and not any(
        group["maximize"] for group in groups.values()
    )


def settings(module: Module, problem: Problem) -> Problem | None:
    """Give the problem with the settings that a user's own torch.optim.SGD really has.

    None where it is another optimizer, or has an lr or a momentum of its own for some tensor.
    """
    groups = module.groups()
    if not plain_sgd(module):
        return None
    common = {
        (float(group["lr"]), *(type(value)(group[key]) for key, value in SGD_DEFAULTS.items()))
        for group in groups.values()
    }
    if len(common) > 1:
        return None
    [(lr, *options)] = common
    decays = {name: float(groups[name]["weight_decay"]) for name in module.tensors}
    return problem.with_sgd(SgdSettings(lr, decays, *options))


def initial_of(module: Module) -> dict[str, Array]:
    """Copy a module's parameters, in float64."""
    return {
        name: tensor.detach().double().numpy().copy() for name, tensor in module.tensors.items()
    }


class ShapeTrap(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Points out targets (n,) that meet predictions (n, 1): torch makes n × n of them."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Take an operation, and look at the shapes that it was given."""
        given = func(*args, **(kwargs or {}))
        if isinstance(given, Tensor) and tuple(given.shape) == (self.rows, self.rows):
            shapes = {tuple(one.shape) for one in args if isinstance(one, Tensor)}
            rows, column = (self.rows,), (self.rows, 1)
            spread = func is torch.ops.aten.expand.default and shapes == {rows}
            if spread or shapes == {rows, column}:
                raise TrappedError
        return given


class TrappedError(Exception):
    """Targets and predictions of n rows were broadcast to n × n."""


def trap_text(label: str, rows: int) -> str:
    """Say what is wrong where targets and predictions broadcast, and what to do."""
    return (
        f"{label}: in the loss, predictions ({rows}, 1) meet targets ({rows},): torch broadcasts "
        f"them to ({rows}, {rows}), so that every prediction is compared with every target\n"
        "  The targets y are (n,). Let the model's output be (n,) too, by `.squeeze(-1)`, or\n"
        "  let the loss function take y as a column: `lambda p, y: loss(p, y[:, None])`"
    )
