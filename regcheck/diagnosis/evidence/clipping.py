"""What is known of clipping that no cause explains: of one side alone, or without torch's 1e-6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Array
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change

ALIKE = 1e-4
"""The share by which norms may differ after a clip: torch's has 1e-6 beside the norm."""

LEAST_CLIPPED = 3
"""Steps that must be clipped to one norm."""


def one_clips(replay: Replay) -> Evidence | None:
    """Describe steps that are torch's but for the clipping of one side; None if they are not."""
    problem = replay.torch.problem
    if problem.clip_norm is None and problem.clip_value is None:
        return clipped_to_norm(replay) if problem.settings.rule.linear else None
    rule = replay.torch.by(replace(problem, clip_norm=None, clip_value=None))

    def wider() -> Iterator[tuple[Record, Array]]:
        """A longer step rounds by more."""
        for record, after in replay.steps(rule):
            own, torchs = (np.linalg.norm(w - record.before) for w in (after, record.framework))
            scale = own / torchs if 0 < torchs < own else 1.0
            yield record._replace(bound=scale * record.bound), after

    if replay.largest(wider()) > 1:
        return without_epsilon(replay)
    name = "clip_norm" if problem.clip_value is None else "clip_value"
    return Evidence(
        "The updates are torch's without clipping",
        f": clip the gradient by the spec's `{name}`.",
        "says-next",
    )


def without_epsilon(replay: Replay) -> Evidence | None:
    """Describe steps by C/‖g‖ in the place of torch's C/(‖g‖ + 1e-6), and what is beside it."""
    norm = replay.torch.problem.clip_norm
    if norm is None:
        return None
    for causes in ((), ("clip-per-tensor",), ("decay-before-clipping",)):
        change: Change = {"clip_epsilon": "missing"}
        for cause in causes:
            change = {**change, **CAUSES[cause].changes[0]}
        if replay.residual(change) <= 1:
            clips = f"clips by {norm:g}/‖g‖, where torch has {norm:g}/(‖g‖ + 1e-6)"
            titles = " and ".join([*(CAUSES[cause].title for cause in causes), clips])
            fixes = [*(CAUSES[cause].fix for cause in causes), "add 1e-6 to the norm"]
            return Evidence(f"The scratch side {titles}", f": {'; '.join(fixes)}.", "says-next")
    return None


def clipped_to_norm(replay: Replay) -> Evidence | None:
    """Describe steps by torch's gradients times min(1, C/‖g‖); None if they are not.

    S_t = c_t G_t + λ P_t in each step, c_t by least squares, and where c_t < 1, c_t ‖g_t‖ = C.
    """
    moves = Moves(replay)
    whole, gradient = moves.by_torch(), moves.by_gradient()
    slope, target = (x / moves.limits for x in (gradient, moves.scratch - (whole - gradient)))
    factors = (slope * target).sum(axis=1) / (slope**2).sum(axis=1)
    off = np.abs(target - factors[:, None] * slope).max(axis=1)
    norms = np.linalg.norm(replay.history.all("gradient")[moves.at], axis=1)
    clipped = factors < 1 - ALIKE
    if not (off <= 1).all() or clipped.sum() < LEAST_CLIPPED or (factors > 1 + ALIKE).any():
        return None
    to = (factors * norms)[clipped]
    norm = float(np.median(to))
    same = (np.abs(to / norm - 1) <= ALIKE).all() and (norms[~clipped] <= norm).all()
    spread = norms[clipped].max() > (1 + 10 * ALIKE) * norms[clipped].min()
    if not (same and spread):
        return None
    return Evidence(
        f"The updates are torch's with the gradient clipped to norm {norm:.4g}, which torch does "
        "not clip",
        f": remove the clipping, or set `clip_norm: {norm:.4g}` in the spec: torch then "
        f"multiplies g by {norm:.4g}/(‖g‖ + 1e-6).",
        "says-next",
    )
