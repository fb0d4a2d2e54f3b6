"""Adafactor (torch/optim/_adafactor.py, `_single_tensor_adafactor`, torch 2.13).

    R ← (1 − t^ζ) R + t^ζ (mean of g² along each row)          C likewise along each column
    V = R C/max(mean of R, ε₁)                               of matrices, (n, 1)(1, m)
    V ← (1 − t^ζ) V + t^ζ g²                                   of vectors
    Y = g/max(√V, ε₁)
    w ← w − max(ε₂, RMS(w)) min(lr, 1/√t) Y/max(1, RMS(Y)/κ)

with ζ `beta2_decay`, below 0, and κ `d`. ε₁ None is the machine epsilon of w's dtype. The weight
decay is decoupled, and its factor is the lr itself.
"""

from __future__ import annotations

import math

from regcheck.rules.convention import Convention
from regcheck.rules.faults import Faults
from regcheck.rules.optimizers.update_rule import (
    Array,
    Memory,
    Option,
    Options,
    StepInput,
    UpdateRule,
    Written,
    between,
    named_gradient,
    namespace,
)

ROWS, COLUMNS, SQUARES = "row_var", "col_var", "variance"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return means of 0: of a matrix's rows and columns, or of a vector's entries."""
    zeros = namespace(w).zeros_like(w)
    if w.ndim < 2:
        return {SQUARES: zeros}
    return {ROWS: zeros[..., :1], COLUMNS: zeros[..., :1, :]}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return the step, and the means of the squares."""
    xp, g = namespace(at.w), at.g
    smallest, scale = at.options["eps"]
    if smallest is None:
        smallest = float(xp.finfo(at.w.dtype).eps)
    share = float(at.t) ** at.options["beta2_decay"]

    if g.ndim < 2:
        squares = between(at.memory[SQUARES], g * g, share)
        memory = {SQUARES: squares}
    else:
        rows = between(at.memory[ROWS], xp.mean(g * g, axis=-1, keepdims=True), share)
        columns = between(at.memory[COLUMNS], xp.mean(g * g, axis=-2, keepdims=True), share)
        memory = {ROWS: rows, COLUMNS: columns}
        mean = xp.mean(rows, axis=-2, keepdims=True)
        squares = rows * columns / xp.maximum(mean, xp.full_like(mean, smallest))
    steep = g / xp.sqrt(xp.maximum(squares, xp.full_like(squares, smallest * smallest)))
    lr = at.lr if at.faults.lr_cap == "missing" else min(at.lr, most_lr(at.t))
    rate = max(scale, size_of(at.w)) * lr
    return (rate / max(1.0, size_of(steep) / at.options["d"])) * steep, memory


def most_lr(t: int) -> float:
    """Return the largest lr of step t."""
    return 1 / math.sqrt(t)


def size_of(array: Array) -> float:
    """Return a tensor's root mean square."""
    xp = namespace(array)
    return float(xp.sqrt(xp.mean(array * array)))


def resolved(options: Options, epsilon: float) -> Options:
    """Put torch's machine epsilon in the place of an ε₁ that is None."""
    smallest, scale = options["eps"]
    return {**options, "eps": (epsilon if smallest is None else smallest, scale)}


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the means of the squares and what is divided by them, and the step."""
    smallest, scale = options["eps"]
    decay, most = options["beta2_decay"] or "0", options["d"]
    lines, g = named_gradient(gradient)
    least = f"max(√V, {smallest})" if smallest else "√V"
    mean = f"max(mean R, {smallest})" if smallest else "(mean R)"
    lines += [
        f"R ← (1 − t^({decay})) R + t^({decay}) mean of {g}² along rows, C along columns",
        f"V ← R C/{mean}, of a vector (1 − t^({decay})) V + t^({decay}) {g}²",
        f"Y ← {g}/{least}",
        f"φ ← {lr if faults.lr_cap == 'missing' else f'min({lr}, 1/√t)'}",
    ]
    size = f"max({scale}, RMS(w))" if scale else "RMS(w)"
    direction = f"{size} φ Y/max(1, RMS(Y)/{most})"
    return Written(lines, direction, lr_inside=True)


ADAFACTOR = UpdateRule(
    torch="Adafactor",
    options={
        "beta2_decay": Option(-0.8, "ζ", least=-math.inf, most=0.0),
        "eps": Option((None, 1e-3), ("ε₁", "ε₂")),
        "d": Option(1.0, "κ", least=1.0),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "R": "mean square of each row, 0 before step 1",
        "C": "mean square of each column, 0 before step 1",
        "V": "second moment of the gradient",
        "Y": "gradient divided by its size",
        "RMS": "root mean square",
        "φ": "relative step size",
        "t": "number of the step, from 1",
        "ζ": "beta2_decay",
        "ε₁": "eps[0], by default the machine epsilon of the parameters",
        "ε₂": "eps[1]",
        "κ": "d",
    },
    examples={"plain": {}},
    torchs=lambda _: {"decay": "decoupled"},
    resolved=resolved,
    keys=frozenset({"lr_cap"}),
    proportional=False,
    most_lr=most_lr,
    elementwise=False,
    scaling=None,
)
