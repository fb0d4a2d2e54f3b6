"""The whole JSON report as types, and its JSON Schema, which `report.schema.json` holds."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema

from regcheck.report.schema.explanation import Diagnosis, Summary
from regcheck.report.schema.parts import (
    Amplification,
    Array,
    Divergence,
    LossDivergence,
    Needed,
    Number,
    Part,
    Row,
    Sample,
    Saturation,
    Sides,
    Stage,
)

NAME = "report.schema.json"


class Rounding(Part):
    """A tolerance of the one-step difference."""

    rounding: Number
    """How many rounding bounds it may be."""


class OnDrift(Part):
    """A tolerance of the accumulated difference, which may be atol + rtol |torch's|."""

    rtol: Number
    """The relative part."""
    atol: Number
    """The absolute part."""


class FinalSide(Part):
    """Where a side ended: a key for each parameter, and these."""

    __pydantic_extra__: dict[str, Array | Number | None] = Field(init=False)

    loss: Number | None
    """The reported loss of the last step."""
    accuracy: dict[str, Number | None] | None
    """The shares of training and held-out samples that are classified rightly."""


class Final(Part):
    """Where both sides ended, each by itself."""

    scratch: FinalSide
    """The scratch side."""
    framework: FinalSide
    """Torch's side."""
    max_drift: Number
    """The largest accumulated difference of any entry after any step."""


class Environment(Part):
    """What the run was made with."""

    python: str
    """Python's version."""
    numpy: str
    """NumPy's version."""
    torch: str
    """Torch's version."""
    threads: int
    """The threads that torch had."""
    platform: str
    """The system."""


class Run(Part):
    """A spec that was run."""

    regcheck: str
    """The version of regcheck."""
    spec: str
    """The spec's path."""
    verdict: Literal["equivalent", "diverged", "inconclusive"]
    """Whether the two trainings are the same."""
    reason: str | None
    """Of the verdict, where the rest does not show it."""
    expected: bool | None
    """Whether the run is what its spec expects; null where it expects nothing."""
    dtypes: Sides[str]
    """The precision of both sides."""
    steps: int
    """The steps that the spec asks for."""
    compared: int
    """The steps that were compared and judged."""
    first_divergence: Divergence | None
    """Where a parameter first exceeds its tolerance."""
    first_loss_divergence: LossDivergence | None
    """Where the reported losses first do."""
    first_by_stage: dict[Stage, int]
    """The first step at which each stage differs."""
    first_unjudged: int | None
    """The first step whose parameters could not be judged."""
    first_loss_unjudged: int | None
    """The first step whose losses could not be judged."""
    convention_differences: dict[str, Sides[str]]
    """In what the spec's convention differs from torch's."""
    classes: list[str] | None
    """The names of the targets' classes."""
    diagnosis: Diagnosis | None
    """What explains a divergence."""
    not_distinguished: list[str]
    """Causes that concern this spec and that this run could not have shown."""
    not_distinguished_because: dict[str, str]
    """Why, for each of them."""
    tolerance: dict[str, Rounding | OnDrift | Literal["exact"]]
    """What each parameter, and the loss, may differ by."""
    smallest_tolerance: dict[str, Needed]
    """With what each of them would have passed."""
    amplification: Amplification | None
    """Where the training itself amplifies rounding."""
    saturation: Saturation | None
    """Where outputs saturate."""
    sample: Sample | None
    """One step in full."""
    final: Final
    """Where both sides ended."""
    environment: Environment
    """Versions and the system."""
    golden: str | None
    """The recording whose steps torch's are, where the spec names one."""
    summary: Summary
    """The report in short."""
    line: int | None = None
    """The line of the spec that the verdict is about."""
    rows: list[Row]
    """Every compared step."""


class Failed(Part):
    """A spec that could not be run."""

    regcheck: str
    """The version of regcheck."""
    spec: str
    """The spec's path."""
    error: str
    """All that is wrong, with the places."""
    line: int | None = None
    """The line of the spec that the first complaint is about."""


class Envelope(Part):
    """What `regcheck run --json` and `--report FILE.json` write."""

    schema_version: Literal[1]
    """Raised when a key is renamed or goes; keys may be added without."""
    runs: Annotated[list[Run | Failed], Field(min_length=1)]
    """A run for each spec, in the order of the command line."""


class Untitled(GenerateJsonSchema):
    """JSON Schema without titles, which would repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Leave a key without a title."""
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the report."""
    dialect = {"$schema": Untitled.schema_dialect, "title": "regcheck report"}
    found = Envelope.model_json_schema(schema_generator=Untitled)
    return dialect | {key: value for key, value in found.items() if key != "title"}


def schema_text() -> str:
    """Return it as the package's file has it."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
