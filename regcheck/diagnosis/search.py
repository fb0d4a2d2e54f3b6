"""Which sets of causes explain a run: single ones first, then pairs, then ones with open factors.

All that explain it equally well are returned, the plainest first: fewer causes before more, and
ones without an open factor before ones with one. A set is only returned where none of its subsets
explains the run already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay, merged
from regcheck.numerics.least_squares import Fit
from regcheck.problem.batches import Schedule
from regcheck.rules.cause import Change
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training

LATE = 16
"""The step of the first divergence beyond which causes that show early are left out."""

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
    changes: Mapping[str, tuple[Change, ...]]
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
    causes = {
        name: cause.changes
        for name, cause in CAUSES.items()
        if cause.kind == "update" and cause.changes and cause.concerns(training, convention)
    }
    if "schedule-shifted" in causes:
        causes["schedule-shifted"] = shifts_of(replay.torch.problem.schedule)
    if replay.first > LATE:
        # What would have shown long before is no part of it, and each trial is long.
        causes = {name: changes for name, changes in causes.items() if is_late(replay, changes)}
    changes = {name: own for name, own in causes.items() if not CAUSES[name].fitted}
    shown = visible
    if shown is None:
        shown = frozenset(
            name for name, own in changes.items() if any(map(replay.first_shown, own))
        )
    fitted = tuple(name for name in causes if CAUSES[name].fitted)
    return Hypotheses(replay, training, changes, shown & changes.keys(), fitted)


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
        for factor in hypotheses.fitted if fitted else ("",):
            together = {*causes, factor}
            if any(together.issuperset(one.causes) for one in found):
                continue
            explain = fit_with if fitted else replayed
            explanation = explain(hypotheses, causes, factor)
            if explanation is not None:
                yield explanation


def replayed(hypotheses: Hypotheses, causes: tuple[str, ...], _: str) -> Explanation | None:
    """Return causes that leave nothing open as an explanation, if they are one."""
    replay = hypotheses.replay
    for change in ways(hypotheses.changes, causes):
        note = shift_text(replay.torch.problem.schedule, causes, change)
        found = replay.explanation(causes, change, note=note)
        if found is not None:
            return found
    return None


def fit_with(hypotheses: Hypotheses, causes: tuple[str, ...], cause: str) -> Explanation | None:
    """Fit the open factor of a cause beside others; None if that explains nothing."""
    key = CAUSES[cause].factor_key
    assert key is not None
    for change in ways(hypotheses.changes, causes):
        fit = None if key in change else hypotheses.replay.fit(change, key)
        if fit is None or (fit.factor <= 0 and key != "penalty_factor"):
            continue
        plain = fit.plain(named_factors(cause, hypotheses.training))
        for near in dict.fromkeys((plain, fit)):
            names = tuple(sorted((*causes, cause)))
            whole = {**change, key: near.factor}
            found = hypotheses.replay.explanation(names, whole, {cause: near})
            if found is not None:
                return found
    return None


def ways(changes: Mapping[str, tuple[Change, ...]], causes: tuple[str, ...]) -> list[Change]:
    """Return the ways to put some causes together: each may have several changes."""
    found: list[Change] = [{}]
    for cause in causes:
        pairs = (merged((way, change)) for way in found for change in changes[cause])
        found = [way for way in pairs if way is not None]
    return found


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
    """Whether an open factor is what another cause stands for, which explains the run too."""
    sets = [set(one.causes) for one in found]
    for cause, fit in explanation.fits.items():
        others = set(explanation.causes) - {cause}
        for value, named in named_factors(cause, training).items():
            if named.cause and fit.is_near(value) and others | {named.cause} in sets:
                return True
    return False


class Named(NamedTuple):
    """A factor that has a name of its own: in letters, and the cause that stands for it."""

    text: str
    cause: str | None = None


def named_factors(cause: str, training: Training) -> dict[float, Named]:
    """Return the factors with names that a cause's open factor may turn out to be."""
    rows, train_rows, mu = training.loss_rows[0], training.train_rows, training.sgd.momentum
    found: dict[float, Named] = {}
    if cause == "penalty-scaled":
        found = {
            2.0: Named("2", "penalty-doubled"),
            0.5: Named("½", "penalty-halved"),
            0.0: Named("0", "penalty-missing"),
            -1.0: Named("−1", "penalty-sign-flipped"),
            1 / training.batch_rows[0]: Named("1/B", "penalty-divided-by-batch"),
            1 / train_rows: Named("1/n", "penalty-divided-by-dataset"),
        }
    if cause == "gradient-scaled":
        found = {0.5: Named("½", "loss-halved")}
    if cause == "learning-rate-scaled":
        found = {0.5: Named("½"), 2.0: Named("2")}
    if cause != "penalty-scaled":
        letter = "m" if training.micro_rows else "B"
        found |= {float(train_rows): Named("n"), 1 / train_rows: Named("1/n")}
        found |= {float(rows): Named(letter), 1 / rows: Named(f"1/{letter}")}
        found |= {1 - mu: Named("1 − μ"), 1 / (1 - mu): Named("1/(1 − μ)")} if 0 < mu < 1 else {}
    found.pop(1.0, None)
    return found


def name_of_factor(cause: str, fit: Fit, training: Training) -> Named | None:
    """Return the name of a fitted factor: the first of those that it is near."""
    named = named_factors(cause, training).items()
    return next((name for value, name in named if fit.is_near(value)), None)


def shifts_of(schedule: Schedule) -> tuple[Change, ...]:
    """Return the ways in which a schedule may be shifted: by a step, by an epoch of its lrs."""
    by_epoch = schedule.lr_schedule is not None and schedule.lr_schedule.per == "epoch"
    found = dict.fromkeys((1, schedule.steps_per_epoch if by_epoch else 1))
    return tuple({"lr_shift": sign * steps} for steps in found for sign in (1, -1))


def shift_text(schedule: Schedule, causes: Sequence[str], change: Change) -> str:
    """Describe how a schedule is shifted, where that is all that a set of causes is about."""
    early = change.get("lr_shift")
    if tuple(causes) != ("schedule-shifted",) or not isinstance(early, int):
        return ""
    epochs, steps = divmod(abs(early), schedule.steps_per_epoch)
    by_epoch = schedule.lr_schedule is not None and schedule.lr_schedule.per == "epoch"
    count, unit = (epochs, "epoch") if by_epoch and not steps else (abs(early), "step")
    return f"{count} {unit}{'s' if count > 1 else ''} {'early' if early > 0 else 'late'}"
