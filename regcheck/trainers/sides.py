"""Who trains a problem: the built-in sides, or the user's own code in the place of either."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from regcheck.errors import UserCodeError
from regcheck.numerics.rounding import Bounds, RoundingModel, RoundingState
from regcheck.problem.batches import Batch
from regcheck.problem.problem import OWN_MODEL, Parameters, Problem, with_settings
from regcheck.rules.convention import NO_FAULTS, TORCH
from regcheck.spec import LoadedSpec
from regcheck.spec.tolerance import weighed_limits
from regcheck.trainers.altered_optimizers import AlteredOptimizers
from regcheck.trainers.lockstep import NumpyFollowsTorch, Pair, Steps, TorchFollowsScratch
from regcheck.trainers.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer
from regcheck.trainers.torch_model import (
    Module,
    import_compiler,
    initial_of,
    settings,
    wrap_user_module,
)
from regcheck.trainers.torch_trainer import TorchTrainer
from regcheck.user_code.function import UserFunction, imported
from regcheck.user_code.generator import ScratchSteps
from regcheck.user_code.guard import Guard
from regcheck.user_code.problem_api import user_problem
from regcheck.user_code.surroundings import descriptors_diverted

Trainer = Callable[[Problem], NumpyTrainer]
"""Makes the built-in scratch side."""


class Bounder(Protocol):
    """Bounds what rounding can do in a step."""

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""

    def bounds(
        self, batch: Batch, steps: Steps, forward_backward: ForwardBackward | None
    ) -> Bounds:
        """Bound what rounding can do in a step; the pass over the rows is torch's rule's."""

    def closer(self, batch: Batch, steps: Steps) -> Bounds | None:
        """Bound the step at hand more closely, where it looks like a divergence; None if final."""


class ClosedBounds:
    """The bounds of the one-layer models, worked out."""

    def __init__(self, problem: Problem, own: Collection[str]) -> None:
        self.model, self.state = RoundingModel(problem, own), RoundingState()

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""
        return self.model.start_bounds(start)

    def bounds(
        self, batch: Batch, steps: Steps, forward_backward: ForwardBackward | None
    ) -> Bounds:
        """Bound what rounding can do in a step."""
        assert forward_backward is not None
        framework = steps.framework
        if framework.outputs is None:  # a user's model: its outputs may be any function of z
            framework = framework._replace(outputs=forward_backward.outputs)
        dloss_dz = [rows.dloss_dz for rows in forward_backward.rows]
        bounds, self.state = self.model.bounds(self.state, batch, framework, dloss_dz)
        return bounds

    def closer(self, batch: Batch, steps: Steps) -> Bounds | None:  # noqa: ARG002
        """Return nothing: these are final."""
        return None


class Sides(NamedTuple):
    """Both sides of a problem, and what is known of them.

    Attributes:
        problem: what they train; where the framework side is the user's, with its tensors.
        pair: both, in lockstep.
        bounder: bounds what rounding can do.
        torch: torch's rule in NumPy, by the settings that the framework side really has; None
            where its optimizer is not torch.optim.SGD.
        sees_rows: whether that rule can pass over the rows itself.
        probe: torch's side, to ask for losses elsewhere; what it trains is not in the pair.
        altered: what the run must be able to tell, tried by torch's optimizer; None for one-layer
            models, whose trials are `regcheck.compare.not_distinguished`.
        random: whether the user's model gives two different outputs for one input.
    """

    problem: Problem
    pair: Pair
    bounder: Bounder
    torch: NumpyTrainer | None
    sees_rows: bool
    probe: TorchTrainer
    altered: AlteredOptimizers | None
    random: bool


@contextmanager
def sides_of(
    loaded: LoadedSpec, problem: Problem, trainer: Trainer, timeout: float
) -> Iterator[Sides]:
    """Make both sides of a problem, for as long as the context lasts.

    Raises:
        UserCodeError: the user's code is off.
    """
    spec = loaded.spec
    with ExitStack() as stack:
        module, again = None, None
        if spec.own_framework is not None:
            again = builder(stack, loaded, problem, timeout)
            module = again()
            problem = of_module(problem, module)
        given = with_settings(problem, spec.torch_settings)
        framework = TorchTrainer(given, module)
        probe = TorchTrainer(given, clone_of(framework, again))
        torch = torch_rule(given, module)
        sees_rows = problem.model != OWN_MODEL
        pair: Pair
        if spec.scratch is None:
            pair = NumpyFollowsTorch(trainer(problem), framework)
            measured = framework
        else:
            function = user_function(stack, spec.scratch, loaded.folder, "scratch", timeout)
            shapes = {name: w.shape for name, w in problem.initial.items()}
            handed = user_problem(problem, spec, framework=False)
            fixed = {name: problem.initial[name] for name in framework.module.untrained()}
            leader = ScratchSteps(function, handed, shapes, problem.schedule.steps, fixed)
            measured = TorchTrainer(given, clone_of(framework, again))
            pair = TorchFollowsScratch(leader, framework, measured)
        stack.callback(pair.close)
        if sees_rows and torch is not None:
            codes = {"scratch": spec.scratch, "framework": spec.own_framework}
            own = [side for side, code in codes.items() if code is not None]
            bounder: Bounder = ClosedBounds(given.with_sgd(torch.problem.sgd), own)
        else:
            bounder = noisy(problem, measured)
        altered = None
        if isinstance(bounder, MeasuredBounds):
            altered = AlteredOptimizers(measured, weighed_limits(spec.tolerance, problem.initial))
        random = module is not None and probe.is_random()
        yield Sides(problem, pair, bounder, torch, sees_rows, probe, altered, random)


def user_function(
    stack: ExitStack, code: str | Callable[[Any], Any], folder: Path, side: str, timeout: float
) -> UserFunction:
    """Give a user's function, imported for as long as the stack lasts."""
    if callable(code):
        stack.enter_context(descriptors_diverted())
        return UserFunction(code, f"{side} {label_of(code)}", timeout, side=side)
    return stack.enter_context(imported(code, folder, timeout, side))


def label_of(code: str | Callable[[Any], Any]) -> str:
    """Name a user's function, or the class of an object that is called."""
    return code if isinstance(code, str) else getattr(code, "__qualname__", type(code).__qualname__)


def guarded_by(build: UserFunction, timeout: float) -> Callable[..., Any]:
    """Make what calls the model, loss and optimizer that a user's function made, as it is called.

    What they import, print and set is theirs, as it is the function's.
    """
    guard = Guard("framework", timeout, build.guard.folder, build.guard.surroundings)

    def guarded(function: Callable[..., Any], *args: Any) -> Any:
        if guard.surroundings.inside:  # within a larger piece of work that is watched as a whole
            return watched(function, *args)
        return guard.run("", watched, function, *args)

    def watched(function: Callable[..., Any], *args: Any) -> Any:
        # Torch counts what is written into a tensor, or into what it is a view of.
        versions = [tensor._version for tensor in args]
        result = function(*args)
        if versions != [tensor._version for tensor in args]:
            raise UserCodeError(
                "framework: the model or the loss function changes the X or y that it is given in "
                "place, so that the next step finds others\n  Make new ones: `x = x * 2` for "
                "`x *= 2` or `x.mul_(2)`."
            )
        return result

    return guarded


def builder(
    stack: ExitStack, loaded: LoadedSpec, problem: Problem, timeout: float
) -> Callable[[], Module]:
    """Make what calls a user's function for a model, its loss function and its optimizer."""
    code = loaded.spec.own_framework
    assert code is not None
    import_compiler()
    build = user_function(stack, code, loaded.folder, "framework", timeout)
    guarded = guarded_by(build, timeout)

    def again() -> Module:
        made = build.call(user_problem(problem, loaded.spec, framework=True))
        return wrap_user_module(made, build.label, guarded, problem)

    return again


def clone_of(trainer: TorchTrainer, again: Callable[[], Module] | None) -> Module:
    """Give a trainer's module once more, in the same state, to train on its own.

    A user's is made anew where that can be: its loss function may hold on to its own model, as
    with a penalty in it, and a copy would hold on to the first one's.

    Raises:
        UserCodeError: it can neither be made anew nor copied.
    """
    if again is not None:
        made = again()
        if not made.shares(trainer.module):
            made.take_state(trainer.module)
            return made
    same = trainer.module.clone()
    if again is not None:
        check_independent(trainer, same)
    return same


def check_independent(trainer: TorchTrainer, copy: Module) -> None:
    """See that the loss of a copy does not depend on the parameters that it was copied from."""
    trial = TorchTrainer(trainer.problem, copy.clone())
    trainer.optimizer.zero_grad()
    for batch in islice(trainer.problem.schedule.batches(), 1):
        trial.backward(batch)
    if any(tensor.grad is not None for tensor in trainer.tensors.values()):
        raise UserCodeError(
            "framework: the loss function uses the model's parameters, and the model is the same "
            "one each time the function is called\n  Make the model inside the function, so that "
            "each call gives a new one."
        )


def of_module(problem: Problem, module: Module) -> Problem:
    """Give the problem as a user's module trains it: its tensors, its dtype."""
    dtype = str(module.dtype).removeprefix("torch.")
    problem = replace(problem, framework_dtype=dtype)
    if problem.model != OWN_MODEL:
        return problem
    decays = {
        name: float(group.get("weight_decay", 0.0)) for name, group in module.groups().items()
    }
    return replace(
        problem,
        initial=initial_of(module),
        weight_decay={name: decays.get(name, 0.0) for name in module.tensors},
    )


def torch_rule(problem: Problem, module: Module | None) -> NumpyTrainer | None:
    """Give torch's own rule in NumPy, by the settings that the framework side really has."""
    if module is not None:
        own = settings(module, problem)
        if own is None:
            return None
        problem = own
    return NumpyTrainer(replace(problem, convention=TORCH, faults=NO_FAULTS))


def noisy(problem: Problem, trainer: TorchTrainer) -> MeasuredBounds:
    """Bound the rounding of a trainer's steps by measuring it."""
    dtypes = problem.scratch_dtype, problem.framework_dtype
    coarser = max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))
    return MeasuredBounds(trainer, coarser, mixed=len(set(dtypes)) > 1)
