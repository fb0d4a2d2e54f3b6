"""What a run found, as a record and as plain data in full precision.

JSON has no NaN and no infinity: in the plain data they are the strings "nan", "inf" and "-inf",
which Python's `float` reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from regcheck import __version__
from regcheck.compare import Difference, Divergence
from regcheck.convention import differences
from regcheck.problem import Array, Parameters, Step
from regcheck.spec import Spec
from regcheck.trace import Trace, TraceRow
from regcheck.training import Training

OUT_OF_RANGE = "the numbers are infinite, or too near it to be judged"
"""What ends a run before its last step."""

Verdict = Literal["equivalent", "diverged", "inconclusive"]


class Final(NamedTuple):
    """Where one side ended: parameters, the last reported loss, and accuracies (None: no rows)."""

    parameters: Parameters
    loss: float
    accuracy: dict[str, float | None]


class LossDivergence(NamedTuple):
    """The first step at which the reported losses part, at the same parameters."""

    step: int
    at: Difference


class Sample(NamedTuple):
    """One step of both sides from the framework's parameters, kept to be shown."""

    step: int
    scratch: Step
    framework: Step


@dataclass
class Report:
    """What a run found."""

    name: str
    spec: Spec
    training: Training
    features: tuple[str, ...]
    steps: int
    limit: float
    trace: Trace
    verdict: Verdict = "inconclusive"
    reason: str = ""
    compared: int = 0
    first_divergence: Divergence | None = None
    first_loss_divergence: LossDivergence | None = None
    first_by_stage: dict[str, int] = field(default_factory=dict)
    sample: Sample | None = None
    previous: Sample | None = None
    first_unjudged: int | None = None
    first_loss_unjudged: int | None = None
    final: dict[str, Final] = field(default_factory=dict)
    max_drift: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    diagnosis: None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain data: what `regcheck run --json` prints, read back."""
        return head(self) | {"rows": [row_dict(row) for row in self.trace]}


def head(report: Report) -> dict[str, Any]:
    """Give all of a report but its rows."""
    loss = report.first_loss_divergence
    return {
        "regcheck": __version__,
        "spec": report.name,
        "verdict": report.verdict,
        "reason": report.reason or None,
        "expected": None,
        "steps": report.steps,
        "compared": report.compared,
        "first_divergence": divergence_dict(report.first_divergence),
        "first_loss_divergence": loss
        and {
            "step": loss.step,
            "scratch": number(loss.at.scratch),
            "framework": number(loss.at.framework),
            "difference": number(loss.at.difference),
            "bound": number(loss.at.bound),
        },
        "first_by_stage": report.first_by_stage,
        "first_unjudged": report.first_unjudged,
        "first_loss_unjudged": report.first_loss_unjudged,
        "convention_differences": {
            key: {"scratch": here, "framework": torch}
            for key, (here, torch) in differences(report.spec.named_convention()).items()
        },
        "diagnosis": report.diagnosis,
        "not_distinguished": None,
        "sample": sample_dict(report.sample),
        "final": {side: final_dict(final) for side, final in report.final.items()}
        | {"max_drift": number(report.max_drift)},
        "environment": report.environment,
    }


def divergence_dict(divergence: Divergence | None) -> dict[str, Any] | None:
    """Give the first divergence: the parameter after the update, and `within` the stage."""
    if divergence is None:
        return None
    return {
        "step": divergence.step,
        "epoch": divergence.epoch,
        "batch": divergence.batch,
        "stage": divergence.stage,
        **difference_dict(divergence.at),
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
        "loss": number(step.loss),
        "gradient": tensors_dict(step.gradient),
        "penalty": tensors_dict(step.penalty),
        "shift": tensors_dict(step.shift),
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
        },
        "tensors": {
            name: {key: number(value) for key, value in trace._asdict().items()}
            for name, trace in row.tensors.items()
        },
    }


def number(value: float) -> float | str:
    """Give a number as JSON can hold it."""
    return float(value) if math.isfinite(value) else str(float(value))
