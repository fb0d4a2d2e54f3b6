"""Rprop (torch/optim/rprop.py, `_single_tensor_rprop`, torch 2.13).

    Δ ← Δ η₊ where g h > 0, Δ η₋ where g h < 0      entry by entry, from the first step's lr on
    Δ ← min(max(Δ, Δmin), Δmax)
    h ← 0 where g h < 0, else g                     the last gradient, 0 before step 1
    w ← w − Δ sign(h)

This is iRprop⁻ of Igel and Hüsken (2000). `reversal`, where g h < 0, stepped: h ← g, their Rprop⁻;
stepped-once: h ← 0, but w ← w − Δ sign(g); taken-back: h ← 0, and the last step is undone, as in
Rprop⁺ (Riedmiller and Braun, 1993). Only the gradient's signs count, and the lr of the first step.
Torch's class takes no weight decay.
"""

from __future__ import annotations

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
    named_gradient,
    namespace,
)

LAST, SIZE, MOVED = "prev", "step_size", "moved"


STEPPED = ("stepped", "stepped-once")
"""The faults by which a step is taken where a gradient's sign changed."""


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return a last gradient of 0, and a last step; the sizes start at the first step's lr."""
    names = (LAST, MOVED) if faults.reversal == "taken-back" else (LAST,)
    return {name: namespace(w).zeros_like(w) for name in names}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return Δ sign(h), and h and Δ."""
    xp, (shrink, grow) = namespace(at.w), at.options["etas"]
    least, most = at.options["step_sizes"]
    size = at.memory[SIZE] if SIZE in at.memory else xp.full_like(at.w, at.lr)
    turned = at.g * at.memory[LAST]
    size = xp.where(turned > 0, size * grow, xp.where(turned < 0, size * shrink, size))
    size = xp.minimum(xp.maximum(size, xp.full_like(size, least)), xp.full_like(size, most))
    last = xp.where(turned < 0, xp.zeros_like(at.g), at.g)
    memory = {LAST: at.g if at.faults.reversal == "stepped" else last, SIZE: size}
    delta = size * xp.sign(at.g if at.faults.reversal in STEPPED else last)
    if at.faults.reversal == "taken-back":
        delta = memory[MOVED] = xp.where(turned < 0, -at.memory[MOVED], delta)
    return delta, memory


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the sizes and the last gradient, and the step."""
    (shrink, grow), (least, most) = options["etas"], options["step_sizes"]
    lines, g = named_gradient(gradient)
    least, most = least or "0", most or "0"
    lines += [
        f"Δ ← {grow} Δ where {g} h > 0, {shrink} Δ where {g} h < 0, from {lr} on",
        f"Δ ← min(max(Δ, {least}), {most})",
    ]
    way = f"Δ sign({g})" if faults.reversal == "stepped-once" else "Δ sign(h)"
    if faults.reversal == "taken-back":
        lines, way = [*lines, f"u ← −u where {g} h < 0, else Δ sign({g})"], "u"
    lines.append(f"h ← {g}" if faults.reversal == "stepped" else f"h ← 0 where {g} h < 0, else {g}")
    return Written(lines, way, lr_inside=True)


def errors(options: Options) -> dict[str, str]:
    """Refuse what torch refuses."""
    shrink, grow = options["etas"]
    if not 0 < shrink < 1 < grow:
        return {"etas": "must be a number between 0 and 1, and one above 1, as in torch"}
    return {}


RPROP = UpdateRule(
    torch="Rprop",
    options={
        "etas": Option((0.5, 1.2), ("η₋", "η₊")),
        "step_sizes": Option((1e-6, 50.0), ("Δmin", "Δmax")),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "h": "previous gradient, 0 before step 1",
        "u": "step of each entry, 0 before step 1",
        "Δ": "step size of each entry",
        "η₋": "etas[0]",
        "η₊": "etas[1]",
        "Δmin": "step_sizes[0]",
        "Δmax": "step_sizes[1]",
    },
    examples={"plain": {}},
    notes=("Only the signs of the gradient and the lr of step 1 act: a schedule changes nothing.",),
    errors=errors,
    keys=frozenset({"reversal"}),
    weight_decay=False,
    proportional=False,
    scaling={},
)
