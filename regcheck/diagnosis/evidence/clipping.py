"""What is known of clipping that no cause explains: of one side alone, or of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.moves import implied_gradient
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import Array, Problem
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import is_bias
from regcheck.trainers.numpy_trainer import NumpyTrainer

LEAST_CLIPPED = 3
"""Steps that must be clipped to one number that the spec does not have."""

TORCHS = 1e-6
"""What torch adds to the norm."""

EPSILONS = (TORCHS, 0.0, 1e-8, 1e-12)
"""What others add to it."""

ABOUT = 1e-3
"""The share of a gradient by which a first look at a kind of clipping may be off."""

BESIDE = ("", "decay-before-clipping", "bias-not-penalized")
"""Causes that another kind of clipping is tried beside."""


class Clip(NamedTuple):
    """A kind of clipping: of each entry by its value, or by a norm; over which tensors, and ε.

    `beside` is the cause that is beside it; empty for none.
    """

    of: Literal["value", "all", "tensor", "weights"]
    epsilon: float = TORCHS
    beside: str = ""

    def within(self, problem: Problem, to: float | None) -> Problem:
        """Put it into a rule, in the place of its clipping; None for none at all."""
        by_value = self.of == "value"
        change: Change = dict(CAUSES[self.beside].changes[0]) if self.beside else {}
        if not by_value:
            change = {**change, "clip_scope": self.of, "clip_epsilon": self.epsilon}
        norm, value = (None, to) if by_value else (to, None)
        return replace(problem.with_change(change), clip_norm=norm, clip_value=value)


def one_clips(replay: Replay) -> Evidence | None:
    """Describe steps that are torch's but for the clipping; None if they are not."""
    problem = replay.torch.problem
    if problem.clip_norm is None and problem.clip_value is None:
        return clipped_otherwise(replay)
    rule = replay.torch.by(replace(problem, clip_norm=None, clip_value=None))

    def wider() -> Iterator[tuple[Record, Array]]:
        """A longer step rounds by more."""
        for record, after in replay.steps(rule):
            own, torchs = (np.linalg.norm(w - record.before) for w in (after, record.framework))
            scale = own / torchs if 0 < torchs < own else 1.0
            yield record._replace(bound=scale * record.bound), after

    if replay.largest(wider()) > 1:
        return clipped_otherwise(replay)
    name = "clip_norm" if problem.clip_value is None else "clip_value"
    return Evidence(
        "The updates are torch's without clipping",
        f": clip the gradient by the spec's `{name}`.",
        "says-next",
    )


class Shown(NamedTuple):
    """The first step in which clipping shows, beside a cause.

    Attributes:
        record: the step.
        over: the entries in which it shows.
        gradient: what the scratch side's must have been; None where the step does not tell.
    """

    record: Record
    over: NDArray[np.bool_]
    gradient: Array | None


def clipped_otherwise(replay: Replay) -> Evidence | None:
    """Describe steps by another kind of clipping than torch's, or to another number."""
    problem, linear = replay.torch.problem, replay.torch.settings.rule.linear
    spec = problem.clip_norm if problem.clip_value is None else problem.clip_value
    if spec is None and not linear:
        return None
    for beside in BESIDE if any(problem.weight_decay.values()) else BESIDE[:1]:
        shown = shown_beside(replay, beside)
        if shown is None:
            continue
        for clip in clips_beside(beside):
            for to in numbers(spec, number_of(replay, clip, shown)):
                rule = replay.torch.by(clip.within(problem, to))
                if likely(replay, rule, shown) and replay.largest(replay.steps(rule)) <= 1:
                    return described(problem, clip, to)
    return None


def numbers(*found: float | None) -> list[float]:
    """Return the numbers that are known, each once."""
    return [to for to in dict.fromkeys(found) if to is not None]


def clips_beside(beside: str) -> Iterator[Clip]:
    """Yield the kinds of clipping that are tried beside a cause, torch's own first."""
    yield Clip("value", TORCHS, beside)
    for epsilon in EPSILONS:
        yield Clip("all", epsilon, beside)
        yield Clip("tensor", epsilon, beside)
        yield Clip("weights", epsilon, beside)


def shown_beside(replay: Replay, beside: str) -> Shown | None:
    """Return the first step that torch's rule with a cause, and no clipping, does not make."""
    rule = replay.torch.by(Clip("all", TORCHS, beside).within(replay.torch.problem, None))
    for record, after in replay.steps(rule):
        over = replay.ratios(record, after) > 1
        if over.any():
            # Decay before clipping is clipped too, so that the data gradient is not told.
            told = beside != "decay-before-clipping"
            return Shown(record, over, implied_gradient(replay, record, rule) if told else None)
    return None


def likely(replay: Replay, rule: NumpyTrainer, shown: Shown) -> bool:
    """Whether a rule clips about as the first step shows, if that tells; a replay is longer."""
    if shown.gradient is None:
        return True
    clipped = replay.history.flat(
        rule.optimizer.clipped(replay.history.split(shown.record.gradient))
    )
    return bool(np.abs(clipped - shown.gradient).max() <= ABOUT * np.abs(clipped).max())


def number_of(replay: Replay, clip: Clip, shown: Shown) -> float | None:
    """Return the C to which a kind of clipping has come where it first shows; None if unknown.

    There the scratch side's gradient is h and torch's g: C is |h| of an entry, or ‖h‖ (‖g‖ + ε)/‖g‖
    over the tensors whose norm it is, to the rounding of h. Other steps must be clipped to it too.
    """
    record, own = shown.record, shown.gradient
    if own is None or not np.isfinite(own).all():
        return None
    by_value = clip.of == "value"
    part = np.flatnonzero(shown.over) if by_value else entries_of(replay, clip, shown)
    sizes = np.abs if by_value else norms
    size, to = (float(sizes(g[None, part]).max()) for g in (record.gradient, own))
    moved = np.abs(record.scratch - record.before)[part].max(initial=0.0)
    if not (size and moved and to):
        return None
    to *= 1.0 if by_value else (size + clip.epsilon) / size
    clipped = sizes(replay.history.all("gradient")[:, part]).max(axis=1) > to
    share = float((record.bound * replay.limits)[part].max() / moved)
    enough = clipped.sum() >= LEAST_CLIPPED
    return Fit(to, to * share).plain(slack=1).factor if enough else None


def norms(gradients: Array) -> Array:
    """Return the norm of each row, (rows, 1)."""
    return np.asarray(np.linalg.norm(gradients, axis=1, keepdims=True))


def entries_of(replay: Replay, clip: Clip, shown: Shown) -> NDArray[np.intp]:
    """Return the entries over which a norm is taken by which some are clipped."""
    parts = list(replay.history.slices.items())
    if clip.of == "weights":
        parts = [(name, part) for name, part in parts if not is_bias(name)]
    elif clip.of == "tensor":
        parts = [(name, part) for name, part in parts if shown.over[part].any()][:1]
    return np.concatenate([np.arange(0), *(np.arange(x.start, x.stop) for _, x in parts)])


def described(problem: Problem, clip: Clip, to: float) -> Evidence:
    """Say how the scratch side clips, and torch, and what to change."""
    number = f"{to:.6g}"
    norm = "‖g_w‖" if clip.of == "weights" else "‖g‖"
    by = f"by {number}/({norm} + {clip.epsilon:.0e})".replace("e-0", "e-")
    if not clip.epsilon:
        by = f"by {number}/{norm}"
    kinds = {
        "value": f"clips each entry of the gradient to ±{number}",
        "all": f"clips {by}",
        "tensor": f"{CAUSES['clip-per-tensor'].title} and clips {by}",
        "weights": f"clips the weights alone, {by}",
    }
    titles = [CAUSES[clip.beside].title] if clip.beside else []
    fixes = [CAUSES[clip.beside].fix] if clip.beside else []
    fixes += fixes_of(problem, clip, to, number)
    return Evidence(
        f"The scratch side {' and '.join([*titles, kinds[clip.of]])}, {torchs_text(problem)}",
        f": {'; '.join(fixes)}.",
        "says-next",
    )


def torchs_text(problem: Problem) -> str:
    """Say how torch clips."""
    if problem.clip_value is not None:
        return f"where torch clips each entry to ±{problem.clip_value:g}"
    if problem.clip_norm is not None:
        return f"where torch has {problem.clip_norm:g}/(‖g‖ + 1e-6)"
    return "where torch does not clip"


def fixes_of(problem: Problem, clip: Clip, to: float, number: str) -> list[str]:
    """Say what to change for torch's clipping, or in the spec for a kind that torch has."""
    value, norm = problem.clip_value, problem.clip_norm
    key = "clip_value" if clip.of == "value" else "clip_norm"
    spec = f"set `{key}: {number}` in the spec" if clip.of in ("value", "all") else ""
    if norm is None and value is None:
        more = "" if clip.of == "value" or clip.epsilon == TORCHS else ", and add 1e-6 to the norm"
        return [f"remove the clipping, or {spec}{more}" if spec else "remove the clipping"]
    if (key == "clip_value") != (value is not None):
        other = f"`clip_norm: {norm:g}`" if value is None else f"`clip_value: {value:g}`"
        own = f"clip as {other} of the spec does"
        return [f"{own}, or {spec} in its place" if spec else own]
    fixes = {
        "tensor": [CAUSES["clip-per-tensor"].fix],
        "weights": ["clip all tensors by their one norm"],
    }.get(clip.of, [])
    if to != (norm if value is None else value):
        fixes.append(f"clip to the spec's {key}, or {spec}" if spec else f"clip to its {key}")
    if key == "clip_norm" and clip.epsilon != TORCHS:
        fixes.append("add 1e-6 to the norm")
    return fixes
