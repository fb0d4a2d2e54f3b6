"""A user's own model, loss function and optimizer: taken as they are called, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from regcheck.errors import UserCodeError
from regcheck.problem.problem import Problem
from regcheck.spec import LoadedSpec
from regcheck.trainers.framework.followed import check_tensors
from regcheck.trainers.framework.torch_model import Module
from regcheck.user_code.function import UserFunction, imported
from regcheck.user_code.guard import Guard
from regcheck.user_code.problem_api import user_problem
from regcheck.user_code.surroundings import descriptors_diverted
from regcheck.user_code.updates import EXAMPLES, kind_of


def wrap_user_module(
    made: object, label: str, guard: Callable[..., Any], problem: Problem
) -> Module:
    """Take what a user's function made: (model, loss_function, optimizer).

    Where the spec has a model, so has it: its parameters go by the names that regcheck has for
    them. Else they keep their own.

    Raises:
        UserCodeError: it is no such triple, or cannot be trained.
    """
    returns = f"it must return (model, loss_function, optimizer), like{EXAMPLES['framework']}"
    if not isinstance(made, tuple | list) or len(made) != 3:
        found = f"{len(made)} things" if isinstance(made, tuple | list) else kind_of(made)
        raise UserCodeError(f"{label}: returned {found}; {returns}")
    model, loss, optimizer = made
    check_own_class(optimizer, label)
    wanted = {
        "model": ("a torch.nn.Module", isinstance(model, nn.Module)),
        "loss_function": ("which is called with predictions and targets", callable(loss)),
        "optimizer": ("a torch.optim.Optimizer", isinstance(optimizer, Optimizer)),
    }
    for (name, (what, right)), one in zip(wanted.items(), made, strict=True):
        if isinstance(one, type):
            text = f"returned the class {one.__name__} as the {name}"
            raise UserCodeError(f"{label}: {text}; return an instance: {one.__name__}(..)")
        if not right:
            found = f"{kind_of(one)} in place of the {name}, {what}"
            raise UserCodeError(f"{label}: returned {found}; {returns}")
    tensors = named_tensors(model, label, problem)
    check_tensors(tensors, optimizer, label)
    return Module(model, loss, optimizer, tensors, False, guard, outputs_are_z=False)


def check_own_class(optimizer: object, label: str) -> None:
    """Refuse an optimizer of a user's own class that is not made as torch's are.

    Raises:
        UserCodeError: it is not.
    """
    name, steps = type(optimizer).__name__, callable(getattr(optimizer, "step", None))
    call = '`super().__init__(params, {"lr": lr})`, with all options that it has'
    if steps and not isinstance(optimizer, Optimizer | type):
        raise UserCodeError(
            f"{label}: the optimizer's class {name} is none of torch's: let it be `class {name}"
            f"(torch.optim.Optimizer)`, and its __init__ call {call}"
        )
    if isinstance(optimizer, Optimizer) and not hasattr(optimizer, "param_groups"):
        raise UserCodeError(
            f"{label}: the optimizer {name} has no param_groups: let its __init__ call {call}"
        )


def named_tensors(model: nn.Module, label: str, problem: Problem) -> dict[str, nn.Parameter]:
    """Return a user's parameters by regcheck's names."""
    own = dict(model.named_parameters())
    if not own:
        raise UserCodeError(f"{label}: the model has no parameters; there is nothing to train")
    if lazy := [name for name, w in own.items() if isinstance(w, nn.UninitializedParameter)]:
        raise UserCodeError(
            f"{label}: {lazy[0]} has no shape yet: call the lazy model once on rows as X has them, "
            "before you make the optimizer"
        )
    if problem.architecture is None:
        return own
    if not problem.architecture.is_one_vector:
        return tensors_in_order(own, label, problem)
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


def tensors_in_order(
    own: Mapping[str, nn.Parameter], label: str, problem: Problem
) -> dict[str, nn.Parameter]:
    """Return a user's parameters by regcheck's names: in their order, which is that of the layers.

    Raises:
        UserCodeError: they are not as many, or not so shaped, as the spec's model has them.
    """
    wanted = {name: w.shape for name, w in problem.initial.items()}
    if [tuple(tensor.shape) for tensor in own.values()] == list(wanted.values()):
        return dict(zip(wanted, own.values(), strict=True))
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own.items())
    needed = ", ".join(f"{name} {shape}" for name, shape in wanted.items())
    raise UserCodeError(
        f"{label}: the model has {shapes}; the spec's {problem.model} model has {needed}. To "
        "compare another model, leave `model` and `loss` out of the spec and give `scratch` too"
    )


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


def check_loss(module: Module, X: Tensor, y: Tensor) -> None:
    """Refuse targets that broadcast against predictions, and a loss that is no loss.

    Raises:
        UserCodeError: the user's model and loss function give no loss of these rows.
    """
    rows = len(y)

    def loss() -> object:
        torch.set_grad_enabled(True)  # a user's code may have turned it off
        return module.loss(module.model(X), y)

    def trapped_loss() -> object:
        with torch.random.fork_rng(devices=[]), ShapeTrap(rows), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the trap, and then uses it
            try:
                return loss()
            except TrappedError as error:
                return error

    found = module.guard(trapped_loss if rows > 1 else loss)
    if isinstance(found, TrappedError):
        raise UserCodeError(
            f"framework: in the loss, predictions ({rows}, 1) meet targets ({rows},): torch "
            f"broadcasts them to ({rows}, {rows}), so that every prediction is compared with every "
            "target\n"
            "  The targets y are (n,). Let the model's output be (n,) too, by `.squeeze(-1)`, or\n"
            "  let the loss function take y as a column: `lambda p, y: loss(p, y[:, None])`"
        )
    if isinstance(found, Tensor) and found.numel() == 1 and found.requires_grad:
        return
    text = f"{found!r}; is a `return` missing?" if found is None else repr(found)
    if isinstance(found, Tensor):
        text = f"a tensor of shape {tuple(found.shape)}"
        if not found.requires_grad:
            text += ", cut off from the parameters (by detach, no_grad or item)"
    raise UserCodeError(
        f"framework: loss_function(model(X), y) returned {text}\n"
        "  It must return one number that torch can differentiate, like the mean of the losses"
    )


def of_module(problem: Problem, module: Module) -> Problem:
    """Return the problem as a user's module trains it: its tensors, its dtype."""
    dtype = str(module.dtype).removeprefix("torch.")
    problem = replace(problem, framework_dtype=dtype)
    if problem.architecture is not None:
        return problem
    groups = module.groups()
    return replace(
        problem,
        initial={name: w.detach().double().numpy().copy() for name, w in module.tensors.items()},
        weight_decay={
            name: float(groups.get(name, {}).get("weight_decay", 0.0)) for name in module.tensors
        },
    )


def builder(
    stack: ExitStack, loaded: LoadedSpec, problem: Problem, timeout: float
) -> Callable[[], Module]:
    """Return what calls a user's function for a model, its loss function and its optimizer."""
    import torch._dynamo  # noqa: F401  # a user's first optimizer would, in their time and modules

    code = loaded.spec.own_framework
    assert code is not None
    build = user_function(stack, code, loaded.folder, "framework", timeout)
    # What model, loss and optimizer import, print and set is theirs, as it is the function's.
    guard = Guard("framework", timeout, build.guard.folder, build.guard.surroundings)

    def guarded(function: Callable[..., Any], *args: Any) -> Any:
        if guard.surroundings.inside:  # within a larger piece of work that is watched as a whole
            return unchanging(function, *args)
        return guard.run("", unchanging, function, *args)

    def build_again() -> Module:
        made = build.call(user_problem(problem, loaded.spec, framework=True))
        return wrap_user_module(made, build.label, guarded, problem)

    return build_again


def user_function(
    stack: ExitStack, code: str | Callable[[Any], Any], folder: Path, side: str, timeout: float
) -> UserFunction:
    """Return a user's function, imported for as long as the stack lasts."""
    if callable(code):
        stack.enter_context(descriptors_diverted())
        name = getattr(code, "__qualname__", type(code).__qualname__)
        return UserFunction(code, f"{side} {name}", timeout, side=side)
    return stack.enter_context(imported(code, folder, timeout, side))


def unchanging(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Call a function of tensors, and refuse that it writes into them."""
    # Torch counts what is written into a tensor, or into what it is a view of.
    versions = [tensor._version for tensor in tensors]
    result = function(*tensors)
    if versions != [tensor._version for tensor in tensors]:
        raise UserCodeError(
            "framework: the model or the loss function changes X or y in place, so that the next "
            "step has other data\n  Make new tensors: `x = x * 2` instead of `x *= 2` or "
            "`x.mul_(2)`."
        )
    return result


def take_state(module: Module, other: Module) -> None:
    """Copy another module's parameters and buffers, before any step.

    Raises:
        UserCodeError: the other is not of the same kind.
    """
    own, others = state_of(module.model), state_of(other.model)
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    wanted = {name: tuple(value.shape) for name, value in others.items()}
    if shapes != wanted:
        raise UserCodeError(
            f"framework: returned another model when it was called again, with {shapes} instead "
            f"of {wanted}\n  regcheck calls it once for each training: return the same model each "
            "time."
        )
    with torch.no_grad():
        for name, value in others.items():
            own[name].copy_(value)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
