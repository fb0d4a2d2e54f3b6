"""The numbers of one training that enter its update formulas, and the letters of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from regcheck.rules.convention import Convention, is_bias, penalized
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.optimizers.faulty import faulty
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.optimizers.sgd import SGD
from regcheck.rules.optimizers.update_rule import Options, Own, UpdateRule
from regcheck.rules.words import all_of


class Settings(NamedTuple):
    """An optimizer with all its settings; `weight_decay` is λ of each tensor.

    `own` holds those tensors whose lr or options are not the common ones.
    """

    lr: float
    weight_decay: Mapping[str, float]
    options: Options = SGD.defaults
    optimizer: str = "sgd"
    own: Mapping[str, Own] = MappingProxyType({})

    @property
    def rule(self) -> UpdateRule:
        """The optimizer's update rule."""
        return OPTIMIZERS[self.optimizer]

    @property
    def torchs(self) -> Convention:
        """The convention that torch has for the optimizer."""
        return Convention()._replace(**self.rule.torchs(self.options))  # type: ignore[arg-type]

    def of(self, tensor: str) -> Own:
        """Return a tensor's lr and options."""
        return self.own.get(tensor) or Own(self.lr, self.options)

    @property
    def momentum(self) -> float:
        """μ; 0 where there is none."""
        return float(self.options.get("momentum", 0.0))

    @property
    def dampening(self) -> float:
        """τ; 0 where there is none."""
        return float(self.options.get("dampening", 0.0))

    @property
    def nesterov(self) -> bool:
        """Whether the momentum is Nesterov's."""
        return bool(self.options.get("nesterov", False))

    def with_options(self, **options: Any) -> Settings:
        """Return the settings with some other options."""
        return self._replace(options={**self.options, **options})


class Training(NamedTuple):
    """What formulas, their numbers, and the match with torch are made from.

    `batch_rows` holds the distinct numbers of rows that a step sees, the usual one first;
    `weighted` is whether the mean loss is one weighted by the rows' classes, and `smoothed` whether
    its labels are smoothed.
    `micro_rows` holds those over which one mean loss is taken, where a step's gradient is the
    average of several: of micro-batches, of the shares that `processes` have of a batch, or both;
    else nothing. `averaged` is how many these are in a step of the usual rows, where the rows alone
    do not say it.
    """

    settings: Settings
    batch_rows: tuple[int, ...]
    train_rows: int
    micro_rows: tuple[int, ...] = ()
    lr_varies: bool = False
    clipped: bool = False
    clipped_by_norm: bool = False
    loss: str = ""
    weighted: bool = False
    smoothed: bool = False
    averaged: int = 0
    processes: int = 1

    @property
    def loss_rows(self) -> tuple[int, ...]:
        """The distinct numbers of rows over which one loss is taken, the usual one first."""
        return self.micro_rows or self.batch_rows

    @property
    def micro_batches(self) -> int:
        """The micro-batches of a step of the usual rows, or the shares of them."""
        return self.averaged or math.ceil(self.batch_rows[0] / max(1, self.loss_rows[0]))

    def rows_lines(self, name: str) -> list[str]:
        """Say how many rows there are in a spec, and what they are divided into."""
        sizes = all_of(f"{size:,}" for size in self.batch_rows)
        lines = [f"{name}: {self.train_rows:,} training samples, batches of {sizes}"]
        if self.processes > 1:
            *more, last = (f"{size:,}" for size in self.micro_rows)
            shares = f"{', '.join(more)} or {last}" if more else last
            lines.append(f"{self.processes} processes, each with a share of {shares} samples")
        return lines

    @property
    def meanings(self) -> dict[str, str]:
        """What the letters of its formulas stand for, where they are of an average."""
        if not self.micro_rows:
            return {}
        if self.processes == 1:
            return {"g": "average gradient of the micro-batches' mean losses, without weight decay"}
        parts = f"1/{self.processes} Σᵣ gᵣ, gᵣ the gradient of rank r's mean loss"
        if self.micro_batches > self.processes:
            parts = f"average gradient of the mean losses of {self.processes} ranks' shares"
        return {
            "g": f"{parts}, without weight decay",
            "gₖ": "gradient of the last share's mean loss, without weight decay",
            "m": "samples in a rank's share",
            "mᵢ": "samples in share i",
            "mₖ": "samples in the last share",
            "Wᵢ": "class weights of the samples in share i, in all",
            "k": "shares in a step",
            "batch_size": "samples in every share except smaller ones",
        }

    def with_decays(self, weight_decay: Mapping[str, float]) -> Training:
        """Return the training with another weight decay of each tensor."""
        return self._replace(settings=self.settings._replace(weight_decay=weight_decay))

    def of_kinds(self) -> Training:
        """Return the training with one weight and at most one bias, as formulas have it.

        Each has the largest weight decay of its kind.
        """
        largest = {"weight": 0.0}
        for name, decay in self.settings.weight_decay.items():
            kind = "bias" if is_bias(name) else "weight"
            largest[kind] = max(decay, largest.get(kind, 0.0))
        return self.with_decays(largest)


def gradient_factor(
    convention: Convention, training: Training, faults: Faults = NO_FAULTS
) -> float:
    """Return c, the factor that a rule puts on the gradient of the mean loss."""
    c = convention.loss_factor
    if convention.loss_reduction == "sum":
        c *= training.loss_rows[0]
    c *= faults.gradient_factor
    return c * training.micro_batches if faults.accumulation == "sum" else c


def effective_decay(convention: Convention, training: Training, tensor: str) -> float:
    """Return κ λ, the factor on w in the gradient of the penalty."""
    if not penalized(convention, tensor):
        return 0.0
    divisor = {"nothing": 1, "batch": training.batch_rows[0], "dataset": training.train_rows}
    decay = training.settings.weight_decay[tensor] * convention.penalty_factor
    return decay / divisor[convention.divide_penalty_by]


UNEVEN = "mᵢ"
"""Rows of a micro-batch where these differ, so that the average runs over products with them."""

WEIGHTS = "Wᵢ"
"""The class weights of a micro-batch's rows, which differ likewise."""


class Letters(NamedTuple):
    """What a formula is written with: letters, or numbers in their places; empty where absent."""

    lr: str
    weight_decay: Mapping[str, str]
    options: Options
    optimizer: str = "sgd"
    clipped: bool = False
    batch_rows: str = "B"
    loss_rows: str = "B"
    class_weights: str = ""
    train_rows: str = "n"
    micro_batches: str = "k"
    batch_size: str = "batch_size"

    @property
    def rule(self) -> UpdateRule:
        """The optimizer's update rule."""
        return OPTIMIZERS[self.optimizer]

    @property
    def torchs(self) -> Convention:
        """The convention that torch has for the optimizer."""
        return Convention()._replace(**self.rule.torchs(self.options))  # type: ignore[arg-type]

    def with_options(self, **options: Any) -> Letters:
        """Return the letters with those of some options in their places."""
        return self._replace(options={**self.options, **options})


Given = TypeVar("Given", Settings, Letters)


def with_faults(given: Given, faults: Faults) -> Given:
    """Return settings, as numbers or letters, with those faults that are other settings."""
    if isinstance(given, Letters):
        other = dict(faults.options)
        texts = {key: given.rule.options[key].text(x, number_of) for key, x in other.items()}
        faults = faults._replace(options=tuple(texts.items()))
        return given._replace(options=faulty(given.options, faults))
    own = {name: x._replace(options=faulty(x.options, faults)) for name, x in given.own.items()}
    return given._replace(options=faulty(given.options, faults), own=own)


def symbols(training: Training) -> Letters:
    """Return the letters of what a training has: no μ without momentum, no λ where it is 0."""
    settings, loss_rows = training.settings, "B"
    if training.micro_rows:
        loss_rows = "m" if len(training.micro_rows) == 1 else UNEVEN
    weights = (WEIGHTS if training.micro_rows else "W") if training.weighted else ""
    return Letters(
        lr="lr",
        weight_decay={name: "λ" if value else "" for name, value in settings.weight_decay.items()},
        options=written_options(settings, lambda _, letter: letter),
        optimizer=settings.optimizer,
        clipped=training.clipped,
        loss_rows=loss_rows,
        class_weights=weights,
    )


def letters(training: Training) -> Letters:
    """Return the numbers of a training in the places of its letters, where they do not vary."""
    settings, general = training.settings, symbols(training)
    decays = settings.weight_decay.items()
    numbers = general._replace(
        weight_decay={name: number(value) if value else "" for name, value in decays},
        options=written_options(settings, number_of),
        train_rows=str(training.train_rows),
        batch_size=str(training.loss_rows[0]),
    )
    if not training.lr_varies and all(own.lr == settings.lr for own in settings.own.values()):
        numbers = numbers._replace(lr=number(settings.lr))
    if len(training.loss_rows) == 1:
        numbers = numbers._replace(loss_rows=str(training.loss_rows[0]))
    if len(training.batch_rows) == 1:
        rows, micro_batches = str(training.batch_rows[0]), str(training.micro_batches)
        numbers = numbers._replace(batch_rows=rows, micro_batches=micro_batches)
    return numbers


def number_of(value: float, letter: str) -> str:  # noqa: ARG001
    """Write an option's number in the place of its letter."""
    return number(value)


def written_options(settings: Settings, write: Callable[[float, str], str]) -> Options:
    """Write an optimizer's options that have letters: empty those that are 0, letters for None.

    Options that differ between tensors keep their letters.
    """
    found: dict[str, Any] = {}
    for key, value in settings.options.items():
        alike = all(own.options[key] == value for own in settings.own.values())
        how = write if alike else lambda _, letter: letter
        found[key] = settings.rule.options[key].text(value, how)
    return found


SYMBOLIC = symbols(Training(Settings(1.0, {"weight": 1.0, "bias": 1.0}), (2,), 2))


def number(value: float) -> str:
    """Write a number as a person would: `0.05`, `1e-08`."""
    return f"{value:g}"


def factor(value: float) -> str:
    """Write a number so that a product can go on with it: `0.5`, `(-1)`; c where it is NaN."""
    if math.isnan(value):
        return "c"
    return number(value) if value >= 0 else f"({number(value)})"


def exact(value: float) -> str:
    """Write a number in the fewest digits that read back as the very same one."""
    return repr(float(value)).removesuffix(".0")
