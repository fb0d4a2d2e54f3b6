"""One step of one weight, worked out by hand."""

from __future__ import annotations

from regcheck.rules.convention import Convention
from regcheck.rules.formula import decay_text
from regcheck.rules.settings import (
    Training,
    effective_decay,
    factor,
    gradient_factor,
    letters,
    number,
)


def one_step(convention: Convention, training: Training, w: float, g: float) -> tuple[str, float]:
    """Work out a weight's first step by hand: the sum as it is written, and its result.

    Without momentum and clipping; g is the gradient of the mean loss.

    >>> from regcheck.rules.settings import SgdSettings
    >>> two = Training(SgdSettings(0.1, {"weight": 1.0, "bias": 1.0}), (2,), 2)
    >>> one_step(Convention(divide_penalty_by="batch"), two, 1.0, -32.0)
    ('1 − 0.1 (-32 + 1/2·1)', 4.15)
    """
    lr, strength = training.sgd.lr, effective_decay(convention, training, "weight")
    text = decay_text(convention, letters(training), "weight")
    slope = gradient_factor(convention, training) * g
    moved = w - lr * slope

    def penalty(at: float) -> tuple[str, float]:
        """Give the penalty's gradient at a weight, as text and as a number."""
        if convention.penalty_norm == "unsquared":
            at = at / abs(at) if at else 0.0
        return (f"{text}·{factor(at)}" if text else ""), strength * at

    pull, value = penalty(w)
    if not text:
        return f"{number(w)} − {number(lr)}·{factor(slope)}", moved
    match convention.decay:
        case "gradient" | "before-clipping" | "after-momentum":
            total = f"{number(slope)} + {pull}"
            return f"{number(w)} − {number(lr)} ({total})", w - lr * (slope + value)
        case "after-update":
            pull, value = penalty(moved)
            return f"{number(moved)} − {number(lr)}·{pull}", moved - lr * value
        case "decoupled":
            pull, value = f"{number(lr)}·{pull}", lr * value
        case "decoupled-unscaled":
            pass
    return f"{number(w)} − {pull} − {number(lr)}·({number(slope)})", w - value - lr * slope
