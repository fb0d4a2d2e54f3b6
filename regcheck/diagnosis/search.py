"""Which sets of causes explain a run, and what would tell two of them apart.

Single causes are tried first, then pairs, then ones with open factors.

All that explain it equally well are returned, the plainest first: fewer causes before more, and
ones without an open factor before ones with one. A set is only returned where none of its subsets
explains the run already.

Two sets are told apart by other trainings: both rules are trained on a few rows of a spec's own
kind under one changed circumstance after the other, and the first under which they differ is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import AS_IT_IS, Array, Problem, small_problems
from regcheck.rules.cause import Change, Named, named_factors
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training
from regcheck.trainers.numpy_trainer import NumpyTrainer

LATE = 16
"""The step of the first divergence beyond which causes that show early are left out."""

DIVISORS = frozenset({"loss_reduction", "batch_divisor"})
"""Keys that each say what a batch's sum is divided by."""

Found = tuple[Explanation, ...]


class Hypotheses(NamedTuple):
    """What may explain a run.

    Attributes:
        replay: its steps.
        training: with the settings that the framework side really has.
        changes: of the causes that concern it and leave nothing open.
        shown: those of them that it could show: what it could not adds nothing to any set.
        fitted: the causes with an open factor.
    """

    replay: Replay
    training: Training
    changes: Mapping[str, Sequence[Change]]
    shown: frozenset[str]
    fitted: tuple[str, ...]


class Round(NamedTuple):
    """Sets of causes to try, and when.

    Attributes:
        needed: whether to try them, after what was found and by the training.
        sets: how many causes that leave nothing open, and whether one more with an open factor.
        hidden: whether causes that the run could not show are among them.
    """

    needed: Callable[[Found, Training], bool]
    sets: tuple[tuple[int, bool], ...]
    hidden: bool = False


def nothing_found(found: Found, training: Training) -> bool:  # noqa: ARG001
    """Whether no set explains the run yet."""
    return not found


def none_plain(found: Found, training: Training) -> bool:
    """Whether each set found has an odd factor, which may be the product of plain ones."""
    return not any(all_named(one, training) for one in found)


ROUNDS = (
    Round(nothing_found, ((1, False), (0, True), (2, False), (1, True))),
    Round(nothing_found, ((3, False),)),
    Round(none_plain, ((2, True),)),
    # What torch's rule would not show, another cause may bring out.
    Round(nothing_found, ((2, False), (1, True)), hidden=True),
)


def search(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Found:
    """Find the explanations, the plainest first.

    Args:
        replay: the steps.
        training: with the settings that the framework side really has.
        convention: the scratch side's, where a spec states one.
        visible: the causes that the run could have shown; looked for where it is not known.
    """
    hypotheses = concerning(replay, training, convention, visible)
    found: Found = ()
    for one in ROUNDS:
        if one.needed(found, training):
            for size, fitted in one.sets:
                found += tuple(explaining(hypotheses, found, size, fitted, one.hidden))
    return listed(found, training)


def concerning(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Hypotheses:
    """Choose the causes that concern a run."""
    causes: dict[str, Sequence[Change]] = {
        name: ways
        for name, cause in CAUSES.items()
        if cause.kind == "update" and cause.concerns(training, convention)
        if (ways := cause.changing(training.sgd.torchs))
    }
    if "schedule-shifted" in causes:
        shifts = replay.torch.problem.schedule.likely_shifts()
        causes["schedule-shifted"] = [{"lr_shift": steps} for steps in shifts]
    if replay.first > LATE:
        # What would have shown long before is no part of it, and each trial is long.
        causes = {name: changes for name, changes in causes.items() if is_late(replay, changes)}
    changes = {name: own for name, own in causes.items() if not CAUSES[name].fitted}
    if visible is None:
        shown = {name for name, own in changes.items() if any(map(replay.first_shown, own))}
        visible = frozenset(shown)
    fitted = tuple(name for name in causes if CAUSES[name].fitted)
    return Hypotheses(replay, training, changes, visible & changes.keys(), fitted)


def is_late(replay: Replay, changes: Sequence[Change]) -> bool:
    """Whether changes show no earlier than about when the sides diverge."""
    steps = map(replay.first_shown, changes)
    return any(step is None or step >= replay.first // 2 for step in steps)


def explaining(
    hypotheses: Hypotheses, found: Found, size: int, fitted: bool, hidden: bool
) -> Iterator[Explanation]:
    """Yield the sets of so many causes that explain the run, where no subset does already."""
    names = hypotheses.changes if hidden else hypotheses.shown
    for causes in combinations(sorted(names), size):
        if hidden and hypotheses.shown.issuperset(causes):
            continue  # tried before
        for factor in hypotheses.fitted if fitted else (None,):
            together = {*causes, factor}
            if any(together.issuperset(one.causes) for one in found):
                continue
            explanations = trials(hypotheses, causes, factor)
            explanation = next((one for one in explanations if one is not None), None)
            if explanation is not None:
                yield explanation


def trials(
    hypotheses: Hypotheses, causes: tuple[str, ...], factor: str | None
) -> Iterator[Explanation | None]:
    """Replay each way to put some causes together, with one more that has an open factor."""
    replay = hypotheses.replay
    ways: list[Change] = [{}]
    for cause in causes:
        pairs = (merged((way, one)) for way in ways for one in hypotheses.changes[cause])
        ways = [way for way in pairs if way is not None]
    for change in ways:
        if factor is None:
            yield replay.explanation(causes, change, note=shift_note(replay, causes, change))
            continue
        names, key = tuple(sorted((*causes, factor))), CAUSES[factor].factor_key
        assert key is not None
        fit = None if key in change else replay.fit(change, key)
        if fit is not None and (fit.factor > 0 or key == "penalty_factor"):
            plain = fit.plain(named_factors(factor, hypotheses.training))
            for near in dict.fromkeys((plain, fit)):
                yield replay.explanation(names, {**change, key: near.factor}, {factor: near})


def merged(changes: Iterable[Change]) -> Change | None:
    """Put several changes together; None where two set the same key, or both set the divisor."""
    together: dict[str, object] = {}
    for change in changes:
        if not together.keys().isdisjoint(change):
            return None
        together |= change
    return None if together.keys() >= DIVISORS else together


def shift_note(replay: Replay, causes: tuple[str, ...], change: Change) -> str:
    """Describe how a schedule is shifted, where that is all that a set of causes is about."""
    early = change.get("lr_shift")
    if causes != ("schedule-shifted",) or not isinstance(early, int):
        return ""
    return replay.torch.problem.schedule.shift_text(early)


def listed(found: Found, training: Training) -> Found:
    """Order what was found, without factors that another cause names."""
    kept = [one for one in found if not has_other_name(one, found, training)]
    plain = (not one.fits or len(one.causes) == 1 for one in kept if all_named(one, training))
    if any(plain):
        kept = [one for one in kept if len(one.causes) == 1 or all_named(one, training)]

    def size(one: Explanation) -> tuple[bool, int, int, tuple[str, ...]]:
        return len(one.causes) > 1, len(one.fits), len(one.causes), one.causes

    return tuple(sorted(kept, key=size))


def all_named(explanation: Explanation, training: Training) -> bool:
    """Whether its factors are numbers of the training: an odd one is no plain reason."""
    return all(name_of_factor(cause, fit, training) for cause, fit in explanation.fits.items())


def has_other_name(explanation: Explanation, found: Found, training: Training) -> bool:
    """Whether an open factor is what another cause stands for, which explains the run too.

    It may do so without the causes beside it: no penalty is none, whatever its form.
    """
    sets = [set(one.causes) for one in found]
    for cause, fit in explanation.fits.items():
        others = set(explanation.causes) - {cause}
        for value, named in named_factors(cause, training).items():
            if named.cause and fit.is_near(value):
                renamed = others | {named.cause}
                if any(renamed >= one for one in sets):
                    return True
    return False


def name_of_factor(cause: str, fit: Fit, training: Training) -> Named | None:
    """Return the name of a fitted factor: the first of those that it is near."""
    named = named_factors(cause, training).items()
    return next((name for value, name in named if fit.is_near(value)), None)


FACTORS = ("penalty_factor", "gradient_factor", "lr_factor")
"""Keys that hold a fitted factor."""


def distinguishing(torch: Problem, found: Sequence[Explanation]) -> tuple[str, ...]:
    """Return what would tell each explanation from the first; "" for that, or if nothing would."""
    pairs = [(found[0], one) for one in found]
    return tuple(probe_of(torch, pair) if place else "" for place, pair in enumerate(pairs))


def probe_of(torch: Problem, pair: tuple[Explanation, Explanation]) -> str:
    """Return the first circumstance under which two explanations differ."""
    problems = small_problems(torch)
    scaled = standing_for(torch, problems[AS_IT_IS])
    for name, problem in problems.items():
        with np.errstate(all="ignore"):
            one, other = (trained(problem, explanation, scaled) for explanation in pair)
        if np.isfinite(one).all() and np.isfinite(other).all():
            differ = np.abs(one - other).max(axis=1) / max(1.0, np.abs(one).max()) > 1e-6
            if differ.any():
                return unlike(torch, int(differ.argmax()) + 1) if name == AS_IT_IS else name
    return ""


def unlike(torch: Problem, step: int) -> str:
    """Return what lets two rules differ at a step of the small problem, where the run did not."""
    if step > torch.schedule.steps:
        return "more steps"
    if not all(map(np.any, torch.initial.values())):
        return "a start away from zero"
    return "other data"


def standing_for(torch: Problem, base: Problem) -> dict[float, float]:
    """Return what stands for the rows of a batch, and of all, in the small problem."""
    found: dict[float, float] = {}
    there, here = torch.schedule, base.schedule
    batches = (min(one.batch_size, one.rows) for one in (there, here))
    for of_torch, of_base in (tuple(batches), (there.rows, here.rows)):
        found |= {float(of_torch): float(of_base), 1 / of_torch: 1 / of_base}
    return found


def trained(problem: Problem, explanation: Explanation, scaled: dict[float, float]) -> Array:
    """Train by a rule; returns all parameters after each step."""
    change = {**explanation.change}
    for key, value in change.items():
        if key in FACTORS and isinstance(value, float):
            sizes = (one for one in scaled if one != 1 and math.isclose(value, one, rel_tol=1e-9))
            change[key] = scaled.get(next(sizes, math.nan), value)
    trainer = NumpyTrainer(problem.with_change(change))
    state, found = trainer.start(), []
    for batch in islice(problem.schedule.batches(), 6):
        state = trainer.step(state, batch).state
        found.append(np.concatenate([np.ravel(w) for w in state.parameters.values()]))
    return np.array(found)
