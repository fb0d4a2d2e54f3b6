"""What a diagnosis reads of a run, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from regcheck.compare.comparison import Comparison
from regcheck.compare.history import History, Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import Array, Parameters
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change, Stage
from regcheck.rules.equivalent import Matching
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.sides import Sides, TorchFollowsScratch

FLOAT32 = 2.0**29
"""How much coarser float32 rounds than float64."""


class Run(NamedTuple):
    """What a run gives to its diagnosis.

    Attributes:
        comparison: what its steps came to.
        history: the recorded steps.
        sides: both sides.
        spec: of the run.
        training: with the settings that the framework side really has.
    """

    comparison: Comparison
    history: History
    sides: Sides
    spec: Spec
    training: Training

    @property
    def torch(self) -> NumpyTrainer:
        """Torch's rule in NumPy, by the settings that the framework side really has."""
        assert self.sides.torch is not None
        return self.sides.torch

    @property
    def is_linear(self) -> bool:
        """Whether a step of torch's optimizer is a linear function of the gradients so far."""
        return self.torch.settings.rule.linear

    @property
    def limits(self) -> dict[str, float]:
        """The rounding bounds that each tensor, and the loss, may differ by."""
        tolerance = self.spec.tolerance
        return {name: tolerance.of(name).limit_within for name in (*self.history.shapes, "loss")}

    @property
    def first(self) -> int | None:
        """The step of the first divergence of the parameters."""
        first = self.comparison.first_divergence
        return first.step if first else None

    @property
    def loss_diverged(self) -> bool:
        """Whether the reported losses diverged."""
        return self.comparison.losses.divergence is not None

    @property
    def sees_rows(self) -> bool:
        """Whether NumPy can pass over the rows itself, as with one-layer models."""
        return self.sides.sees_rows

    @property
    def visible(self) -> frozenset[str] | None:
        """The causes that the run could have shown; None where it is not known."""
        if self.spec.tolerance.on_drift:
            return None
        return frozenset(CAUSES) - {one.cause for one in self.comparison.not_distinguished}

    @property
    def scratch_is_reference(self) -> bool:
        """Whether torch follows the scratch side, so that the latter's start is not known."""
        return isinstance(self.sides.pair, TorchFollowsScratch)

    @property
    def shares_gradient(self) -> bool:
        """Whether both sides take the very same gradient, beside a textbook rule."""
        return self.spec.textbook is not None

    @property
    def fits_float32(self) -> bool:
        """Whether the scratch side of a float64 run gave numbers of float32 alone."""
        pair = self.sides.pair
        own = isinstance(pair, TorchFollowsScratch) and pair.fits_float32
        return own and self.spec.dtype.scratch == "float64"

    @property
    def gradient(self) -> Parameters | None:
        """The scratch side's own gradient at the first divergence, where it yields one."""
        sample = self.comparison.sample
        return sample.scratch.gradient if sample and self.scratch_is_reference else None

    def outputs(self, record: Record) -> list[tuple[Array, Array]]:
        """Return z and y of a step's micro-batches, by torch's rule."""
        there = self.torch.forward_backward(self.history.split(record.before), record.batch)
        batches = zip(there.outputs, record.batch.micro_batches, strict=True)
        return [(z, self.torch.y[index]) for z, index in batches]


ALL_ELSE = "all else follows torch's rule"


class ByEntry(NamedTuple):
    """Numbers that some entries have of their own.

    Attributes:
        what: the weight_decay, or a factor on torch's lr, or one on its gradient.
        values: of each entry, torch's own among them: (entries,).
        told: the same in words: which entries → what they have.
    """

    what: Literal["weight_decay", "lr", "gradient"]
    values: Array
    told: Mapping[str, str]


@dataclass(frozen=True)
class Explanation:
    """A set of causes that makes every recorded step, to `residual` limits.

    Attributes:
        causes: their names; empty where the sides differ by rounding alone.
        change: what they put into torch's rule.
        residual: the largest difference left, in limits.
        fits: the factor of those causes that have an open one.
        note: what a cause's title leaves open otherwise.
        weight_decay: of each tensor, where they are fitted each.
        by_entry: the numbers of each entry, where they are.
        options: the optimizer's options that are fitted, by name: betas[0].
        tensors: those in which alone the causes act, where the others go by torch's rule.
    """

    causes: tuple[str, ...]
    change: Change
    residual: float
    fits: Mapping[str, Fit] = field(default_factory=dict)
    note: str = ""
    weight_decay: Mapping[str, float] | None = None
    by_entry: ByEntry | None = None
    options: Mapping[str, Fit] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()


class EffectiveSettings(NamedTuple):
    """What one tensor's steps come to; None where the run does not tell.

    Attributes:
        gradient: α, the factor on torch's step without a penalty.
        decay: κ, what the penalty's gradient is times w, at the spec's lr.
        fits: whether α and κ make every step to rounding.
        linear: whether torch's step is a linear function of the gradient; where it is not, α is a
            factor on the lr, and κ/α the weight decay beside it.
    """

    gradient: Fit | None
    decay: Fit | None
    fits: bool
    linear: bool = True

    @property
    def weight_decay(self) -> Fit | None:
        """κ/α, the weight_decay that torch would need at the effective lr."""
        if self.decay is None or self.gradient is None or self.gradient.factor == 0:
            return None
        alpha = self.gradient.factor
        value = self.decay.factor / alpha
        spread = math.hypot(self.decay.deviation, value * self.gradient.deviation) / abs(alpha)
        return Fit(value, spread)


class Reporting(NamedTuple):
    """What explains the reported losses.

    Attributes:
        causes: of kind reporting; empty where the loss is that of the rule it trains by.
        strengths: κ of each tensor in the loss, where the penalty is in it.
        scale: c, the factor on the data loss.
        squared: whether the penalty is κ/2 ‖w‖², and not κ ‖w‖.
    """

    causes: tuple[str, ...]
    strengths: Mapping[str, Fit]
    scale: float
    squared: bool = True


class SpecFix(NamedTuple):
    """Top-level keys of a spec with the values that fix it, and what that does in words."""

    changes: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What explains a divergence.

    Attributes:
        explained: whether all that differs is explained.
        explanations: the sets of causes that explain the update, the plainest first; the rest
            are alternatives. Empty where nothing explains it, or the updates agree.
        distinguished_by: what would tell each explanation from the first; empty for the first.
        reporting: what explains the reported losses; None where they agree, or nothing does.
        loss_diverged: whether the reported losses differ.
        loss_evidence: what is known of the reported losses where no cause explains them.
        effective_settings: the effective lr and weight decay of each tensor.
        steps: how many steps were replayed.
        stage: the stage within a step at which the sides differ, by the diagnosis; None if unknown.
        evidence: what is known where nothing explains the update.
        start: where the scratch side started, if elsewhere than the spec says.
        matching: the settings with which torch trains as the scratch side does, or why there are
            none; None where nothing explains the update.
        fix: the change of the spec with which its sides agree, or why there is none; None where
            not all is explained.
    """

    explained: bool
    explanations: tuple[Explanation, ...] = ()
    distinguished_by: tuple[str, ...] = ()
    reporting: Reporting | None = None
    loss_diverged: bool = False
    loss_evidence: Evidence | None = None
    effective_settings: Mapping[str, EffectiveSettings] = field(default_factory=dict)
    steps: int = 0
    stage: Stage | None = None
    evidence: tuple[Evidence, ...] = ()
    start: Parameters | None = None
    matching: Matching | str | None = None
    fix: SpecFix | str | None = None

    @property
    def best(self) -> Explanation | None:
        """The plainest explanation."""
        return self.explanations[0] if self.explanations else None

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes of the plainest explanation, and those of the reporting."""
        own = self.best.causes if self.best else ()
        return (*own, *(self.reporting.causes if self.reporting else ()))

    def names(self, cause: str) -> bool:
        """Whether a cause is in any explanation, or in that of the losses."""
        reported = self.reporting.causes if self.reporting else ()
        return cause in reported or any(cause in one.causes for one in self.explanations)
