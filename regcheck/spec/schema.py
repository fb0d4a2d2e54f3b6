"""What a spec may say: one model a mapping, one field a key.

Shorthands (`optimizer: sgd`, `weight_decay: 0.1`) are turned into their full form before a field
is checked, so that each field has one type and each mistake one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

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

Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Word = Annotated[str, Field(min_length=1)]


def wrong(text: str) -> PydanticCustomError:
    """Make an error whose text is told as it stands."""
    return PydanticCustomError("regcheck", "{text}", {"text": text})


def not_yet(what: str) -> PydanticCustomError:
    """Refuse what the contract of the spec holds, and this version does not do."""
    return wrong(f"{what} is planned, and not in this version of regcheck")


class Section(BaseModel):
    """A mapping of a spec: unknown keys are errors, numbers are not guessed from words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- data ---------------------------------------------------------------------------------------


def label(value: object) -> object:
    """Take a label as the text that a data file holds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value}" if isinstance(value, int | float) else value


class Standardize(Section):
    """Subtract the training rows' mean and divide by their standard deviation."""

    ddof: Annotated[int, Field(ge=0, le=1)] = 0


class Test(Section):
    """The share of the rows that is held out; without a seed, the last rows."""

    share: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed | None = None


def standardize_form(value: object) -> object:
    """Turn what `standardize` may hold into its full form."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or not isinstance(value, Mapping):
        raise wrong("must be true, false or {ddof: 0}, got " + shown(value))
    return value


def test_form(value: object) -> object:
    """Turn what `test` may hold into its full form."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"share": value}
    if not isinstance(value, Mapping):
        raise wrong(
            "must be a share between 0 and 1, or {share: 0.2, seed: 0}, got " + shown(value)
        )
    return value


class Preparation(Section):
    """What is done with the rows, wherever they come from."""

    standardize: Annotated[Standardize | None, BeforeValidator(standardize_form)] = None
    test: Annotated[Test | None, BeforeValidator(test_form)] = None


class CsvData(Preparation):
    """A CSV file with a header."""

    csv: Word
    target: Annotated[str, BeforeValidator(label)]
    features: (
        Annotated[list[Annotated[str, BeforeValidator(label)]], Field(min_length=1)] | None
    ) = None
    positive: Annotated[str, BeforeValidator(label)] | None = None

    @field_validator("features")
    @classmethod
    def different(cls, features: list[str] | None, info: ValidationInfo) -> list[str] | None:
        for name in features or []:
            if (features or []).count(name) > 1:
                raise wrong(f"`{name}` is listed twice")
            if name == info.data.get("target"):
                raise wrong(f"`{name}` is the target, and cannot be a feature")
        return features


class NpzData(Preparation):
    """Two arrays of a NumPy .npz file."""

    npz: Word
    X: Word = "X"
    y: Word = "y"


class Synthetic(Section):
    """Rows made from a seed."""

    rows: Annotated[int, Field(ge=1, le=10**9)]
    features: Annotated[int, Field(ge=1, le=10**6)]
    seed: Seed = 0


class SyntheticData(Preparation):
    """Made-up rows: normal features, and a target that follows the model with noise."""

    synthetic: Synthetic


class InlineData(Preparation):
    """Rows written in the spec itself."""

    X: Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(min_length=1)]
    y: Annotated[list[Number], Field(min_length=1)]

    @field_validator("X")
    @classmethod
    def rectangular(cls, X: list[list[float]]) -> list[list[float]]:
        for index, row in enumerate(X):
            if len(row) != len(X[0]):
                raise wrong(f"row {index + 1} has {len(row)} numbers, the first row {len(X[0])}")
        return X

    @field_validator("y")
    @classmethod
    def as_long_as_x(cls, y: list[float], info: ValidationInfo) -> list[float]:
        X = info.data.get("X")
        if X is not None and len(y) != len(X):
            raise wrong(f"must have one number for each row of X: X has {len(X)} rows, y {len(y)}")
        return y


SOURCES = ("csv", "npz", "synthetic")


def source_of(value: object) -> str:
    """Say which kind of source a data mapping is."""
    if isinstance(value, BaseModel):
        return type(value).__name__.removesuffix("Data").lower()
    if not isinstance(value, Mapping):
        raise wrong("must be a mapping with one source: csv, npz, synthetic, or X and y")
    found = [source for source in SOURCES if source in value]
    if len(found) > 1:
        raise wrong(f"must have exactly one source, got {' and '.join(found)}")
    if not found and "X" not in value and "y" not in value:
        hints = [suggest(str(key), SOURCES) for key in value]
        hint = next((hint for hint in hints if hint.startswith("did")), "")
        raise wrong(
            "must have one source: csv, npz, synthetic, or X and y" + (hint and f"; {hint}")
        )
    if found and found[0] != "npz" and ("X" in value or "y" in value):
        raise wrong(f"must have exactly one source, got {found[0]} and inline X, y")
    return found[0] if found else "inline"


DataSource = Annotated[
    Annotated[CsvData, Tag("csv")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[SyntheticData, Tag("synthetic")]
    | Annotated[InlineData, Tag("inline")],
    Discriminator(source_of),
]

# --- training -----------------------------------------------------------------------------------

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
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value))
    if value in LATER_MODELS:
        raise not_yet(f"the model {value}")
    return value


class Normal(Section):
    """Normal numbers with mean 0."""

    std: NotNegative
    seed: Seed = 0


class Init(Section):
    """The start: one constant, normal numbers, or the numbers themselves."""

    constant: Number | None = None
    normal: Normal | None = None
    weight: list[Number] | None = None
    bias: list[Number] | None = None

    @model_validator(mode="after")
    def one_way(self) -> Init:
        given = [name for name in ("constant", "normal") if getattr(self, name) is not None]
        explicit = self.weight is not None or self.bias is not None
        if len(given) + explicit != 1:
            raise wrong(
                "must be zeros, {constant: C}, {normal: {std: S}} or {weight: [..], bias: [..]}"
            )
        if explicit and (self.weight is None or self.bias is None):
            raise wrong("must give both weight and bias")
        return self


def init_form(value: object) -> object:
    """Turn what `init` may hold into its full form."""
    if value == "zeros":
        return {"constant": 0}
    if isinstance(value, str):
        raise wrong(
            "must be zeros, {constant: C}, {normal: {std: S}} or {weight: [..], bias: [..]}, got "
            + shown(value)
        )
    if not isinstance(value, Mapping):
        return value
    flat = dict(value)
    for name in ("weight", "bias"):
        given = flat.get(name)
        if isinstance(given, int | float) and not isinstance(given, bool):
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

    @field_validator("dampening")
    @classmethod
    def nesterov_undampened(cls, dampening: float, info: ValidationInfo) -> float:
        if info.data.get("nesterov") and (info.data.get("momentum") == 0 or dampening != 0):
            raise wrong("nesterov needs a momentum above 0 and no dampening, as in torch")
        return dampening


def optimizer_form(value: object) -> object:
    """Turn what `optimizer` may hold into its full form."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name.lower() in LATER_OPTIMIZERS:
        raise not_yet(f"the optimizer {name}")
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise wrong("must be sgd, or {name: sgd, momentum: 0.9, ..}, got " + shown(value))
    return value


class WeightDecay(Section):
    """λ of each tensor, as torch's parameter groups have it."""

    weight: NotNegative
    bias: NotNegative


def weight_decay_form(value: object) -> object:
    """Turn what `weight_decay` may hold into its full form."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise wrong("must be a number ≥ 0, got " + shown(value))
        return {"weight": value, "bias": value}
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
    if not isinstance(value, Mapping):
        raise wrong("must be false or {seed: 0}, got " + shown(value))
    return value


def batch_size_form(value: object) -> object:
    """Turn what `batch_size` may hold into its full form."""
    if value == "full" or (
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**12
    ):
        return value
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
        for key in ("every", "factor", "steps", "floor", "values"):
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise wrong(f"{self.kind} needs `{key}`")
            if given and key not in needed + optional:
                raise wrong(
                    f"{self.kind} has no `{key}`; it takes {', '.join(needed + optional)}, per"
                )
        return self


LR_SCHEDULE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cosine": (("steps",), ("floor",)),
    "exponential": (("factor",), ()),
    "list": (("values",), ()),
    "step": (("every", "factor"), ()),
    "warmup": (("steps",), ()),
}


def none_form(value: object) -> object:
    """Turn what `none` may hold into its full form."""
    return None if value == "none" else value


class Dtype(Section):
    """The floating-point format of each side."""

    scratch: Literal["float32", "float64"]
    framework: Literal["float32", "float64"]


def dtype_form(value: object) -> object:
    """Turn what `dtype` may hold into its full form."""
    return {"scratch": value, "framework": value} if isinstance(value, str) else value


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
            raise wrong(f"no convention is called `{value}`; {suggest(value, NAMED)}")
        named = NAMED[value].convention
        return {key: getattr(named, key) for key in ConventionKeys.model_fields}
    if not isinstance(value, Mapping):
        raise wrong("must be a convention's name or a mapping of its keys, got " + shown(value))
    return value


class Tolerance(Section):
    """How many times the rounding bound a local difference may reach."""

    rounding: Positive = 8.0


def tolerance_form(value: object) -> object:
    """Turn what `tolerance` may hold into its full form."""
    if value == "exact":
        raise not_yet("the tolerance `exact`")
    if isinstance(value, Mapping):
        for key in value:
            if key in ("rtol", "atol"):
                raise not_yet("a tolerance of rtol and atol on the drift")
        if any(isinstance(inner, Mapping) or inner == "exact" for inner in value.values()):
            raise not_yet("a tolerance per tensor")
    return value


LATER_KEYS = {
    "scratch": "the user's own scratch code",
    "framework": "the user's own model and optimizer",
    "expect": "an expected verdict",
}
"""Keys that the spec will have, and what each is."""


class Spec(Section):
    """One experiment: one training, told once and done by both sides."""

    data: DataSource
    model: Annotated[ModelName, BeforeValidator(model_form)]
    loss: Annotated[LossName | None, Field(validate_default=True)] = None
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
    lr_schedule: Annotated[LrSchedule | None, BeforeValidator(none_form)] = None
    clip_norm: Annotated[Positive | None, BeforeValidator(none_form)] = None
    clip_value: Annotated[Positive | None, BeforeValidator(none_form)] = None
    dtype: Annotated[Dtype, BeforeValidator(dtype_form)] = Dtype(
        scratch="float64", framework="float64"
    )
    convention: Annotated[ConventionKeys, BeforeValidator(convention_form)] = ConventionKeys()
    compare: Annotated[list[Literal["parameters", "loss"]], Field(min_length=1)] = [
        "parameters",
        "loss",
    ]
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

    @field_validator("clip_value")
    @classmethod
    def one_clipping(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clip_norm") is not None:
            raise wrong("clip_norm and clip_value exclude each other; keep one")
        return value

    def named_convention(self) -> Convention:
        """Give the convention as the record that the trainers and formulas take."""
        return Convention(**self.convention.model_dump())


def shown(value: Any) -> str:
    """Show a value as it was found, shortened where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
