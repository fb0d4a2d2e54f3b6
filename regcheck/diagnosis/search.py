"""Which sets of causes explain a run: single ones first, then pairs, then ones with open factors.

All that explain it equally well are given, the plainest first: fewer causes before more, and ones
without an open factor before ones with one. A set is only given where none of its parts explains
the run already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from regcheck.diagnosis.replay import Explanation, Fit, Replay, merged
from regcheck.problem.batches import Schedule
from regcheck.rules.cause import Change
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training


class Named(NamedTuple):
    """A factor that has a name of its own: in letters, and the cause that stands for it."""

    text: str
    cause: str | None = None


def named_factors(cause: str, training: Training) -> dict[float, Named]:
    """Give the factors with names that a cause's open factor may turn out to be."""
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
    """Find the name of a fitted factor: of those that it cannot be told from, the first."""
    for value, named in named_factors(cause, training).items():
        if fit.is_near(value):
            return named
    return None


def shifts_of(schedule: Schedule) -> tuple[Change, ...]:
    """Give the ways in which a schedule may be shifted: by a step, and by an epoch of its lrs."""
    by_epoch = schedule.lr_schedule is not None and schedule.lr_schedule.per == "epoch"
    found = dict.fromkeys((1, schedule.steps_per_epoch if by_epoch else 1))
    return tuple({"lr_shift": sign * steps} for steps in found for sign in (1, -1))


def shift_text(schedule: Schedule, causes: Sequence[str], change: Change) -> str:
    """Say how a schedule is shifted, where that is all that a set of causes is about."""
    early = change.get("lr_shift")
    if tuple(causes) != ("schedule-shifted",) or not isinstance(early, int):
        return ""
    epochs, steps = divmod(abs(early), schedule.steps_per_epoch)
    by_epoch = schedule.lr_schedule is not None and schedule.lr_schedule.per == "epoch"
    whole = by_epoch and not steps
    count, unit = (epochs, "epoch") if whole else (abs(early), "step")
    return f"{count} {unit}{'s' if count > 1 else ''} {'early' if early > 0 else 'late'}"


LATE = 16
"""The step of the first divergence beyond which causes that show early are left out."""


class Search:
    """The search for what explains one run."""

    def __init__(
        self,
        replay: Replay,
        training: Training,
        convention: Convention,
        visible: frozenset[str] | None = None,
    ) -> None:
        """Take the recorded steps, and what decides which causes concern them.

        Args:
            replay: the steps.
            training: with the settings that the framework side really has.
            convention: the scratch side's, where a spec states one.
            visible: the causes that the run could have shown; looked for where it is not known.
        """
        self.replay, self.training, self.visible = replay, training, visible
        concerned = {
            name: cause
            for name, cause in CAUSES.items()
            if cause.kind == "update" and cause.concerns(training, convention)
        }
        self.changes: dict[str, tuple[Change, ...]] = {
            name: cause.changes
            for name, cause in concerned.items()
            if cause.changes and not cause.fitted
        }
        if "schedule-shifted" in self.changes:
            self.changes["schedule-shifted"] = shifts_of(replay.torch.problem.schedule)
        self.open = [name for name, cause in concerned.items() if cause.fitted]
        self.found: list[Explanation] = []
        self.tried: frozenset[str] = frozenset()

    def run(self) -> list[Explanation]:
        """Find the explanations, the plainest first."""
        if self.replay.first > LATE:
            # What would have shown long before is no part of it, and each trial is long.
            self.changes = {
                name: changes for name, changes in self.changes.items() if self.is_late(changes)
            }
            self.open = [name for name in self.open if self.is_late(CAUSES[name].changes)]
        self.seen = {
            name: changes for name, changes in self.changes.items() if self.shows(name, changes)
        }
        self.try_named(1)
        self.try_open(0)
        self.try_named(2)
        self.try_open(1)
        if not self.found:
            self.try_named(3)
        if not any(self.all_named(one) for one in self.found):
            # An odd factor may be the product of plain ones.
            self.try_open(2)
        if not self.found:
            # What torch's rule would not show, another cause may bring out.
            self.tried, self.seen = frozenset(self.seen), self.changes
            self.try_named(2)
            self.try_open(1)
        return self.listed()

    def shows(self, cause: str, changes: tuple[Change, ...]) -> bool:
        """Say whether this run could show a cause: what it could not adds nothing to any set."""
        if self.visible is not None:
            return cause in self.visible
        return any(self.replay.first_shown(change) for change in changes)

    def is_late(self, changes: tuple[Change, ...]) -> bool:
        """Say whether changes show no earlier than about when the sides part."""
        shown = [self.replay.first_shown(change) for change in changes]
        return any(step is None or step >= self.replay.first // 2 for step in shown)

    def listed(self) -> list[Explanation]:
        """Give what was found, without factors that another cause names, in order."""
        kept = [one for one in self.found if not self.goes_by_another_name(one)]
        plain = (not one.fits or len(one.causes) == 1 for one in kept if self.all_named(one))
        if any(plain):
            kept = [one for one in kept if len(one.causes) == 1 or self.all_named(one)]
        return sorted(
            kept, key=lambda one: (len(one.causes) > 1, len(one.fits), len(one.causes), one.causes)
        )

    def all_named(self, explanation: Explanation) -> bool:
        """Say whether its factors are numbers of the training: an odd one is no plain reason."""
        return all(
            name_of_factor(cause, fit, self.training) for cause, fit in explanation.fits.items()
        )

    def goes_by_another_name(self, explanation: Explanation) -> bool:
        """Say whether an open factor is what another cause stands for, which explains it too."""
        found = [set(one.causes) for one in self.found]
        for cause, fit in explanation.fits.items():
            others = {one for one in explanation.causes if one != cause}
            for value, named in named_factors(cause, self.training).items():
                if named.cause and fit.is_near(value) and {*others, named.cause} in found:
                    return True
        return False

    def explained(self, causes: Iterable[str]) -> bool:
        """Say whether some of the causes explain the run already, or all do not."""
        together = set(causes)
        if self.tried and self.tried.issuperset(together.difference(self.open)):
            return True
        return any(together.issuperset(one.causes) for one in self.found)

    def try_named(self, size: int) -> None:
        """Try each set of so many causes that leave nothing open."""
        found = []
        for causes in combinations(sorted(self.seen), size):
            if self.explained(causes):
                continue
            for change in self.together(causes):
                residual = self.replay.residual(change)
                if residual <= 1:
                    note = shift_text(self.replay.torch.problem.schedule, causes, change)
                    found.append(Explanation(causes, change, residual, note=note))
                    break
        self.found += found

    def try_open(self, size: int) -> None:
        """Try each set of so many causes with one more that has an open factor."""
        found = []
        for causes in combinations(sorted(self.seen), size):
            for cause in self.open:
                if not self.explained((*causes, cause)):
                    found += self.fitted(causes, cause)
        self.found += found

    def fitted(self, causes: tuple[str, ...], cause: str) -> list[Explanation]:
        """Fit the open factor of a cause beside others; gives what explains the run."""
        key = CAUSES[cause].factor_key
        assert key is not None
        for change in self.together(causes):
            if key in change:
                continue
            fit = self.replay.fit(change, key)
            if fit is None or (fit.factor <= 0 and key != "penalty_factor"):
                continue
            for near in dict.fromkeys((fit.plain(named_factors(cause, self.training)), fit)):
                whole = {**change, key: near.factor}
                residual = self.replay.residual(whole)
                if residual <= 1:
                    names = tuple(sorted((*causes, cause)))
                    return [Explanation(names, whole, residual, {cause: near})]
        return []

    def together(self, causes: tuple[str, ...]) -> Iterator[Change]:
        """Give the ways to put some causes together: each may have several changes."""
        ways: list[Change] = [{}]
        for cause in causes:
            pairs = (merged((way, change)) for way in ways for change in self.seen[cause])
            ways = [way for way in pairs if way is not None]
        yield from ways
