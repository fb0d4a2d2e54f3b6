"""What the fields of a spec are made of: numbers, sections, and the errors they raise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from regcheck.errors import is_planned, refusal

Path = tuple[str | int, ...]
"""Where a value stands in a spec: keys, and positions in lists from 0."""


def wrong(text: str) -> PydanticCustomError:
    """Make an error whose text is told as it stands."""
    return PydanticCustomError("regcheck", "{text}", {"text": text})


def wrong_inside(errors: Iterable[tuple[Path, str]]) -> ValidationError:
    """Make errors about what stands inside a value, each with its path from there."""
    return ValidationError.from_exception_data(
        "regcheck",
        [InitErrorDetails(type=wrong(text), loc=path, input=None) for path, text in errors],
    )


def has_bias(info: ValidationInfo) -> bool:
    """Say whether the model of the spec that is read has a bias.

    It stands in the spec's fields before, or in the context of a section that is read on its own.
    """
    return bool((info.context or info.data).get("bias", True))


def refuse_bias(value: Mapping[Any, object], keys: Iterable[str], info: ValidationInfo) -> None:
    """Refuse those keys of a mapping that are about the bias, where the model has none."""
    text = "the model has no bias (`bias: false`); leave it out"
    found = [] if has_bias(info) else [key for key in keys if key in value]
    if found:
        raise wrong_inside(((key,), text) for key in found)


def refuse_planned(kind: str, name: object) -> None:
    """Refuse what specs will hold, and this version does not do."""
    if is_planned(kind, name):
        raise wrong(refusal(kind, name))


def whole(value: object) -> object:
    """Take `1e3` and `1000.0` as the whole numbers that they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def in_range(value: object) -> object:
    """Refuse whole numbers that no float can hold, which would end in an OverflowError."""
    if isinstance(value, int) and abs(value) >= 1 << 1024:
        raise wrong(f"must be a finite number, got {shown(value)}")
    return value


Number = Annotated[float, BeforeValidator(in_range), Field(allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(in_range), Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(in_range), Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=10**12)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**64)]
Word = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A mapping of a spec: unknown keys are errors, numbers are not guessed from words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def is_number(value: object) -> bool:
    """Say whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


LONGEST_SHOWN = 40
"""How much of a value is repeated in a message."""


def shown(value: object) -> str:
    """Show a value as a spec would write it, shortened where it is long.

    >>> shown({"seed": None, "X": [1, True]})
    '{seed: nothing, X: [1, true]}'
    """
    text = written(value, 4)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def written(value: object, levels: int) -> str:
    """Write a value, and so many levels of what is inside it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        inner = (f"{key}: {written(one, levels - 1)}" for key, one in value.items())
        return "{" + (", ".join(inner) if levels else "...") + "}"
    if isinstance(value, list):
        return (
            "[" + (", ".join(written(one, levels - 1) for one in value) if levels else "...") + "]"
        )
    return str(value)
