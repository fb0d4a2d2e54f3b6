"""Which sets of causes explain a run.

Single causes are tried first, then pairs, ones with open factors, and another schedule. All that
explain it equally well are returned, the plainest first: fewer causes before more, and ones without
an open factor before ones with one; but none of which a subset explains the run already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from regcheck.diagnosis.fits.fitting import with_factor
from regcheck.diagnosis.fits.other_numbers import with_other_option
from regcheck.diagnosis.fits.other_schedules import with_another_schedule, with_other_keys
from regcheck.diagnosis.listing import Found, all_named, listed
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training

LATE = 16
"""The step of the first divergence beyond which causes that show early are left out."""

DIVISORS = frozenset({"loss_reduction", "batch_divisor"})
"""Keys that each say what a batch's sum is divided by."""

FARTHER = 8.0
"""How many times as many limits may be left of what is named beside what leaves the least."""


class Hypotheses(NamedTuple):
    """What may explain a run.

    Attributes:
        replay: its steps.
        training: with the settings that the framework side really has.
        changes: of the causes that concern it and leave nothing open.
        shown: those of them that it could show: what it could not adds nothing to any set.
        fitted: the causes with an open factor.
        rare: the causes that are looked for beside others only late.
    """

    replay: Replay
    training: Training
    changes: Mapping[str, Sequence[Change]]
    shown: frozenset[str]
    fitted: tuple[str, ...]
    rare: frozenset[str] = frozenset()


class Round(NamedTuple):
    """Sets of causes to try, and when.

    Attributes:
        needed: whether to try them, after what was found and by the training.
        sets: how many causes that leave nothing open, and whether one more with an open factor.
        hidden: whether causes that the run could not show are among them.
        rare: whether each set has a cause that is rare, where else none of several causes has.
        options: whether to try another schedule after them, where no single cause is found, and
            another value of an option, where no plain set is.
    """

    needed: Callable[[Found, Training], bool]
    sets: tuple[tuple[int, bool], ...]
    hidden: bool = False
    rare: bool = False
    options: bool = False


def nothing_found(found: Found, training: Training) -> bool:  # noqa: ARG001
    """Whether no set explains the run yet."""
    return not found


def none_plain(found: Found, training: Training) -> bool:
    """Whether each set found has an odd factor, which may be the product of plain ones."""
    return not any(all_named(one, training) for one in found)


ROUNDS = (
    Round(nothing_found, ((1, False), (0, True), (2, False), (1, True)), options=True),
    Round(nothing_found, ((3, False),)),
    Round(nothing_found, ((2, False), (1, True)), rare=True),
    Round(none_plain, ((2, True),)),
    # What torch's rule would not show, another cause may bring out.
    Round(nothing_found, ((2, False), (1, True)), hidden=True),
    Round(nothing_found, ((2, False),), hidden=True, rare=True),
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
                found += tuple(explaining(hypotheses, found, size, fitted, one))
            if one.options:
                singles = [each for each in found if len(each.causes) == 1]
                found += () if singles else tuple(with_another_schedule(replay))
                found += tuple(with_other_option(replay)) if none_plain(found, training) else ()
    found += tuple(with_the_same_numbers(hypotheses, found))
    return listed(nearest(replay, found), training)


def with_the_same_numbers(hypotheses: Hypotheses, found: Found) -> Iterator[Explanation]:
    """Yield what was found with other causes in the place of one that they come to."""
    for one in found:
        for cause in one.causes:
            same = CAUSES[cause].same_as
            if same and not one.fits and hypotheses.changes.keys() >= set(same):
                others = tuple(sorted({*one.causes, *same} - {cause}))
                told = any(others == each.causes for each in found)
                yield from () if told else filter(None, trials(hypotheses, others, None))


def with_another_option(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Found:
    """Find one cause, or else two, that explain a run together with another value of an option."""
    hypotheses = concerning(replay, training, convention, visible)
    rare = hypotheses.shown & hypotheses.rare
    common, found = hypotheses.shown - rare, tuple[Explanation, ...]()
    for names, size in ((common, 1), (rare, 1), (common, 2)):
        found = found or tuple(
            one
            for causes in combinations(sorted(names), size)
            for change in ways_of(hypotheses, causes)
            for one in with_other_option(replay, causes, change)
        )
    return listed(nearest(replay, found), training)


def with_other_keys_beside(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Found:
    """Find one cause that explains a run together with other keys of the lr's schedule."""
    if replay.torch.problem.schedule.lr_schedule is None:
        return ()
    hypotheses = concerning(replay, training, convention, visible)
    ways = single_ways(hypotheses)
    found = (with_other_keys(replay, (cause,), change) for cause, change in ways)
    return listed(nearest(replay, tuple(filter(None, found))), training)


def single_ways(hypotheses: Hypotheses) -> Iterator[tuple[str, Change]]:
    """Yield each cause that the run could show, with each change that it may be."""
    for cause in sorted(hypotheses.shown):
        yield from ((cause, change) for change in hypotheses.changes[cause])


def nearest(replay: Replay, found: Found) -> Found:
    """Leave out what only its own wide bounds allow, where something else holds without them.

    With a lr 1e7 times torch's, rounding would be 1e7 times as large, and a step that it made by
    that would fit many others. The same rule by another name leaves the same, to a few roundings.
    """
    if len(found) < 2:
        return found
    left = [replay.unwidened(one.change) for one in found]
    most = FARTHER * max(1.0, min(left))
    return tuple(one for one, rest in zip(found, left, strict=True) if rest <= most)


def single_causes(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Found:
    """Find the causes that explain the run by themselves, with nothing left open in them."""
    hypotheses = concerning(replay, training, convention, visible)
    return listed(tuple(explaining(hypotheses, (), 1, False, ROUNDS[0])), training)


def concerning(
    replay: Replay, training: Training, convention: Convention, visible: frozenset[str] | None
) -> Hypotheses:
    """Choose the causes that concern a run."""
    causes: dict[str, Sequence[Change]] = {
        name: ways
        for name, cause in CAUSES.items()
        if cause.kind == "update" and cause.concerns(training, convention)
        if (ways := cause.changing(training.settings.torchs))
    }
    if "schedule-shifted" in causes:
        shifts = replay.torch.problem.schedule.likely_shifts()
        causes["schedule-shifted"] = [{"lr_shift": steps} for steps in shifts]
    if replay.first > LATE:
        # What would have shown long before is no part of it, and each trial is long. A factor may
        # be so near 1 that it shows as late as may be.
        causes = {
            name: changes
            for name, changes in causes.items()
            if CAUSES[name].fitted or is_late(replay, changes)
        }
    changes = {name: own for name, own in causes.items() if not CAUSES[name].fitted}
    if visible is None:
        shown = {name for name, own in changes.items() if any(map(replay.first_shown, own))}
        visible = frozenset(shown)
    fitted = tuple(name for name in causes if CAUSES[name].fitted)
    rare = frozenset(name for name in changes if CAUSES[name].rare)
    return Hypotheses(replay, training, changes, visible & changes.keys(), fitted, rare)


def is_late(replay: Replay, changes: Sequence[Change]) -> bool:
    """Whether changes show no earlier than about when the sides diverge."""
    steps = map(replay.first_shown, changes)
    return any(step is None or step >= replay.first // 2 for step in steps)


def explaining(
    hypotheses: Hypotheses, found: Found, size: int, fitted: bool, of: Round
) -> Iterator[Explanation]:
    """Yield the sets of so many causes that explain the run, where no subset does already."""
    names: Iterable[str] = hypotheses.changes if of.hidden else hypotheses.shown
    for causes in combinations(sorted(names), size):
        if size + fitted > 1 and hypotheses.rare.isdisjoint(causes) == of.rare:
            continue
        if of.hidden and hypotheses.shown.issuperset(causes):
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
    for change in ways_of(hypotheses, causes):
        if factor is None:
            yield replay.explanation(causes, change, note=shift_note(replay, causes, change))
            continue
        names, key = tuple(sorted((*causes, factor))), CAUSES[factor].factor_key
        assert key is not None
        fit = None if key in change else replay.fit(change, key)
        if fit is not None and (fit.factor > 0 or key == "penalty_factor"):
            yield with_factor(replay, names, change, factor, fit, hypotheses.training)


def ways_of(hypotheses: Hypotheses, causes: tuple[str, ...]) -> list[Change]:
    """Return each way to put some causes together."""
    ways: list[Change] = [{}]
    for cause in causes:
        pairs = (merged((way, one)) for way in ways for one in hypotheses.changes[cause])
        ways = [way for way in pairs if way is not None]
    return ways


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
