"""What is known of tensors that go by torch's gradient and an L1 penalty, c sign(w)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.evidence.tensors import rule_of
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.records import EffectiveSettings
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit, fit_columns
from regcheck.problem.problem import Array

FIRST = 64
"""Steps that an L1 penalty is fitted to before all are."""

PER_NUMBER = 2
"""Entries' steps that there must be for each number that is fitted."""


@dataclass(frozen=True)
class Sign:
    """One way to write sign(w): what it is at 0, and whether it is divided by the batch's size."""

    at_zero: int
    by_rows: bool

    def __call__(self, record: Record) -> Array:
        """Return it at a step."""
        w = record.before
        sign = np.where(w == 0, self.at_zero, np.sign(w))
        return np.asarray(sign / (record.batch.size if self.by_rows else 1))

    def __str__(self) -> str:
        """Write it."""
        at_zero = {-1: " (−1 at 0)", 0: "", 1: " (1 at 0)"}[self.at_zero]
        return f"sign(w){at_zero}" + ("/B, B being each batch's own size" if self.by_rows else "")


def l1_penalties(replay: Replay, settings: Mapping[str, EffectiveSettings]) -> dict[str, Evidence]:
    """Say which tensors go by torch's gradient and c sign(w) in all steps, by name.

    Only of those that go by no constant factors without it.
    """
    strange = [name for name, one in settings.items() if one.linear and not one.fits]
    for sign in signs(replay) if strange else ():
        fitted = fitted_signs(replay, strange, sign, FIRST)
        if fitted and len(replay.history) > FIRST:
            fitted = fitted_signs(replay, [*fitted], sign, len(replay.history))
        if fitted:
            decays = replay.torch.problem.weight_decay
            return {
                name: described(sign, decays.get(name, 0.0), *one) for name, one in fitted.items()
            }
    return {}


def signs(replay: Replay) -> Iterator[Sign]:
    """Yield the ways to write sign(w) that differ in a run, torch's own first."""
    zeros = (0, -1, 1) if (replay.history.all("before") == 0).any() else (0,)
    uneven = len(set(replay.torch.problem.schedule.sizes())) > 1
    yield from (Sign(zero, by) for by in (False, True)[: 1 + uneven] for zero in zeros)


def fitted_signs(
    replay: Replay, names: list[str], sign: Sign, most: int
) -> dict[str, tuple[EffectiveSettings, Fit]]:
    """Fit S_t ≈ α G_t + κ P_t + c Q_t, Q_t being torch's step by sign(w) as the gradient alone.

    Where w keeps one sign, c sign(w) may be any constant: it is told only of the c that a tensor
    with both signs has.
    """
    moves, history = Moves(replay, most=most), replay.history
    by_gradient, by_penalty = moves.by_gradient(), moves.by_penalty()
    by_sign = moves.by_gradient(sign) - by_gradient
    found: dict[str, tuple[EffectiveSettings, Fit]] = {}
    for name in names:
        part = history.slices[name]
        columns = [one[:, part] for one in (by_gradient, by_penalty, by_sign)]
        limits = moves.limits[:, part]
        one = fit_columns(columns, moves.scratch[:, part], limits, replay.u, least=1.0, rcond=1e-9)
        alpha, decay, c = one.fits
        enough = one.unique and one.entries >= PER_NUMBER * len(columns)
        if enough and one.residual <= 1 and alpha and c and alpha.factor > 0 and c.factor > 0:
            found[name] = EffectiveSettings(alpha, decay, fits=True), c.plain()
    before = {name: history.all("before")[:, history.slices[name]] for name in found}
    both = {found[name][1].factor for name, w in before.items() if w.min() < 0 < w.max()}
    return {name: one for name, one in found.items() if any(map(one[1].is_near, both))}


def described(sign: Sign, weight_decay: float, one: EffectiveSettings, c: Fit) -> Evidence:
    """Say by which gradient, weight decay and c sign(w) a tensor goes."""
    assert one.gradient is not None
    own = one.decay is None or one.decay.is_near(weight_decay)
    all_of_it = weight_decay != 0 and own and one.gradient.is_near(1.0)
    torchs = "torch's rule" if all_of_it else "torch's gradient"
    way = rule_of(one, weight_decay, f"{torchs} and {c.factor:.6g} {sign}")
    clause, rest = way.clause.removesuffix("."), ": an L1 penalty; torch's weight_decay is L2."
    return Evidence(clause, rest, "l1-penalty")
