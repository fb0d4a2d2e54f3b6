"""The `init` of a spec: where both sides start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from regcheck.errors import suggest
from regcheck.rules.models import Architecture
from regcheck.spec.sections.fields import (
    NotNegative,
    Number,
    Path,
    Section,
    Seed,
    has_bias,
    in_range,
    is_number,
    raise_inside,
    refuse_bias,
    shown,
    wrong,
)
from regcheck.spec.sections.model import architecture_of


class Normal(Section):
    """Normal numbers with mean 0."""

    std: NotNegative = Field(description="The standard deviation of the numbers.")
    seed: Seed = Field(0, description="The same seed gives the same numbers.")


class Init(Section):
    """The start: one constant, normal numbers, or the numbers themselves.

    The numbers are `weight` and `bias` for one weight vector; where the model has no bias, the one
    here is 0 and stands for nothing. Of deeper models, and of those with an output for each class,
    `tensors` holds them by torch's names, in torch's shapes.
    """

    FORMS = "one of zeros, {constant: C}, {normal: {std: S, seed: N}} or {weight: [..], bias: [..]}"

    SHORT: ClassVar[Any] = Literal["zeros"]

    constant: Number | None = Field(None, description="Every parameter starts at this number.")
    normal: Normal | None = Field(None, description="Normal numbers with mean 0, from a seed.")
    weight: Annotated[list[Number], Field(min_length=1)] | None = Field(
        None, description="The weights themselves; of several outputs one row each."
    )
    bias: Annotated[list[Number], Field(min_length=1, max_length=1)] | None = Field(
        None, description="The bias itself; of several outputs one number each."
    )
    tensors: SkipJsonSchema[dict[str, list[Any]] | None] = None

    @classmethod
    def full_form(cls, value: object, info: ValidationInfo) -> object:
        if value == "zeros":
            return {"constant": 0}
        if not isinstance(value, Mapping):
            return value
        model = model_of(info)
        if model is not None and not model.is_one_vector:
            return with_tensors(value, list(model.tensors()))
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

    @model_validator(mode="after")
    def one_way(self) -> Init:
        given = [name for name in ("constant", "normal") if getattr(self, name) is not None]
        explicit = self.weight is not None or self.bias is not None or self.tensors is not None
        if len(given) + explicit != 1:
            raise wrong(f"must be {self.FORMS}")
        if self.tensors is None and explicit and (self.weight is None or self.bias is None):
            missing = "bias" if self.bias is None else "weight"
            raise wrong(f"must give both weight and bias; {missing} is missing")
        return self

    @model_serializer
    def flat(self) -> dict[str, Any]:
        """Return the mapping as a spec has it."""
        if self.constant is not None:
            return {"constant": self.constant}
        if self.normal is not None:
            return {"normal": self.normal.model_dump()}
        return self.numbers

    @property
    def numbers(self) -> dict[str, list[Any]]:
        """The numbers by the tensors' names, where the spec gives them; else nothing."""
        if self.tensors is not None:
            return self.tensors
        if self.weight is None or self.bias is None:
            return {}
        return {"weight": self.weight, "bias": self.bias}


def model_of(info: ValidationInfo) -> Architecture | None:
    """Return the built-in model of a spec, from its fields before."""
    found = info.data or {}
    fields = (found.get("model"), found.get("loss"), found.get("data"))
    return architecture_of(*fields, bias=has_bias(info))


def with_tensors(value: Mapping[Any, object], names: Sequence[str]) -> dict[str, object]:
    """Gather the tensors' numbers of a mapping; refuse other names, missing ones, other values."""
    known = ["constant", "normal", *names]
    raise_inside(
        ((str(key),), f"unknown key; {suggest(str(key), known)}")
        for key in value
        if key not in known
    )
    tensors = {name: value[name] for name in names if name in value}
    if not tensors:
        return dict(value)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise wrong(f"must give {', '.join(names)}; {missing[0]} is missing")
    raise_inside(
        error
        for name, numbers in tensors.items()
        for error in bad_numbers(numbers, (name,), 1 if name.endswith("bias") else 2)
    )
    return {key: one for key, one in value.items() if key not in names} | {"tensors": tensors}


def bad_numbers(value: object, path: Path, levels: int) -> Iterator[tuple[Path, str]]:
    """Yield what is wrong with a list of numbers, or with a list of rows of them."""
    if levels == 0:
        in_range(value)
        if not is_number(value) or not abs(float(value)) < float("inf"):  # type: ignore[arg-type]
            yield path, f"must be a finite number, got {shown(value)}"
    elif not isinstance(value, list) or not value:
        what = "rows of numbers, one row for each output" if levels == 2 else "numbers"
        yield path, f"must be a list of {what}, got {shown(value)}"
    else:
        for index, one in enumerate(value):
            yield from bad_numbers(one, (*path, index), levels - 1)
