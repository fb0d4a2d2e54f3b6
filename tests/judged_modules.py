"""What a run of a random module finds, and what it must find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from regcheck.checking import check
from regcheck.report.result import Report
from tests.mlp import Mlp
from tests.random_modules import Case, cause_of


def run(case: Case) -> Report:
    return check(case.spec(), scratch=Mlp(case).train, framework=case.build)


def effect(case: Case) -> float:
    """Return how large a fault is: its part of a tensor's largest step, at most, in any step.

    Taken in float64 from the parameters of the faulty training, in the order of its batches.
    """
    right, wrong = (Mlp(replace(case, fault=f, dtype="float64")) for f in ("", case.fault))
    X, y = case.data
    w, states, largest, t = case.start, [dict[str, Any](), dict[str, Any]()], 0.0, 0
    with np.errstate(all="ignore"):
        for _ in range(case.epochs):
            for first in range(0, case.rows, case.batch):
                t, part = t + 1, slice(first, first + case.batch)
                one, states[0], _ = right.step(w, states[0], X[part], y[part], t)
                two, states[1], _ = wrong.step(w, states[1], X[part], y[part], t)
                for name in w:
                    step = np.abs(one[name] - w[name]).max()
                    if step > 0:
                        largest = max(largest, float(np.abs(two[name] - one[name]).max() / step))
                w = two
    return largest


CLEAR = 0.02
"""The effect of a fault, as a share of the step, from which on no run may call it equivalent."""

DOUBLINGS: dict[str, tuple[float, float, float]] = {
    "lr doubled": (2.0, 1.0, 1.0),
    "lr missing": (0.0, 1.0, 1.0),
    "gradient doubled": (1.0, 2.0, 1.0),
    "gradient missing": (1.0, 0.0, 1.0),
    "decay doubled": (1.0, 1.0, 2.0),
    "decay missing": (1.0, 1.0, 0.0),
}


def doublings(case: Case) -> dict[str, tuple[float, float, float]]:
    """Return those that change a case's steps.

    Adam and RMSprop divide by the gradient's size: a doubled one changes nothing but the share of
    ε, which only float64 shows.
    """
    found = dict(DOUBLINGS)
    if not case.decay:
        del found["decay doubled"], found["decay missing"]
    if case.optimizer in ("adam", "adamw", "rmsprop") and case.dtype == "float32":
        del found["gradient doubled"]
    return found


def out_of_range(report: Report) -> bool:
    """Return whether the NumPy side's numbers left the range of its dtype: exp or log did."""
    at = report.first_divergence.at if report.first_divergence else None
    at = at or (report.first_loss_divergence.at if report.first_loss_divergence else None)
    return at is not None and not math.isfinite(at.scratch)


def named(case: Case, report: Report) -> bool:
    """Return whether a fault's cause is named, where the parameters show it in finite numbers."""
    return report.first_divergence is None or out_of_range(report) or report.names(cause_of(case))


def faults_of(case: Case, *, doubled: bool = True) -> tuple[Report, list[str]]:
    """Check a case; what is wrong with what was found."""
    report = run(case)
    found = []
    if report.verdict == "inconclusive" and not report.reason:
        found.append("inconclusive without a reason")
    if not case.fault:
        if report.verdict == "diverged" and not out_of_range(report):
            at = report.first_divergence
            where = (at.step, at.stage, at.at) if at else report.first_loss_divergence
            found.append(f"false alarm: {where}")
        if report.verdict == "equivalent" and doubled:
            for name, times in doublings(case).items():
                verdict = run(replace(case, times=times)).verdict
                if verdict != "diverged":
                    found.append(f"equivalent, but with {name} it is {verdict}")
    elif report.verdict == "diverged" and cause_of(case) and not named(case, report):
        diagnosis = report.diagnosis
        others = [one.causes for one in diagnosis.explanations] if diagnosis else []
        found.append(f"{case.fault} is not named, but {others}")
    elif report.verdict == "equivalent":
        size = effect(case)
        if size > CLEAR or (size > 1e-3 and case.dtype == "float64"):
            found.append(f"false equivalent: {case.fault}, {size:.2g} of a step")
    return report, found
