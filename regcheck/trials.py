"""What a run could not have shown: each cause put into torch's rule, and tried along the run.

A rule with a cause in it takes the place of the scratch side at every step. Where it would have
kept the spec's tolerance throughout, this run cannot tell it from torch's own rule, and that the
two sides agree says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from regcheck.causes import CAUSES, Change, put_in
from regcheck.compare import Difference, in_limits, judge, local_differences
from regcheck.convention import NO_SLIPS, TORCH
from regcheck.numpy_trainer import NumpyTrainer, Pass, Update
from regcheck.problem import Array, Parameters, Problem, Step
from regcheck.rounding import Bounds
from regcheck.schedule import Batch
from regcheck.spec import Spec
from regcheck.spec.judging import ROUNDING, Tolerances
from regcheck.training import Training


class Lockstep:
    """One rule in NumPy, trained twice: on its own, and from the framework's parameters."""

    def __init__(self, trainer: NumpyTrainer) -> None:
        self.trainer = trainer
        self.own = self.local = trainer.start()

    def step_alone(self, batch: Batch) -> Update:
        """Take the next step of its own trajectory."""
        update = self.trainer.step(self.own, batch)
        self.own = update.state
        return update

    def step_beside(self, parameters: Parameters, batch: Batch, seen: Pass | None = None) -> Update:
        """Take a step from the framework's parameters, its optimizer fed by them all along."""
        update = self.trainer.step(self.local._replace(parameters=parameters), batch, seen)
        self.local = update.state
        return update


class Circumstance(NamedTuple):
    """Something that hides causes while it lasts: in words, and whether a step shows it."""

    text: str
    holds: Callable[[Problem, Batch, Step], bool]


def zero(tensor: Array) -> bool:
    """Say whether all entries are 0."""
    return not tensor.any()


def clips(problem: Problem, step: Step) -> bool:
    """Say whether clipping changes a step's gradient."""
    if problem.clip_value is not None:
        return any(float(np.abs(g).max()) > problem.clip_value for g in step.gradient.values())
    squares = sum(float(np.vdot(g, g)) for g in step.gradient.values())
    return problem.clip_norm is not None and math.sqrt(squares) + 1e-6 > problem.clip_norm


def equal_targets(problem: Problem, batch: Batch) -> bool:
    """Say whether the targets that one loss is taken over are all the same."""
    return all(float(np.ptp(problem.y[index])) == 0 for index in batch.parts)


def stands_still(problem: Problem, batch: Batch) -> bool:
    """Say whether the lr is 0, and nothing in the rule acts without it."""
    convention = problem.convention
    acts = convention.decay == "decoupled-unscaled" or convention.penalty_in_loss
    return batch.lr == 0 and not acts


CIRCUMSTANCES: dict[str, Circumstance] = {
    "bias-zero": Circumstance("the bias stays 0", lambda _, __, step: zero(step.before["bias"])),
    "equal-targets": Circumstance(
        "all targets of a batch are equal", lambda problem, batch, _: equal_targets(problem, batch)
    ),
    "lr-unchanged": Circumstance(
        "the lr does not change in these steps",
        lambda problem, batch, _: batch.lr == problem.schedule.lr_at(1, 1),
    ),
    "lr-zero": Circumstance("the lr is 0", lambda problem, batch, _: stands_still(problem, batch)),
    "never-clipped": Circumstance(
        "no gradient is large enough to be clipped",
        lambda problem, _, step: not clips(problem, step),
    ),
    "no-bias-decay": Circumstance(
        "the bias has no weight_decay", lambda problem, _, __: problem.weight_decay["bias"] == 0
    ),
    "no-decay": Circumstance(
        "weight_decay is 0", lambda problem, _, __: not any(problem.weight_decay.values())
    ),
    "one-micro-batch": Circumstance(
        "each step has one micro-batch", lambda _, batch, __: len(batch.parts) == 1
    ),
    "one-plain-step": Circumstance(
        "only one step is compared, and the velocity is the gradient in it",
        lambda problem, batch, _: batch.step == 1 and not problem.optimizer.nesterov,
    ),
    "one-row-batches": Circumstance("each step sees one row", lambda _, batch, __: batch.size == 1),
    "one-row-losses": Circumstance(
        "each loss is taken over one row",
        lambda _, batch, __: batch.size == len(batch.parts),
    ),
    "one-step": Circumstance("only one step is compared", lambda _, batch, __: batch.step == 1),
    "one-training-row": Circumstance(
        "there is one training row", lambda problem, _, __: len(problem.y) == 1
    ),
    "penalized-zero": Circumstance(
        "what is penalized stays 0",
        lambda problem, _, step: all(
            zero(step.before[name]) for name, decay in problem.weight_decay.items() if decay
        ),
    ),
    "zero-gradient": Circumstance(
        "the gradient stays 0", lambda _, __, step: all(map(zero, step.gradient.values()))
    ),
}
"""What can hide a cause; each must hold at every step to be the reason."""


class Hidden(NamedTuple):
    """A cause that a run could not have shown, and why."""

    cause: str
    reason: str


class Trial:
    """One cause, put into torch's rule by one of its changes, along a run."""

    def __init__(self, cause: str, change: Change, torch: NumpyTrainer) -> None:
        self.cause = cause
        self.rule = Lockstep(torch.by(altered(torch.problem, change)))
        self.sees_as_torch = sees_alike(self.rule.trainer.problem, torch.problem)
        self.largest = 0.0
        self.holding = {*CAUSES[cause].hidden_by, "lr-zero"}

    def shows(self, spec: Spec, batch: Batch, framework: Step, bounds: Bounds, seen: Pass) -> bool:
        """Take a step; say whether the run would have diverged in it with this cause."""
        shared = seen if self.sees_as_torch else None
        local = self.rule.step_beside(framework.before, batch, shared).step
        found = local_differences(local, framework, bounds)
        if spec.tolerance.on_drift:
            own = self.rule.step_alone(batch).step
            found = judge(spec.tolerance, own, framework, found)
        largest = max(in_limits(found[name], spec.tolerance) for name in spec.judged(found))
        if largest > 1:
            return True
        self.largest = max(self.largest, largest)
        problem = self.rule.trainer.problem
        self.holding = {
            name for name in self.holding if CIRCUMSTANCES[name].holds(problem, batch, framework)
        }
        return False

    def reason(self, spec: Spec, steps: int) -> str:
        """Say why no step showed the cause."""
        cause = CAUSES[self.cause]
        if steps == 0:
            return "no step was compared"
        if "parameters" not in spec.compare and cause.kind == "update":
            return "`compare` leaves the parameters out"
        for name in (*cause.hidden_by, "lr-zero"):
            if name in self.holding:
                return CIRCUMSTANCES[name].text
        if self.largest <= 0:
            return "the effect is 0 here"
        share = f"at most {self.largest:.0%}" if self.largest >= 0.01 else "less than 1%"
        return f"the effect stays within the tolerance ({share} of it)"


class Trials:
    """All causes that concern a spec, each tried at every step until one shows it."""

    def __init__(self, spec: Spec, training: Training, scratch: NumpyTrainer) -> None:
        self.spec = spec
        self.torch = scratch.by(replace(scratch.problem, convention=TORCH, slips=NO_SLIPS))
        self.scratch_sees_as_torch = sees_alike(scratch.problem, self.torch.problem)
        self.steps = 0
        convention = spec.named_convention()
        self.pending = [
            Trial(name, change, self.torch)
            for name, cause in CAUSES.items()
            if cause.concerns(training, convention)
            and (cause.kind == "update" or "loss" in spec.compare)
            for change in cause.changes
        ]

    def advance(self, batch: Batch, framework: Step, bounds: Bounds, seen: Pass) -> None:
        """Try each cause that no step has shown yet.

        Args:
            batch: the step's rows and lr.
            framework: torch's step.
            bounds: what rounding can do in it.
            seen: the scratch side's pass over the rows, at torch's parameters.
        """
        self.steps += 1
        if not self.pending:
            return
        if not self.scratch_sees_as_torch:
            seen = self.torch.pass_over(framework.before, batch)
        self.pending = [
            trial
            for trial in self.pending
            if not trial.shows(self.spec, batch, framework, bounds, seen)
        ]

    def hidden(self) -> list[Hidden]:
        """Give the causes that no step has shown, in the catalogue's order."""
        reasons: dict[str, str] = {}
        for trial in self.pending:
            reasons.setdefault(trial.cause, trial.reason(self.spec, self.steps))
        return [Hidden(cause, reason) for cause, reason in reasons.items()]


class Proof:
    """Whether one cause explains a divergence: in torch's rule, it makes the scratch side's steps.

    A cause of the reporting alone is taken out of the scratch side's rule instead, which must then
    report torch's loss: what the loss holds depends on the rest of the rule. Either way the sides
    must have parted in what the cause is about, or there is nothing that it could explain.
    """

    def __init__(self, cause: str, scratch: NumpyTrainer) -> None:
        self.reporting = CAUSES[cause].kind == "reporting"
        changes = CAUSES[cause].changes
        if self.reporting:
            plain = {key: default_of(key) for change in changes for key in change}
            problems = [altered(scratch.problem, plain)]
        else:
            torch = replace(scratch.problem, convention=TORCH, slips=NO_SLIPS)
            problems = [altered(torch, change) for change in changes]
        self.rules = [Lockstep(scratch.by(problem)) for problem in problems]
        self.parted = dict.fromkeys(("loss",) if self.reporting else scratch.problem.initial, 0.0)
        self.left = [self.parted for _ in self.rules]

    def advance(self, batch: Batch, framework: Step, scratch: Step, bounds: Bounds) -> None:
        """Take a step; `scratch` is the scratch side's from torch's parameters."""
        self.parted = larger(self.parted, local_differences(scratch, framework, bounds))
        target = framework if self.reporting else scratch
        for index, rule in enumerate(self.rules):
            step = rule.step_beside(framework.before, batch).step
            self.left[index] = larger(self.left[index], local_differences(step, target, bounds))

    def explains(self, tolerances: Tolerances) -> bool:
        """Say whether the sides part, and with the cause by no more than rounding, at any step."""
        limits = {name: tolerances.of(name).rounding or ROUNDING for name in self.parted}
        return beyond(self.parted, limits) and not all(beyond(left, limits) for left in self.left)


def larger(ratios: dict[str, float], found: dict[str, Difference]) -> dict[str, float]:
    """Give the largest ratios so far, with those of one more step; what is not known is less."""
    return {
        name: ratio if math.isnan(found[name].ratio) else max(ratio, found[name].ratio)
        for name, ratio in ratios.items()
    }


def beyond(ratios: dict[str, float], limits: dict[str, float]) -> bool:
    """Say whether any ratio exceeds its limit."""
    return any(ratios[name] > limit for name, limit in limits.items())


def altered(problem: Problem, change: Change) -> Problem:
    """Put a change into a problem's rule."""
    convention, slips = put_in(change, problem.convention, problem.slips)
    return replace(problem, convention=convention, slips=slips)


def default_of(key: str) -> object:
    """Give torch's own value of a key."""
    return getattr(TORCH, key) if key in TORCH._fields else getattr(NO_SLIPS, key)


def sees_alike(problem: Problem, other: Problem) -> bool:
    """Say whether two rules make the same of a pass over the rows."""
    rules = [
        (
            one.convention.loss_reduction,
            one.convention.loss_factor,
            one.slips.target,
            one.slips.batch_divisor,
            one.slips.accumulation,
        )
        for one in (problem, other)
    ]
    return rules[0] == rules[1]
