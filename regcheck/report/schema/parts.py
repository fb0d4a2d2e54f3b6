"""Types that several parts of the JSON report have."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeAliasType

Number = TypeAliasType("Number", float | Literal["nan", "inf", "-inf"])
"""A number in full precision; a word where it is not finite."""

Array = TypeAliasType("Array", "Number | list[Array]")
"""A tensor's entries, nested as its shape is."""

Tensors = dict[str, Array]
"""A tensor for each parameter's name."""

Stage = Literal["initial", "forward", "gradient", "penalty", "optimizer", "update"]

T = TypeVar("T")


class Part(BaseModel):
    """Keys that are always there; others may be added."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Sides(Part, Generic[T]):
    """The same of both sides."""

    scratch: T
    """Of the NumPy side, or of the user's own function."""
    framework: T
    """Of torch's side."""


class Difference(Part):
    """One entry of a tensor on both sides."""

    tensor: str
    """The parameter's name."""
    index: list[int]
    """The entry's place in it, from 0."""
    scratch: Number
    """The scratch side's number."""
    framework: Number
    """Torch's number."""
    difference: Number
    """How far apart they are."""
    bound: Number
    """What rounding can cause; where the tolerance is on the drift, what it allows."""
    ratio: Number
    """The difference in bounds."""


class Divergence(Difference):
    """The first step at which a parameter does not keep its tolerance, after the update."""

    step: int
    """The step, from 1."""
    epoch: int
    """Its epoch, from 1."""
    batch: int
    """Its batch within the epoch, from 1."""
    stage: Stage
    """The first stage within the step that differs."""
    on: Literal["drift", "local"]
    """Whether the accumulated difference is judged, or that of one step."""
    within: Difference
    """The difference at that stage, in the stage's own quantity."""


class LossDivergence(Part):
    """The first step at which the reported losses differ, at the same parameters."""

    step: int
    """The step, from 1."""
    scratch: Number
    """The scratch side's loss."""
    framework: Number
    """Torch's loss."""
    difference: Number
    """How far apart they are."""
    bound: Number
    """What rounding can cause, or the tolerance allows."""


class Needed(Part):
    """The smallest tolerance of each kind that would have passed; "inf" where none would."""

    rounding: Number
    """In rounding bounds, of the one-step difference."""
    rtol: Number
    """Of the accumulated difference, beside the spec's atol."""
    atol: Number
    """Of the accumulated difference, beside the spec's rtol."""
    rtol_alone: Number
    """The rtol with an atol of 0."""
    atol_alone: Number
    """The atol with an rtol of 0."""
    exact: bool
    """Whether the bits were the same."""


class Amplification(Part):
    """Accumulated difference beyond what all steps' rounding adds up to."""

    first_step: int
    """The first step with any."""
    step: int
    """The step with the most."""
    factor: Number
    """By how much it is beyond that, there."""
    drift: Number
    """The accumulated difference there."""


class Saturation(Part):
    """Where outputs saturate: shares of a step's samples."""

    first: int
    """The first step with any."""
    first_share: Number
    """Its share."""
    last: int
    """The last step that was compared."""
    last_share: Number
    """Its share."""


class SampleStep(Part):
    """One side's step; what it does not report is null."""

    loss: Number | None
    """The reported loss."""
    gradient: Tensors | None
    """The gradient of the loss of the data."""
    penalty: Tensors | None
    """What the penalty takes from the parameters, times the lr."""
    shift: Tensors | None
    """What the step takes from the parameters."""
    after: Tensors
    """The parameters after it."""


class Sample(Part):
    """The step of the first divergence, or step 1, in full, both sides from the same parameters."""

    step: int
    """The step, from 1."""
    before: Tensors
    """The parameters before it."""
    scratch: SampleStep
    """The scratch side's step."""
    framework: SampleStep
    """Torch's step."""


class RowLoss(Part):
    """The reported losses of a step."""

    scratch: Number
    """The scratch side's loss, "nan" where it reports none."""
    framework: Number
    """Torch's loss."""
    ratio: Number
    """Their difference at the same parameters, in rounding bounds."""
    tolerance_ratio: Number
    """The ratio that the loss's tolerance limits."""


class RowTensor(Part):
    """One tensor in a step."""

    drift: Number
    """The largest accumulated difference: each side by itself."""
    local: Number
    """The one-step difference, both from the same parameters, where it is most beyond its bound."""
    bound: Number
    """What rounding can cause there."""
    ratio: Number
    """The one-step difference in bounds."""
    tolerance_ratio: Number
    """The ratio that its tolerance limits: that one, or the drift over what is allowed."""


class Row(Part):
    """One compared step."""

    step: int
    """The step, from 1."""
    epoch: int
    """Its epoch, from 1."""
    batch: int
    """Its batch within the epoch, from 1."""
    loss: RowLoss
    """The reported losses."""
    tensors: dict[str, RowTensor]
    """Each parameter, by its name."""
