"""How a spec's training goes: its start, optimizer, penalty, batches and learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from regcheck.errors import suggest
from regcheck.rules.settings import SgdSettings
from regcheck.spec.fields import (
    Count,
    NotNegative,
    Number,
    Path,
    Section,
    Seed,
    has_bias,
    in_range,
    is_number,
    refuse_bias,
    refuse_planned,
    shown,
    whole,
    wrong,
    wrong_inside,
)


class Normal(Section):
    """Normal numbers with mean 0."""

    std: NotNegative
    seed: Seed = 0


INIT_FORMS = "zeros, {constant: C}, {normal: {std: S, seed: N}} or {weight: [..], bias: [..]}"


class Init(Section):
    """The start: one constant, normal numbers, or the numbers themselves.

    Where the model has no bias, the one here is 0 and stands for nothing.
    """

    constant: Number | None = None
    normal: Normal | None = None
    weight: Annotated[list[Number], Field(min_length=1)] | None = None
    bias: Annotated[list[Number], Field(min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def one_way(self) -> Init:
        given = [name for name in ("constant", "normal") if getattr(self, name) is not None]
        explicit = self.weight is not None or self.bias is not None
        if len(given) + explicit != 1:
            raise wrong(f"must be one of {INIT_FORMS}")
        if explicit and (self.weight is None or self.bias is None):
            missing = "bias" if self.bias is None else "weight"
            raise wrong(f"must give both weight and bias; {missing} is missing")
        return self


def init_form(value: object, info: ValidationInfo) -> object:
    """Turn what `init` may hold into its full form."""
    if value == "zeros":
        return {"constant": 0}
    if isinstance(value, Init):
        return value
    if not isinstance(value, Mapping):
        raise wrong(f"must be one of {INIT_FORMS}, got {shown(value)}")
    refuse_bias(value, ["bias"], info)
    flat = dict(value)
    if not has_bias(info) and "weight" in flat:
        flat["bias"] = [0.0]
    for name in ("weight", "bias"):
        given = flat.get(name)
        if is_number(given):
            flat[name] = [given]
        elif isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
            flat[name] = given[0]
    return flat


class Sgd(Section):
    """torch.optim.SGD's options."""

    name: Literal["sgd"]
    momentum: NotNegative = 0.0
    nesterov: bool = False
    dampening: Number = 0.0

    @model_validator(mode="after")
    def nesterov_as_in_torch(self) -> Sgd:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            text = "needs a momentum above 0 and no dampening, as in torch"
            raise wrong_inside([(("nesterov",), text)])
        return self

    def settings(self, lr: float, weight_decay: Mapping[str, float]) -> SgdSettings:
        """Return all settings of the optimizer, with the lr and λ of each tensor."""
        return SgdSettings(lr, weight_decay, **self.model_dump(exclude={"name"}))


def optimizer_form(value: object) -> object:
    """Turn what `optimizer` may hold into its full form."""
    if isinstance(value, Sgd):
        return value
    name = value.get("name") if isinstance(value, Mapping) else value
    refuse_planned("optimizer", name)
    if value == "sgd":
        return {"name": value}
    if isinstance(value, str):
        raise wrong(f"no optimizer is called {shown(value)}; {suggest(value, ['sgd'])}")
    if not isinstance(value, Mapping):
        raise wrong("must be sgd, or {name: sgd, momentum: 0.9, ..}, got " + shown(value))
    return value


class WeightDecay(Section):
    """λ of each tensor, as torch's parameter groups have it.

    Where the model has no bias, the one here is 0 and stands for nothing.
    """

    weight: NotNegative
    bias: NotNegative


def weight_decay_form(value: object, info: ValidationInfo) -> object:
    """Turn what `weight_decay` may hold into its full form."""
    if isinstance(value, WeightDecay):
        return value
    without = {} if has_bias(info) else {"bias": 0.0}
    if isinstance(value, Mapping):
        refuse_bias(value, ["bias"], info)
        return {**value, **without}
    if isinstance(value, float | int) and not isinstance(value, bool):
        if 0 <= value < float("inf"):
            in_range(value)
            return {"weight": value, "bias": value, **without}
        raise wrong("must be a number ≥ 0, got " + shown(value))
    if isinstance(value, str):
        raise wrong("must be a number ≥ 0, got " + shown(value))
    raise wrong("must be a number ≥ 0, or {weight: 0.1, bias: 0}, got " + shown(value))


class Shuffle(Section):
    """A new order of the rows each epoch, from a seed."""

    seed: Seed


def shuffle_form(value: object) -> object:
    """Turn what `shuffle` may hold into its full form."""
    if value is False:
        return None
    if value is True:
        raise wrong("must name its seed: {seed: 0}; both sides see the same order")
    if not isinstance(value, Mapping | Shuffle):
        raise wrong("must be false or {seed: 0}, got " + shown(value))
    return value


def batch_size_form(value: object) -> object:
    """Turn what `batch_size` may hold into its full form."""
    rows = whole(value)
    if rows == "full" or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1):
        return rows
    raise wrong("must be `full` or a whole number ≥ 1, got " + shown(value))


class LrSchedule(Section):
    """How the lr changes; t counts steps or epochs from 0, whichever `per` says.

    step: lr·factor^⌊t/every⌋. exponential: lr·factor^t. cosine: from lr at t = 0 down to floor at
    t = steps, and floor from there. warmup: lr·(t + 1)/steps until lr is reached. list: the
    values themselves, the last one kept.
    """

    kind: Literal["step", "exponential", "cosine", "warmup", "list"]
    every: Count | None = None
    factor: NotNegative | None = None
    steps: Count | None = None
    floor: NotNegative | None = None
    values: Annotated[list[NotNegative], Field(min_length=1)] | None = None
    per: Literal["step", "epoch"] = "step"

    @model_validator(mode="after")
    def own_keys(self) -> LrSchedule:
        needed, optional = LR_SCHEDULE_KEYS[self.kind]
        given = [
            key
            for key in ("every", "factor", "steps", "floor", "values")
            if getattr(self, key) is not None
        ]
        takes = ", ".join(needed + optional)
        errors: list[tuple[Path, str]] = [
            ((key,), f"the kind {self.kind} has no such key; it takes {takes}, per")
            for key in given
            if key not in needed + optional
        ]
        missing = [key for key in needed if key not in given]
        if missing:
            errors.append(((), f"the kind {self.kind} needs {' and '.join(missing)}"))
        if errors:
            raise wrong_inside(errors)
        return self


LR_SCHEDULE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cosine": (("steps",), ("floor",)),
    "exponential": (("factor",), ()),
    "list": (("values",), ()),
    "step": (("every", "factor"), ()),
    "warmup": (("steps",), ()),
}


def none_form(value: object) -> object:
    """Turn `none` into None."""
    return None if value == "none" else value


def lr_schedule_form(value: object) -> object:
    """Turn what `lr_schedule` may hold into its full form."""
    if value is None or value == "none":
        return None
    if not isinstance(value, Mapping | LrSchedule):
        text = "must be none or a mapping like {kind: step, every: 5, factor: 0.1}, got "
        raise wrong(text + shown(value))
    return value
