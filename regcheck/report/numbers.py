"""Numbers as a report writes them."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal


def both(left: float, right: float) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart, nine at least."""
    texts = (f"{left:.9g}", f"{right:.9g}")
    return texts if texts[0] != texts[1] or left == right else (f"{left:.17g}", f"{right:.17g}")


def short(value: float) -> str:
    """Write a number in few characters: `0`, `0.47`, `4.4e-05`, `6.1e+10`."""
    if value == 0:
        return "0"
    return f"{value:.2g}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def upward(value: float) -> str:
    """Write a number with two digits, and no less than it is."""
    if value == 0:
        return "0"
    exact = Decimal(value)
    unit = Decimal(1).scaleb(exact.adjusted() - 1)
    return short(float(exact.quantize(unit, rounding=ROUND_CEILING)))
