"""What the fields of a spec are made of: numbers, sections, and the errors they raise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from regcheck.errors import did_you_mean, is_planned, refusal

Path = tuple[str | int, ...]
"""Where a value stands in a spec: keys, and positions in lists from 0."""


def wrong(text: str) -> PydanticCustomError:
    """Make an error whose text is reported as it stands."""
    return PydanticCustomError("regcheck", "{text}", {"text": text})


def one_of(choices: Iterable[str], value: object) -> object:
    """Return a value that is one of the choices; any other is an error."""
    known = list(choices)
    if value in known:
        return value
    raise wrong(choice_text(known, value))


def choice_text(choices: list[str], value: object) -> str:
    """Describe which values there are, and which one was meant, if it is near."""
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    text = f"must be one of {', '.join(choices)}, got {shown(value)}"
    return f"{text}; {hint}" if hint else text


def raise_inside(errors: Iterable[tuple[Path, str]]) -> None:
    """Raise errors about what stands inside a value, each with its path from there, if any."""
    details = [InitErrorDetails(type=wrong(text), loc=path, input=None) for path, text in errors]
    if details:
        raise ValidationError.from_exception_data("regcheck", details)


def refuse_planned(kind: str, name: object) -> None:
    """Refuse what specs will hold, and this version does not do."""
    if is_planned(kind, name):
        raise wrong(refusal(kind, name))


def has_bias(info: ValidationInfo) -> bool:
    """Whether the model of the spec that is read has a bias.

    It stands in the spec's fields before, or in the context of a section that is read on its own.
    """
    return bool((info.context or info.data or {}).get("bias", True))


def refuse_bias(value: Mapping[Any, object], keys: Iterable[str], info: ValidationInfo) -> None:
    """Refuse those keys of a mapping that are about the bias, where the model has none."""
    if not has_bias(info):
        text = "the model has no bias (`bias: false`); leave it out"
        raise_inside(((key,), text) for key in keys if key in value)


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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
Several = Annotated[int, BeforeValidator(whole), Field(ge=2, le=1000)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, lt=2**64)]
Word = Annotated[str, Field(min_length=1)]


class Or:
    """Another form of a value, in the spec's JSON Schema: what a validator before turns into it."""

    def __init__(self, **form: Any) -> None:
        self.form = form

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), self.form]}


class NoneBy(Or):
    """A word, or false, that stands for None."""

    def __init__(self, word: Literal["none", False]) -> None:
        super().__init__(const=word)
        self.word = word

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def form(value: object) -> object:
            return None if value == self.word and type(value) is type(self.word) else value

        return core_schema.no_info_before_validator_function(form, handler(source))


NoneWord, FalseWord = NoneBy("none"), NoneBy(False)


class Section(BaseModel):
    """A mapping of a spec: unknown keys are errors, numbers are not guessed from words.

    `FORMS` names what may stand for it. Whatever is shorter than the mapping, `full_form` turns
    into it before a field is checked, so each field has one type and each mistake one message;
    `SHORT` is its type, for the JSON Schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    FORMS: ClassVar[str] = "a mapping"
    SHORT: ClassVar[Any] = None

    @model_validator(mode="before")
    @classmethod
    def written_in_full(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, cls):
            return value
        value = cls.full_form(value, info)
        if not isinstance(value, Mapping):
            raise wrong(f"must be {cls.FORMS}, got {shown(value)}")
        return value

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        """Return the mapping for a short form; `info.data` holds the fields before the section."""
        return value

    @classmethod
    def description(cls, key: str) -> str:
        """Say in a line what a key is for."""
        return cls.model_fields[key].description or ""


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
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        inner = [f"{key}: {written(one, levels - 1)}" for key, one in value.items() if levels]
        return "{" + (", ".join(inner) if levels else "...") + "}"
    if isinstance(value, list):
        inner = [written(one, levels - 1) for one in value if levels]
        return "[" + (", ".join(inner) if levels else "...") + "]"
    return str(value)
