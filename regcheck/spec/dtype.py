"""The `dtype` of a spec, and what float32 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo

from regcheck.spec.sections.fields import Path, Section

DtypeName = Literal["float32", "float64"]
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class Dtype(Section):
    """The floating-point format of each side."""

    FORMS = "float64, float32 or {scratch: float64, framework: float32}"
    SHORT: ClassVar[Any] = DtypeName

    scratch: DtypeName = Field(description="That of the NumPy side.")
    framework: DtypeName = Field(description="That of torch's side.")

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        both = value in ("float32", "float64")
        return {"scratch": value, "framework": value} if both else value


FLOAT64 = Dtype(scratch="float64", framework="float64")


def beyond_float32(trained: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return the numbers among a spec's values that float32 does not hold, with what is wrong."""
    errors: dict[tuple[str | int, float], tuple[Path, str]] = {}
    for path, number in numbers_in(dict(sorted(trained.items()))):
        if abs(number) > LARGEST_FLOAT32:
            text = f"float32 holds numbers up to 3.4e38, got {number:g}; use float64"
            # One weight_decay stands for both tensors', and is one mistake.
            errors.setdefault((path[0], number), (path, text))
    return list(errors.values())


def numbers_in(value: object, path: Path = ()) -> Iterator[tuple[Path, float]]:
    """Yield each floating-point number in mappings and lists, with its path."""
    if isinstance(value, float):
        yield path, value
    inner = value.items() if isinstance(value, dict) else ()
    for key, one in enumerate(value) if isinstance(value, list) else inner:
        yield from numbers_in(one, (*path, key))
