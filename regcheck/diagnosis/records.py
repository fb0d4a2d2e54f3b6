"""What a diagnosis reads of a run, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from regcheck.compare.history import History
from regcheck.diagnosis.effective_settings import EffectiveSettings
from regcheck.diagnosis.replay import Explanation
from regcheck.diagnosis.reported_loss import Reporting
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.rules.convention import Convention
from regcheck.rules.equivalent import Matching
from regcheck.rules.settings import Training
from regcheck.trainers.numpy_trainer import NumpyTrainer


class Observed(NamedTuple):
    """What a run gives to its diagnosis.

    Attributes:
        history: its steps.
        torch: torch's rule in NumPy, by the settings that the framework side really has.
        sees_rows: whether NumPy can pass over the rows itself.
        training: with those settings.
        convention: what the spec says of the scratch side.
        limits: bounds that each tensor, and the loss, may differ by.
        parted: whether the parameters and the reported losses parted.
        visible: the causes that the run could have shown; None where it is not known.
        fits_float32: whether the scratch side of a float64 run gave numbers of float32 alone.
        starts_apart: whether the sides started apart.
        leads: whether the scratch side leads, so that its start is not known.
        loss_at: gives torch's loss at any parameters.
        gradient: the scratch side's own gradient at the first divergence, where it tells one.
        first: the step of the first divergence of the parameters.
        dtypes_differ: whether the sides compute in different dtypes.
        losses_reported: the steps whose loss both sides reported.
    """

    history: History
    torch: NumpyTrainer
    sees_rows: bool
    training: Training
    convention: Convention
    limits: Mapping[str, float]
    parted: bool
    loss_parted: bool
    visible: frozenset[str] | None
    fits_float32: bool
    starts_apart: bool
    leads: bool
    loss_at: Callable[[Parameters, Batch], float] | None
    gradient: Parameters | None
    gradient_bound: Parameters | None
    first: int | None
    dtypes_differ: bool
    losses_reported: int


class SpecFix(NamedTuple):
    """Top-level keys of a spec with the values that fix it, and what that does in words."""

    changes: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What explains a divergence.

    Attributes:
        explained: whether all that parted is explained.
        explanations: the sets of causes that explain the update, the plainest first; the rest
            are alternatives. Empty where nothing explains it, or the updates agree.
        distinguished_by: what would tell each explanation from the first; empty for the first.
        reporting: what explains the reported losses; None where they agree, or nothing does.
        loss_evidence: what is known of the reported losses where no cause explains them.
        effective_settings: the effective lr and weight decay of each tensor.
        steps: how many steps were replayed.
        stage: the stage within a step at which the sides part, by the diagnosis; None if unknown.
        evidence: what is known where nothing explains the update, in sentences.
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
    loss_evidence: str = ""
    effective_settings: Mapping[str, EffectiveSettings] = field(default_factory=dict)
    steps: int = 0
    stage: str | None = None
    evidence: tuple[str, ...] = ()
    start: Parameters | None = None
    matching: Matching | str | None = None
    fix: SpecFix | str | None = None

    @property
    def best(self) -> Explanation | None:
        """Give the plainest explanation."""
        return self.explanations[0] if self.explanations else None

    @property
    def causes(self) -> tuple[str, ...]:
        """Name the causes of the plainest explanation, and those of the reporting."""
        own = self.best.causes if self.best else ()
        return (*own, *(self.reporting.causes if self.reporting else ()))

    def names(self, cause: str) -> bool:
        """Say whether a cause is in any explanation, or in that of the losses."""
        told = self.reporting.causes if self.reporting else ()
        return cause in told or any(cause in one.causes for one in self.explanations)
