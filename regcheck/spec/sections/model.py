"""The `model` and the `loss` of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from regcheck.rules.losses import LOSSES, LOSSES_OF_HEAD, NO_OPTIONS, LossOptions
from regcheck.rules.models import HEADS, MODELS, Architecture
from regcheck.spec.sections.fields import NotNegative, Section, one_of, whole, wrong

MOST_UNITS = 2**16
"""Units of a layer at most."""

Units = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_UNITS)]


class Mlp(Section):
    """Layers with an activation between them; without a head, the loss says which."""

    FORMS = "a mapping like {hidden: [16, 8], activation: tanh}"

    hidden: Annotated[list[Units], Field(min_length=1)] = Field(
        description="The units of each hidden layer, like [16, 8]."
    )
    activation: Literal["gelu", "relu", "sigmoid", "tanh"] = Field(
        "tanh", description="The function between two layers."
    )
    head: Literal["linear", "logistic", "softmax"] | None = Field(
        None, description="What the outputs are taken for; without it the loss says which."
    )


class MlpModel(Section):
    """An mlp as a spec has it."""

    FORMS = "linear, logistic, softmax or {mlp: {hidden: [16, 8], activation: tanh}}"

    mlp: Mlp = Field(description="Layers with an activation between them.")


class CrossEntropy(Section):
    """What torch.nn.CrossEntropyLoss takes; the weights are those of the classes in turn."""

    FORMS = "a mapping like {label_smoothing: 0.1, weight: [1.0, 2.0, 1.0]}"

    label_smoothing: Annotated[NotNegative, Field(le=1.0)] = Field(
        0.0, description="The share of each target that is spread over all classes."
    )
    weight: Annotated[list[NotNegative], Field(min_length=1)] | None = Field(
        None, description="One weight for each class in turn."
    )

    @field_validator("weight")
    @classmethod
    def some_weight(cls, weight: list[float] | None) -> list[float] | None:
        if weight is not None and not any(weight):
            raise wrong(
                "must have a number above 0 for at least one class: the mean divides by their sum"
            )
        return weight


class CrossEntropyLoss(Section):
    """The cross entropy with options as a spec has it."""

    FORMS = "a loss by its name, or {cross_entropy: {label_smoothing: 0.1}}"

    cross_entropy: CrossEntropy = Field(
        description="The cross entropy, with torch.nn.CrossEntropyLoss's options."
    )


def model_form(value: object) -> object:
    """Read a model; raise the error that stands for a missing one."""
    if isinstance(value, PydanticCustomError):
        raise value
    if isinstance(value, Mapping) and "mlp" in value:
        return MlpModel.model_validate(value)
    if value == "mlp":
        raise wrong("needs its hidden layers, like {mlp: {hidden: [16, 8], activation: tanh}}")
    return value if value is None or isinstance(value, MlpModel) else one_of(MODELS, value)


def loss_form(value: object) -> object:
    """Read a loss by its name, or with options."""
    if isinstance(value, Mapping) and len(value) == 1:
        name = next(iter(value))
        if name == "cross_entropy":
            return CrossEntropyLoss.model_validate(value)
        if name in LOSSES:
            raise wrong(f"only cross_entropy takes options; write `loss: {name}`")
    return value if value is None or isinstance(value, CrossEntropyLoss) else one_of(LOSSES, value)


ModelName = Annotated[str, WithJsonSchema({"enum": [name for name in MODELS if name != "mlp"]})]
LossName = Annotated[str, WithJsonSchema({"enum": [*LOSSES]})]
Model = Annotated[ModelName | MlpModel | None, BeforeValidator(model_form)]
Loss = Annotated[LossName | CrossEntropyLoss | None, BeforeValidator(loss_form)]


def name_of_loss(loss: str | CrossEntropyLoss | None) -> str:
    """Return the name of a loss; empty where there is none."""
    return "cross_entropy" if isinstance(loss, CrossEntropyLoss) else loss or ""


def options_of(loss: str | CrossEntropyLoss | None) -> LossOptions:
    """Return the options of a loss."""
    if not isinstance(loss, CrossEntropyLoss):
        return NO_OPTIONS
    given = loss.cross_entropy
    weight = None if given.weight is None else tuple(given.weight)
    return LossOptions(given.label_smoothing, weight)


def head_of(model: str | MlpModel, loss: str | CrossEntropyLoss | None, data: Any) -> str | None:
    """Return what a model's outputs are taken for; None where an mlp leaves it open."""
    if isinstance(model, str):
        return model
    if model.mlp.head is not None:
        return model.mlp.head
    if loss is not None:
        return next(iter(LOSSES[name_of_loss(loss)].of))
    return "logistic" if getattr(data, "positive", None) is not None else None


def fitting_loss(loss: str | CrossEntropyLoss | None, info: ValidationInfo) -> Any:
    """Return the loss of a spec, by default that of the model's head; refuse one that does not fit.

    The data and the model stand in the spec's fields before.
    """
    model = info.data.get("model")
    if model is None:
        return loss
    head = head_of(model, loss, info.data.get("data"))
    if head is None:
        raise wrong(
            f"is required where the mlp has no head: one of {', '.join(LOSSES)}; or give the mlp "
            f"a head, one of {', '.join(HEADS)}"
        )
    known, name = LOSSES_OF_HEAD[head], name_of_loss(loss)
    if loss is not None and name not in known:
        what = f"the model {model}" if isinstance(model, str) else f"an mlp with the head {head}"
        hint = ""
        if head == "linear":
            hint = "; for labels 0 and 1, use `model: logistic`"
            hint = "; for classes, use `model: softmax`" if name == "cross_entropy" else hint
        raise wrong(f"{name} does not fit {what}, which takes {', '.join(known)}{hint}")
    return loss or known[0]


def architecture_of(
    model: str | MlpModel | None, loss: str | CrossEntropyLoss | None, data: Any, *, bias: bool
) -> Architecture | None:
    """Return what the model of a spec is made of; None where there is none, or it is open."""
    head = None if model is None else head_of(model, loss, data)
    if model is None or head is None:
        return None
    if isinstance(model, str):
        return Architecture(model, head, bias)
    return Architecture("mlp", head, bias, tuple(model.mlp.hidden), model.mlp.activation)
