"""Types of what explains a divergence, and of the report in words."""

from __future__ import annotations

from typing import Any, Literal

from regcheck.report.schema.parts import Number, Part, Sides, Tensors


class Cause(Part):
    """A named difference of formulas that explains a divergence."""

    id: str
    """Its name, as `regcheck explain` takes it."""
    kind: Literal["update", "reporting"]
    """Whether the training differs, or the reported loss alone."""
    title: str
    """What the scratch side does, in words."""
    fix: str
    """What to change in the scratch code."""
    since: str
    """From when on it shows."""
    scratch_formula: str
    """The scratch side's rule, or loss."""
    framework_formula: str
    """Torch's rule, or loss."""
    factor: Number | None
    """The factor that was fitted, if the cause has one."""


class Fitted(Part):
    """An option that the scratch side's steps come to: a number, or a word."""

    scratch: Number | str | None
    """What they come to."""
    framework: Number | str | None
    """What torch has."""
    deviation: Number
    """The uncertainty that rounding leaves."""


class Deviation(Part):
    """The uncertainty that rounding leaves of the fitted numbers of a tensor."""

    lr: Number | None
    """Of its lr."""
    weight_decay: Number | None
    """Of its weight decay."""


class Diagnosis(Part):
    """What explains a divergence."""

    explained: bool
    """Whether all that differs is explained."""
    causes: list[Cause]
    """The causes; with all of them in torch's rule every step agrees."""
    alternatives: list[list[str]]
    """Other sets of causes that explain this run just as well."""
    told_apart_by: list[str | None]
    """For each of them, the run that would distinguish it."""
    alternative_factors: list[dict[str, Number]]
    """For each of them, the factors that were fitted."""
    only_in: list[str] | None
    """The tensors in which the causes act, if not in all."""
    steps: int
    """How many steps were replayed."""
    residual_ratio: Number | None
    """The largest difference that is left with the causes applied, in rounding bounds."""
    effective_weight_decay: Sides[dict[str, Number | None]]
    """The weight decay of each tensor that the steps show; null where they do not show it."""
    effective_lr: Sides[Number | dict[str, Number | None]]
    """The lr of each tensor that the scratch side's steps show, and torch's."""
    deviation: dict[str, Deviation]
    """The uncertainty of both, of each tensor."""
    effective_options: dict[str, Fitted]
    """Other options of the optimizer that the steps show."""
    matching: dict[str, Any] | None
    """The settings with which torch trains as the scratch side does, if there are any."""
    no_match_because: str | None
    """Why there are none."""
    fixed_spec: dict[str, Any] | None
    """Keys of the spec, with the values with which its sides agree."""
    stage: str | None
    """The stage that differs, as far as the diagnosis knows it."""
    clues: list[str]
    """What is known where nothing explains the divergence."""
    start: Tensors | None
    """Where the scratch side started, if not where the spec says."""


class Rule(Part):
    """One side's update rule."""

    side: str
    """Whose it is."""
    title: str
    """The name that it goes by."""
    lines: list[str]
    """Its formulas; none where it is a user's own and not known."""
    loss: str
    """The loss that it reports."""


class Value(Part):
    """One quantity on both sides."""

    what: str
    """Its name."""
    scratch: Number
    """The scratch side's number."""
    torch: Number
    """Torch's number."""
    difference: Number
    """How far apart they are."""
    unit: str
    """Empty, or a per cent sign."""


class Values(Part):
    """One entry at the first divergence."""

    place: str
    """The entry, the step, and the parameter before it."""
    values: list[Value]
    """The terms of the step in their order, the parameter after it last."""
    allowed: Number
    """What the difference may be."""
    allowed_by: str
    """By what: rounding, or the tolerance."""


class FinalValues(Part):
    """Where both sides ended, each by itself."""

    step: int
    """After which step."""
    parameters: list[Value]
    """The entries that differ most."""
    results: list[Value]
    """The reported loss and the accuracies."""


class Summary(Part):
    """The report in short, in words, as the terminal has it."""

    subject: str
    """The spec, its model, and its size."""
    headline: str
    """The verdict, the step, and the cause."""
    expectation: str
    """Whether that is what the spec expects; empty where it expects nothing."""
    rules: list[Rule]
    """Both sides' rules."""
    letters: list[str]
    """What the letters in them mean."""
    values: Values | None
    """One entry at the first divergence."""
    before: list[str]
    """Why the steps before could not show it."""
    ratio: str
    """The head of the column of what is judged."""
    ratio_means: list[str]
    """What that column holds, and above which number a step diverges."""
    verified: str
    """What putting the causes into torch's rule comes to."""
    ambiguous: list[str]
    """What explains the run just as well."""
    loss: list[str]
    """What explains the reported losses."""
    known: list[str]
    """What is known of a divergence without a cause."""
    next: list[str]
    """What to compare next, where no cause is named."""
    fixes: dict[str, list[str]]
    """What to change, by whom."""
    notes: list[str]
    """What else limits the verdict."""
    final: FinalValues | None
    """Where both sides ended."""
