"""What a run that agrees could have told: faults tried along it, and bounds beside the steps.

"Equivalent" is only worth something where a difference could have shown. A bound on rounding may
be so wide that it swallows the step. (A tolerance that a spec makes wider is its own choice.) So,
along the run,

- torch's own optimizer takes each step once more with a doubled lr, with a doubled or no gradient,
  and with a doubled or no weight decay, until a step shows it beyond the limit K of bounds;
- each tensor's smallest K bound/|Δw| over entries and steps is kept: the smallest relative error
  of a step that would have been seen in it.

A step is judged in a tensor where that share is at most `SHARE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.rounding import Bounds
from regcheck.problem.problem import Parameters
from regcheck.trainers.lockstep import Steps

Array = NDArray[np.floating]

SHARE = 0.01
"""The share of a step that a limit may be at most for the step to be judged in a tensor."""

ROUNDING_ALONE = 0.1
"""The share of a tensor's largest gradient from which on its noise makes it rounding alone."""


@dataclass
class Power:
    """What the compared steps could have shown; `limits` are those of the tolerance, in bounds.

    Attributes:
        shares: of each tensor that moves, the smallest error of its step that could have shown.
        clear: tensors whose gradient is more than its measured noise in some step. Each of them
            must have been judged; of one-layer models, whose tensors share their gradient's errors,
            one must.
        hidden: faults that no step would have shown.
    """

    limits: Mapping[str, float]
    shares: dict[str, float] = field(default_factory=dict)
    clear: set[str] = field(default_factory=set)
    hidden: tuple[str, ...] = ()

    def has_judged(self, names: Iterable[str]) -> bool:
        """Return whether all these tensors were judged, so that no step can tell more of them."""
        return all(self.shares.get(name, 1.0) <= SHARE for name in names)

    def take(self, steps: Steps, bounds: Bounds, noise: Parameters | None) -> None:
        """Take in a step: torch's, from the leader's parameters."""
        framework = steps.framework
        with np.errstate(all="ignore"):
            for name, after in framework.after.items():
                if self.shares.get(name, 1.0) <= SHARE:
                    continue
                moved = np.abs(after - framework.before[name])
                shown = moved > 0
                if not shown.any():
                    continue
                shares = self.limits[name] * bounds.after[name][shown] / moved[shown]
                share = float(np.fmin.reduce(shares))
                self.shares[name] = min(share, self.shares.get(name, np.inf))
                if noise and name not in self.clear and framework.gradient is not None:
                    size = float(np.abs(framework.gradient[name]).max())
                    own = float(np.max(noise[name]))
                    if size > 0 and own < ROUNDING_ALONE * size:
                        self.clear.add(name)

    @property
    def swallowed(self) -> dict[str, float]:
        """Return the tensors that move and were never judged, with their shares."""
        return {name: share for name, share in self.shares.items() if not share <= SHARE}

    def reason(self) -> str:
        """Say why a run that agrees is no proof; empty where it is one."""
        swallowed = self.swallowed
        missed = {name: share for name, share in swallowed.items() if name in self.clear}
        nothing = bool(self.shares) and len(swallowed) == len(self.shares)
        if missed or nothing:
            name = max(missed or swallowed, key=lambda one: swallowed[one])
            return swallowed_text(name, swallowed[name])
        if self.hidden:
            *some, last = self.hidden
            told = f"{', '.join(some)} and {last}" if some else last
            still = "" if self.shares else "no step moves any parameter: "
            return f"{still}{told} would have passed too"
        return ""


def swallowed_text(name: str, share: float) -> str:
    """Say how large rounding may be beside a tensor's step."""
    if not share < 1:
        return (
            f"rounding here may be as large as the step of {name} itself, so that any lr or "
            "gradient would pass"
        )
    size = f"{share:.2g}" if share < 0.001 else f"{100 * share:.2g} %"
    return (
        f"rounding here may be as large as {size} of the step of {name}; "
        f"a wrong lr of {size} would pass"
    )
