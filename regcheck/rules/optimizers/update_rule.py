"""What an optimizer is: torch's class and options, one tensor's step, and the step in letters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS, Faults

Array = Any
"""An array of the array API standard, of one tensor's shape."""

Options = Mapping[str, Any]
"""An optimizer's options by torch's names: numbers and truth values, or letters in their places."""

Memory = Mapping[str, Array]
"""What an optimizer remembers of one tensor, by torch's names."""


class Option(NamedTuple):
    """One option: torch's default, its letter in formulas, and the range of its numbers.

    Several numbers have a letter each; a truth value, or what no formula shows, has none. Where the
    default is None, None is a value too. An option with `choices` is one of these words. Of an
    option that cannot be fitted, as a word or a number of iterations, other code may have those
    values that are `tried`.
    """

    default: Any
    letter: Any = ""
    least: float = 0.0
    below: float = math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    tried: tuple[Any, ...] = ()

    def text(self, value: Any, write: Callable[[float, str], str]) -> Any:
        """Write a value if it has a letter; a number that is 0 is empty, and None its letter."""

        def text(value: float | None, letter: str) -> str:
            if value is None:
                return letter
            return write(value, letter) if value else ""

        if isinstance(self.letter, tuple):
            return tuple(map(text, value, self.letter))
        return text(value, self.letter) if self.letter else value


class Own(NamedTuple):
    """What one tensor is stepped by, as its parameter group has it; λ stands elsewhere."""

    lr: float
    options: Options


class StepInput(NamedTuple):
    """What one tensor's step is taken from.

    Attributes:
        options: the optimizer's.
        convention, faults: the forms in which implementations differ.
        lr: this step's learning rate.
        t: the number of the tensor's step, from 1; steps without a gradient do not count.
        w: the parameter before the step.
        g: the gradient, clipped, with the penalty's where that is coupled.
        memory: what the optimizer remembers.
    """

    options: Options
    convention: Convention
    faults: Faults
    lr: float
    t: int
    w: Array
    g: Array
    memory: Memory


class Written(NamedTuple):
    """A step in letters: the assignments before it, and w ← w − lr direction.

    A tensor of another letter puts that in the place of w. `lr_inside`: whether the direction holds
    the lr already.
    """

    lines: list[str]
    direction: str
    lr_inside: bool = False


class UpdateRule(NamedTuple):
    """One optimizer; adding one is its file, and a line in `registry`.

    Attributes:
        torch: its class in torch.optim.
        options: torch's own, all but the lr and the weight decay.
        init: what it remembers of a parameter before the first step.
        step: what a step subtracts, the lr included, and what is remembered after it. The weight
            decay is no part of it: coupled, it is in the gradient.
        written: the step with letters or numbers for the options, the lr and the gradient.
        meanings: of the letters in it.
        examples: options that `explain` shows, with letters, by what each is called.
        notes: what the formula does not say.
        torchs: what of a convention torch has for it, in the place of SGD's.
        keys: of conventions and faults: the forms that the step has.
        linear: whether a step is a linear function of the gradients so far.
        errors: options that torch refuses, with what is wrong.
        proportional: whether a step is proportional to its lr.
        most_lr: the largest lr that step t takes, whatever is set.
        correction: the factor on the lr at step t that stands for the moments' bias correction.
        written_correction: that factor with letters or numbers for the options.
        scaling: options, the lr among them, that each divided by a power of c make at g the step
            that theirs is at c g; None where no options do.
        weight_decay: whether torch's class takes one.
        elementwise: whether an entry's step needs no other entry, so that all tensors are one.
        matrices: whether torch's class takes matrices alone.
        smooth: whether a step changes smoothly with the gradient and the options, so that numbers
            can be fitted.
        growth: how many times its own rounding a step is off by, of its largest entry's, where a
            fault leaves it more exact than torch's.
        steepness: the power of how many times longer than torch's a fault's step is by which it
            rounds more.
        resolved: the options with what torch works out for a dtype, by its machine epsilon.
        start_option: torch's for `accumulator_start`, where a sum begins; empty where it has none.
    """

    torch: str
    options: Mapping[str, Option]
    init: Callable[[Options, Convention, Faults, Array], Memory]
    step: Callable[[StepInput], tuple[Array, Memory]]
    written: Callable[[Options, Convention, Faults, str, str], Written]
    meanings: Mapping[str, str]
    examples: Mapping[str, Options]
    notes: tuple[str, ...] = ()
    torchs: Callable[[Options], Mapping[str, object]] = lambda _: {}
    keys: frozenset[str] = frozenset()
    linear: bool = False
    errors: Callable[[Options], Mapping[str, str]] = lambda _: {}
    proportional: bool = True
    most_lr: Callable[[int], float] = lambda _: math.inf
    correction: Callable[[Options, int], float] | None = None
    written_correction: Callable[[Options], str] = lambda _: ""
    scaling: Mapping[str, int] | None = {"eps": 1}
    weight_decay: bool = True
    elementwise: bool = True
    matrices: bool = False
    smooth: bool = True
    growth: Callable[[Options, Faults], float] = lambda *_: 0.0
    steepness: Callable[[Faults], int] = lambda _: 1
    resolved: Callable[[Options, float], Options] = lambda options, _: options
    start_option: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Torch's own values of the options."""
        return {key: option.default for key, option in self.options.items()}

    @property
    def numbers(self) -> dict[str, OneNumber]:
        """The numbers among the options by their names, each of several by itself.

        >>> from regcheck.rules.optimizers.registry import OPTIMIZERS
        >>> list(OPTIMIZERS["adamw"].numbers)
        ['betas[0]', 'betas[1]', 'eps']
        """
        found: dict[str, OneNumber] = {}
        for key, option in self.options.items():
            if isinstance(option.default, tuple):
                numbers = (at for at, own in enumerate(option.default) if own is not None)
                found |= {f"{key}[{place}]": OneNumber(key, place) for place in numbers}
            elif isinstance(option.default, float):
                found[key] = OneNumber(key)
        return found


class OneNumber(NamedTuple):
    """A number among an optimizer's options: an option, or an element of a pair."""

    key: str
    place: int | None = None

    def of(self, options: Options) -> float:
        """Return the number in some options."""
        value = options[self.key]
        return float(value if self.place is None else value[self.place])

    def put(self, options: Options, value: float) -> dict[str, Any]:
        """Return the options with another value in its place."""
        if self.place is None:
            return {**options, self.key: value}
        own = list(options[self.key])
        own[self.place] = value
        return {**options, self.key: tuple(own)}


def shortest(value: float) -> float:
    """Return the shortest decimal within a rounding of a number that was worked out.

    >>> shortest(0.1 * 3), shortest(1e-8 / 40), shortest(0.1 / 3)
    (0.3, 2.5e-10, 0.03333333333333333)
    """
    texts = (f"{value:.{digits}g}" for digits in range(1, 17))
    near = (text for text in texts if abs(float(text) - value) <= math.ulp(value))
    return float(next(near, value))


def divided(value: float, by: float) -> float:
    """Return value/by; the value itself where that is 1."""
    return value if by == 1 else shortest(value / by)


def namespace(array: Array) -> Any:
    """Return the functions for an array, of the array API standard."""
    return array.__array_namespace__()


def between(start: Array, end: Array, share: float) -> Array:
    """Return (1 − share) start + share end as torch's lerp does: from the nearer of them."""
    if abs(share) < 0.5:
        return start + share * (end - start)
    return end - (end - start) * (1 - share)


def named_gradient(gradient: str) -> tuple[list[str], str]:
    """Return the letter of a gradient that is written more than once, and the line that says so."""
    return ([], gradient) if gradient == "g" else ([f"G ← {gradient}"], "G")


def share(decay: float, faults: Faults) -> float:
    """Return what is new in a moment of decay β: 1 − β, or by a fault 1."""
    return 1.0 if faults.averages == "sums" else 1 - decay


def averaged(decay: str, kept: str, new: str, faults: Faults = NO_FAULTS) -> str:
    """Write β kept + (1 − β) new, or new alone where β is 0; by a fault β kept + new."""
    if not decay:
        return new
    added = new if faults.averages == "sums" else times(f"(1 − {decay})", new)
    return f"{times(decay, kept)} + {added}"


def started(letter: str, next_of: Callable[[str], str], start: float | str) -> list[str]:
    """Write what is remembered, whose start is told where it is not 0.

    >>> started("Q", lambda q: f"{q} + g²", 0.1)
    ['step 1: Q ← 0.1 + g²', 'later: Q ← Q + g²']
    """
    later = f"{letter} ← {next_of(letter)}"
    if not start:
        return [later]
    first = start if isinstance(start, str) else f"{start:g}"
    return [f"step 1: {letter} ← {next_of(first)}", f"later: {later}"]


def divisor_text(of: str, eps: str, convention: Convention, faults: Faults) -> str:
    """Write the root of a second moment, and where ε enters it: (√S + ε), √(S + ε)."""
    if faults.root == "missing":
        return bracketed(plus(of, eps))
    if convention.epsilon == "inside":
        return rooted(plus(of, eps))
    return bracketed(plus(rooted(of), eps))


def rooted(term: str) -> str:
    """Write the root of a term, which may be a sum."""
    return f"√({term})" if " " in term else f"√{term}"


def plus(left: str, right: str) -> str:
    """Write a sum, of which either part may be empty.

    >>> plus("g", "0.1 w"), plus("g", "-0.1 w")
    ('g + 0.1 w', 'g − 0.1 w')
    """
    if not (left and right):
        return left or right
    return f"{left} − {right[1:]}" if right.startswith("-") else f"{left} + {right}"


def times(left: str, right: str) -> str:
    """Write a product, whose right part may be a sum, or begin with a number.

    >>> times("0.1", "g + λ w"), times("0.1", "10000 g")
    ('0.1 (g + λ w)', '0.1·10000 g')
    """
    right = bracketed(right)
    return f"{left}·{right}" if right[:1].isdigit() else f"{left} {right}"


def bracketed(term: str) -> str:
    """Put brackets around a sum, or what has a sign, unless it stands in brackets already."""
    depth = 0
    for place, letter in enumerate(term):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and (term.startswith((" + ", " − "), place) or term[0] == "−"):
            return f"({term})"
    return term
