"""What every optimizer's step makes of rounding: what goes into a bound, what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Carried = Mapping[str, Array]
"""The errors of what an optimizer remembers, by name."""


class OptimizerStep(NamedTuple):
    """One step of an optimizer, all tensors' entries one after the other.

    Attributes:
        before, after: the parameters around it.
        gradient: what the optimizer was given, after clipping.
        options: its settings by torch's names: one number, or one an entry.
        state: what it remembers after the step, by torch's names.
        t: the number of the step, from 1.
        shapes: of the tensors, in turn, where they are known.
        each_rounds: whether operations that torch's optimizer takes as one may be rounded each.
    """

    before: Array
    after: Array
    gradient: Array
    options: Mapping[str, Any]
    state: Mapping[str, Array]
    t: float
    shapes: Sequence[tuple[int, ...]] = ()
    each_rounds: bool = False


class Propagated(NamedTuple):
    """The bound on the parameters after a step, and the errors that are carried on.

    `lost` are the entries that rounding alone may make no number, on one side or on both.
    """

    after: Array
    carried: Carried
    lost: NDArray[np.bool_] | None = None


def allowed(bound: Array, lost: NDArray[np.bool_], *sides: Array) -> Array:
    """Return the bound, inf where an entry may be lost and is no number on a side.

    Inf allows that; two numbers are judged.
    """
    numbers = np.isfinite(sides).all(axis=0)
    return np.where(lost & ~numbers, np.inf, bound)


def overflowing(bound: Array, *, all_finite: bool, mixed: bool) -> Array:
    """Return the bound, inf or NaN where it is no number, or where not all of a step's are finite.

    `mixed` is whether the sides' dtypes differ.
    """
    # A side that overflows alone does so by its dtype where there are two: no rounding.
    found = np.where(np.isfinite(bound), bound, np.nan if mixed else np.inf)
    if not all_finite:
        # Once numbers have overflowed, the rest depends on the order of computation.
        found[np.isfinite(found)] = np.nan
    return found


def some(option: Any) -> bool:
    """Whether an option is other than 0 for any entry; for one number, np.any is not asked."""
    return bool(np.any(option)) if isinstance(option, np.ndarray) else bool(option)


def coupled(u: float, step: OptimizerStep, noise: Array) -> tuple[Array, Array]:
    """Return |G| and δG, with the weight decay in the gradient unless it is decoupled."""
    decay = step.options["weight_decay"]
    if step.options.get("decoupled_weight_decay", False) or not some(decay):
        G = np.abs(step.gradient)
        return G, noise + u * G
    pull = decay * step.before
    if some(step.options.get("maximize", False)):
        pull = -pull
    G = np.abs(step.gradient + pull)
    return G, noise + u * (3 * np.abs(pull) + G)


def quotient(u: float, a: Array, da: Array, v: Array, dv: Array, eps: float) -> Array:
    """Bound δ(a/D) = (δa + a δD/D)/D⁻, where a ≥ 0 and D = √v + ε; 0/0 is 0.

    Where √v is divided by a number c first, a/(√v/c + ε) = c a/(√v + c ε).
    """
    root = np.sqrt(v)
    droot = dv / root
    if not (dv < v).all():  # else δv/√v is the smaller one
        np.fmin(droot, np.sqrt(v + dv), out=droot)
    D, dD = root, droot
    D += eps
    dD += (3 * u) * D
    bound: Array = dD / D
    bound *= a
    bound += da
    D -= dD
    bound /= np.maximum(D, eps, out=D)
    return bound if eps else np.where((da == 0) & (a == 0), 0.0, bound)


def settled(u: float, step: OptimizerStep, ddelta: Array) -> Array:
    """Add the rounding of the update itself: δw = δΔ + 2u |w| + 6u |Δ|.

    A decoupled decay w (1 − lr λ) is one product more, of a factor that is rounded.
    """
    option = step.options
    decays = option.get("decoupled_weight_decay", False) and some(option["weight_decay"])
    delta = step.after - step.before
    bound: Array = np.abs(delta, out=delta)
    bound *= 6 * u
    bound += ((4 if decays else 2) * u) * np.abs(step.before)
    bound += ddelta
    return bound
