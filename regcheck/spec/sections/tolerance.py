"""How a spec's run is judged: what may differ by how much, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from regcheck.errors import refusal, suggest
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.convention import is_bias
from regcheck.spec.sections.fields import (
    Count,
    NotNegative,
    Positive,
    Section,
    Word,
    refuse_bias,
    refuse_planned,
    shown,
    wrong,
)

ROUNDING = 8.0
"""Rounding bounds that a local difference may reach unless a spec says otherwise."""


class Kinds(Section):
    """The kinds of a tolerance, of which one is given."""

    SHORT: ClassVar[Any] = Literal["exact"]

    rounding: Positive | None = Field(
        None, description="How many rounding bounds a one-step difference may reach."
    )
    rtol: NotNegative | None = Field(
        None, description="On the accumulated difference: atol + rtol |torch's|, entry by entry."
    )
    atol: NotNegative | None = Field(
        None, description="On the accumulated difference: atol + rtol |torch's|, entry by entry."
    )
    exact: SkipJsonSchema[Literal[True] | None] = None

    @classmethod
    def full_form(cls, value: object, info: ValidationInfo) -> object:
        if value == "exact":
            return {"exact": True}
        if isinstance(value, Mapping) and info.data is not None:  # a field of a spec
            if not value or "exact" in value:
                raise wrong(f"must be {cls.FORMS}, got {shown(value)}")
            refuse_bias(value, ["bias"], info)
        return value


class Tolerance(Kinds):
    """What one tensor, or the reported loss, may differ by: exactly one kind.

    rounding: the local difference may be K rounding bounds.
    rtol, atol: the drift may be atol + rtol |torch's|, entry by entry, as
    torch.testing.assert_close has it; one that is not given is 0.
    exact: the trajectories are the same, bit for bit.
    """

    FORMS = "{rounding: 8}, {rtol: 1e-5, atol: 1e-8} or exact"

    @model_validator(mode="after")
    def one_kind(self) -> Tolerance:
        if self.rounding is not None and self.on_drift:
            raise wrong(
                "takes either rounding, for one step, or rtol and atol, for all steps so far"
            )
        return self

    @cached_property  # it and the limits are asked for many times a step
    def on_drift(self) -> bool:
        """Whether the trajectories are compared, and not single steps."""
        return self.exact is not None or self.rtol is not None or self.atol is not None

    @cached_property
    def limit(self) -> float:
        """The ratio of difference and bound (or what is allowed) that may be reached."""
        return 1.0 if self.on_drift else self.limit_within

    @cached_property
    def limit_within(self) -> float:
        """The rounding bounds above which a stage within a step differs."""
        return self.rounding or ROUNDING

    def as_used(self) -> dict[str, float] | Literal["exact"]:
        """Return its numbers as a spec has them, those included that it left out."""
        if self.exact:
            return "exact"
        if self.on_drift:
            return {"rtol": self.rtol or 0.0, "atol": self.atol or 0.0}
        return {"rounding": self.limit}


class Tolerances(Kinds):
    """The tolerance of everything, and those that single tensors or the loss have of their own."""

    FORMS = f"{Tolerance.FORMS}, or one for each of weight, bias, loss"

    weight: Tolerance | None = Field(None, description="The weights' own tolerance.")
    bias: Tolerance | None = Field(None, description="The biases' own tolerance.")
    loss: Tolerance | None = Field(None, description="The reported losses' own tolerance.")

    @model_validator(mode="after")
    def one_kind(self) -> Tolerances:
        _ = self.common
        return self

    @cached_property
    def common(self) -> Tolerance:
        """The tolerance of what has none of its own."""
        return Tolerance(rounding=self.rounding, rtol=self.rtol, atol=self.atol, exact=self.exact)

    @cached_property
    def own(self) -> dict[str, Tolerance | None]:
        """The tolerances that single tensors or the loss have of their own."""
        return {"weight": self.weight, "bias": self.bias, "loss": self.loss}

    @cached_property
    def on_drift(self) -> bool:
        """Whether the trajectories of anything are compared, and not single steps alone."""
        return any(self.of(name).on_drift for name in self.own)

    def of(self, name: str) -> Tolerance:
        """Return the tolerance of a tensor, which is that of its kind, or of the loss."""
        found = self.by_name.get(name)
        if found is None:
            kind = "bias" if is_bias(name) else "weight"
            found = self.own.get(name if name == "loss" else kind) or self.common
            self.by_name[name] = found
        return found

    @cached_property
    def by_name(self) -> dict[str, Tolerance]:
        """The tolerances of the names that were asked for."""
        return {}


def weighed_limits(tolerances: Tolerances, names: Iterable[str]) -> dict[str, float]:
    """Return the limits by which a run's power is weighed: those of rounding, or stricter ones.

    A larger tolerance is a spec's own choice, and what passes by it does so knowingly.
    """
    return {name: min(tolerances.of(name).limit_within, ROUNDING) for name in names}


Verdict = Literal["equivalent", "diverged", "inconclusive"]

EXPECTED_CAUSES = [name for name, one in CAUSES.items() if not one.fitted]
"""The causes that a spec may expect: those with an open factor are left out."""


class Expect(Section):
    """What a run must find for its exit code to be 0."""

    FORMS = "{verdict: diverged, step: 2, cause: penalty-divided-by-batch}, each key optional"

    verdict: Verdict | None = Field(None, description="The verdict that the run must come to.")
    step: Count | None = Field(None, description="The step at which it must diverge.")
    cause: Annotated[Word, WithJsonSchema({"enum": EXPECTED_CAUSES})] | None = Field(
        None, description="A cause that must be among those that explain the run."
    )

    @field_validator("cause")
    @classmethod
    def known_cause(cls, cause: str | None) -> str | None:
        if cause is None or cause in EXPECTED_CAUSES:
            return cause
        refuse_planned("cause", cause)
        if cause in CAUSES:
            raise wrong(refusal("cause", cause))
        raise wrong(f"no cause is called {shown(cause)}; {suggest(cause, EXPECTED_CAUSES)}")

    @model_validator(mode="after")
    def possible(self) -> Expect:
        if self.verdict is None and self.step is None and self.cause is None:
            raise wrong("must have verdict, step or cause")
        if self.verdict == "equivalent" and (self.step or self.cause):
            raise wrong("an equivalent run has no step and no cause; expect the verdict alone")
        if self.verdict == "inconclusive" and self.cause:
            raise wrong("an inconclusive run has no cause")
        return self
