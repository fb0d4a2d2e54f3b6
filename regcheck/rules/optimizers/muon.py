"""Muon (torch/optim/_muon.py, `_single_tensor_muon`, torch 2.13), of matrices alone.

    v ← μ v + (1 − μ) g
    Z ← μ v + (1 − μ) g with Nesterov, else v
    E ← Z/max(‖Z‖, ε)
    s times: K ← E Eᵀ, then E ← ω₁ E + (ω₂ K + ω₃ K²) E
    w ← w − lr √max(1, rows/columns) E

(Jordan and others, 2024), of Zᵀ where Z has more rows than columns. `adjust_lr_fn` match_rms_adamw
has 0.2 √max(rows, columns) in the place of the root. The weight decay is decoupled.

torch holds all from Z to E in bfloat16, of 8 significant bits: each sum of products is summed in
float32, with what is added to it, and rounded once. That moves a step by some percent. It is part
of the rule, and `bfloat16` is applied here where torch rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    averaged,
    between,
    named_gradient,
    namespace,
)

BUFFER = "momentum_buffer"

ADJUSTMENTS = ("original", "match_rms_adamw")
"""How torch may adjust the lr to a matrix's shape; None is the first."""

QUINTIC = (3.4445, -4.775, 2.0315)
"""Torch's coefficients, by which small singular values grow fast and none comes to 1."""

CONVERGING = ((2.0, -1.5, 0.5), (1.875, -1.25, 0.375), (1.5, -0.5, 0.0))
"""Those by which all come to 1, of fifth and of third order."""

MOST_STEPS = 99
"""How many iterations torch takes at most."""

SUBNORMAL, UNIT, OVER = 2.0**-126, 2.0**-133, 2.0**128
"""float32's and bfloat16's smallest normal number, bfloat16's smallest, and where both end."""

Sizes = Callable[[], Array]
Summed = Callable[[Array, int, Sizes, Sizes], Array]
"""Rounds sums to bfloat16: their exact values, how many terms, and the sums of the terms' sizes and
of the sizes of those numbers that are rounded on the way where each operation is taken by itself.
"""


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return a velocity of 0."""
    return {BUFFER: namespace(w).zeros_like(w)}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return the step, and the velocity."""
    xp, g, mu = namespace(at.w), at.g, at.options["momentum"]
    velocity = between(at.memory[BUFFER], g, 1 - mu)
    Z = between(g, velocity, mu) if at.options["nesterov"] else velocity
    ways = (uncast, uncast) if at.faults.cast == "missing" else (once, bfloat16)
    E = xp.asarray(orthogonal(Z, at.options, *ways), dtype=at.w.dtype)
    rows, columns = at.w.shape
    return (at.lr * adjustment(at.options, rows, columns)) * E, {BUFFER: velocity}


def adjustment(options: Options, rows: int, columns: int) -> float:
    """Return the factor on the lr that a matrix's shape makes."""
    if options["adjust_lr_fn"] == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def bfloat16(exact: Array) -> Array:
    """Round to bfloat16, ties to even, by way of float32 as torch does; held in float64.

    x has 24 bits. So 2⁴⁵ |x| + |x| has its last digit at 2⁻⁷ of x's power of 2, where 2⁴⁵ |x| is
    even; and 2⁻⁸¹ + |x| at 2⁻¹³³, the smallest number there is.
    """
    xp = namespace(exact)
    x = in_float32(exact)
    size = xp.abs(x)
    inside = bool(xp.max(size) < OVER / 2)  # of what ends in no infinity
    known = size if inside else xp.where(size < OVER, size, xp.zeros_like(size))
    far = xp.maximum(known * 2.0**45, xp.full_like(size, UNIT * 2.0**52))
    rounded = (far + known) - far
    if not inside:
        over = xp.where(rounded < OVER, rounded, xp.full_like(size, math.inf))
        rounded = xp.where(size < OVER, over, size)
    return xp.copysign(rounded, x)


def in_float32(exact: Array) -> Array:
    """Round to float32; held in float64."""
    xp = namespace(exact)
    return xp.asarray(xp.asarray(exact, dtype=xp.float32), dtype=xp.float64)


def once(exact: Array, *_: object) -> Array:
    """Round sums as if they had been exact."""
    return bfloat16(exact)


def uncast(exact: Array, *_: object) -> Array:
    """Leave numbers and sums as they are."""
    return exact


def orthogonal(
    Z: Array, options: Options, summed: Summed = once, cast: Callable[[Array], Array] = bfloat16
) -> Array:
    """Return E of a matrix, or of each of several; in float64, rounded to bfloat16.

    `summed` rounds what is a sum: others than `once` tell what its rounding in float32 may do.
    `cast` rounds all else.
    """
    xp, (first, second, third) = namespace(Z), options["ns_coefficients"]

    def product(left: Array, right: Array, times: float, start: Array, factor: float) -> Array:
        """Return factor start + times left right."""

        def size() -> Array:
            terms = xp.matmul(xp.abs(left), xp.abs(right))
            return abs(factor) * xp.abs(start) + abs(times) * terms

        def each() -> Array:
            return xp.abs(factor * start) + 2 * xp.abs(of_matrices)

        of_matrices = times * xp.matmul(left, right)
        return summed(factor * start + of_matrices, left.shape[-1], size, each)

    E = cast(xp.asarray(Z, dtype=xp.float64))
    tall = E.shape[-2] > E.shape[-1]
    if tall:
        E = xp.matrix_transpose(E)
    squares = in_float32(E * E) if cast is bfloat16 else E * E
    norm = xp.sqrt(xp.sum(squares, axis=(-2, -1), keepdims=True))
    norm = summed(norm, E.shape[-2] * E.shape[-1], lambda: norm, lambda: norm)
    E = cast(E / xp.maximum(norm, cast(xp.full_like(norm, options["eps"]))))
    for _ in range(options["ns_steps"]):
        K = product(E, xp.matrix_transpose(E), 1.0, xp.zeros_like(norm), 0.0)
        polynomial = product(K, K, third, K, second)
        E = product(polynomial, E, 1.0, E, first)
    return xp.matrix_transpose(E) if tall else E


def growth(options: Options, faults: Faults) -> float:
    """Return how the smallest singular values grow, and their rounding with them: |ω₁|ˢ."""
    if faults.cast == "bfloat16":
        return 0.0
    first, *_ = options["ns_coefficients"]
    return float(max(1.0, abs(first)) ** options["ns_steps"])


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the velocity, what is made orthogonal, the iteration, and the step."""
    mu, eps = options["momentum"], options["eps"]
    lines, g = named_gradient(gradient)
    ahead = options["nesterov"] and mu
    lines += [
        f"v ← {averaged(mu, 'v', g)}",
        f"Z ← {averaged(mu, 'v', g)}" if ahead else "Z ← v",
        f"E ← Z/max(‖Z‖, {eps or '0'})"
        + (", in bfloat16 from here on" if faults.cast == "bfloat16" else ""),
    ]
    coefficients = (one or "0" for one in options["ns_coefficients"])
    first, second, third = (f"−{one[1:]}" if one[0] == "-" else one for one in coefficients)
    if options["ns_steps"]:
        iteration = f"E ← {first} E + ({second} K + {third} K²) E"
        lines.append(f"{options['ns_steps']} times: K ← E Eᵀ, then {iteration}")
    factor = "√max(1, rows/columns)"
    if options["adjust_lr_fn"] == "match_rms_adamw":
        factor = "0.2 √max(rows, columns)"
    return Written(lines, f"{factor} E")


MUON = UpdateRule(
    torch="Muon",
    options={
        "momentum": Option(0.95, "μ", tried=(0.0, 0.5, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)),
        "nesterov": Option(default=True),
        "ns_coefficients": Option(
            QUINTIC, ("ω₁", "ω₂", "ω₃"), least=-math.inf, tried=(QUINTIC, *CONVERGING)
        ),
        "eps": Option(1e-7, "ε", tried=(0.0, 1e-8, 1e-7, 1e-6)),
        "ns_steps": Option(5, most=MOST_STEPS, tried=tuple(range(13))),
        "adjust_lr_fn": Option(None, choices=ADJUSTMENTS, tried=ADJUSTMENTS),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "v": "velocity, 0 before step 1",
        "Z": "momentum update before it is orthogonalized",
        "E": "orthogonalized update; Eᵀ, from Zᵀ, where w has more rows than columns",
        "K": "Gram matrix of E's rows",
        "‖Z‖": "Frobenius norm of Z",
        "rows": "number of rows of w",
        "columns": "number of columns of w",
        "μ": "momentum",
        "ε": "eps",
        "ω₁": "ns_coefficients[0]",
        "ω₂": "ns_coefficients[1]",
        "ω₃": "ns_coefficients[2]",
    },
    examples={
        "plain": {"nesterov": False},
        "nesterov": {},
        "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw"},
    },
    notes=(
        "Works on matrices only: a model with it needs `bias: false`.",
        "Rounded to bfloat16 (8 significant bits): Z, ‖Z‖, Z/‖Z‖, K, ω₂ K + ω₃ K², and E.",
    ),
    torchs=lambda _: {"decay": "decoupled"},
    keys=frozenset({"cast"}),
    elementwise=False,
    matrices=True,
    smooth=False,
    growth=growth,
    scaling=None,
)
