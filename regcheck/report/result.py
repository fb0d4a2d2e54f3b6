"""What a run found, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regcheck.compare.comparison import Comparison
from regcheck.compare.drift import Needed
from regcheck.compare.not_distinguished import Hidden
from regcheck.compare.steps import Divergence
from regcheck.compare.trace import LossDivergence
from regcheck.diagnosis.records import Diagnosis
from regcheck.problem.batches import Schedule
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.sections.tolerance import Verdict


@dataclass(frozen=True)
class Report:
    """What a run found: the comparison, its verdict, and the diagnosis of a divergence.

    Attributes:
        name: of the spec.
        training: with the settings that the framework side really has.
        schedule: of the scratch side.
        features, row_shape: of the data.
        classes: the names of the targets' classes, from label 0 on, where they are labels.
        dtypes: of the scratch and the framework side.
        rule_is_known: whether the rule of the framework side's optimizer has a formula here.
        reason: of the verdict, where it is not plain from the rest.
        golden: the recording whose steps torch's are, if the spec names one.
    """

    name: str
    spec: Spec
    training: Training
    schedule: Schedule
    features: tuple[str, ...]
    row_shape: tuple[int, ...]
    classes: tuple[str, ...]
    dtypes: tuple[str, str]
    rule_is_known: bool
    comparison: Comparison
    verdict: Verdict
    reason: str
    diagnosis: Diagnosis | None
    environment: Mapping[str, Any]
    golden: str = ""

    @property
    def first_divergence(self) -> Divergence | None:
        """The first step at which a parameter does not keep its tolerance.

        A user's code reports its parameters alone: the stage is then what the diagnosis finds.
        """
        first = self.comparison.first_divergence
        if first is None or first.stage != "update" or self.spec.scratch is None:
            return first
        stage = self.diagnosis.stage if self.diagnosis else None
        return first if stage is None else first._replace(stage=stage)

    @property
    def first_loss_divergence(self) -> LossDivergence | None:
        """The first step at which the reported losses differ, at the same parameters."""
        return self.comparison.losses.divergence

    @property
    def not_distinguished(self) -> tuple[Hidden, ...]:
        """The causes that the run could not have shown, of those that it has samples for; why."""
        hidden = self.comparison.not_distinguished
        return tuple(one for one in hidden if not one.has_no_object)

    @property
    def classes_are_numbers(self) -> bool:
        """Whether the classes have no names but their numbers."""
        return self.classes == tuple(map(str, range(len(self.classes))))

    @property
    def scratch_training(self) -> Training:
        """The training that the spec itself has: the built-in scratch side's."""
        spec = self.spec
        return self.training._replace(settings=spec.optimizer.settings(spec.lr, spec.decays))

    @property
    def rule_training(self) -> Training:
        """The training with one weight and at most one bias, as formulas have it."""
        return self.training.of_kinds()

    @property
    def fitted_training(self) -> Training | None:
        """That training with the fitted weight decays, where the diagnosis has any."""
        best, own = self.diagnosis and self.diagnosis.best, self.rule_training
        if not best or best.weight_decay is None:
            return None
        same = best.weight_decay.keys() == own.settings.weight_decay.keys()
        return own.with_decays(best.weight_decay) if same else None

    @property
    def limit_within(self) -> float:
        """The rounding bounds that a tensor may differ by within a step, of all the largest."""
        return max(
            self.spec.tolerance.of(name).limit_within for name in self.comparison.trace.tensors
        )

    @property
    def verdict_step(self) -> int | None:
        """The step that the verdict is about: where it diverges, or cannot be judged."""
        if self.verdict == "diverged":
            if self.first_divergence is not None and "parameters" in self.spec.compare:
                return self.first_divergence.step
            return self.first_loss_divergence.step if self.first_loss_divergence else None
        return next(iter(self.comparison.stops(self.spec.compare).values()), None)

    @property
    def expected(self) -> bool | None:
        """Whether the run found what its spec expects; None where it expects nothing."""
        expect = self.spec.expect
        if expect is None:
            return None
        return (
            expect.verdict in (None, self.verdict)
            and expect.step in (None, self.verdict_step)
            and (expect.cause is None or self.names(expect.cause))
        )

    def names(self, cause: str) -> bool:
        """Whether the run diverged, and a cause is among those that explain it."""
        named = self.diagnosis is not None and self.diagnosis.names(cause)
        return self.verdict == "diverged" and named

    def smallest_tolerance(self) -> Needed:
        """Return the smallest tolerance of each kind with which all that is judged would pass."""
        smallest = Needed()
        for name in self.spec.judged(self.comparison.drift.needed):
            smallest = smallest.joined(self.comparison.drift.needed[name])
        return smallest

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data: what `regcheck run --json` prints, read back."""
        from regcheck.report.json import report_dict  # which needs this record

        return report_dict(self)
