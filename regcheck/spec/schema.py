"""What a spec may say: one model a mapping, one field a key.

Shorthands (`optimizer: sgd`, `weight_decay: 0.1`) are turned into their full form before a field
is checked, so that each field has one type and each mistake one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from regcheck.convention import (
    NAMED,
    Convention,
    Decay,
    DividePenaltyBy,
    LossReduction,
    MomentumForm,
    PenaltyNorm,
    UpdateOrder,
)
from regcheck.errors import suggest
from regcheck.spec.fields import (
    Count,
    NotNegative,
    Number,
    Path,
    Positive,
    Section,
    Seed,
    in_range,
    is_number,
    not_yet,
    shown,
    whole,
    wrong,
    wrong_inside,
)
from regcheck.spec.source import DataSource

MODELS = {"linear": ("mse",), "logistic": ("bce", "bce_with_logits", "mse")}
"""Each model with the losses that go with it, its default first."""

LATER_MODELS = ("softmax", "mlp")
LATER_OPTIMIZERS = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
)

ModelName = Literal["linear", "logistic"]
LossName = Literal["mse", "bce", "bce_with_logits"]


def model_form(value: object) -> object:
    """Turn what `model` may hold into its full form."""
    named = next(iter(value), None) if isinstance(value, Mapping) else value
    if named in LATER_MODELS:
        raise not_yet(f"the model {named}")
    return value


def loss_form(value: object) -> object:
    """Refuse the loss that goes with the models of later versions."""
    if value == "cross_entropy":
        raise not_yet("the loss cross_entropy")
    return value


class Normal(Section):
    """Normal numbers with mean 0."""

    std: NotNegative
    seed: Seed = 0


INIT_FORMS = "zeros, {constant: C}, {normal: {std: S, seed: N}} or {weight: [..], bias: [..]}"


class Init(Section):
    """The start: one constant, normal numbers, or the numbers themselves."""

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


def init_form(value: object) -> object:
    """Turn what `init` may hold into its full form."""
    if value == "zeros":
        return {"constant": 0}
    if isinstance(value, Init):
        return value
    if not isinstance(value, Mapping):
        raise wrong(f"must be one of {INIT_FORMS}, got {shown(value)}")
    flat = dict(value)
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


def optimizer_form(value: object) -> object:
    """Turn what `optimizer` may hold into its full form."""
    if isinstance(value, Sgd):
        return value
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name.lower() in LATER_OPTIMIZERS:
        raise not_yet(f"the optimizer {name}")
    if value == "sgd":
        return {"name": value}
    if isinstance(value, str):
        raise wrong(f"no optimizer is called {shown(value)}; {suggest(value, ['sgd'])}")
    if not isinstance(value, Mapping):
        raise wrong("must be sgd, or {name: sgd, momentum: 0.9, ..}, got " + shown(value))
    return value


class WeightDecay(Section):
    """λ of each tensor, as torch's parameter groups have it."""

    weight: NotNegative
    bias: NotNegative


def weight_decay_form(value: object) -> object:
    """Turn what `weight_decay` may hold into its full form."""
    if isinstance(value, Mapping | WeightDecay):
        return value
    if isinstance(value, float | int) and not isinstance(value, bool):
        if 0 <= value < float("inf"):
            in_range(value)
            return {"weight": value, "bias": value}
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


def convention_form(value: object) -> object:
    """Turn what `convention` may hold into its full form."""
    if isinstance(value, str):
        if value not in NAMED:
            raise wrong(f"no convention is called {shown(value)}; {suggest(value, NAMED)}")
        named = NAMED[value].convention
        return {key: getattr(named, key) for key in ConventionKeys.model_fields}
    if not isinstance(value, Mapping | ConventionKeys):
        raise wrong("must be a convention's name or a mapping of its keys, got " + shown(value))
    return value


class Tolerance(Section):
    """How many times the rounding bound a local difference may reach."""

    rounding: Positive = 8.0


def tolerance_form(value: object) -> object:
    """Turn what `tolerance` may hold into its full form."""
    if value == "exact":
        raise not_yet("the tolerance `exact`")
    if isinstance(value, Tolerance):
        return value
    if not isinstance(value, Mapping):
        raise wrong("must be a mapping like {rounding: 8}, got " + shown(value))
    if "rtol" in value or "atol" in value:
        raise not_yet("a tolerance of rtol and atol on the drift")
    for key, inner in value.items():
        if key != "rounding" and (isinstance(inner, Mapping) or inner == "exact"):
            raise not_yet("a tolerance per tensor")
    return value


LATER_KEYS = {
    "expect": "an expected verdict",
    "framework": "a model of your own",
    "scratch": "scratch code of your own",
}
"""Keys that the spec will have, and what each is."""


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
    model: Annotated[ModelName, BeforeValidator(model_form)]
    loss: Annotated[LossName | None, BeforeValidator(loss_form), Field(validate_default=True)] = (
        None
    )
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
    compare: Annotated[list[Compared], Field(min_length=1)] = Field(["parameters", "loss"])
    tolerance: Annotated[Tolerance, BeforeValidator(tolerance_form)] = Tolerance()

    @field_validator("loss")
    @classmethod
    def fits_the_model(cls, loss: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model")
        if model is None:
            return loss
        if loss is not None and loss not in MODELS[model]:
            raise wrong(
                f"{loss} does not go with the model {model}; it takes {', '.join(MODELS[model])}"
                + ("; for labels 0 and 1, say `model: logistic`" if model == "linear" else "")
            )
        return loss or MODELS[model][0]

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

    @model_validator(mode="after")
    def within_float32(self) -> Spec:
        if "float32" in (self.dtype.scratch, self.dtype.framework):
            sections = {key: getattr(self, key) for key in sorted(self.model_fields_set - {"data"})}
            errors: dict[tuple[str | int, float], tuple[Path, str]] = {}
            for path, number in numbers_in(sections, ()):
                if abs(number) > LARGEST_FLOAT32:
                    text = f"float32 holds numbers up to 3.4e38, got {number:g}; use float64"
                    # One weight_decay stands for both tensors', and is one mistake.
                    errors.setdefault((path[0], number), (path, text))
            if errors:
                raise wrong_inside(errors.values())
        return self

    def named_convention(self) -> Convention:
        """Give the convention as the record that the trainers and formulas take."""
        return Convention(**self.convention.model_dump())
