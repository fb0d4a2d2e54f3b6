"""How the lr changes from step to step, or from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from regcheck.rules.optimizers.lr_schedules import KEYS, KINDS, Kind
from regcheck.rules.settings import exact
from regcheck.rules.words import all_of
from regcheck.spec.sections.fields import (
    Count,
    NotNegative,
    Path,
    Positive,
    Section,
    in_range,
    raise_inside,
    shown,
    written,
)

Share = Annotated[float, BeforeValidator(in_range), Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, BeforeValidator(in_range), Field(gt=0.0, le=1.0)]


class LrSchedule(Section):
    """How the lr changes; t counts steps or epochs from 0, whichever `per` says.

    `regcheck.rules.optimizers.lr_schedules` has the formula of each kind.
    """

    FORMS = "none or a mapping like {kind: step, every: 5, factor: 0.1}"

    kind: Literal[
        "step", "multistep", "exponential", "cosine", "linear", "warmup", "one-cycle", "list"
    ] = Field(description="The formula; `regcheck explain lr_schedule` writes each one out.")
    every: Count | None = Field(None, description="step: the lr falls each so many steps.")
    milestones: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="multistep: the steps at which the lr falls."
    )
    factor: NotNegative | None = Field(
        None, description="step, multistep, exponential: the lr is multiplied by it (gamma)."
    )
    steps: Count | None = Field(
        None, description="cosine, linear, warmup, one-cycle: how long the change takes."
    )
    floor: NotNegative | None = Field(None, description="cosine: the lr at the end (eta_min).")
    start_factor: PositiveShare | None = Field(
        None, description="linear: the share of lr that it starts at."
    )
    end_factor: Share | None = Field(None, description="linear: the share of lr that it ends at.")
    pct_start: Share | None = Field(
        None, description="one-cycle: the share of the steps in which the lr rises."
    )
    anneal_strategy: Literal["cos", "linear"] | None = Field(
        None, description="one-cycle: by a cosine, or in a straight line."
    )
    div_factor: Positive | None = Field(
        None, description="one-cycle: the lr starts at lr over this."
    )
    final_div_factor: Positive | None = Field(
        None, description="one-cycle: it ends at the first lr over this."
    )
    three_phase: bool | None = Field(
        None, description="one-cycle: whether the lr falls to its start before it falls further."
    )
    values: Annotated[list[NotNegative], Field(min_length=1)] | None = Field(
        None, description="list: the lrs one by one; the last one stays."
    )
    per: Literal["step", "epoch"] = Field(
        "step", description="Whether the lr changes at each step or at each epoch."
    )

    @model_validator(mode="after")
    def own_keys(self) -> LrSchedule:
        raise_inside(self.errors())
        return self

    def errors(self) -> Iterator[tuple[Path, str]]:
        """Yield what is wrong with the keys of the kind, each with its place."""
        kind = self.rule
        known = (*kind.needs, *kind.options)
        given = [key for key in KEYS if getattr(self, key) is not None]
        for key in given:
            if key not in known:
                takes = f"it takes {', '.join(known)}, per"
                yield (key,), f"the kind {self.kind} has no such key; {takes}"
        missing = [key for key in kind.needs if key not in given]
        if missing:
            yield (), f"the kind {self.kind} needs {all_of(missing)}"
        milestones = self.milestones or []
        if any(late <= early for early, late in pairwise(milestones)):
            yield ("milestones",), f"must increase, got {shown(milestones)}"
        if self.kind == "one-cycle" and not missing:
            keys = self.all_keys
            if keys["pct_start"] * keys["steps"] == 1:
                text = (
                    "pct_start times steps is 1, where OneCycleLR divides by 0; change one of them"
                )
                yield ("pct_start",) if "pct_start" in given else (), text

    def with_keys(self, keys: Iterable[tuple[str, Any]]) -> LrSchedule:
        """Return the schedule with other values of some keys."""
        changes = {key: list(x) if isinstance(x, tuple) else x for key, x in keys}
        return self.model_copy(update=changes)

    def text(self, key: str) -> str:
        """Write a key with its value: `every 5`."""
        return f"{key} {self.value_text(key)}"

    def value_text(self, key: str) -> str:
        """Write a key's value as a spec does."""
        value = self.all_keys.get(key, self.per)
        if isinstance(value, str):
            return value
        return exact(value) if isinstance(value, float) else written(value, 2)

    @property
    def rule(self) -> Kind:
        """What the kind is."""
        return KINDS[self.kind]

    @property
    def all_keys(self) -> dict[str, Any]:
        """The keys that the kind has, with torch's defaults where they are left out."""
        given = {key: getattr(self, key) for key in (*self.rule.needs, *self.rule.options)}
        return given | {key: x for key, x in self.rule.options.items() if given[key] is None}
