"""What a run of a user's function recorded, and its steps by any rule without rounding."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from regcheck import checking
from regcheck.checking import check
from regcheck.compare.comparison import Comparison, compare
from regcheck.compare.history import History
from regcheck.diagnosis.diagnose import diagnose
from regcheck.diagnosis.records import ByEntry, Diagnosis
from regcheck.problem.problem import Parameters
from regcheck.report.result import Report
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.trainers.sides import Sides
from regcheck.user_code.problem_api import UserProblem, user_problem
from tests.random_functions import Case, decays_of
from tests.reference import Training
from tests.rule import Kept, Moment, Pair, Rule, Wrong
from tests.user_functions import schedule_of

SURE = 2.5
"""Limits (of 8 bounds each) above which a difference must be found and explained: 20 bounds."""

NOISE = 0.5
"""Limits below which a difference is none."""

SINGLE = 2.0**29
"""How much coarser float32 rounds than float64."""


@dataclass
class Seen:
    """A run: what was recorded, the user's problem, and the CPU seconds that its diagnosis took."""

    case: Case
    report: Report
    sides: Sides
    history: History
    problem: UserProblem
    used: float = 0.0

    @property
    def diagnosis(self) -> Diagnosis:
        """Return the diagnosis of a run that diverged."""
        assert self.report.diagnosis is not None
        return self.report.diagnosis

    def limits(self, name: str) -> float:
        """Return the bounds that a tensor may differ by."""
        return float(self.report.spec.tolerance.of(name).limit_within)

    def outcome(self) -> str:
        """Return in a word what became of the run."""
        if self.report.diagnosis is None:
            return self.report.verdict
        if self.report.first_divergence is None:
            return "loss explained" if self.diagnosis.explained else "loss unexplained"
        return "explained" if self.diagnosis.explanations else "unexplained"


def see(case: Case) -> Seen:
    """Check a case, and keep what passes by."""
    compared: list[tuple[Sides, History]] = []
    used = [0.0]

    def watched(sides: Sides, *rest: Any) -> tuple[Comparison, History]:
        found, history = compare(sides, *rest)
        compared.append((sides, history))
        return found, history

    def timed(*arguments: Any) -> Diagnosis:
        start = time.process_time()
        found = diagnose(*arguments)
        used[0] = time.process_time() - start
        return found

    with patch.object(checking, "compare", watched), patch.object(checking, "diagnose", timed):
        report = check(case.spec, scratch=case.code.train)
    report.to_dict()
    ((sides, history),) = compared
    problem = user_problem(sides.problem, report.spec, framework=False)
    torchs = {name: w.astype(report.dtypes[1]) for name, w in problem.initial.items()}
    problem = replace(problem, initial=torchs)
    problem = replace(problem, X=case.X.astype(np.longdouble), y=case.y.astype(np.longdouble))
    return Seen(case, report, sides, history, problem, used[0])


class Exact(NamedTuple):
    """One recorded step by a rule in extended precision: how far off the code's is, in limits.

    `loss` is torch's loss before the update.
    """

    update: float
    loss: float


def exactly(
    seen: Seen,
    rule: Rule,
    start: Parameters | None = None,
    by_entry: ByEntry | None = None,
    tensors: Collection[str] | None = None,
    gradients: Wrong | None = None,
) -> Iterator[Exact]:
    """Take each recorded step by a rule, without rounding, from the code's parameters.

    The first is taken from a start, where that is not the spec's. Some entries may have numbers of
    their own, and some tensors alone may be looked at. Gradients may be given.
    """
    history = seen.history
    looked_at = np.concatenate(
        [
            np.full(math.prod(shape), tensors is None or name in tensors)
            for name, shape in history.shapes.items()
        ]
    )
    wrong = gradients or of_entries(seen, by_entry, bias="bias" in history.shapes)
    schedule = schedule_of(seen.case.spec, seen.problem.steps // seen.problem.epochs, rule)
    training = Training(seen.problem, rule, schedule, np.longdouble, wrong=wrong)
    rates = by_entry.values if by_entry is not None and by_entry.what == "lr" else np.ones(1)
    limits = np.concatenate(
        [np.full(math.prod(shape), seen.limits(name)) for name, shape in history.shapes.items()]
    )
    u = max(float(np.finfo(dtype).eps) for dtype in seen.report.dtypes) / 2
    kept = Kept()
    linear = OPTIMIZERS[seen.case.spec["optimizer"]["name"]].linear
    longest, longest_torch = np.zeros((2, history.entries))
    for step, record in enumerate(history.records()):
        at = history.flat(start) if step == 0 and start is not None else record.before
        before = training.pair(*(at[:-1], at[-1]) if training.bias else (at, None))
        taken = training.step(kept, before, step)
        kept = taken.kept
        after = np.append(taken.after[0], taken.after[1] if training.bias else [])
        after = record.before + rates * (after - record.before) if by_entry else after
        with np.errstate(all="ignore"):
            moved = np.abs(after - record.before)
            # What a longer step rounds more.
            bound = np.maximum(1, np.abs(rates)) * record.bound + 2 * u * (step + 1) * moved
            if not linear:  # the gradient's rounding is a share of the step, of 1% at most
                longest = np.fmax(longest, moved)
                longest_torch = np.fmax(longest_torch, np.abs(record.framework - record.before))
                longer = np.fmax(1, longest / longest_torch / 4)
                of_gradient = np.fmax(record.bound - 2 * u * np.abs(record.before), 0)
                bound += np.fmin((longer - 1) * of_gradient, 0.01 * moved.max() / limits)
            off = np.abs(after - record.scratch) / (bound * limits)
        known = np.isfinite(record.bound) & np.isfinite(record.scratch)
        off = np.where(np.isnan(off), np.where(known, math.inf, 0), off)
        largest = off[looked_at].max(initial=0.0)
        yield Exact(float(largest), taken.passed.loss)


def of_entries(seen: Seen, by_entry: ByEntry | None, *, bias: bool) -> Wrong | None:
    """Put each entry's own factor on the gradient, or λ in it, into a training."""
    if by_entry is None or by_entry.what == "lr":
        return None
    values = by_entry.values.astype(np.longdouble)
    weight, rest = (values[:-1], values[-1]) if bias else (values, np.longdouble(0))
    if by_entry.what == "gradient":
        return lambda moment: (weight * moment.gradient[0], rest * moment.gradient[1])
    own = decays_of(seen.case.spec)

    def decayed(moment: Moment) -> Pair:
        (gw, gb), (w, b) = moment.gradient, moment.at
        return gw + (weight - own[0]) * w, gb + (rest - own[1]) * b

    return decayed


def torchs_gradients(seen: Seen) -> Wrong:
    """Put torch's own gradients, as they are recorded, into a training that takes all steps."""
    recorded = iter(seen.history.all("gradient").astype(np.longdouble))

    def gradient(moment: Moment) -> Pair:
        entries = next(recorded)
        (gw, _) = moment.gradient
        return entries[: len(gw)], np.asarray(entries[-1] if len(entries) > len(gw) else 0.0)

    return gradient
