"""Torch's rule with other numbers: options of its optimizer, its lr, and each tensor's decay.

Newton's method looks for one option alone first, and then for all numbers together, of which those
that come out as torch's own are no difference. The others are proved by replaying all steps, and
must be fewer than the entries' steps that differ. Where several options are too far off for it, as
ε is by powers of ten, the defaults of other libraries are tried together; where a step jumps with
the options, as Muon's does that is rounded to bfloat16, the values that they usually have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from regcheck.diagnosis.fits.fitting import is_told
from regcheck.diagnosis.fits.newton import Open, misses, solve
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import Problem
from regcheck.rules.causes.cause import Change
from regcheck.rules.formulas.torch_call import decay_cause, decays_text
from regcheck.rules.optimizers.update_rule import Options

OPTION = "option-differs"

BETWEEN = (0.5, 0.9, 0.99)
"""Other first guesses of a number below 1, and of one that torch has at 0."""

NEARLY_NONE = 1e-3
"""The share of torch's value below which another one may be none."""

OFF = ("ignored", "missing")
"""What a cause makes of an option that then has no other value, as the momentum."""

MOST_NUMBERS = 16
"""Numbers up to which all are sought together."""

USUAL: Mapping[str, tuple[float, ...]] = {
    "alpha": (0.9, 0.95, 0.99),
    "betas[0]": (0.5, 0.9, 0.95),
    "betas[1]": (0.95, 0.98, 0.99, 0.999),
    "eps": (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10),
    "initial_accumulator_value": (0.0, 0.1),
    "momentum": (0.0, 0.9),
    "rho": (0.9, 0.95, 0.99),
}
"""The defaults of options in torch, Keras, TensorFlow, optax and the papers, which people copy."""

EARLY = 16
"""The step of the first divergence up to which these are tried: several options show early."""


class Number(NamedTuple):
    """One of the numbers: the factor on the lr, a tensor's decay or an option, by its name."""

    kind: Literal["lr", "decay", "option"]
    name: str = ""


LR = Number("lr")

NONE: Change = {}


class Numbers(NamedTuple):
    """The numbers of a rule; `options` are all of them."""

    lr_factor: float
    weight_decay: Mapping[str, float]
    options: Options

    def change(self, own: Options, start_option: str = "") -> Change:
        """Return what they put into torch's rule, but for the weight decays.

        The start of a sum is a convention, for which torch has an option.
        """
        other = {key: value for key, value in self.options.items() if value != own[key]}
        change: dict[str, object] = {"lr_factor": self.lr_factor} if self.lr_factor != 1 else {}
        if start_option in other:
            change["accumulator_start"] = other[start_option]
        return change | ({"options": tuple(other.items())} if other else {})


class Torch:
    """Torch's rule, with some causes in it or none, whose numbers are open."""

    def __init__(self, replay: Replay, causes: tuple[str, ...] = (), change: Change = NONE) -> None:
        self.replay, self.causes, self.caused = replay, causes, change
        self.problem = replay.torch.problem.with_change(change)
        self.rule, settings = replay.torch.settings.rule, self.problem.settings
        self.own = Numbers(1.0, dict(settings.weight_decay), dict(settings.options))

    def of(self, number: Number) -> float:
        """Return torch's own value of a number."""
        if number.kind == "option":
            return self.rule.numbers[number.name].of(self.own.options)
        return self.own.weight_decay[number.name] if number.kind == "decay" else 1.0

    def open(self, number: Number) -> Open:
        """Return a number as Newton's method has it, from torch's own value on."""
        if number.kind == "option":
            option = self.rule.options[self.rule.numbers[number.name].key]
            return Open(self.of(number), option.least, option.below)
        return Open(self.of(number), 0.0 if number.kind == "lr" else -np.inf)

    def numbers(self, values: Mapping[Number, float]) -> Numbers:
        """Return torch's numbers with others in the places of some."""
        decays, options = dict(self.own.weight_decay), dict(self.own.options)
        for number, value in values.items():
            if number.kind == "option":
                options = self.rule.numbers[number.name].put(options, value)
            elif number.kind == "decay":
                decays[number.name] = value
        return Numbers(values.get(LR, 1.0), decays, options)

    def change(self, numbers: Numbers) -> Change:
        """Return what other numbers put into torch's rule, but for the weight decays."""
        return numbers.change(self.own.options, self.rule.start_option)

    def by(self, values: Mapping[Number, float]) -> Problem:
        """Return torch's rule with other numbers."""
        numbers = self.numbers(values)
        changed = self.problem.with_change(self.change(numbers))
        return replace(changed, weight_decay=dict(numbers.weight_decay))

    def solved(self, numbers: Sequence[Number], start: float | None = None) -> dict[Number, Fit]:
        """Fit numbers to the steps; nothing where none come near."""
        opens = [self.open(number) for number in numbers]
        if start is not None:
            opens = [one._replace(start=start) for one in opens]
        found = solve(self.replay, lambda at: self.by(dict(zip(numbers, at, strict=True))), opens)
        return {} if found is None else dict(zip(numbers, found.fits, strict=True))

    def misses(self, number: Number) -> bool:
        """Whether no value of a number comes near the run's first steps."""
        return misses(self.replay, lambda at: self.by({number: at[0]}), self.open(number))

    def plain(self, number: Number, fit: Fit) -> Fit:
        """Return the plainest value near a fitted one: torch's own, its default, or a decimal."""
        among = [self.of(number)]
        if number.kind == "option":
            among.append(self.rule.numbers[number.name].of(self.rule.defaults))
        elif number.kind == "decay":
            among.append(0.0)
        return fit.plain(among)

    def at_least(self, number: Number, fit: Fit) -> Fit:
        """Return where the range of an option ends in the place of a value that goes there."""
        least, own = self.open(number).least, abs(self.of(number))
        ends = number.kind == "option" and abs(fit.factor - least) < NEARLY_NONE * own
        return fit._replace(factor=least) if ends else fit

    def explanation(self, fits: Mapping[Number, Fit]) -> Explanation | None:
        """Return other numbers as an explanation, if they make every step; plain ones before."""
        plain = {number: self.plain(number, fit) for number, fit in fits.items()}
        least = {number: self.at_least(number, fit) for number, fit in plain.items()}
        for way in (least, plain, fits):
            found = self.explained(way)
            if found is not None:
                return found
        return None

    def takes(self, number: Number, value: float) -> bool:
        """Whether a number is in its range; a β that is written with fewer digits may come to 1."""
        own = self.open(number)
        return own.least <= value < own.below

    def explained(self, fits: Mapping[Number, Fit]) -> Explanation | None:
        """Return some numbers as an explanation, if they make every step and torch's do not."""
        if not all(self.takes(number, fit.factor) for number, fit in fits.items()):
            return None
        numbers = self.numbers({number: fit.factor for number, fit in fits.items()})
        own, change = self.own, self.change(numbers)
        changed = replace(self.problem, weight_decay=dict(numbers.weight_decay))
        rule = self.replay.torch.by(changed.with_change(change))
        residual = self.replay.largest(self.replay.steps(rule))
        if residual > 1:
            return None
        options = {n.name: fit for n, fit in fits.items() if n.kind == "option"}
        scaled = {"learning-rate-scaled": fits[LR]} if "lr_factor" in change else {}
        decays = (numbers.weight_decay, own.weight_decay)
        decayed = [decay_cause(*decays)] if decays[0] != decays[1] else []
        causes = (*scaled, *([OPTION] if options else []), *decayed)
        return Explanation(
            tuple(sorted((*self.causes, *causes))) if self.causes else causes,
            {**self.caused, **change},
            residual,
            scaled,
            decays_text(*decays),
            numbers.weight_decay if decayed else None,
            options=options,
        )


def with_other_option(
    replay: Replay, causes: tuple[str, ...] = (), change: Change = NONE
) -> Iterator[Explanation]:
    """Yield the options of which another value makes all steps, beside causes or alone."""
    if shown(replay) < 2:
        return
    torch = Torch(replay, causes, change)
    if not torch.rule.smooth:
        yield from with_tried_values(torch)
        return
    for name in torch.rule.numbers:
        if change.get(name) in OFF:
            continue
        number = Number("option", name)
        if len(causes) > 1 and torch.misses(number):
            continue
        own = torch.of(number)
        guesses: tuple[float, ...] = BETWEEN if own == 0 or torch.open(number).below == 1 else ()
        if causes:  # of which there are many
            guesses = guesses[:1] if own == 0 else ()
        for guess in dict.fromkeys((own, *guesses)):
            found = torch.explanation(torch.solved([number], guess))
            if found is not None and is_told(replay, found.change):
                yield found
                break


def with_tried_values(torch: Torch) -> Iterator[Explanation]:
    """Yield the options of which one of the values that are tried makes all steps."""
    causes = tuple(sorted((*torch.causes, OPTION)))
    for key, option in torch.rule.options.items():
        for value in option.tried:
            change = {**torch.caused, "options": ((key, value),)}
            found = torch.replay.explanation(causes, change)
            if found is not None and is_told(torch.replay, change):
                yield found
                break


def with_other_numbers(replay: Replay) -> Explanation | None:
    """Return whether torch's rule makes the steps with another lr, other decays and options."""
    torch = Torch(replay)
    decays = [Number("decay", name) for name in torch.own.weight_decay]
    options = torch.rule.numbers if torch.rule.smooth else ()
    numbers = [LR, *decays, *(Number("option", name) for name in options)]
    if not len(numbers) < min(shown(replay), MOST_NUMBERS + 1):
        return None
    fits = torch.solved(numbers)
    others = [number for number, fit in fits.items() if not fit.is_near(torch.of(number))]
    if not others:
        return None
    return torch.explanation(torch.solved(others) or {})


def with_usual_options(replay: Replay) -> Explanation | None:
    """Return whether several options, each of a usual value, make all steps; few before more."""
    torch = Torch(replay)
    if replay.first > EARLY or not torch.rule.smooth:
        return None
    own = {name: torch.of(Number("option", name)) for name in torch.rule.numbers if name in USUAL}
    values = (dict.fromkeys((own[name], *USUAL[name])) for name in own)
    ways = [
        {Number("option", name): Fit(value, 0.0) for name, value in way if value != own[name]}
        for way in (zip(own, one, strict=True) for one in product(*values))
    ]
    found = (torch.explained(way) for way in sorted(ways, key=len) if len(way) > 1)
    return next((one for one in found if one and is_told(replay, one.change)), None)


def shown(replay: Replay) -> int:
    """Return in how many entries' steps the sides differ beyond rounding."""
    records = replay.history.records()
    return sum(int((replay.ratios(one, one.framework) > 1).sum()) for one in records)
