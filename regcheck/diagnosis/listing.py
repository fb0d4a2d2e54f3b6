"""In which order explanations are listed, and which of them only give another one another name."""

from __future__ import annotations

import sys

from regcheck.diagnosis.records import Explanation
from regcheck.numerics.least_squares import Fit
from regcheck.rules.causes.cause import Named, named_factors
from regcheck.rules.settings import Training

Found = tuple[Explanation, ...]


def listed(found: Found, training: Training) -> Found:
    """Order what was found, without factors that another cause names."""
    kept = [one for one in found if not has_other_name(one, found, training)]
    plain = (not one.fits or len(one.causes) == 1 for one in kept if all_named(one, training))
    if any(plain):
        kept = [one for one in kept if len(one.causes) == 1 or all_named(one, training)]

    factors = (fit for one in kept if len(one.causes) == 1 for fit in one.fits.values())
    shortest = min(map(digits, factors), default=sys.float_info.dig)

    def size(one: Explanation) -> tuple[bool, bool, bool, int, bool, int, tuple[str, ...]]:
        # ε = 1.2987e-9 is a gradient times 7.7, and nobody writes a negative dampening.
        odd = any(digits(fit) > shortest for fit in one.options.values())
        negative = any(fit.factor < 0 for fit in one.options.values())
        several, unnamed = len(one.causes) > 1, not all_named(one, training)
        return several, odd, negative, len(one.fits), unnamed, len(one.causes), one.causes

    return tuple(sorted(kept, key=size))


def digits(fit: Fit) -> int:
    """Return how many digits a fitted number is written with."""
    mantissa, _, _ = f"{fit.factor:.15e}".partition("e")
    return len(mantissa.rstrip("0").replace(".", "").lstrip("-"))


def all_named(explanation: Explanation, training: Training) -> bool:
    """Whether its factors are numbers of the training: an odd one is no plain reason."""
    return all(name_of_factor(cause, fit, training) for cause, fit in explanation.fits.items())


def has_other_name(explanation: Explanation, found: Found, training: Training) -> bool:
    """Whether an open factor is what another cause stands for, which explains the run too.

    It may do so without the causes beside it: no penalty is none, whatever its form.
    """
    sets = [set(one.causes) for one in found]
    for cause, fit in explanation.fits.items():
        others = set(explanation.causes) - {cause}
        for value, named in named_factors(cause, training).items():
            if named.cause and fit.is_near(value):
                renamed = others | {named.cause}
                if any(renamed >= one for one in sets):
                    return True
    return False


def name_of_factor(cause: str, fit: Fit, training: Training) -> Named | None:
    """Return the name of a fitted factor: the first of those that it is near."""
    named = named_factors(cause, training).items()
    return next((name for value, name in named if fit.is_near(value)), None)
