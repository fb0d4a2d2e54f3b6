"""The `data` of a spec: one of four sources, and what is done with its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from regcheck.errors import did_you_mean
from regcheck.rules.words import all_of
from regcheck.spec.sections.fields import (
    Count,
    FalseWord,
    Number,
    Or,
    Section,
    Seed,
    Word,
    is_number,
    raise_inside,
    shown,
    whole,
    wrong,
)


def label(value: object) -> object:
    """Take a column's name or a label as the text that a data file holds."""
    if isinstance(value, bool):
        raise wrong(f"must be a string, got {shown(value)}; quote it as in the file: '{value}'")
    return str(value) if is_number(value) else value


def file_name(value: str) -> str:
    """Refuse names that no file system takes."""
    if "\0" in value:
        raise wrong(f"must be a file's name, got {shown(value)}")
    return value


Label = Annotated[Word, BeforeValidator(label), Or(type="number")]
FileName = Annotated[Word, AfterValidator(file_name)]


class Standardize(Section):
    """Subtract the training rows' mean and divide by their standard deviation."""

    FORMS = "true, false or {ddof: 0}"
    SHORT: ClassVar[Any] = Literal[True]

    ddof: Annotated[int, BeforeValidator(whole), Field(ge=0, le=1)] = Field(
        0, description="1 divides the squared deviations by the rows less one, 0 by the rows."
    )

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        return {} if value is True else value


class HeldOut(Section):
    """The share of the rows that is held out; without a seed, the last rows."""

    FORMS = "a share above 0 and below 1, or {share: 0.2, seed: 0}"
    SHORT: ClassVar[Any] = Annotated[float, Field(gt=0.0, lt=1.0)]

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        description="The share of the rows that is held out, rounded up."
    )
    seed: Seed | None = Field(
        None, description="Chooses the rows at random; without it the last rows are held out."
    )

    @classmethod
    def full_form(cls, value: object, _: ValidationInfo) -> object:
        return {"share": value} if isinstance(value, float) and 0 < value < 1 else value


class Source(Section):
    """What is done with the rows, wherever they come from."""

    standardize: Annotated[Standardize | None, FalseWord] = Field(
        None,
        description="Subtract the training rows' mean and divide by their standard deviation.",
    )
    test: HeldOut | None = Field(
        None, description="The held-out share: the last rows, or {share: 0.2, seed: 0}."
    )


class CsvData(Source):
    """A CSV file with a header."""

    csv: FileName = Field(description="A CSV file with a header, relative to the spec.")
    target: Label = Field(description="The column that holds y.")
    features: Annotated[list[Label], Field(min_length=1)] | None = Field(
        None, description="The columns that make X; without it all other numeric ones."
    )
    positive: Label | None = Field(
        None, description="The label of the target that counts as 1; all others are 0."
    )

    @field_validator("features")
    @classmethod
    def different(cls, features: list[str] | None, info: ValidationInfo) -> list[str] | None:
        errors = []
        for index, name in enumerate(features or []):
            if name in (features or [])[:index]:
                errors.append(((index,), f"`{name}` is listed twice"))
            elif name == info.data.get("target"):
                errors.append(((index,), f"`{name}` is the target, and cannot be a feature"))
        raise_inside(errors)
        return features


class NpzData(Source):
    """Two arrays of a NumPy .npz file."""

    npz: FileName = Field(description="A NumPy .npz file, relative to the spec.")
    X: Word = Field("X", description="The name of the array of features.")
    y: Word = Field("y", description="The name of the array of targets.")


class Synthetic(Section):
    """Rows made from a seed."""

    rows: Count = Field(description="How many rows are made.")
    features: Count = Field(description="How many features each row has.")
    seed: Seed = Field(0, description="The same seed gives the same rows.")


class SyntheticData(Source):
    """Made-up rows: normal features, and a target that follows the model with noise."""

    synthetic: Synthetic = Field(description="Rows made from a seed, for a first look.")


def rows_form(value: object) -> object:
    """Refuse a flat X with one message, not one for each row."""
    if isinstance(value, list) and value and all(is_number(one) for one in value):
        raise wrong(f"must be a list of rows, like [[2.0], [4.0]], got {shown(value)}")
    return value


Row = Annotated[list[Number], Field(min_length=1)]


class InlineData(Source):
    """Rows written in the spec itself."""

    X: Annotated[list[Row], BeforeValidator(rows_form), Field(min_length=1)] = Field(
        description="The features: one list for each row, like [[2.0], [4.0]]."
    )
    y: Annotated[list[Number], Field(min_length=1)] = Field(
        description="The targets: one number for each row of X."
    )

    @field_validator("X")
    @classmethod
    def rectangular(cls, X: list[list[float]]) -> list[list[float]]:
        width = len(X[0])
        raise_inside(
            ((index,), f"must have {width} numbers like the first row, got {len(row)}")
            for index, row in enumerate(X)
            if len(row) != width
        )
        return X

    @field_validator("y")
    @classmethod
    def as_long_as_x(cls, y: list[float], info: ValidationInfo) -> list[float]:
        X = info.data.get("X")
        if X is not None and len(y) != len(X):
            raise wrong(f"must have one number for each row of X: X has {len(X)} rows, y {len(y)}")
        return y


SOURCES: dict[str, type[Source]] = {"csv": CsvData, "npz": NpzData, "synthetic": SyntheticData}
"""Each source by the key that only it has; data with X and y and none of these are inline."""

ONE_SOURCE = "one source: csv, npz, synthetic, or X and y"


def source_of(value: object) -> type[Source]:
    """Return which source a data mapping is; refuse data without one, or with several."""
    if not isinstance(value, Mapping):
        raise wrong(f"must be a mapping with {ONE_SOURCE}; got {shown(value)}")
    found = [key for key in SOURCES if key in value]
    if found != ["npz"] and ("X" in value or "y" in value):
        found.append("inline X, y")
    if len(found) > 1:
        raise wrong(f"must have exactly one source, got {all_of(found)}")
    if not found:
        hint = next(filter(None, (did_you_mean(str(key), SOURCES) for key in value)), "")
        raise wrong(f"must have {ONE_SOURCE}" + (hint and f"; {hint}"))
    return SOURCES.get(found[0], InlineData)


def data_form(value: object) -> object:
    """Read data as the source that they are."""
    return value if isinstance(value, Source) else source_of(value).model_validate(value)


DataSource = Annotated[CsvData | NpzData | SyntheticData | InlineData, BeforeValidator(data_form)]
