"""What a spec may say: one model a mapping, one field a key.

Shorthands (`optimizer: sgd`, `weight_decay: 0.1`) are turned into their full form before a field
is checked, so that each field has one type and each mistake one message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from regcheck.errors import suggest
from regcheck.rules.convention import (
    NAMED,
    Convention,
    Decay,
    DividePenaltyBy,
    LossReduction,
    MomentumForm,
    PenaltyNorm,
    UpdateOrder,
)
from regcheck.spec.data import DataSource
from regcheck.spec.fields import (
    Count,
    NotNegative,
    Number,
    Path,
    Positive,
    Section,
    has_bias,
    refuse_bias,
    refuse_planned,
    shown,
    wrong,
    wrong_inside,
)
from regcheck.spec.tolerance import Expect, Tolerances, expect_form, tolerance_form
from regcheck.spec.training import (
    Init,
    LrSchedule,
    Sgd,
    Shuffle,
    WeightDecay,
    batch_size_form,
    init_form,
    lr_schedule_form,
    none_form,
    optimizer_form,
    shuffle_form,
    weight_decay_form,
)

__all__ = [
    "MODELS",
    "ConventionKeys",
    "Dtype",
    "Init",
    "LrSchedule",
    "Sgd",
    "Spec",
]

MODELS = {"linear": ("mse",), "logistic": ("bce", "bce_with_logits", "mse")}
"""Each model with the losses that go with it, its default first."""

ModelName = Literal["linear", "logistic"]
LossName = Literal["mse", "bce", "bce_with_logits"]


def model_form(value: object) -> object:
    """Turn what `model` may hold into its full form."""
    if isinstance(value, PydanticCustomError):
        raise value
    named = next(iter(value), None) if isinstance(value, Mapping) else value
    refuse_planned("model", named)
    return value


def loss_form(value: object) -> object:
    """Refuse the loss that goes with the models of later versions."""
    refuse_planned("loss", value)
    return value


DtypeName = Literal["float32", "float64"]


class Dtype(Section):
    """The floating-point format of each side."""

    scratch: DtypeName
    framework: DtypeName


def dtype_form(value: object) -> object:
    """Turn what `dtype` may hold into its full form."""
    if value in ("float32", "float64"):
        return {"scratch": value, "framework": value}
    if not isinstance(value, Mapping | Dtype):
        forms = "float64, float32 or {scratch: float64, framework: float32}"
        raise wrong(f"must be {forms}, got {shown(value)}")
    return value


class TorchSettings(Section):
    """What torch's optimizer is given in the place of what the scratch side is given."""

    lr: NotNegative | None = None
    weight_decay: Annotated[WeightDecay | None, BeforeValidator(weight_decay_form)] = None
    optimizer: Annotated[Sgd | None, BeforeValidator(optimizer_form)] = None

    @model_validator(mode="after")
    def something(self) -> TorchSettings:
        if self.lr is None and self.weight_decay is None and self.optimizer is None:
            raise wrong("must hold lr, weight_decay or optimizer: what torch alone is given")
        return self


def framework_form(value: object, info: ValidationInfo) -> object:
    """Check that a value names a user's function, or holds settings of torch's own."""
    if isinstance(value, Mapping):
        return TorchSettings.model_validate(value, context={"bias": has_bias(info)})
    if isinstance(value, TorchSettings):
        return value
    if is_user_code(value):
        return user_code_form(value)
    forms = f"{FUNCTION}, or a mapping like {{lr: 0.2}} of what torch alone is given"
    raise wrong(f"must be {forms}; got {shown(value)}{in_a_module(value)}")


class ConventionKeys(Section):
    """A convention key by key; `regcheck explain KEY` says what each means."""

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


def convention_form(value: object, info: ValidationInfo) -> object:
    """Turn what `convention` may hold into its full form.

    A named convention may leave the bias free where there is none; it is the same without.
    """
    if isinstance(value, str):
        if value not in NAMED:
            raise wrong(f"no convention is called {shown(value)}; {suggest(value, NAMED)}")
        named = NAMED[value].convention
        return {key: getattr(named, key) for key in ConventionKeys.model_fields}
    if not isinstance(value, Mapping | ConventionKeys):
        raise wrong("must be a convention's name or a mapping of its keys, got " + shown(value))
    if isinstance(value, Mapping):
        of_bias = {"penalize_bias": True, "update_order": "simultaneous"}
        refuse_bias(value, [key for key, torch in of_bias.items() if value.get(key) != torch], info)
    return value


UserCode = str | Callable[[Any], Any]
"""A user's function: `FILE.py:FUNCTION` in a spec, or the function itself from Python."""


FUNCTION = "a Python file and a function in it, like my_train.py:train"


def in_a_module(value: object) -> str:
    """Say how a function is named that a value names as Python imports it; empty where it is not.

    >>> in_a_module("my.code.train")
    '; for the function train of a module, write my/code.py:train'
    """
    dotted = re.fullmatch(r"((?:\w+\.)*\w+)[.:](\w+)", value) if isinstance(value, str) else None
    if dotted is None or dotted[1].endswith(".py") or not dotted[2].isidentifier():
        return ""
    if dotted[2] == "py":  # a file without a function
        return ""
    file = dotted[1].replace(".", "/") + ".py"
    return f"; for the function {dotted[2]} of a module, write {file}:{dotted[2]}"


def is_user_code(value: object) -> bool:
    """Say whether a value names a function in a Python file, or is one, or a class that may be."""
    if not isinstance(value, str):
        return callable(value)
    named = re.fullmatch(r".+\.py:(\w+)", value.strip())
    return named is not None and named[1].isidentifier()


def user_code_form(value: object) -> object:
    """Check that a value names a function in a Python file, or is one."""
    if not is_user_code(value):
        raise wrong(f"must be {FUNCTION}; got {shown(value)}{in_a_module(value)}")
    return value.strip() if isinstance(value, str) else value


Compared = Literal["parameters", "loss"]
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


def numbers_in(value: object, path: Path) -> Iterator[tuple[Path, float]]:
    """Give each floating-point number in a value, with its path."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, BaseModel):
        for key, inner in value:
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers_in(inner, (*path, index))


class Spec(Section):
    """One experiment: one training, told once and done by both sides."""

    data: DataSource
    model: Annotated[ModelName | None, BeforeValidator(model_form)] = None
    loss: Annotated[LossName | None, BeforeValidator(loss_form), Field(validate_default=True)] = (
        None
    )
    bias: bool = True
    init: Annotated[Init, BeforeValidator(init_form)] = Init(constant=0.0)
    optimizer: Annotated[Sgd, BeforeValidator(optimizer_form)] = Sgd(name="sgd")
    lr: NotNegative
    weight_decay: Annotated[WeightDecay, BeforeValidator(weight_decay_form)] = WeightDecay(
        weight=0.0, bias=0.0
    )
    epochs: Count = 1
    batch_size: Annotated[int | Literal["full"], BeforeValidator(batch_size_form)] = "full"
    shuffle: Annotated[Shuffle | None, BeforeValidator(shuffle_form)] = None
    drop_last: bool = False
    accumulate: Count = 1
    lr_schedule: Annotated[LrSchedule | None, BeforeValidator(lr_schedule_form)] = None
    clip_norm: Annotated[Positive | None, BeforeValidator(none_form)] = None
    clip_value: Annotated[Positive | None, BeforeValidator(none_form)] = None
    dtype: Annotated[Dtype, BeforeValidator(dtype_form)] = Dtype(
        scratch="float64", framework="float64"
    )
    convention: Annotated[ConventionKeys, BeforeValidator(convention_form)] = ConventionKeys()
    scratch: Annotated[UserCode | None, BeforeValidator(user_code_form)] = None
    framework: Annotated[UserCode | TorchSettings | None, BeforeValidator(framework_form)] = None
    compare: Annotated[list[Compared], Field(min_length=1)] = Field(["parameters", "loss"])
    tolerance: Annotated[Tolerances, BeforeValidator(tolerance_form)] = Tolerances()
    expect: Annotated[Expect | None, BeforeValidator(expect_form)] = None

    @field_validator("loss")
    @classmethod
    def fits_the_model(cls, loss: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model")
        if model is None:
            if loss is not None and "model" in info.data:
                raise wrong("goes with a model; leave it out where the framework side is your own")
            return loss
        if loss is not None and loss not in MODELS[model]:
            raise wrong(
                f"{loss} does not go with the model {model}; it takes {', '.join(MODELS[model])}"
                + ("; for labels 0 and 1, say `model: logistic`" if model == "linear" else "")
            )
        return loss or MODELS[model][0]

    @field_validator("bias")
    @classmethod
    def of_the_built_in_model(cls, bias: bool, info: ValidationInfo) -> bool:
        if not bias and "model" in info.data and info.data["model"] is None:
            raise wrong("goes with a model; leave it out where the framework side is your own")
        return bias

    @field_validator("scratch")
    @classmethod
    def one_scratch_side(cls, scratch: object, info: ValidationInfo) -> object:
        convention = info.data.get("convention")
        if scratch is not None and convention not in (None, ConventionKeys()):
            text = "your own code does what it does, and convention is what the built-in scratch"
            raise wrong(f"{text} side does; leave convention out")
        return scratch

    @field_validator("compare")
    @classmethod
    def each_once(cls, compare: list[str]) -> list[str]:
        if len(set(compare)) < len(compare):
            raise wrong("must name each of parameters and loss once at most")
        return compare

    @field_validator("clip_value")
    @classmethod
    def one_clipping(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clip_norm") is not None:
            raise wrong("clip_norm and clip_value exclude each other; keep one")
        return value

    @model_validator(mode="before")
    @classmethod
    def a_model(cls, content: object) -> object:
        """Put an error in the place of a model that is missing: so the others are told with it."""
        if not isinstance(content, Mapping) or content.get("model") is not None:
            return content
        own = {key for key in ("scratch", "framework") if content.get(key) is not None}
        if isinstance(content.get("framework"), Mapping | TorchSettings):
            own -= {"framework"}
        if own == {"scratch", "framework"}:
            return content
        models = ", ".join(MODELS)
        text = {
            frozenset(): f"is required: one of {models}",
            frozenset({"scratch"}): f"is required: the built-in framework side is one of {models}; "
            "or name a function for `framework` too",
            frozenset({"framework"}): f"is required: the built-in scratch side is one of {models}; "
            "or give `scratch` too",
        }[frozenset(own)]
        return {**content, "model": wrong(text)}

    @model_validator(mode="after")
    def within_float32(self) -> Spec:
        if "float32" in (self.dtype.scratch, self.dtype.framework):
            trained = self.model_fields_set - {"data", "expect", "tolerance"}
            sections = {key: getattr(self, key) for key in sorted(trained)}
            errors: dict[tuple[str | int, float], tuple[Path, str]] = {}
            for path, number in numbers_in(sections, ()):
                if abs(number) > LARGEST_FLOAT32:
                    text = f"float32 holds numbers up to 3.4e38, got {number:g}; use float64"
                    # One weight_decay stands for both tensors', and is one mistake.
                    errors.setdefault((path[0], number), (path, text))
            if errors:
                raise wrong_inside(errors.values())
        return self

    @property
    def torch_settings(self) -> TorchSettings | None:
        """Give what torch's optimizer is given in the place of the spec's own, if anything."""
        return self.framework if isinstance(self.framework, TorchSettings) else None

    @property
    def own_framework(self) -> UserCode | None:
        """Give the user's own framework side, if there is one."""
        return None if isinstance(self.framework, TorchSettings) else self.framework

    @property
    def decays(self) -> dict[str, float]:
        """Give λ of each tensor that the model has."""
        decays = {"weight": self.weight_decay.weight, "bias": self.weight_decay.bias}
        return decays if self.bias else {"weight": decays["weight"]}

    def judged(self, names: Iterable[str]) -> list[str]:
        """Give those tensors' names that `compare` has judged, and `loss` where it is."""
        return [
            name for name in names if ("loss" if name == "loss" else "parameters") in self.compare
        ]

    def named_convention(self) -> Convention:
        """Give the convention as the record that the trainers and formulas take."""
        return Convention(**self.convention.model_dump())
