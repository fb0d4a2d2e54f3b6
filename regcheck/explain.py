"""Explanations: the formulas of conventions, keys, optimizers and losses, and those of a spec.

Loads neither torch nor NumPy, and pydantic only where a spec is explained.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from regcheck.errors import UsageError, suggest
from regcheck.rules.cause import HIDING, ONE_PERCENT, Cause
from regcheck.rules.cause_formula import formulas_of
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import KEYS, NAMED, TORCH, Convention, differences, name_of
from regcheck.rules.equivalent import NoMatchError, matching, torch_call
from regcheck.rules.formula import loss_text, meanings, rule_lines
from regcheck.rules.settings import (
    SYMBOLIC,
    Letters,
    SgdSettings,
    Training,
    exact,
    letters,
    number,
    symbols,
)
from regcheck.rules.worked_example import one_step

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = Training(
    SgdSettings(lr=0.1, weight_decay={"weight": 1.0, "bias": 1.0}), batch_rows=(2,), train_rows=2
)
EXAMPLE_WEIGHT, EXAMPLE_GRADIENT = 1.0, -32.0


class Entry(NamedTuple):
    """One explained thing: formulas in a fixed order, then notes.

    `differs` are the keys in which it is not torch's: key → (its value, torch's).
    """

    name: str
    kind: str
    title: str
    formulas: list[str]
    notes: list[str]
    differs: dict[str, tuple[str, str]]


class Explanation(NamedTuple):
    """Entries with what is said before and after them."""

    before: list[str]
    entries: list[Entry]
    after: list[str]


def explain_all() -> Explanation:
    """Explain every named convention, torch's first, with one step worked out by each."""
    names = ["pytorch", *(name for name in NAMED if name != "pytorch")]
    entries = [convention_entry(name) for name in names]
    return Explanation(legend(entries), entries, worked_example(names))


def legend(entries: list[Entry]) -> list[str]:
    """Say what the letters of some entries' formulas mean, in lines of 80 columns."""
    formulas = [formula for entry in entries for formula in entry.formulas]
    # A letter stays with its meaning's first word.
    joined = ", ".join(meaning.replace(" ", "\xa0", 1) for meaning in meanings(formulas))
    return [line.replace("\xa0", " ") for line in textwrap.wrap(joined, 80)]


def convention_entry(name: str) -> Entry:
    """Explain a named convention."""
    title, convention = NAMED[name]
    formulas = [*rule_lines(convention, SYMBOLIC), f"reports  {loss_text(convention, SYMBOLIC)}"]
    return Entry(name, "convention", title, formulas, [], differences(convention))


def worked_example(names: list[str]) -> list[str]:
    """Work one step of one weight out by each convention."""
    width = max(len(name) for name in names)
    sums = [
        one_step(NAMED[name].convention, EXAMPLE, EXAMPLE_WEIGHT, EXAMPLE_GRADIENT)
        for name in names
    ]
    longest = max(len(written) for written, _ in sums)
    given = (
        f"One step: w = {number(EXAMPLE_WEIGHT)}, g = {number(EXAMPLE_GRADIENT)}, "
        f"lr = {number(EXAMPLE.sgd.lr)}, λ = 1, B = n = {EXAMPLE.train_rows}"
    )
    lines = [given]
    for name, (written, result) in zip(names, sums, strict=True):
        lines.append(f"  {name:<{width}}  {written:<{longest}} = {result:.2f}")
    return lines


def explain_name(name: str) -> Explanation:
    """Explain one thing by its name.

    Raises:
        UsageError: nothing has this name; it lists the nearest ones.
    """
    if name in NAMED:
        names = ["pytorch"] if name == "pytorch" else ["pytorch", name]
        entries = [convention_entry(name)]
        return Explanation(legend(entries), entries, worked_example(names))
    if name in KEYS:
        return Explanation([], [key_entry(name)], [])
    if name in OTHERS:
        entries = [OTHERS[name]()]
        return Explanation(legend(entries), entries, [])
    if name in CAUSES:
        entries = [cause_entry(name)]
        return Explanation(legend(entries), entries, [])
    raise UsageError(f"nothing is called `{name}`: {suggest(name, all_names())}; or no such file")


def key_entry(name: str) -> Entry:
    """Explain one key of a convention: its values, and each one's update."""
    key = KEYS[name]
    formulas = []
    for value, meaning in key.values.items():
        formulas.append(f"{value}: {meaning}")
    default = next(iter(key.values))
    return Entry(name, "key", key.title, formulas, [f"torch's own, and the default: {default}"], {})


def cause_entry(name: str) -> Entry:
    """Explain a cause: what the scratch side does where torch does not, and both formulas."""
    cause = CAUSES[name]
    training = next(one for one in concerned() if cause.concerns(one, TORCH))
    scratch, torch = formulas_of(name, symbols(training))
    sides = [("torch", torch), *zip(("scratch", "or"), scratch, strict=False)]
    formulas = [f"{side:<8} {line}" for side, lines in sides for line in lines]
    title = f"the scratch side {cause.title}"
    return Entry(name, "cause", title, formulas or [SAME_RULE], cause_notes(cause), {})


SAME_RULE = "both     by the same rule: no formula differs"


def cause_notes(cause: Cause) -> list[str]:
    """Say since when a cause shows, what mends it, and what can hide it, in lines of 80 columns."""
    sentences = [f"Shows: {cause.since}.", f"Fix: {cause.fix}."]
    if cause.hidden_by:
        reasons = ", or ".join(HIDING[name] for name in cause.hidden_by)
        sentences.append(f"A run cannot show it where {reasons}.")
    if cause.fitted:
        sentences.append(f"The factor may be anything; it is tried with {ONE_PERCENT:g}.")
    if cause.changes:
        sentences.append(
            "A run of which `not_distinguished` names it could not have told it from torch's rule."
        )
    return [line for sentence in sentences for line in wrapped(sentence)]


def wrapped(sentence: str) -> list[str]:
    """Break a sentence into lines that fit into 80 columns below an entry's title."""
    return textwrap.wrap(sentence, 76, break_on_hyphens=False)


def concerned() -> Iterator[Training]:
    """Give trainings with more and more settings; the first that has a cause's explains it."""
    yield EXAMPLE
    yield EXAMPLE.with_decays({"weight": 1.0, "bias": 0.0})
    yield EXAMPLE._replace(clipped=True, clipped_by_norm=True)
    yield EXAMPLE._replace(batch_rows=(2, 1), train_rows=3)
    yield EXAMPLE._replace(batch_rows=(4,), micro_rows=(2,), train_rows=4)
    yield EXAMPLE._replace(lr_varies=True)
    yield EXAMPLE._replace(loss="bce")
    momentum = EXAMPLE.sgd._replace(momentum=0.9)
    yield EXAMPLE._replace(sgd=momentum)
    yield EXAMPLE._replace(sgd=momentum._replace(dampening=0.1))
    yield EXAMPLE._replace(sgd=momentum._replace(nesterov=True))
    yield EXAMPLE._replace(sgd=momentum, lr_varies=True)


def sgd_entry() -> Entry:
    """Explain torch.optim.SGD."""
    momentum = replace_letters(SYMBOLIC, momentum="μ", dampening="τ")
    nesterov = replace_letters(SYMBOLIC, momentum="μ", nesterov=True)
    return Entry(
        "sgd",
        "optimizer",
        "torch.optim.SGD(lr, momentum=μ, dampening=τ, nesterov, weight_decay=λ)",
        [
            f"plain:     {'; '.join(rule_lines(TORCH, SYMBOLIC))}",
            f"momentum:  {'; '.join(rule_lines(TORCH, momentum))}",
            f"nesterov:  {'; '.join(rule_lines(TORCH, nesterov))}",
        ],
        [
            "The first step sets v to the gradient itself: it is not dampened.",
            "weight_decay acts on every parameter passed, biases included; parameter groups give",
            "each its own. The penalty is never in the loss that torch reports.",
        ],
        {},
    )


def replace_letters(
    given: Letters, *, momentum: str, dampening: str = "", nesterov: bool = False
) -> Letters:
    """Give letters with momentum."""
    return given._replace(momentum=momentum, dampening=dampening, nesterov=nesterov)


def loss_entry(name: str, title: str, formulas: list[str], note: str) -> Callable[[], Entry]:
    """Make what explains a loss."""
    return lambda: Entry(name, "loss", title, formulas, [note], {})


OTHERS: dict[str, Callable[[], Entry]] = {
    "bce": loss_entry(
        "bce",
        "torch.nn.BCELoss of a sigmoid, p = σ(z)",
        ["ℓ = −y log p − (1 − y) log(1 − p)", "dℓ/dz = p − y"],
        "torch takes no logarithm below -100, and the slope fades out where p (1 − p) < 1e-12.",
    ),
    "bce_with_logits": loss_entry(
        "bce_with_logits",
        "torch.nn.BCEWithLogitsLoss",
        ["ℓ = max(z, 0) − z y + log(1 + e^(−|z|))", "dℓ/dz = σ(z) − y"],
        "The same loss as bce, without its limits where p is nearly 0 or 1.",
    ),
    "mse": loss_entry(
        "mse",
        "torch.nn.MSELoss: no ½",
        [
            "linear:    ℓ = (z − y)²,  dℓ/dz = 2 (z − y)",
            "logistic:  ℓ = (p − y)²,  dℓ/dz = 2 (p − y) p (1 − p)",
        ],
        "Half the squared error is `convention: {loss_factor: 0.5}`.",
    ),
    "sgd": sgd_entry,
}
"""What else has a name: optimizers and losses."""


def all_names() -> list[str]:
    """List every name that can be explained."""
    return [name for names in names_by_kind().values() for name in names]


def names_by_kind() -> dict[str, list[str]]:
    """List every name that can be explained, by kind."""
    kinds: dict[str, list[str]] = {
        "convention": list(NAMED),
        "key": list(KEYS),
        "cause": list(CAUSES),
    }
    for name, entry in OTHERS.items():
        kinds.setdefault(entry().kind, []).append(name)
    return kinds


def explain_spec(path: str | Path) -> Explanation:
    """Explain a spec: both sides' rules with its numbers, and what makes torch match.

    Raises:
        InputError: the spec or its data are not as they must be.
    """
    from pathlib import Path

    from regcheck.problem.batches import training_of
    from regcheck.problem.files import train_rows
    from regcheck.spec import read_spec

    loaded = read_spec(Path(path))
    training = training_of(loaded.spec, train_rows(loaded))
    convention = loaded.spec.named_convention()
    entries = [
        side_entry("scratch", convention, training),
        side_entry("torch", TORCH, training),
    ]
    sizes = " and ".join(f"{size:,}" for size in training.batch_rows)
    rows = f"{training.train_rows:,} training rows, batches of {sizes}"
    return Explanation(
        [f"{path}: {rows}", *legend(entries)], entries, matching_lines(convention, training)
    )


def side_entry(side: str, convention: Convention, training: Training) -> Entry:
    """Explain one side of a spec."""
    given = letters(training)
    title = (
        torch_call(training.sgd)
        if side == "torch"
        else f"NumPy, {name_of(convention) or 'a convention of its own'}"
    )
    formulas = [*rule_lines(convention, given), f"reports  {loss_text(convention, given)}"]
    differs = differences(convention, bias="bias" in training.sgd.weight_decay)
    return Entry(side, "side", title, formulas, [], differs)


def matching_lines(convention: Convention, training: Training) -> list[str]:
    """Say what makes torch train as the scratch side does."""
    try:
        match = matching(convention, training)
    except NoMatchError as reason:
        return [f"No lr and weight_decay make torch match: {reason}."]
    if match.sgd == training.sgd:
        return ["Both sides train by the same rule as it is."]
    call = torch_call(match.sgd)
    lines = ["torch matches the scratch side with", f"  {call}"]
    if training.lr_varies:
        lines.append(f"  and every lr of the schedule times {exact(match.lr_factor)}")
    return lines
