"""Explanations: the formulas of conventions, keys, optimizers and losses.

Loads neither torch nor NumPy nor pydantic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from regcheck.errors import UsageError, nearest, one_line, shortened
from regcheck.rules.causes.catalogue import CAUSES, formulas_of
from regcheck.rules.causes.cause import HIDING, ONE_PERCENT
from regcheck.rules.convention import KEYS, NAMED, Convention, differences
from regcheck.rules.formulas.examples import EXAMPLE, trainings, worked_example
from regcheck.rules.formulas.formula import loss_text, rule_lines
from regcheck.rules.formulas.meanings import MEANINGS, meanings
from regcheck.rules.losses import LOSSES
from regcheck.rules.models import MODELS
from regcheck.rules.optimizers.lr_schedules import KINDS
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.settings import (
    SYMBOLIC,
    Letters,
    Training,
    symbols,
)


class Entry(NamedTuple):
    """One explained thing: formulas in a fixed order, then notes.

    `differs` are the keys in which it is not torch's: key → (its value, torch's).
    """

    name: str
    kind: str
    title: str
    formulas: list[str]
    notes: Sequence[str] = ()
    differs: Mapping[str, tuple[str, str]] = {}


class Explanation(NamedTuple):
    """Entries with what is said before and after them."""

    before: Sequence[str]
    entries: Sequence[Entry]
    after: Sequence[str] = ()


def explain_all() -> Explanation:
    """Explain every named convention, torch's first, with one step worked out by each."""
    names = dict.fromkeys(["pytorch", *NAMED])
    entries = [convention_entry(name) for name in names]
    return Explanation(legend(entries), entries, worked_example(names))


def explain_name(name: str) -> Explanation:
    """Explain one thing by its name.

    Raises:
        UsageError: nothing has this name; it lists the nearest ones.
    """
    if name in KEYS:
        return Explanation([], [key_entry(name)])
    if name in NAMED:
        entry, after = convention_entry(name), worked_example(dict.fromkeys(["pytorch", name]))
    elif name in CAUSES:
        entry, after = cause_entry(name), []
    elif name in torchs():
        entry, after = torchs()[name], []
    else:
        near = ", ".join(f"`{one}`" for one in nearest(name, all_names()))
        raise UsageError(
            f"no name and no file is called `{shortened(one_line(name))}`; "
            + f"did you mean {near}? " * bool(near)
            + "`regcheck explain --list` lists all names"
        )
    return Explanation(
        legend([entry], OWN_LETTERS.get(entry.kind, tuple(MEANINGS))), [entry], after
    )


OWN_LETTERS = {"loss": ("ℓ",), "model": ("ℓ",), "schedule": ("lr",)}
"""The letters that are not an entry's own, by kinds of entries."""


def all_names() -> list[str]:
    """List every name that can be explained."""
    return [name for names in names_by_kind().values() for name in names]


def names_by_kind() -> dict[str, list[str]]:
    """List every name that can be explained, by kind."""
    kinds = {"convention": list(NAMED), "key": list(KEYS), "cause": list(CAUSES)}
    for name, entry in torchs().items():
        kinds.setdefault(entry.kind, []).append(name)
    return kinds


def formulas(convention: Convention, given: Letters) -> list[str]:
    """Write a convention's update and its reported loss."""
    return [*rule_lines(convention, given), f"reports  {loss_text(convention, given)}"]


def legend(
    entries: Iterable[Entry], known: Sequence[str] = tuple(MEANINGS), of: Training = EXAMPLE
) -> list[str]:
    """Explain the letters of a training's formulas; each is tied to its meaning's first word."""
    lines = [formula for entry in entries for formula in entry.formulas]
    found = meanings(lines, known, of)
    joined = ", ".join(f"{letter}\xa0{meaning}" for letter, meaning in found.items())
    return [joined] if joined else []


def convention_entry(name: str) -> Entry:
    """Explain a named convention."""
    title, convention = NAMED[name]
    differs = differences(convention)
    return Entry(name, "convention", title, formulas(convention, SYMBOLIC), differs=differs)


def key_entry(name: str) -> Entry:
    """Explain one key of a convention: its values, and each one's update."""
    title, values = KEYS[name]
    lines = [f"{value}: {meaning}" for value, meaning in values.items()]
    default = f"torch's value, and the default: {next(iter(values))}"
    return Entry(name, "key", title, lines, [default])


def cause_entry(name: str) -> Entry:
    """Explain a cause: both sides' formulas, when it shows, its fix, and what can hide it."""
    cause = CAUSES[name]
    training = next(one for one in trainings() if cause.concerns(one, one.settings.torchs))
    scratch, torch = formulas_of(name, symbols(training))
    first = scratch[0] if scratch else []
    other = [line for line in scratch[1] if line not in first] if len(scratch) > 1 else []
    sides = [("torch", torch), ("scratch", first), ("or", other)]
    lines = [f"{side:<8} {line}" for side, lines in sides for line in lines]
    sentences = [f"Shows: {cause.since}.", f"Fix: {cause.fix}."]
    if cause.hidden_by:
        reasons = ", or ".join(HIDING[name] for name in cause.hidden_by)
        sentences.append(f"A run cannot show it where {reasons}.")
    if cause.fitted:
        sentences.append(f"The factor is fitted; a run can show it if it shows {ONE_PERCENT:g}.")
    if cause.changes:
        sentences.append("A run that lists it in `not_distinguished` could not have shown it.")
    return Entry(name, "cause", f"the scratch side {cause.title}", lines or [SAME_RULE], sentences)


SAME_RULE = "both     the same rule: no formula differs"


def optimizer_entry(name: str) -> Entry:
    """Explain one of torch's optimizers."""
    rule = OPTIMIZERS[name]
    settings = EXAMPLE.settings._replace(optimizer=name, options=rule.defaults)
    if not rule.weight_decay:
        settings = settings._replace(weight_decay=dict.fromkeys(settings.weight_decay, 0.0))
    if rule.matrices:
        settings = settings._replace(weight_decay={"weight": settings.weight_decay["weight"]})
    given = symbols(EXAMPLE._replace(settings=settings))
    lines = []
    for title, options in rule.examples.items():
        own = given.with_options(**options)
        written = rule_lines(own.torchs, own)
        heads = [f"{title}:", *[""] * (len(written) - 1)]
        lines += [f"{head:<10} {line}" for head, line in zip(heads, written, strict=True)]
    arguments = [
        key if not option.letter else f"{key}={argument(option.letter)}"
        for key, option in rule.options.items()
    ]
    arguments += ["weight_decay=λ"] if rule.weight_decay else []
    call = f"torch.optim.{rule.torch}(lr, {', '.join(arguments)})"
    of_decay = of_decays("matrix" if rule.matrices else "parameter, biases included")
    if not rule.weight_decay:
        of_decay = ("torch's class takes no weight_decay.",)
    return Entry(name, "optimizer", call, lines, [*rule.notes, *of_decay])


def schedules_entry() -> Entry:
    """Explain the kinds of lr schedules, each with torch's class."""
    lines = []
    for name, kind in KINDS.items():
        written = [kind.call, *kind.formulas]
        heads = [name, *[""] * len(kind.formulas)]
        lines += [f"{head:<11} {line}" for head, line in zip(heads, written, strict=True)]
    return Entry("lr_schedule", "schedule", "torch.optim.lr_scheduler", lines, OF_SCHEDULES)


OF_SCHEDULES = (
    "t counts steps, or with per: epoch epochs, from 0: scheduler.step() comes after",
    "each optimizer.step(), or after an epoch's last one. Keys left out are torch's",
    "defaults: floor 0, start_factor 1/3, end_factor 1, pct_start 0.3,",
    "anneal_strategy cos, div_factor 25, final_div_factor 1e4, three_phase false.",
    "From t = steps on torch's cosine rises again, and its OneCycleLR raises an error;",
    "here both keep the last lr. The momentum is constant: cycle_momentum=False, which",
    "is not torch's default.",
)


def argument(letter: str | tuple[str, ...]) -> str:
    """Write a letter, or a pair of them, as an argument."""
    return letter if isinstance(letter, str) else f"({', '.join(letter)})"


def of_decays(trained: str) -> tuple[str, ...]:
    """Say what torch's weight decay acts on."""
    return (
        f"weight_decay acts on every {trained}; parameter groups can set",
        "others. The loss that torch reports never contains the weight-decay term.",
    )


@cache
def torchs() -> dict[str, Entry]:
    """Explain torch's own models, losses, optimizers and schedules, by name."""
    entries = (
        *(Entry(name, "model", one.title, one.formulas) for name, one in MODELS.items()),
        *(Entry(name, "loss", one.title, one.formulas, one.notes) for name, one in LOSSES.items()),
        *map(optimizer_entry, OPTIMIZERS),
        schedules_entry(),
    )
    return {entry.name: entry for entry in entries}
