"""How a training goes: its start, optimizer, penalty, batches, lr; what one side alone has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache, partial
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from regcheck.errors import suggest
from regcheck.rules.convention import (
    KEYS,
    NAMED,
    BiasCorrection,
    Decay,
    DividePenaltyBy,
    Epsilon,
    LossReduction,
    MomentumForm,
    PenaltyNorm,
    UpdateOrder,
    is_bias,
)
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.optimizers.update_rule import Option, UpdateRule
from regcheck.rules.settings import Settings
from regcheck.spec.sections.fields import (
    NoneWord,
    NotNegative,
    Number,
    Section,
    Seed,
    Several,
    has_bias,
    in_range,
    is_number,
    raise_inside,
    refuse_bias,
    shown,
    whole,
    wrong,
)


class Optimizer(Section):
    """torch's optimizer by its name, and its options."""

    FORMS = "an optimizer's name, or {name: sgd, momentum: 0.9, ..}"

    name: str = Field(description="torch's optimizer, in lower case.")
    options: SkipJsonSchema[dict[str, Any]]

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        given = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = given.pop("name", None)
        if not isinstance(name, str):
            if isinstance(value, Mapping) and name is None:
                raise_inside([(("name",), f"is required: one of {', '.join(OPTIMIZERS)}")])
            return value
        if name.lower() not in OPTIMIZERS:
            hint = suggest(name.lower(), OPTIMIZERS)
            raise wrong(f"no optimizer is called {shown(name)}; {hint}")
        options = options_section(name).model_validate(given).model_dump()
        raise_inside(((key,), text) for key, text in rule_of(name).errors(options).items())
        return {"name": name.lower(), "options": options}

    @classmethod
    def of(cls, name: str, **options: Any) -> Optimizer:
        """Return an optimizer with some options; the others are torch's."""
        return cls.model_validate({"name": name, **options})

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """Return the mapping as a spec has it."""
        return {"name": self.name, **self.options}

    def settings(self, lr: float, weight_decay: Mapping[str, float]) -> Settings:
        """Return all settings of the optimizer, with the lr and λ of each tensor."""
        return Settings(lr, weight_decay, self.options, self.name)


def rule_of(name: str) -> UpdateRule:
    """Return the update rule of an optimizer by its name, in any case."""
    return OPTIMIZERS[name.lower()]


@cache
def options_section(name: str) -> type[Section]:
    """Return the section that holds an optimizer's options, with torch's defaults."""
    rule = rule_of(name)
    fields: dict[str, Any] = {
        key: (option_type(option), Field(option.default, description=about(rule, key)))
        for key, option in rule.options.items()
    }
    return create_model(rule.torch, __base__=Section, **fields)


def about(rule: UpdateRule, key: str) -> str:
    """Say what an option is, by what its letters in the optimizer's formula stand for."""
    letter = rule.options[key].letter
    letters = letter if isinstance(letter, tuple) else (letter,)
    known = [f"{one}: {rule.meanings[one]}" for one in letters if one in rule.meanings]
    return "; ".join([f"As in torch.optim.{rule.torch}", *known])


def option_type(option: Option) -> Any:
    """Return the type of an option's values, by its default and its range."""
    if isinstance(option.default, bool):
        return bool
    if option.choices:
        return Annotated[Literal[option.choices] | None, NoneWord]
    limits = Field(ge=option.least, lt=option.below, le=option.most, allow_inf_nan=False)
    if isinstance(option.default, int):
        return Annotated[int, BeforeValidator(whole), Field(ge=int(option.least), le=option.most)]
    number = Annotated[float, BeforeValidator(in_range), limits]

    def with_none(default: object) -> Any:
        return Annotated[number | None, NoneWord] if default is None else number

    if not isinstance(option.default, tuple):
        return with_none(option.default)
    each = GenericAlias(tuple, tuple(map(with_none, option.default)))
    return Annotated[each, BeforeValidator(partial(several, len(option.default)))]


def several(count: int, value: object) -> object:
    """Take a list of so many numbers as a tuple."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, list) and len(value) == count:
        return tuple(value)
    number = {2: "two", 3: "three"}[count]
    raise wrong(f"must be a list of {number} numbers, got {shown(value)}")


class WeightDecay(Section):
    """λ of each tensor, as torch's parameter groups have it.

    Where the model has no bias, the one here is 0 and stands for nothing.
    """

    FORMS = "a number ≥ 0, or {weight: 0.1, bias: 0}"
    SHORT: ClassVar[Any] = NotNegative

    weight: NotNegative = Field(description="λ of the weights.")
    bias: NotNegative = Field(description="λ of the biases; 0 leaves them without a penalty.")

    @classmethod
    def full_form(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < math.inf:
            value = {"weight": in_range(value), "bias": value}
        elif is_number(value) or isinstance(value, str):
            raise wrong(f"must be a number ≥ 0, got {shown(value)}")
        elif isinstance(value, Mapping):
            refuse_bias(value, ["bias"], info)
        if isinstance(value, Mapping) and not has_bias(info):
            return {**value, "bias": 0.0}
        return value

    def of(self, names: Iterable[str]) -> dict[str, float]:
        """Return λ of each of some tensors."""
        return {name: self.bias if is_bias(name) else self.weight for name in names}


class Shuffle(Section):
    """A new order of the rows each epoch, from a seed."""

    FORMS = "false or {seed: 0}"

    seed: Seed = Field(description="The same seed gives the same orders, to both sides.")

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        if value is True:
            raise wrong("needs a seed, like {seed: 0}, so that both sides use the same order")
        return value


def batch_size_form(value: object) -> object:
    """Check what `batch_size` may be, with one message for all of it."""
    rows = whole(value)
    if rows == "full" or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1):
        return rows
    raise wrong("must be `full` or a whole number ≥ 1, got " + shown(value))


class ConventionKeys(Section):
    """A convention key by key; `regcheck explain KEY` says what each means.

    A named convention may leave the bias free where there is none; it is the same without.
    """

    FORMS = "a convention's name or a mapping of its keys"
    SHORT: ClassVar[Any] = Annotated[str, WithJsonSchema({"enum": [*NAMED]})]

    divide_penalty_by: DividePenaltyBy = "nothing"
    penalty_factor: Number = 1.0
    penalize_bias: bool = True
    decay: Decay = "gradient"
    penalty_norm: PenaltyNorm = "squared"
    penalty_in_loss: bool = False
    loss_reduction: LossReduction = "mean"
    loss_factor: Number = 1.0
    momentum_form: MomentumForm = "torch"
    update_order: UpdateOrder = "simultaneous"
    epsilon: Epsilon = "outside"
    bias_correction: BiasCorrection = True
    accumulator_start: NotNegative = 0.0

    @classmethod
    def full_form(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            if value not in NAMED:
                raise wrong(f"no convention is called {shown(value)}; {suggest(value, NAMED)}")
            return NAMED[value].keys
        if isinstance(value, Mapping):
            of_bias = {"penalize_bias": True, "update_order": "simultaneous"}
            given = [key for key, torch in of_bias.items() if value.get(key) != torch]
            refuse_bias(value, given, info)
        return value

    @classmethod
    def description(cls, key: str) -> str:
        values = "; ".join(f"{value}: {does}" for value, does in KEYS[key].values.items())
        return f"{KEYS[key].title}. {values}"


class TorchSettings(Section):
    """What torch alone is given: settings in the place of the scratch side's, and processes.

    By R `processes` each batch is shared among R ranks, which average their gradients.
    """

    lr: NotNegative | None = Field(None, description="The lr that torch alone is given.")
    weight_decay: WeightDecay | None = Field(
        None, description="The weight decay that torch alone is given."
    )
    optimizer: Optimizer | None = Field(
        None, description="The optimizer that torch alone is given."
    )
    processes: Several | None = Field(
        None, description="How many processes share each batch, by DistributedDataParallel."
    )

    @model_validator(mode="after")
    def something(self) -> TorchSettings:
        if not self.model_fields_set or all(value is None for _, value in self):
            *names, last = type(self).model_fields
            raise wrong(f"must have {', '.join(names)} or {last}, for torch alone")
        return self
