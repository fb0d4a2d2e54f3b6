"""A report as plain data in full precision, and as JSON text.

JSON has no NaN and no infinity: they are the strings "nan", "inf" and "-inf", which Python's
`float` reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from regcheck import __version__
from regcheck.compare.trace import Sample, TraceRow
from regcheck.diagnosis.records import SpecFix
from regcheck.problem.problem import Step
from regcheck.report.result import Report
from regcheck.report.summary import summary
from regcheck.report.texts.diagnosis.cause_text import DECAYS, other_options
from regcheck.report.texts.diagnosis.fixes import fix_of
from regcheck.report.texts.roles import roles_of
from regcheck.rules.causes.catalogue import CAUSES, framework_formula, scratch_formula
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import differences
from regcheck.rules.equivalent import Matching
from regcheck.rules.formulas.formula import rule_lines
from regcheck.rules.settings import letters


def report_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain data: what `regcheck run --json` prints, read back."""
    return report_head(report) | {"rows": [plain(row_dict(row)) for row in report.comparison.trace]}


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it.

    >>> plain({"w": np.array([[1.0, np.inf]]), "step": 2})
    {'w': [[1.0, 'inf']], 'step': 2}
    """
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist() if np.isfinite(value).all() else plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def report_head(report: Report) -> dict[str, Any]:
    """Return all of a report but its rows."""
    spec, found = report.spec, report.comparison
    torchs = spec.optimizer.settings(spec.lr, spec.decays).torchs
    chosen = differences(spec.named_convention(), torchs, bias=spec.bias)
    head = verdict_dict(report) | {
        "convention_differences": {
            key: {"scratch": here, "framework": torch} for key, (here, torch) in chosen.items()
        },
        "classes": list(report.classes) or None,
        "diagnosis": diagnosis_dict(report),
        "not_distinguished": [hidden.cause for hidden in report.not_distinguished],
        "not_distinguished_because": dict(report.not_distinguished),
        "tolerance": {
            name: spec.tolerance.of(name).as_used() for name in (*found.trace.tensors, "loss")
        },
        "smallest_tolerance": {
            name: needed._asdict() for name, needed in found.drift.needed.items()
        },
        "amplification": found.drift.amplification and found.drift.amplification._asdict(),
        "saturation": found.saturation and found.saturation._asdict(),
        "sample": sample_dict(found.sample),
        "final": {
            side: {**final.parameters, "loss": final.loss, "accuracy": final.accuracy or None}
            for side, final in found.final.items()
        }
        | {"max_drift": found.drift.largest},
        "environment": report.environment,
        "golden": report.golden or None,
        "summary": summary_dict(report),
    }
    return {key: plain(value) for key, value in head.items()}


def summary_dict(report: Report) -> dict[str, Any]:
    """Return the report in short, in words: what every other form of it is written from."""
    found: dict[str, Any] = as_dict(summary(report))
    return found


def as_dict(value: Any) -> Any:
    """Return records, also within others, as mappings of their fields."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: as_dict(one) for key, one in value._asdict().items()}
    if is_dataclass(value):
        return {field.name: as_dict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_dict(one) for key, one in value.items()}
    return [as_dict(one) for one in value] if isinstance(value, list | tuple) else value


def pick(record: Any, *names: str) -> dict[str, Any]:
    """Return some fields of a record."""
    return {name: getattr(record, name) for name in names}


def verdict_dict(report: Report) -> dict[str, Any]:
    """Return the verdict, and the first steps that it rests on."""
    found, loss = report.comparison, report.first_loss_divergence
    return {
        "regcheck": __version__,
        "spec": report.name,
        "verdict": report.verdict,
        "reason": report.reason or None,
        "expected": report.expected,
        "dtypes": dict(zip(("scratch", "framework"), report.dtypes, strict=True)),
        "steps": found.steps,
        "compared": found.compared,
        "first_divergence": divergence_dict(report),
        "first_loss_divergence": loss
        and {"step": loss.step, **pick(loss.at, "scratch", "framework", "difference", "bound")},
        **pick(found, "first_by_stage", "first_unjudged"),
        "first_loss_unjudged": found.losses.first_unjudged,
    }


def divergence_dict(report: Report) -> dict[str, Any] | None:
    """Return the first divergence: the parameter after the update, and `within` the stage.

    Where the tolerance is on the drift, so are its numbers, and the bound is what was allowed.
    """
    divergence = report.first_divergence
    if divergence is None:
        return None
    on_drift = report.spec.tolerance.of(divergence.at.tensor).on_drift
    numbers = ("tensor", "index", "scratch", "framework", "difference", "bound", "ratio")
    return {
        **pick(divergence, "step", "epoch", "batch", "stage"),
        **pick(divergence.at, *numbers),
        "on": "drift" if on_drift else "local",
        "within": pick(divergence.within, *numbers),
    }


def diagnosis_dict(report: Report) -> dict[str, Any] | None:
    """Return what explains a divergence."""
    found = report.diagnosis
    if found is None:
        return None
    best, match = found.best, found.matching
    others = found.explanations[1:]
    return {
        "explained": found.explained,
        "causes": [cause_dict(report, cause) for cause in found.causes],
        "alternatives": [one.causes for one in others],
        "told_apart_by": [apart or None for apart in found.distinguished_by[1:]],
        "alternative_factors": [
            {cause: fit.factor for cause, fit in one.fits.items()} for one in others
        ],
        "only_in": list(best.tensors) if best and best.tensors else None,
        "steps": found.steps,
        "residual_ratio": best and best.residual * report.limit_within,
        **effective_dict(report),
        "effective_options": {
            name: {"scratch": one.scratch, "framework": one.torch, "deviation": one.deviation}
            for name, one in other_options(report).items()
        },
        "matching": matching_dict(match) if isinstance(match, Matching) else None,
        "no_match_because": match if isinstance(match, str) else None,
        "fixed_spec": found.fix.changes if isinstance(found.fix, SpecFix) else None,
        "stage": found.stage,
        "clues": [one.text for one in (*found.evidence, found.loss_evidence) if one],
        "start": found.start,
    }


def cause_dict(report: Report, cause: str) -> dict[str, Any]:
    """Return one cause of a diagnosis."""
    assert report.diagnosis is not None
    best, reporting = report.diagnosis.best, report.diagnosis.reporting
    fit = best.fits.get(cause) if best else None
    factor = fit and fit.factor
    own = report.fitted_training if cause in DECAYS else None
    change: Change | None = None
    if best and cause == "option-differs":
        change = {"options": best.change["options"]}
    if cause == "penalty-in-loss" and reporting and not reporting.squared:
        change = {"penalty_in_loss": True, "penalty_norm": "unsquared"}
    if own is not None:
        formula = "; ".join(rule_lines(own.settings.torchs, letters(own)))
    else:
        scale = reporting.scale if reporting else None
        formula = scratch_formula(cause, report.rule_training, factor, scale, change)
    return {
        "id": cause,
        "kind": CAUSES[cause].kind,
        "title": roles_of(report.spec).worded(CAUSES[cause].title),
        "fix": fix_of(report, cause),
        "since": CAUSES[cause].since,
        "scratch_formula": formula,
        "framework_formula": framework_formula(cause, report.rule_training, change),
        "factor": factor,
    }


def effective_dict(report: Report) -> dict[str, Any]:
    """Return the lr and weight decay of both sides; None where the steps do not show them."""
    assert report.diagnosis is not None
    settings = report.training.settings
    fits = {
        name: (scales.gradient, scales.weight_decay) if scales.fits else (None, None)
        for name, scales in report.diagnosis.effective_settings.items()
    }
    return {
        "effective_weight_decay": {
            "scratch": {name: decay and decay.factor for name, (_, decay) in fits.items()},
            "framework": settings.weight_decay,
        },
        "effective_lr": {
            "scratch": {
                name: rate and rate.factor * settings.of(name).lr
                for name, (rate, _) in fits.items()
            },
            "framework": settings.lr,
        },
        "deviation": {
            name: {
                "lr": rate and rate.deviation * settings.of(name).lr,
                "weight_decay": decay and decay.deviation,
            }
            for name, (rate, decay) in fits.items()
        },
    }


def matching_dict(match: Matching) -> dict[str, Any]:
    """Return torch's matching settings; one weight decay where all tensors have the same.

    Of SGD the dampening is left out, and of others nothing.
    """
    decays = match.settings.weight_decay
    values = set(decays.values())
    found = {"weight_decay": values.pop() if len(values) == 1 else decays, "lr": match.settings.lr}
    if match.settings.optimizer == "sgd":
        return found | pick(match.settings, "momentum", "nesterov")
    return found | {"optimizer": match.settings.optimizer, **match.settings.options}


def sample_dict(sample: Sample | None) -> dict[str, Any] | None:
    """Return one step in full, both sides from the same parameters."""
    if sample is None:
        return None
    return {
        "step": sample.step,
        "before": sample.framework.before,
        "scratch": step_dict(sample.scratch),
        "framework": step_dict(sample.framework),
    }


def step_dict(step: Step) -> dict[str, Any]:
    """Return a step's loss and tensors. Penalty and shift hold the learning rate."""
    return {**pick(step, "loss", "gradient", "penalty"), "shift": step.delta, "after": step.after}


def row_dict(row: TraceRow) -> dict[str, Any]:
    """Return one row, whose numbers may be NaN or infinite."""
    return {
        **pick(row, "step", "epoch", "batch"),
        "loss": {
            "scratch": row.scratch_loss,
            "framework": row.framework_loss,
            "ratio": row.loss_ratio,
            "tolerance_ratio": row.loss_judged,
        },
        "tensors": {
            name: {
                **pick(trace, "drift", "local", "bound", "ratio"),
                "tolerance_ratio": trace.judged,
            }
            for name, trace in row.tensors.items()
        },
    }


FINITE = json.JSONEncoder(allow_nan=False)


def row_text(row: TraceRow) -> str:
    """Write one row as JSON, quickly where its numbers are finite."""
    found = row_dict(row)
    try:
        return FINITE.encode(found)
    except ValueError:
        return json.dumps(plain(found))
