"""What a run found, as a record and as plain data in full precision.

JSON has no NaN and no infinity: in the plain data they are the strings "nan", "inf" and "-inf",
which Python's `float` reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from regcheck import __version__
from regcheck.compare.comparison import Comparison, Final
from regcheck.compare.differences import Difference
from regcheck.compare.drift import Needed
from regcheck.compare.not_distinguished import Hidden
from regcheck.compare.steps import Divergence, LossDivergence, Sample
from regcheck.compare.trace import TraceRow
from regcheck.diagnosis.effective_settings import EffectiveSettings
from regcheck.diagnosis.records import Diagnosis, SpecFix
from regcheck.diagnosis.replay import Explanation, Fit
from regcheck.diagnosis.search import name_of_factor
from regcheck.problem.problem import Array, Parameters, Step
from regcheck.rules.cause_formula import framework_formula, scratch_formula
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import TORCH, differences, is_bias
from regcheck.rules.equivalent import Matching, alike
from regcheck.rules.formula import rule_lines
from regcheck.rules.settings import Training, letters
from regcheck.rules.settings import number as formula_number
from regcheck.spec import Spec
from regcheck.spec.tolerance import Tolerances, Verdict


@dataclass(frozen=True)
class Report:
    """What a run found: the comparison, its verdict, and the diagnosis of a divergence.

    Attributes:
        name: of the spec.
        training: with the settings that the framework side really has.
        features, row_shape: of the data.
        dtypes: of the scratch and the framework side.
        plain_sgd: whether the framework side's rule is that of torch.optim.SGD.
        reason: of the verdict, where it is not plain from the rest.
    """

    name: str
    spec: Spec
    training: Training
    features: tuple[str, ...]
    row_shape: tuple[int, ...]
    dtypes: tuple[str, str]
    plain_sgd: bool
    comparison: Comparison
    verdict: Verdict
    reason: str
    diagnosis: Diagnosis | None
    environment: Mapping[str, Any]

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
        return self.comparison.first_loss_divergence

    @property
    def not_distinguished(self) -> tuple[Hidden, ...]:
        """The causes that the run could not have shown, and why."""
        return self.comparison.not_distinguished

    @property
    def rule_training(self) -> Training:
        """Give the training with one weight and at most one bias, as formulas have it."""
        decays = self.training.sgd.weight_decay
        kinds = {
            kind: [decay for name, decay in decays.items() if is_bias(name) == bias]
            for kind, bias in (("weight", False), ("bias", True))
        }
        largest = {kind: max(found) for kind, found in kinds.items() if found}
        return self.training.with_decays({"weight": 0.0, **largest})

    @property
    def limit_within(self) -> float:
        """Give the largest number of rounding bounds that a tensor may differ by within a step."""
        return max(
            self.spec.tolerance.of(name).limit_within for name in self.comparison.trace.tensors
        )

    @property
    def verdict_step(self) -> int | None:
        """Give the step that the verdict is about: where it diverges, or cannot be judged."""
        if self.verdict == "diverged":
            if self.first_divergence is not None and "parameters" in self.spec.compare:
                return self.first_divergence.step
            return self.first_loss_divergence.step if self.first_loss_divergence else None
        return next(iter(self.comparison.stops(self.spec.compare).values()), None)

    @property
    def expected(self) -> bool | None:
        """Say whether the run found what its spec expects; None where it expects nothing."""
        expect = self.spec.expect
        if expect is None:
            return None
        return (
            expect.verdict in (None, self.verdict)
            and expect.step in (None, self.verdict_step)
            and (expect.cause is None or self.names(expect.cause))
        )

    def names(self, cause: str) -> bool:
        """Say whether the run diverged, and a cause is among those that explain it."""
        named = self.diagnosis is not None and self.diagnosis.names(cause)
        return self.verdict == "diverged" and named

    def smallest_tolerance(self) -> Needed:
        """Give the smallest tolerance of each kind with which all that is judged would pass."""
        smallest = Needed()
        for name in self.spec.judged(self.comparison.drift.needed):
            smallest = smallest.joined(self.comparison.drift.needed[name])
        return smallest

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain data: what `regcheck run --json` prints, read back."""
        return head(self) | {"rows": [row_dict(row) for row in self.comparison.trace]}


def head(report: Report) -> dict[str, Any]:
    """Give all of a report but its rows."""
    loss = report.first_loss_divergence
    return {
        "regcheck": __version__,
        "spec": report.name,
        "verdict": report.verdict,
        "reason": report.reason or None,
        "expected": report.expected,
        "dtypes": dict(zip(("scratch", "framework"), report.dtypes, strict=True)),
        "steps": report.comparison.steps,
        "compared": report.comparison.compared,
        "first_divergence": divergence_dict(report.first_divergence, report.spec.tolerance),
        "first_loss_divergence": loss
        and {
            "step": loss.step,
            "scratch": number(loss.at.scratch),
            "framework": number(loss.at.framework),
            "difference": number(loss.at.difference),
            "bound": number(loss.at.bound),
        },
        "first_by_stage": report.comparison.first_by_stage,
        "first_unjudged": report.comparison.first_unjudged,
        "first_loss_unjudged": report.comparison.first_loss_unjudged,
        "convention_differences": {
            key: {"scratch": here, "framework": torch}
            for key, (here, torch) in differences(
                report.spec.named_convention(), bias=report.spec.bias
            ).items()
        },
        "diagnosis": diagnosis_dict(report),
        "not_distinguished": [hidden.cause for hidden in report.not_distinguished],
        "not_distinguished_because": dict(report.not_distinguished),
        "tolerance": tolerance_dict(report),
        "smallest_tolerance": {
            name: needed_dict(needed) for name, needed in report.comparison.drift.needed.items()
        },
        "amplification": report.comparison.drift.amplification
        and {
            "first_step": report.comparison.drift.amplification.first_step,
            "step": report.comparison.drift.amplification.step,
            "factor": number(report.comparison.drift.amplification.factor),
            "drift": number(report.comparison.drift.amplification.drift),
        },
        "saturation": report.comparison.saturation and report.comparison.saturation._asdict(),
        "sample": sample_dict(report.comparison.sample),
        "final": {side: final_dict(final) for side, final in report.comparison.final.items()}
        | {"max_drift": number(report.comparison.drift.largest)},
        "environment": report.environment,
    }


def tolerance_dict(report: Report) -> dict[str, Any]:
    """Give the tolerance of each tensor and of the loss."""
    tolerances = report.spec.tolerance
    return {
        name: tolerances.of(name).as_used() for name in (*report.comparison.trace.tensors, "loss")
    }


def needed_dict(needed: Needed) -> dict[str, Any]:
    """Give the smallest tolerances that would have passed."""
    return {
        "rounding": number(needed.rounding),
        "rtol": number(needed.rtol),
        "atol": number(needed.atol),
        "rtol_alone": number(needed.rtol_alone),
        "atol_alone": number(needed.atol_alone),
        "exact": needed.exact,
    }


def divergence_dict(divergence: Divergence | None, tolerances: Tolerances) -> dict[str, Any] | None:
    """Give the first divergence: the parameter after the update, and `within` the stage.

    Where the tolerance is on the drift, so are its numbers, and the bound is what was allowed.
    """
    if divergence is None:
        return None
    on_drift = tolerances.of(divergence.at.tensor).on_drift
    return {
        "step": divergence.step,
        "epoch": divergence.epoch,
        "batch": divergence.batch,
        "stage": divergence.stage,
        **difference_dict(divergence.at),
        "on": "drift" if on_drift else "local",
        "within": difference_dict(divergence.within),
    }


def difference_dict(difference: Difference) -> dict[str, Any]:
    """Give one entry's difference."""
    return {
        "tensor": difference.tensor,
        "index": list(difference.index),
        "scratch": number(difference.scratch),
        "framework": number(difference.framework),
        "difference": number(difference.difference),
        "bound": number(difference.bound),
        "ratio": number(difference.ratio),
    }


def diagnosis_dict(report: Report) -> dict[str, Any] | None:
    """Give what explains a divergence."""
    found = report.diagnosis
    if found is None:
        return None
    best = found.best
    match = found.matching
    return {
        "explained": found.explained,
        "causes": [cause_dict(report, cause) for cause in found.causes],
        "alternatives": [list(one.causes) for one in found.explanations[1:]],
        "told_apart_by": [apart or None for apart in found.distinguished_by[1:]],
        "alternative_factors": [factors_of(one) for one in found.explanations[1:]],
        "steps": found.steps,
        "residual_ratio": number(best.residual * report.limit_within) if best else None,
        "effective_weight_decay": {
            "scratch": {
                name: fitted(effective(one)[1]) for name, one in found.effective_settings.items()
            },
            "framework": {name: number(w) for name, w in report.training.sgd.weight_decay.items()},
        },
        "effective_lr": {
            "scratch": {
                name: fitted(effective(one)[0], report.training.sgd.lr)
                for name, one in found.effective_settings.items()
            },
            "framework": number(report.training.sgd.lr),
        },
        "deviation": {
            name: {
                "lr": deviation(effective(one)[0], report.training.sgd.lr),
                "weight_decay": deviation(effective(one)[1]),
            }
            for name, one in found.effective_settings.items()
        },
        "matching": None
        if not isinstance(match, Matching)
        else {
            "weight_decay": decay_dict(match.sgd.weight_decay),
            "lr": number(match.sgd.lr),
            "momentum": number(match.sgd.momentum),
            "nesterov": match.sgd.nesterov,
        },
        "no_match_because": match if isinstance(match, str) else None,
        "fixed_spec": found.fix.changes if isinstance(found.fix, SpecFix) else None,
        "stage": found.stage,
        "clues": [*found.evidence, *([found.loss_evidence] if found.loss_evidence else [])],
        "start": found.start and tensors_dict(found.start),
    }


def cause_dict(report: Report, cause: str) -> dict[str, Any]:
    """Give one cause of a diagnosis."""
    assert report.diagnosis is not None
    row, factor = CAUSES[cause], factors_of(report.diagnosis.best).get(cause)
    reporting = report.diagnosis.reporting
    scale = reporting.scale if reporting else None
    return {
        "id": cause,
        "kind": row.kind,
        "title": row.title,
        "fix": fix_of(report, cause),
        "since": row.since,
        "scratch_formula": own_decays_formula(report, cause)
        or scratch_formula(cause, report.rule_training, factor, scale),
        "framework_formula": framework_formula(cause, report.rule_training),
        "factor": factor,
    }


def own_decays_formula(report: Report, cause: str) -> str:
    """Write the rule of a weight and a bias whose decays were each fitted; empty where none was."""
    best = report.diagnosis.best if report.diagnosis else None
    decays, training = best.weight_decay if best else None, report.rule_training
    if (
        cause != "penalty-scaled"
        or decays is None
        or decays.keys() != training.sgd.weight_decay.keys()
    ):
        return ""
    return "; ".join(rule_lines(TORCH, letters(training.with_decays(decays))))


BY_ENTRY_FIXES = {
    "gradient-scaled": "leave out what multiplies the gradient of the entries named above",
    "learning-rate-scaled": "step those entries by torch's lr too",
    "penalty-missing": "add λ w to the gradient of those entries too",
    "penalty-scaled": "add torch's own λ w to the gradient of those entries",
}
"""What to change where only some entries differ, which are named with their numbers."""


def fix_of(report: Report, cause: str) -> str:
    """Say what mends a cause, with the factor that was fitted in the place of c."""
    fix = CAUSES[cause].fix
    best = report.diagnosis.best if report.diagnosis else None
    if best is None:
        return fix
    if cause == "penalty-scaled" and best.weight_decay is not None:
        own = alike(report.training.sgd.weight_decay)
        each = [
            f"{formula_number(decay)} for {' and '.join(names)}" for decay, names in own.items()
        ]
        return f"decay each tensor by torch's weight_decay: {', '.join(each)}"
    if best.by_entry is not None and cause in BY_ENTRY_FIXES:
        return BY_ENTRY_FIXES[cause]
    fit = best.fits.get(cause)
    if fit is None:
        return fix
    return fix.replace("the factor c", f"the factor {factor_number(report, cause, fit)}")


def factor_number(report: Report, cause: str, fit: Fit) -> str:
    """Write a fitted factor, and its name where that is another: `0.25 = 1/B`, `2`.

    Its deviation is told where it shows in ten digits.
    """
    text = f"{fit.factor:.10g}"
    if fit.deviation >= 1e-10 * abs(fit.factor):
        text += f" ± {fit.deviation:.1g}"
    named = name_of_factor(cause, fit, report.training)
    same = named is None or named.text.replace("−", "-") == text
    return text if same or named is None else f"{text} = {named.text}"


def factors_of(explanation: Explanation | None) -> dict[str, float]:
    """Give the factors that were fitted."""
    return {cause: fit.factor for cause, fit in explanation.fits.items()} if explanation else {}


def fitted(fit: Fit | None, times: float = 1.0) -> float | str | None:
    """Give a fitted number; None where the run does not tell it."""
    return None if fit is None else number(fit.factor * times)


def deviation(fit: Fit | None, times: float = 1.0) -> float | str | None:
    """Give what one rounding bound makes of a fitted number."""
    return None if fit is None else number(fit.deviation * times)


def effective(scales: EffectiveSettings) -> tuple[Fit | None, Fit | None]:
    """Give a tensor's effective factor on the lr, and weight decay; None where they do not fit."""
    return (scales.gradient, scales.weight_decay) if scales.fits else (None, None)


def decay_dict(weight_decay: Mapping[str, float]) -> Any:
    """Give a weight decay as a spec has it: one number where all tensors have the same."""
    values = set(weight_decay.values())
    if len(values) == 1:
        return number(values.pop())
    return {name: number(value) for name, value in weight_decay.items()}


def sample_dict(sample: Sample | None) -> dict[str, Any] | None:
    """Give one step in full, both sides from the same parameters."""
    if sample is None:
        return None
    return {
        "step": sample.step,
        "before": tensors_dict(sample.framework.before),
        "scratch": step_dict(sample.scratch),
        "framework": step_dict(sample.framework),
    }


def step_dict(step: Step) -> dict[str, Any]:
    """Give a step's loss and tensors. Penalty and shift hold the learning rate."""
    return {
        "loss": None if step.loss is None else number(step.loss),
        "gradient": step.gradient and tensors_dict(step.gradient),
        "penalty": step.penalty and tensors_dict(step.penalty),
        "shift": step.delta and tensors_dict(step.delta),
        "after": tensors_dict(step.after),
    }


def final_dict(final: Final) -> dict[str, Any]:
    """Give where one side ended."""
    return {
        **tensors_dict(final.parameters),
        "loss": number(final.loss),
        "accuracy": {
            part: share if share is None else number(share)
            for part, share in final.accuracy.items()
        }
        or None,
    }


def tensors_dict(tensors: Parameters) -> dict[str, Any]:
    """Give tensors as nested lists."""
    return {name: numbers(tensor) for name, tensor in tensors.items()}


def numbers(tensor: Array) -> Any:
    """Give an array as nested lists of numbers."""
    if np.isfinite(tensor).all():
        return tensor.tolist()
    return [number(float(part)) if part.ndim == 0 else numbers(part) for part in tensor]


def row_dict(row: TraceRow) -> dict[str, Any]:
    """Give one row."""
    return {
        "step": row.step,
        "epoch": row.epoch,
        "batch": row.batch,
        "loss": {
            "scratch": number(row.scratch_loss),
            "framework": number(row.framework_loss),
            "ratio": number(row.loss_ratio),
            "tolerance_ratio": number(row.loss_judged),
        },
        "tensors": {
            name: {
                "drift": number(trace.drift),
                "local": number(trace.local),
                "bound": number(trace.bound),
                "ratio": number(trace.ratio),
                "tolerance_ratio": number(trace.judged),
            }
            for name, trace in row.tensors.items()
        },
    }


def number(value: float) -> float | str:
    """Give a number as JSON can hold it."""
    return float(value) if math.isfinite(value) else str(float(value))
