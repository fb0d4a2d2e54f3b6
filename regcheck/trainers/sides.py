"""Both sides of a problem in lockstep: who trains it, who follows, what bounds their rounding.

One side is the reference: it trains, and the other follows from its parameters. A user's scratch
code is, since nobody can give it other parameters; else torch is, and NumPy, which is cheap,
follows. Optimizer state is each side's own, fed by the reference's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from regcheck.errors import UserCodeError
from regcheck.numerics.bounds.optimizers.optimizer_rounding import FORMULAS
from regcheck.numerics.bounds.rounding import Bounds, RoundingModel, allowing
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step, with_torch_settings
from regcheck.rules.faults import NO_FAULTS
from regcheck.spec import LoadedSpec, Spec
from regcheck.trainers.framework.distributed.data_parallel import DataParallelTrainer
from regcheck.trainers.framework.distributed.processes import Processes, processes_of
from regcheck.trainers.framework.torch_model import Module
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.framework.user_module import builder, of_module, take_state, user_function
from regcheck.trainers.likeness import is_the_specs
from regcheck.trainers.lockstep import Lockstep, Steps
from regcheck.trainers.measured.measured_bounds import MeasuredBounds
from regcheck.trainers.measured.monte_carlo import is_random
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.textbook import FormulaBesideTorch, FormulaBounds, textbook_rule
from regcheck.user_code.generator import ScratchSteps
from regcheck.user_code.problem_api import user_problem


class NumpyFollowsTorch:
    """Torch is the reference, and the built-in scratch side follows."""

    def __init__(self, trainer: NumpyTrainer, framework: TorchTrainer) -> None:
        self.rule, self.framework = Lockstep(trainer), framework

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""
        framework = self.framework.step(batch)
        own = self.rule.step_own(batch)
        local = self.rule.step_from(framework.before, batch)
        return Steps(own.step, framework, local.step, framework, local.forward_backward)

    def parameters(self) -> tuple[Parameters, Parameters]:
        """Return the scratch side's and torch's, each on its own trajectory."""
        return self.rule.own.parameters, self.framework.parameters()

    def recorded(self, steps: Steps) -> Steps:
        """Return a step as the diagnosis reads it: the scratch side is to be explained."""
        return steps

    def finish(self) -> None:
        """End after the last step."""


class TorchFollowsScratch:
    """A user's scratch code is the reference, and torch follows.

    The code has no start of its own to be compared: it is handed torch's.
    """

    def __init__(self, code: ScratchSteps, framework: TorchTrainer, follower: TorchTrainer) -> None:
        """Take the code, and torch twice: for its own trajectory, and to follow the code."""
        self.code, self.framework, self.follower = code, framework, follower
        self.now = framework.parameters()
        self.fits_float32 = True

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""
        yielded = self.code.next()
        before, self.now = self.now, yielded.parameters
        self.fits_float32 = self.fits_float32 and yielded.fits_float32
        scratch = Step(before, None, yielded.loss, yielded.gradient, None, {}, None, self.now)

        def follow() -> tuple[Step, Step]:
            own = self.framework.advance(batch)
            self.follower.place(before)
            return own, self.follower.step(batch)

        # Each call into a user's code is watched at a cost: both of torch's steps are one.
        own, framework = self.framework.module.guard(follow)
        if scratch.gradient is not None and framework.gradient is not None:
            gradient = self.data_gradient(scratch.gradient, before, framework.gradient)
            scratch = scratch._replace(gradient=gradient)
        return Steps(scratch, own, scratch, framework, None)

    def data_gradient(
        self, yielded: Parameters, before: Parameters, torchs: Parameters
    ) -> Parameters:
        """Return the code's data gradient: what it yields, without λ w where that is in it."""
        decays = {name: group["weight_decay"] for name, group in self.follower.sgd_groups.items()}
        bare = {name: g - decays.get(name, 0.0) * before[name] for name, g in yielded.items()}
        off = [
            max(float(np.abs(one[name] - g).max()) for name, g in torchs.items())
            for one in (yielded, bare)
        ]
        return bare if off[1] < off[0] else yielded

    def parameters(self) -> tuple[Parameters, Parameters]:
        """Return the scratch side's and torch's, each on its own trajectory."""
        return self.now, self.framework.parameters()

    def recorded(self, steps: Steps) -> Steps:
        """Return a step as the diagnosis reads it: the scratch side is to be explained."""
        return steps

    def finish(self) -> None:
        """See that the code ends after its last step."""
        self.code.finish()


class ClosedBounds:
    """The bounds of the one-layer models, worked out; these are never random."""

    random_model = False

    def __init__(self, problem: Problem, own: Collection[str]) -> None:
        self.model, self.state = RoundingModel(problem, own), RoundingState()
        self.start_bounds = self.model.start_bounds

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
        return allowing(bounds, self.state, steps.scratch.after, framework.after)

    def other_bounds(self, batch: Batch, steps: Steps) -> Bounds | None:
        """Return None: these are final."""

    def gradient_noise(self) -> None:
        """Return None: nothing is measured."""


Pair = NumpyFollowsTorch | TorchFollowsScratch | FormulaBesideTorch


class Sides(NamedTuple):
    """Both sides of a problem, and what is known of them.

    Attributes:
        problem: what they train; where the framework side is the user's, with its tensors.
        pair: both, in lockstep.
        bounder: bounds what rounding can do.
        torch: torch's rule in NumPy, by the settings that the framework side has; None where its
            optimizer has no such rule. Beside a textbook rule, that rule.
        sees_rows: whether that rule can pass over the rows itself.
        probe: torch's side, to ask for losses elsewhere; what it trains is not in the pair.
        random: whether the user's model gives two different outputs for one input.
    """

    problem: Problem
    pair: Pair
    bounder: ClosedBounds | MeasuredBounds | FormulaBounds
    torch: NumpyTrainer | None
    sees_rows: bool
    probe: TorchTrainer
    random: bool


@contextmanager
def sides_of(
    loaded: LoadedSpec, problem: Problem, trainer: Callable[[Problem], NumpyTrainer], timeout: float
) -> Iterator[Sides]:
    """Make both sides of a problem, for as long as the context lasts.

    `trainer` makes the built-in scratch side; a call into a user's code takes up to `timeout`
    seconds.

    Raises:
        UserCodeError: the user's code is off.
    """
    spec = loaded.spec
    with ExitStack() as stack:
        module, build_again = None, None
        if spec.own_framework is not None:
            build_again = builder(stack, loaded, problem, timeout)
            module = build_again()
            problem = of_module(problem, module)
        given = with_torch_settings(problem, spec.torch_settings)
        shared = spec.processes > 1
        processes = stack.enter_context(processes_of(given, timeout)) if shared else None
        framework = trainer_of(given, module, processes, 0)
        probe = TorchTrainer(given, clone_of(framework, build_again))
        random = module is not None and is_random(probe)
        if spec.textbook is not None:
            passes = TorchTrainer(given, clone_of(framework, build_again))
            beside = FormulaBesideTorch(textbook_rule(problem, spec), framework, passes)
            yield Sides(problem, beside, beside.bounds(), beside.rule.trainer, False, probe, random)
            return
        torch = torch_rule(given, module)
        pair: Pair
        if spec.scratch is None:
            pair, follower = NumpyFollowsTorch(trainer(problem), framework), framework
        else:
            code = scratch_code(stack, loaded, problem, framework.module, timeout)
            follower = trainer_of(given, clone_of(framework, build_again), processes, 1)
            pair = TorchFollowsScratch(code, framework, follower)
        sees_rows = problem.architecture is not None
        if sees_rows and torch is not None and module is not None:
            sees_rows = is_the_specs(probe, torch)
        closed = sees_rows and not follower.module.untrained()
        bounder = bounder_of(spec, follower, torch if closed else None)
        yield Sides(problem, pair, bounder, torch, sees_rows, probe, random)


def trainer_of(
    problem: Problem, module: Module | None, processes: Processes | None, number: int
) -> TorchTrainer:
    """Return torch's trainer: in this process, or the numbered training of several processes."""
    if processes is None:
        return TorchTrainer(problem, module)
    return DataParallelTrainer(problem, processes, number)


def scratch_code(
    stack: ExitStack, loaded: LoadedSpec, problem: Problem, module: Module, timeout: float
) -> ScratchSteps:
    """Return the steps of a user's scratch code, which is closed with the stack."""
    spec = loaded.spec
    assert spec.scratch is not None
    function = user_function(stack, spec.scratch, loaded.folder, "scratch", timeout)
    shapes = {name: w.shape for name, w in problem.initial.items()}
    handed = user_problem(problem, spec, framework=False)
    fixed = {name: problem.initial[name] for name in module.untrained()}
    code = ScratchSteps(function, handed, shapes, problem.schedule.steps, fixed)
    stack.callback(code.close)
    return code


def bounder_of(
    spec: Spec, framework: TorchTrainer, torch: NumpyTrainer | None
) -> ClosedBounds | MeasuredBounds:
    """Return worked-out bounds for one weight vector and a known optimizer, else measured ones."""
    problem, model = framework.problem, framework.problem.architecture
    closed = model is not None and model.is_one_vector
    if not closed or torch is None or torch.settings.rule.torch not in FORMULAS:
        return MeasuredBounds(framework, problem.scratch_dtype, problem.framework_dtype)
    codes = {"scratch": spec.scratch, "framework": spec.own_framework}
    own = [side for side, code in codes.items() if code is not None]
    return ClosedBounds(problem.with_settings(torch.problem.settings), own)


def clone_of(trainer: TorchTrainer, build_again: Callable[[], Module] | None) -> Module:
    """Return a trainer's module once more, in the same state, to train on its own.

    A user's is made anew where that can be: its loss function may hold on to its own model, as
    with a penalty in it, and a copy would hold on to the first one's.

    Raises:
        UserCodeError: it can neither be made anew nor copied.
    """
    if build_again is None:
        return trainer.module.clone()
    made = build_again()
    known = {id(w) for w in trainer.module.model.parameters()}
    if known.isdisjoint(id(w) for w in made.model.parameters()):
        take_state(made, trainer.module)
        return made
    same = trainer.module.clone()
    trial = TorchTrainer(trainer.problem, same.clone())
    trainer.optimizer.zero_grad()
    for batch in islice(trainer.problem.schedule.batches(), 1):
        trial.backward(batch)
    if any(tensor.grad is not None for tensor in trainer.tensors.values()):
        raise UserCodeError(
            "framework: the loss function uses the model's parameters, and the model is the same "
            "one each time the function is called\n  Make the model inside the function, so that "
            "each call returns a new one."
        )
    return same


def torch_rule(problem: Problem, module: Module | None) -> NumpyTrainer | None:
    """Return torch's own rule in NumPy, by the settings that the framework side has."""
    if module is not None:
        settings = module.settings()
        if settings is None:
            return None
        problem = problem.with_settings(settings)
    return NumpyTrainer(replace(problem, convention=problem.settings.torchs, faults=NO_FAULTS))
