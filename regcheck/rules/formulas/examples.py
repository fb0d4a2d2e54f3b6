"""Trainings by which rules are explained, and one step of each convention worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from regcheck.rules.convention import NAMED, Convention
from regcheck.rules.formulas.formula import decay_text
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.settings import (
    Settings,
    Training,
    effective_decay,
    factor,
    gradient_factor,
    letters,
    number,
)

EXAMPLE = Training(
    Settings(lr=0.1, weight_decay={"weight": 1.0, "bias": 1.0}), batch_rows=(2,), train_rows=2
)


def trainings() -> Iterator[Training]:
    """Yield trainings with more and more settings; the first that has a cause's explains it."""
    yield EXAMPLE
    yield EXAMPLE.with_decays({"weight": 1.0, "bias": 0.0})
    yield EXAMPLE._replace(clipped=True, clipped_by_norm=True)
    yield EXAMPLE._replace(batch_rows=(2, 1), train_rows=3)
    yield EXAMPLE._replace(batch_rows=(4,), micro_rows=(2,), train_rows=4)
    yield EXAMPLE._replace(batch_rows=(5,), micro_rows=(3, 2), train_rows=5)
    yield EXAMPLE._replace(lr_varies=True)
    yield EXAMPLE._replace(loss="bce")
    yield EXAMPLE._replace(loss="cross_entropy", weighted=True)
    yield EXAMPLE._replace(loss="cross_entropy", smoothed=True)
    momentum = EXAMPLE.settings.with_options(momentum=0.9)
    yield EXAMPLE._replace(settings=momentum)
    yield EXAMPLE._replace(settings=momentum.with_options(dampening=0.1))
    yield EXAMPLE._replace(settings=momentum.with_options(nesterov=True))
    yield EXAMPLE._replace(settings=momentum, lr_varies=True)
    for name in dict.fromkeys(("adam", "adamw", *OPTIMIZERS)):  # the best known first
        rule = OPTIMIZERS[name]
        settings = EXAMPLE.settings._replace(optimizer=name, options=rule.defaults)
        for options in rule.examples.values():
            numbers = {key: 0.5 if isinstance(x, str) else x for key, x in options.items()}
            yield EXAMPLE._replace(settings=settings.with_options(**numbers))
        yield EXAMPLE._replace(settings=settings, train_rows=4)  # of two batches


WORKED = "One step: w = 1, g = -32, lr = 0.1, λ = 1, B = n = 2"


def worked_example(names: Iterable[str]) -> list[str]:
    """Work one step of one weight out by each convention."""
    steps = {name: one_step(NAMED[name].convention, EXAMPLE, 1.0, -32.0) for name in names}
    width = max(map(len, steps))
    longest = max(len(written) for written, _ in steps.values())
    return [WORKED] + [
        f"  {name:<{width}}  {written:<{longest}} = {result:.2f}"
        for name, (written, result) in steps.items()
    ]


def one_step(convention: Convention, training: Training, w: float, g: float) -> tuple[str, float]:
    """Work out a weight's first step by hand: the sum as it is written, and its result.

    Without momentum and clipping; g is the gradient of the mean loss.

    >>> one_step(Convention(divide_penalty_by="batch"), EXAMPLE, 1.0, -32.0)
    ('1 − 0.1 (-32 + 1/2·1)', 4.15)
    """
    lr, decay = training.settings.lr, effective_decay(convention, training, "weight")
    text = decay_text(convention, letters(training), "weight")
    g = gradient_factor(convention, training) * g
    stepped = w - lr * g
    if not text:
        return f"{number(w)} − {number(lr)}·{factor(g)}", stepped
    at = stepped if convention.decay == "after-update" else w
    if convention.penalty_norm == "unsquared":
        at = at / abs(at) if at else 0.0
    penalty, value = f"{text}·{factor(at)}", decay * at
    match convention.decay:
        case "after-update":
            return f"{number(stepped)} − {number(lr)}·{penalty}", stepped - lr * value
        case "decoupled":
            penalty, value = f"{number(lr)}·{penalty}", lr * value
        case "gradient" | "before-clipping" | "after-momentum":
            return f"{number(w)} − {number(lr)} ({number(g)} + {penalty})", w - lr * (g + value)
    return f"{number(w)} − {penalty} − {number(lr)}·({number(g)})", w - value - lr * g
