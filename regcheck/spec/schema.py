"""What a spec may say: one model a mapping, one field a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from regcheck.rules.convention import Convention
from regcheck.rules.losses import LossOptions
from regcheck.rules.models import MODELS, ONE_LAYER, Architecture
from regcheck.spec.dtype import FLOAT64, Dtype, beyond_float32
from regcheck.spec.sections.data import DataSource
from regcheck.spec.sections.fields import (
    Count,
    FalseWord,
    NoneWord,
    NotNegative,
    Path,
    Positive,
    Section,
    has_bias,
    raise_inside,
    wrong,
)
from regcheck.spec.sections.init import Init
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.spec.sections.model import (
    Loss,
    Model,
    architecture_of,
    fitting_loss,
    name_of_loss,
    options_of,
)
from regcheck.spec.sections.sides import (
    Framework,
    Scratch,
    UserCode,
    own_optimizer_needed,
    textbook_of,
)
from regcheck.spec.sections.tolerance import Expect, Tolerances
from regcheck.spec.sections.training import (
    ConventionKeys,
    Optimizer,
    Shuffle,
    TorchSettings,
    WeightDecay,
    batch_size_form,
    rule_of,
)

BatchSize = Annotated[
    Annotated[int, Field(ge=1)] | Literal["full"], BeforeValidator(batch_size_form)
]
Clip = Annotated[Positive | None, NoneWord]


class Spec(Section):
    """One experiment: one training, described once and done by both sides."""

    data: DataSource = Field(description="The rows: csv, npz, synthetic, or X and y.")
    model: Model = Field(None, description="What is trained; none where both sides are your own.")
    loss: Loss = Field(
        None, validate_default=True, description="The loss; by default that of the model."
    )
    bias: bool = Field(True, description="Whether the built-in model has a bias.")
    init: Init = Field(Init(constant=0.0), description="Where both sides start.")
    optimizer: Optimizer = Field(
        "sgd",
        validate_default=True,
        description="torch's optimizer: its name, or {name: sgd, momentum: 0.9}.",
    )
    lr: NotNegative = Field(description="The learning rate.")
    weight_decay: WeightDecay = Field(
        WeightDecay(weight=0.0, bias=0.0), description="λ, as torch's optimizer is given it."
    )
    epochs: Count = Field(1, description="How often all rows are passed.")
    batch_size: BatchSize = Field("full", description="Rows of a batch; the last may be smaller.")
    shuffle: Annotated[Shuffle | None, FalseWord] = Field(
        None, description="A new order of the rows each epoch; both sides see the same."
    )
    drop_last: bool = Field(False, description="Leave out a last, smaller batch.")
    accumulate: Count = Field(
        1, description="Micro-batches of batch_size rows in each step; their gradients' mean."
    )
    lr_schedule: Annotated[LrSchedule | None, NoneWord] = Field(
        None, description="How the lr changes, by torch's own scheduler."
    )
    clip_norm: Clip = Field(None, description="The largest norm of all gradients together.")
    clip_value: Clip = Field(None, description="The largest size of a gradient's entry.")
    dtype: Dtype = Field(FLOAT64, description="float64 or float32, of both sides or of each.")
    convention: ConventionKeys = Field(
        ConventionKeys(), description="What the built-in scratch side does: a name, or its keys."
    )
    scratch: Scratch = Field(
        None, description="Your own training loop in its place, like train.py:train."
    )
    framework: Framework = Field(
        None, description="Your own torch model, like model.py:build; or torch's own settings."
    )
    compare: Annotated[list[Literal["parameters", "loss"]], Field(min_length=1)] = Field(
        ["parameters", "loss"], description="What is judged."
    )
    tolerance: Tolerances = Field(
        Tolerances(), description="What may differ by how much: rounding, rtol and atol, or exact."
    )
    expect: Expect | None = Field(
        None, description="What the run must find for the exit code to be 0."
    )
    golden: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A recording of torch's steps, by `--record`, that they must be."
    )

    @field_validator("loss", "bias")
    @classmethod
    def with_a_model(cls, value: object, info: ValidationInfo) -> object:
        given = value is not None if info.field_name == "loss" else not value
        if given and info.data.get("model", "") is None:
            raise wrong("needs a `model`; leave it out where the framework side is your own")
        return value

    @field_validator("loss")
    @classmethod
    def fits_the_model(cls, loss: Any, info: ValidationInfo) -> Any:
        return fitting_loss(loss, info)

    @field_validator("optimizer", "framework")
    @classmethod
    def matrices_where_torch_takes_them_alone(cls, value: object, info: ValidationInfo) -> object:
        inside = ("optimizer",) if isinstance(value, TorchSettings) else ()
        optimizer = value.optimizer if isinstance(value, TorchSettings) else value
        built_in = info.data.get("model") is not None and has_bias(info)
        if built_in and isinstance(optimizer, Optimizer) and rule_of(optimizer.name).matrices:
            kind = rule_of(optimizer.name).torch
            text = f"torch.optim.{kind} accepts only matrices, and a bias is a vector: "
            text += "set `bias: false`"
            raise_inside([(inside, text)])
        return value

    @field_validator("scratch")
    @classmethod
    def one_scratch_side(cls, scratch: object, info: ValidationInfo) -> object:
        convention, optimizer = info.data.get("convention"), info.data.get("optimizer")
        textbook = textbook_of(scratch)
        if scratch is not None and convention not in (None, ConventionKeys()):
            own = f"is the textbook rule {textbook}" if textbook else "is your own code"
            text = f"convention is for the built-in scratch side, and this one {own}"
            raise wrong(f"{text}; leave convention out")
        if textbook and isinstance(optimizer, Optimizer) and optimizer.name != textbook:
            raise wrong(
                f"{textbook} is not the spec's optimizer, {optimizer.name}: name one of them in "
                "both places, or leave optimizer out"
            )
        return scratch

    @field_validator("framework")
    @classmethod
    def own_beside_a_textbook(cls, framework: object, info: ValidationInfo) -> object:
        textbook = textbook_of(info.data.get("scratch"))
        if textbook and isinstance(framework, TorchSettings):
            raise own_optimizer_needed(textbook)
        return framework

    @field_validator("compare")
    @classmethod
    def each_once(cls, compare: list[str], info: ValidationInfo) -> list[str]:
        textbook = textbook_of(info.data.get("scratch"))
        if textbook and "parameters" not in compare:
            raise wrong(f"must contain parameters: `scratch: {textbook}` reports no loss")
        if len(set(compare)) < len(compare):
            raise wrong("must contain parameters and loss at most once each")
        return compare

    @field_validator("clip_value")
    @classmethod
    def one_clipping(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clip_norm") is not None:
            raise wrong("clip_norm and clip_value exclude each other; keep one")
        return value

    @classmethod
    def full_form(cls, content: object, _: ValidationInfo) -> object:
        """Put an error in the place of a missing model: so the others are reported with it.

        An optimizer that `scratch` names is the spec's where it has none, and needs a framework
        side.
        """
        if not isinstance(content, Mapping):
            return content
        name = content.get("scratch")
        textbook = isinstance(name, str) and textbook_of(name.strip().lower())
        if textbook:
            needed = {"optimizer": textbook, "framework": own_optimizer_needed(textbook)}
            content = {**needed, **content}
        if content.get("model") is not None or textbook:
            return content
        scratch, framework = content.get("scratch"), content.get("framework")
        own = framework is not None and not isinstance(framework, Mapping | TorchSettings)
        if scratch is not None and own:
            return content
        models = ", ".join(MODELS)
        text = f"is required: one of {models}"
        if scratch is not None:
            text = f"is required: the built-in framework side needs one of {models}; "
            text += "or name a function for `framework` too"
        elif own:
            text = f"is required: the built-in scratch side needs one of {models}; "
            text += "or give `scratch` too"
        return {**content, "model": wrong(text)}

    @model_validator(mode="after")
    def within_float32(self) -> Spec:
        if "float32" not in (self.dtype.scratch, self.dtype.framework):
            return self
        trained = self.model_dump(include=self.model_fields_set - {"data", "expect", "tolerance"})
        raise_inside(beyond_float32(trained))
        return self

    @model_validator(mode="after")
    def decays_only_where_torch_does(self) -> Spec:
        torchs = self.torch_settings or TorchSettings(lr=self.lr)
        decay = torchs.weight_decay or self.weight_decay
        sides = {
            ("weight_decay",): (self.optimizer, self.weight_decay),
            ("framework",): (torchs.optimizer or self.optimizer, decay),
        }
        errors: list[tuple[Path, str]] = [
            (path, f"torch.optim.{rule.torch} takes no weight decay; leave it out, or set it to 0")
            for path, (optimizer, decays) in sides.items()
            if not (rule := rule_of(optimizer.name)).weight_decay and (decays.weight or decays.bias)
        ]
        raise_inside(errors[:1])
        return self

    @property
    def torch_settings(self) -> TorchSettings | None:
        """What torch's optimizer is given in the place of the spec's own, if anything."""
        return self.framework if isinstance(self.framework, TorchSettings) else None

    @property
    def processes(self) -> int:
        """How many processes train torch's side."""
        return (self.torch_settings and self.torch_settings.processes) or 1

    @property
    def recording(self) -> str:
        """What the scratch side is where it is a recording of torch's; else empty."""
        return str(getattr(self.scratch, "recording", ""))

    @property
    def own_framework(self) -> UserCode | None:
        """The user's own framework side, if there is one."""
        return None if isinstance(self.framework, TorchSettings) else self.framework

    @property
    def architecture(self) -> Architecture | None:
        """What the built-in model is made of, if the spec has one."""
        return architecture_of(self.model, self.loss, self.data, bias=self.bias)

    @property
    def loss_name(self) -> str:
        """The name of the loss; empty where it is the user's own."""
        return name_of_loss(self.loss)

    @property
    def loss_options(self) -> LossOptions:
        """The options of the loss."""
        return options_of(self.loss)

    @property
    def textbook(self) -> str | None:
        """The optimizer whose formula stands beside the user's own, if there is one."""
        return textbook_of(self.scratch)

    @property
    def decays(self) -> dict[str, float]:
        """λ of each tensor that the model has; of a user's own, of a weight and a bias."""
        return self.weight_decay.of((self.architecture or ONE_LAYER).tensors())

    def judged(self, names: Iterable[str]) -> list[str]:
        """Return those tensors' names that `compare` has judged, and `loss` where it is."""
        return [
            name for name in names if ("loss" if name == "loss" else "parameters") in self.compare
        ]

    def named_convention(self) -> Convention:
        """Return the convention as the record that the trainers and formulas take."""
        given = self.convention.model_dump(exclude_unset=True)
        return self.optimizer.settings(self.lr, self.decays).torchs._replace(**given)
