"""The signs of formulas in plain ASCII."""

from __future__ import annotations

SPELLED = {
    "←": "<-",
    "−": "-",
    "·": "*",
    "×": "x",
    "≠": "!=",
    "≥": ">=",
    "½": "1/2",
    "²": "^2",
    "…": "...",
    "‖": "|",
    "Σ": "sum ",
    "λ": "lambda",
    "μ": "mu",
    "σ": "sigma",
    "τ": "tau",
    "ℓ": "l",
}
"""What the signs of formulas are spelled as where there is nothing but ASCII."""


def spell(error: UnicodeError) -> tuple[str, int]:
    """Spell the signs of formulas out where the output's encoding has none for them."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign, "?") for sign in signs), error.end
