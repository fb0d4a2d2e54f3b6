"""The formula of a named optimizer beside a user's own: one gradient for both, torch's.

The framework side trains, and NumPy takes at each step the gradient that torch has there, clipped
as the spec says, and applies the formula. So whoever writes an optimizer sees whether its steps
are the textbook's. On its own trajectory the formula has torch's gradient at its own parameters.

Both sides take the very same gradient, so that nothing but the rounding of the update is to be
allowed for: what an optimizer's formula makes of it (`optimizer_rounding`), without noise.
"""

from __future__ import annotations

import math
from collections.abc import Set
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from regcheck.errors import UserCodeError
from regcheck.numerics.bounds.optimizers.optimizer_rounding import FORMULAS, Formula
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.bounds.step_rounding import Carried, OptimizerStep, allowed
from regcheck.numerics.packing import finite, flat
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem, Step
from regcheck.rules.convention import is_bias
from regcheck.rules.faults import NO_FAULTS
from regcheck.spec import Spec
from regcheck.trainers.framework.dtypes import Dtypes
from regcheck.trainers.framework.torch_model import optimizer_class
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.lockstep import Lockstep, Steps
from regcheck.trainers.measured.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer


def textbook_rule(problem: Problem, spec: Spec) -> NumpyTrainer:
    """Return the named optimizer's formula, by the spec's lr, weight decay and options.

    Clipping is left to torch: the gradient that the formula takes is clipped already.
    """
    known = {"weight": spec.weight_decay.weight, "bias": spec.weight_decay.bias}
    decays = {name: known["bias" if is_bias(name) else "weight"] for name in problem.initial}
    return NumpyTrainer(
        replace(
            problem,
            weight_decay=decays,
            clip_norm=None,
            clip_value=None,
            convention=problem.settings.torchs,
            faults=NO_FAULTS,
        )
    )


class FormulaBesideTorch:
    """The user's model and optimizer are the reference; a formula follows by torch's gradient."""

    def __init__(self, rule: NumpyTrainer, framework: TorchTrainer, passes: TorchTrainer) -> None:
        """Take the rule, and torch twice: to train, and for gradients on the rule's trajectory.

        Raises:
            UserCodeError: the rule is of matrices alone, and something else is trained.
        """
        if rule.settings.rule.matrices:
            refuse_all_but_matrices(rule, framework)
        self.rule, self.framework, self.passes = Lockstep(rule), framework, passes
        self.dtypes = Dtypes()

    def advance(self, batch: Batch) -> Steps:
        """Take the next step of both."""
        watched = batch.step == 1 and self.rule.trainer.settings.rule.matrices
        with self.dtypes if watched else nullcontext():
            framework = self.framework.step(batch)
        framework = framework._replace(gradient=self.framework.used)  # what both take
        there = self.passes.pass_at(self.rule.own.parameters, batch)
        own = self.rule.step_own(batch, known_pass(there))
        local = self.rule.step_from(framework.before, batch, known_pass(framework))
        return Steps(bare(own.step), framework, bare(local.step), framework, None)

    def bounds(self) -> FormulaBounds | MeasuredBounds:
        """Return the bounds of the rounding in a step, before the first."""
        problem, rule = self.framework.problem, self.rule.trainer
        formula = FORMULAS.get(rule.settings.rule.torch)
        if formula is None:
            return MeasuredBounds(self.framework, problem.scratch_dtype, problem.framework_dtype)
        own = optimizer_class(self.framework.optimizer).__module__.partition(".")[0] != "torch"
        return FormulaBounds(rule, formula, self.dtypes.seen if own else set())

    def recorded(self, steps: Steps) -> Steps:
        """Return a step as the diagnosis reads it: it is the user's optimizer to be explained."""
        scratch, framework = steps.scratch, steps.framework
        rule = scratch._replace(gradient=framework.gradient, skipped=framework.skipped)
        own = framework._replace(gradient=None, loss=None)
        return Steps(steps.framework_own, steps.scratch_own, own, rule, None)

    def parameters(self) -> tuple[Parameters, Parameters]:
        """Return the formula's and torch's, each on its own trajectory."""
        return self.rule.own.parameters, self.framework.parameters()

    def finish(self) -> None:
        """End after the last step."""


def refuse_all_but_matrices(rule: NumpyTrainer, framework: TorchTrainer) -> None:
    """Refuse tensors that a rule does not take, but for those that are not trained."""
    untrained = framework.module.untrained()
    for name, w in framework.tensors.items():
        if w.ndim != 2 and name not in untrained:
            raise UserCodeError(
                f"framework: torch.optim.{rule.settings.rule.torch} accepts only matrices, and "
                f"{name} has the shape {tuple(w.shape)}\n  Leave it out of the optimizer, or build "
                "the layer with bias=False."
            )


def known_pass(step: Step) -> ForwardBackward:
    """Return a pass over rows of which the gradient is known."""
    assert step.gradient is not None
    return ForwardBackward((), (), math.nan, step.gradient, step.skipped)


def bare(step: Step) -> Step:
    """Return a step without what it took from torch: the parameters and the memory are its own."""
    return step._replace(outputs=None, loss=None, gradient=None, penalty=None, delta=None)


class FormulaBounds:
    """Bounds on the rounding of the update alone, by the formula of the rule."""

    random_model = False

    def __init__(self, rule: NumpyTrainer, formula: Formula, dtypes: Set[torch.dtype]) -> None:
        """Take the rule before its first step, and how rounding propagates through it.

        `dtypes` are those that a user's own optimizer computes in, noted at its first step.
        """
        self.rule, self.formula, self.dtypes = rule, formula, dtypes
        sides = (rule.problem.scratch_dtype, rule.problem.framework_dtype)
        coarser = max(map(np.finfo, sides), key=lambda info: float(info.eps))
        self.u, self.tiny = float(coarser.eps) / 2, float(coarser.tiny)
        self.carried: Carried = {}
        self.carried_on: Carried = {}
        self.taken: OptimizerStep
        self.each_rounds = False
        decays, shapes = rule.problem.weight_decay, rule.problem.initial
        self.decay = flat({name: np.full(w.shape, decays[name]) for name, w in shapes.items()})

    def start_bounds(self, start: Parameters) -> Parameters:
        """Bound what casting the start to each side's dtype can do."""
        return {name: self.u * np.abs(w) + self.tiny for name, w in start.items()}

    def bounds(self, batch: Batch, steps: Steps, forward_backward: object) -> Bounds:  # noqa: ARG002
        """Bound what rounding can do in a step."""
        settings, step, framework = self.rule.settings, steps.scratch, steps.framework
        assert framework.gradient is not None
        options = {
            **settings.options,
            "lr": batch.lr,
            "weight_decay": self.decay,
            "decoupled_weight_decay": settings.torchs.decay == "decoupled",
        }
        self.carried = self.carried_on
        self.taken = OptimizerStep(
            flat(step.before),
            flat(step.after),
            flat(framework.gradient),
            options,
            remembered(self.formula, step),
            batch.step,
            [w.shape for w in step.before.values()],
            self.each_rounds,
        )
        return self.propagated(steps)

    def propagated(self, steps: Steps) -> Bounds:
        """Bound the step that was taken."""
        step, framework = steps.scratch, steps.framework
        gradient, after = self.taken.gradient, self.taken.after
        noise = np.zeros_like(gradient)
        found = self.formula.propagate(self.u, self.taken, noise, self.carried)
        bound, self.carried_on = found.after + self.tiny, found.carried
        if not (finite(gradient) and finite(after)):
            bound = np.full_like(bound, np.nan)  # the rest depends on the order of computation
        if found.lost is not None:
            theirs = flat({name: framework.after[name] for name in step.before})
            bound = allowed(bound, found.lost, after, theirs)
        tensors: dict[str, Array] = {}
        start = 0
        for name, w in step.before.items():
            tensors[name] = bound[start : start + w.size].reshape(w.shape)
            start += w.size
        loss = self.tiny
        return Bounds((), loss, {}, tensors, tensors, tensors)

    def other_bounds(self, batch: Batch, steps: Steps) -> Bounds | None:  # noqa: ARG002
        """Bound this step, and all later ones, with each operation in bfloat16 rounded.

        None where there are no such operations, or that is done.
        """
        if torch.bfloat16 not in self.dtypes or self.each_rounds:
            return None
        self.each_rounds, self.taken = True, self.taken._replace(each_rounds=True)
        return self.propagated(steps)

    def gradient_noise(self) -> Parameters:
        """Return no noise: both sides take the very same gradient."""
        return {name: np.zeros_like(w) for name, w in self.rule.problem.initial.items()}


def remembered(formula: Formula, step: Step) -> dict[str, Array]:
    """Return what the rule remembers after a step, all tensors' entries one after the other."""
    return {
        key: flat({name: known[key] for name, known in step.memory.items()})
        for key in formula.state
        if all(key in known for known in step.memory.values())
    }
