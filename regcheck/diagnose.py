"""Why two trainings part: the causes that explain it, proved, or what can be said without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from regcheck.causes import CAUSES, Change, put_in
from regcheck.convention import NO_SLIPS, TORCH, Convention
from regcheck.history import History, Record
from regcheck.hypotheses import Explanation, Fit, Replay
from regcheck.numpy_trainer import NumpyTrainer
from regcheck.orders import other_orders
from regcheck.problem import Array, Parameters, Problem
from regcheck.reporting import Reporting, Rule, explain_losses
from regcheck.scales import Scales, effective_scales, other_penalty, recursion
from regcheck.schedule import Batch
from regcheck.search import Search
from regcheck.telling import telling_apart
from regcheck.training import Training

SINGLE = 2.0**29
"""How much coarser float32 rounds than float64."""


class Observed(NamedTuple):
    """What a run gives to its diagnosis.

    Attributes:
        history: its steps.
        torch: torch's rule in NumPy, by the settings that the framework side really has.
        sees_rows: whether NumPy can pass over the rows itself.
        training: with those settings.
        convention: what the spec says of the scratch side.
        limits: bounds that each tensor, and the loss, may differ by.
        parted: whether the parameters and the reported losses parted.
        visible: the causes that the run could have shown; None where it is not known.
        single: whether all that the scratch side gave are numbers of float32, in a float64 run.
        starts_apart: whether the sides started apart.
        leads: whether the scratch side leads, so that its start is not known.
        loss_at: gives torch's loss at any parameters.
        gradient: the scratch side's own gradient at the first divergence, where it tells one.
        first: the step of the first divergence of the parameters.
    """

    history: History
    torch: NumpyTrainer
    sees_rows: bool
    training: Training
    convention: Convention
    limits: Mapping[str, float]
    parted: bool
    loss_parted: bool
    visible: frozenset[str] | None
    single: bool
    starts_apart: bool
    leads: bool
    loss_at: Callable[[Parameters, Batch], float] | None
    gradient: Parameters | None
    gradient_bound: Parameters | None
    first: int | None


@dataclass(frozen=True)
class Diagnosis:
    """What explains a divergence.

    Attributes:
        explained: whether all that parted is explained.
        explanations: the sets of causes that explain the update, the plainest first; the rest
            are alternatives. Empty where nothing explains it, or the updates agree.
        apart: what would tell each explanation from the first; empty for the first.
        reporting: what explains the reported losses; None where they agree, or nothing does.
        scales: the effective lr and weight decay of each tensor.
        steps: how many steps were replayed.
        stage: the stage within a step at which the sides part, by the diagnosis; None if unknown.
        clues: what is known where nothing explains the update, in sentences.
        start: where the scratch side started, if elsewhere than the spec says.
    """

    explained: bool
    explanations: tuple[Explanation, ...] = ()
    apart: tuple[str, ...] = ()
    reporting: Reporting | None = None
    loss_parted: bool = False
    scales: Mapping[str, Scales] = field(default_factory=dict)
    steps: int = 0
    stage: str | None = None
    clues: tuple[str, ...] = ()
    start: Parameters | None = None

    @property
    def best(self) -> Explanation | None:
        """Give the plainest explanation."""
        return self.explanations[0] if self.explanations else None

    @property
    def causes(self) -> tuple[str, ...]:
        """Name the causes of the plainest explanation, and those of the reporting."""
        own = self.best.causes if self.best else ()
        return (*own, *(self.reporting.causes if self.reporting else ()))

    def names(self, cause: str) -> bool:
        """Say whether a cause is in any explanation, or in that of the losses."""
        told = self.reporting.causes if self.reporting else ()
        return cause in told or any(cause in one.causes for one in self.explanations)


def diagnose(seen: Observed) -> Diagnosis:
    """Find what explains a divergence."""
    if not len(seen.history):
        return Diagnosis(explained=False)
    replay = Replay(seen.history, seen.torch, seen.limits, sees_rows=seen.sees_rows)
    found: tuple[Explanation, ...] = ()
    start = None
    if seen.parted or seen.starts_apart:
        found, replay, start = explain_updates(seen, replay)
    scales = effective_scales(replay)
    agree = not seen.parted or bool(found)
    reporting = reported(seen, found) if seen.loss_parted else None
    clues, stage = ((), stage_of(found)) if agree else without_cause(seen, replay, scales)
    return Diagnosis(
        explained=agree and (reporting is not None or not seen.loss_parted),
        explanations=found,
        apart=telling_apart(seen.torch.problem, found),
        reporting=reporting,
        loss_parted=seen.loss_parted,
        scales=scales,
        steps=len(seen.history),
        stage=stage,
        clues=tuple(clues),
        start=start,
    )


def explain_updates(
    seen: Observed, replay: Replay
) -> tuple[tuple[Explanation, ...], Replay, Parameters | None]:
    """Find the sets of causes that make the scratch side's steps.

    Gives them with the replay that they hold in, and where the scratch side started.
    """
    plain = replay.residual({})
    if plain <= 1:
        cause = "initial-parameters" if seen.starts_apart else "precision"
        return (Explanation((cause,), {}, plain),), replay, None
    found = searched(seen, replay)
    if found:
        return found, replay, None
    if seen.single:  # the scratch side rounds as float32 does
        limits = {name: SINGLE * limit for name, limit in seen.limits.items()}
        coarse = Replay(seen.history, seen.torch, limits, sees_rows=seen.sees_rows)
        found = in_single(seen, coarse)
        if found:
            return found, coarse, None
    if seen.leads:
        found, start = from_other_inputs(seen, replay)
        return found, replay, start
    return (), replay, None


def in_single(seen: Observed, coarse: Replay) -> tuple[Explanation, ...]:
    """Find what explains the steps where rounding is that of float32."""
    residual = coarse.residual({})
    if residual <= 1:
        return (Explanation(("precision",), {}, residual),)
    return tuple(replace(one, causes=(*one.causes, "precision")) for one in searched(seen, coarse))


def from_other_inputs(
    seen: Observed, replay: Replay
) -> tuple[tuple[Explanation, ...], Parameters | None]:
    """Find other rows, or another start, from which a user's code makes its steps by the rule."""
    if seen.sees_rows and seen.training.batch_rows[0] < seen.training.train_rows:
        found = tuple(in_other_orders(seen, replay))
        if found:
            return found, None
    if seen.first == 1:
        for causes, change in alone(seen):
            elsewhere = from_elsewhere(seen, replay, causes, change)
            if elsewhere is not None:
                return (elsewhere[0],), elsewhere[1]
    return (), None


def searched(seen: Observed, replay: Replay) -> tuple[Explanation, ...]:
    """Search the catalogue."""
    return tuple(Search(replay, seen.training, seen.convention, seen.visible).run())


def in_other_orders(seen: Observed, replay: Replay) -> Iterator[Explanation]:
    """Find the orders of the rows in which torch's rule makes the scratch side's steps."""
    for note, batches in other_orders(seen.torch.problem.schedule).items():
        state, largest = seen.torch.start(), 0.0
        for record, batch in zip(seen.history.records(), batches, strict=False):
            before = seen.history.split(record.before)
            update = seen.torch.step(state._replace(parameters=before), batch)
            state = update.state
            after = seen.history.flat(update.step.after)
            largest = max(largest, float(replay.ratios(record, after).max()))
            if largest > 1:
                break
        else:
            yield Explanation(("row-order",), {}, largest, note=note)


def alone(seen: Observed) -> Iterator[tuple[tuple[str, ...], Change]]:
    """Give torch's own rule, and then each cause that concerns the run by itself."""
    yield (), {}
    for name, cause in CAUSES.items():
        visible = seen.visible is None or name in seen.visible
        if visible and not cause.fitted and cause.concerns(seen.training, seen.convention):
            yield from (((name,), change) for change in cause.changes)


def from_elsewhere(
    seen: Observed, replay: Replay, causes: tuple[str, ...], change: Change
) -> tuple[Explanation, Parameters] | None:
    """See whether the steps are a rule's, but for where the first one starts.

    Its start is the fixed point of w ← w + (w₁ − step(w)); all later steps must agree.
    """
    history = seen.history
    if len(history) < 2 or not seen.sees_rows:
        return None
    trainer = replay.by(change)
    first = next(history.records())
    goal = first.scratch
    start = goal.copy()
    state = trainer.start()
    with np.errstate(all="ignore"):
        for _ in range(500):
            before = history.split(start)
            update = trainer.step(state._replace(parameters=before), first.batch)
            rest = goal - history.flat(update.step.after)
            start = start + rest
            if not np.isfinite(start).all():
                return None
            if float(np.abs(rest / (first.bound * replay.limits)).max()) < 0.01:
                break
        else:
            return None
        state = update.state
        largest = 0.0
        for record, after in list_after(replay, trainer, state):
            largest = max(largest, float(replay.ratios(record, after).max()))
            if largest > 1:
                return None
    names = ("initial-parameters", *causes)
    return Explanation(names, change, largest), history.split(start)


def list_after(replay: Replay, trainer: NumpyTrainer, state: object) -> list[tuple[Record, Array]]:
    """Take all recorded steps but the first, from a state."""
    found = []
    for record in replay.history.records():
        if record.batch.step == 1:
            continue
        before = replay.history.split(record.before)
        seen = replay.seen(trainer.problem, record)
        update = trainer.step(state._replace(parameters=before), record.batch, seen)  # type: ignore[attr-defined]
        state = update.state
        found.append((record, replay.history.flat(update.step.after)))
    return found


def stage_of(found: Sequence[Explanation]) -> str | None:
    """Give the first stage at which the causes of the plainest explanation part the sides."""
    if not found:
        return None
    order = ("initial", "forward", "gradient", "penalty", "optimizer", "update")
    return min((CAUSES[cause].stage for cause in found[0].causes), key=order.index)


def reported(seen: Observed, found: Sequence[Explanation]) -> Reporting | None:
    """Find what explains the reported losses."""
    problem = seen.torch.problem
    rules = []
    for one in found:
        convention, slips = put_in(one.change, problem.convention, problem.slips)
        rules.append(replace(problem, convention=convention, slips=slips))
    rules.append(replace(problem, convention=TORCH, slips=NO_SLIPS))
    known = [Rule(rule, strengths(seen.torch, rule, seen.history)) for rule in rules]
    return explain_losses(seen.history, seen.limits["loss"], known, lambda: losses_after(seen))


def strengths(torch: NumpyTrainer, rule: Problem, history: History) -> Mapping[str, float]:
    """Give κ of each tensor by a rule, at the first step."""
    return torch.by(rule).strengths(next(history.records()).batch)


def losses_after(seen: Observed) -> Array | None:
    """Give torch's loss on each step's rows after the scratch side's update."""
    if not seen.sees_rows:
        return None
    losses = [
        seen.torch.pass_over(seen.history.split(record.scratch), record.batch).loss
        for record in seen.history.records()
    ]
    return np.array(losses)


def without_cause(
    seen: Observed, replay: Replay, scales: Mapping[str, Scales]
) -> tuple[list[str], str]:
    """Say what is known where nothing in the catalogue explains the updates; and the stage."""
    clues: list[str] = []
    stage = "gradient"
    record = next(one for one in seen.history.records() if one.batch.step == seen.first)
    agrees = gradient_agrees(seen, record)
    if agrees:
        clues.append(
            "The gradient that your code yields is torch's, to rounding: what differs is what the "
            "step makes of it."
        )
        stage = "optimizer"
    elif agrees is False:
        clues.append("The gradient that your code yields is not torch's.")
    clues += scale_clues(scales, seen.training)
    if agrees is None and (penalty := penalty_clue(replay)):
        return [*clues, penalty], "penalty"
    rule = recursion(replay) if agrees is None else None
    if rule is not None and rule.fits and not any(one.fits for one in scales.values()):
        if abs(rule.now) <= 1e-3 * abs(rule.last):
            clues.append(
                "Each step is made from the gradient of the step before: take the predictions and "
                "the gradient anew, from the parameters as they are."
            )
        elif seen.training.momentum:
            stage = "optimizer"
            clues.append(
                f"The steps are those of an optimizer all the same: {rule.now:.6g} g, "
                f"{rule.last:.6g} times the last g, {rule.kept:.6g} times the last step, "
                f"{rule.decay:.6g} w."
            )
    if stage == "gradient":
        clues += difference_clues(seen, record)
    if seen.leads and seen.gradient is None:
        clues.append(
            'If your code yields its gradient too, as {"weight": w, .., "grad": {"weight": gw, '
            "..}}, regcheck tells whether that is off, or what the step makes of it."
        )
    return clues, stage


def penalty_clue(replay: Replay) -> str:
    """Say whether the steps are torch's with a penalty of another shape; empty if not."""
    for text, shape in SHAPES.items():
        strength = other_penalty(replay, shape)
        if strength is not None:
            return f"The steps are torch's with a penalty of {strength:.6g} {text} in its gradient."
    return ""


SHAPES: dict[str, Callable[[Array], Array]] = {
    "sign(w), as an L1 penalty of λ Σ|w| has,": np.sign,
    "w³": lambda w: w**3,
    "|w|": np.abs,
}
"""Other penalties' gradients, in words, and as functions of the parameters."""


def gradient_agrees(seen: Observed, record: Record) -> bool | None:
    """Say whether the scratch side's own gradient is torch's; None where it tells none."""
    if seen.gradient is None or seen.gradient_bound is None:
        return None
    history = seen.history
    here, bound = history.flat(seen.gradient), history.flat(seen.gradient_bound)
    limits = np.concatenate(
        [np.full(history.shapes[name], seen.limits[name]).ravel() for name in history.shapes]
    )
    return bool((np.abs(here - record.gradient) <= limits * bound).all())


def scale_clues(scales: Mapping[str, Scales], training: Training) -> list[str]:
    """Say which tensors go by torch's rule, which by it with other numbers, and which by neither.

    Nothing where none goes by it, or the run does not tell.
    """
    told: dict[str, list[str]] = {}
    for name, one in scales.items():
        told.setdefault(scale_text(one, training.weight_decay.get(name, 0.0)), []).append(name)
    if not any(told.keys() - {NEITHER}):
        return []
    return [
        f"{' and '.join(names)} {'go' if len(names) > 1 else 'goes'} {text}."
        for text, names in told.items()
    ]


NEITHER = "by no multiple of torch's gradient and of the parameters"


def scale_text(one: Scales, weight_decay: float) -> str:
    """Say by what rule one tensor goes."""
    if not one.fits or one.gradient is None:
        return NEITHER
    alpha, decay = one.gradient, one.decay
    own = decay is None or decay.is_near(weight_decay)
    if alpha.is_near(1.0) and own:
        return "by torch's rule"
    if alpha.is_near(-1.0) and (decay is None or decay.is_near(-weight_decay)):
        return "by −1 times torch's step: a sign is wrong"
    factor = "" if alpha.is_near(1.0) else f"{alpha.factor:.6g} times "
    if alpha.is_near(-1.0):
        factor = "a wrong sign: −1 times "
    penalty = "" if decay is None or own else f", and a penalty of {decay.factor:.6g} w"
    return f"by {factor}torch's gradient{penalty}"


MOST_PROBED = 12
"""Entries whose derivative is taken by finite differences."""


def difference_clues(seen: Observed, record: Record) -> list[str]:
    """Take the derivative by central differences of torch's loss: with whom does it side?

    The scratch side's gradient is its own, or else what it must have been to make its step by
    torch's rule.
    """
    if seen.loss_at is None:
        return []
    history = seen.history
    implied = history.flat(seen.gradient) if seen.gradient is not None else implied_gradient(seen)
    if implied is None:
        return []
    order = np.argsort(-np.abs(implied - record.gradient))[:MOST_PROBED]
    scratch_off = torch_off = size = 0.0
    for entry in order:
        h = 6e-6 * max(1.0, abs(float(record.before[entry])))
        sides = []
        for sign in (1, -1):
            moved = record.before.copy()
            moved[entry] += sign * h
            sides.append(seen.loss_at(history.split(moved), record.batch))
        slope = (sides[0] - sides[1]) / (2 * h)
        scratch_off = max(scratch_off, abs(float(implied[entry]) - slope))
        torch_off = max(torch_off, abs(float(record.gradient[entry]) - slope))
        size = max(size, abs(slope))
    worst = int(order[0])
    name = next(name for name, part in history.slices.items() if part.start <= worst < part.stop)
    if not math.isfinite(scratch_off + torch_off) or torch_off >= scratch_off:
        return []
    text = (
        f"Finite differences of the loss side with torch: at step {record.batch.step}, its "
        f"gradient is off by at most {torch_off:.1e}, and the one behind your step by "
        f"{scratch_off:.1e}, most in {name}."
    )
    return [text]


def implied_gradient(seen: Observed) -> Array | None:
    """Give the data gradient that would make the scratch side's first diverging step by torch's.

    Torch's step is affine in the gradient, w′ = w − lr (a g + ..), so one more step with a changed
    gradient gives a. None where clipping or an lr of 0 hides it.
    """
    problem, history = seen.torch.problem, seen.history
    if problem.clip_norm is not None or problem.clip_value is not None:
        return None
    state = seen.torch.start()
    for record in history.records():
        before = history.split(record.before)
        if record.batch.step != seen.first:
            seen_pass = Replay.seen_as(history, record.gradient)
            state = seen.torch.step(
                state._replace(parameters=before), record.batch, seen_pass
            ).state
            continue
        afters = []
        for gradient in (record.gradient, record.gradient + 1):
            seen_pass = Replay.seen_as(history, gradient)
            update = seen.torch.step(state._replace(parameters=before), record.batch, seen_pass)
            afters.append(history.flat(update.step.after))
        slope = afters[1] - afters[0]
        if not slope.all():
            return None
        found: Array = record.gradient + (record.scratch - afters[0]) / slope
        return found
    return None


def fit_text(fit: Fit) -> str:
    """Write a fitted number in the digits that are certain, with its deviation."""
    return f"{fit.factor:.6g} ± {fit.deviation:.1g}"
