"""The optimizers' steps as their papers have them and as users write them, with a rule's faults.

They share no formula with regcheck. A new optimizer is a function and a line of `OPTIMIZERS`; its
faults are fields of `tests.rule.Rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from tests.rule import Array, Memory, Rule

Where = Literal["torch", "outside", "uncorrected", "inside"]
"""Where ε is added."""


class Given(NamedTuple):
    """What one tensor's step is taken from.

    Attributes:
        rule: what the code does.
        options: the optimizer's, by torch's names.
        lr: this step's.
        t: the number of the step, from 1.
        g: the gradient, clipped and with the penalty where that is coupled.
        memory: what the optimizer remembers, by torch's names; nothing before step 1.
        w: the parameter before the step.
    """

    rule: Rule
    options: Mapping[str, Any]
    lr: float
    t: int
    g: Array
    memory: Memory
    w: Array

    @property
    def betas(self) -> tuple[Any, Any]:
        """Return β₁ and β₂ as the code takes them."""
        b1, b2 = self.options["betas"]
        return (b1, b2) if self.rule.betas == "as set" else (b2, b1)


def sgd(given: Given) -> tuple[Array, Memory]:
    """Move by the velocity, or by the gradient itself without momentum."""
    rule, options, lr, g = given.rule, given.options, given.lr, given.g
    mu, last = float(options["momentum"]), given.memory.get("momentum_buffer")
    if mu == 0 or rule.velocity == "none":
        return lr * g, {}
    inside = rule.velocity == "lr inside"
    if inside:
        g = lr * g
    share = 1 - (mu if rule.velocity == "dampened" else float(options["dampening"]))
    v: Array
    if last is not None:
        v = mu * last + share * g
    elif rule.velocity == "dampened" or rule.first == "dampened":
        v = share * g
    else:
        v = g
    ahead = options["nesterov"] if rule.nesterov == "as set" else rule.nesterov == "always"
    d = g + mu * v if ahead else v
    return d if inside else lr * d, {"momentum_buffer": v}


def adam(given: Given) -> tuple[Array, Memory]:
    """Move by the mean gradient over the root of the mean squared one (Kingma and Ba, 2015).

    AMSGrad (Reddi and others, 2018) divides by the largest second moment so far, which torch takes
    before its bias correction.
    """
    rule, options, old = given.rule, given.options, given.memory
    b1, b2 = given.betas
    largest = options["amsgrad"] if rule.amsgrad == "as set" else rule.amsgrad != "never"
    c1, c2 = 1 - b1**given.t, 1 - b2**given.t
    if rule.corrected == "swapped":
        c1, c2 = c2, c1
    elif rule.corrected == "first":
        c2 = 1.0
    elif rule.corrected == "second":
        c1 = 1.0
    zero = 0 * given.g
    new1, new2 = (1 - b1, 1 - b2) if rule.averages == "means" else (1.0, 1.0)
    m = b1 * old.get("exp_avg", zero) + new1 * given.g
    v = b2 * old.get("exp_avg_sq", zero) + new2 * given.g**2
    if rule.correction == "kept":
        m, v = m / c1, v / c2
    new = {"exp_avg": m, "exp_avg_sq": v}
    if rule.amsgrad == "of corrected" and rule.correction == "torch":
        v, c2 = v / c2, 1.0
    if largest:
        new["max_exp_avg_sq"] = np.maximum(old.get("max_exp_avg_sq", zero), v)
    taken = new if rule.moments == "new" else old
    m = taken.get("exp_avg", zero)
    v = taken.get("max_exp_avg_sq" if largest else "exp_avg_sq", zero)
    if rule.correction != "torch":
        c1 = c2 = 1.0
    return given.lr * (m / c1) / divisor(given, v, c2), new


def rmsprop(given: Given) -> tuple[Array, Memory]:
    """Divide by the root of the mean square (Hinton, 2012), or of the variance (Graves, 2013)."""
    rule, options, old, lr = given.rule, given.options, given.memory, given.lr
    alpha, zero = float(options["alpha"]), 0 * given.g
    old = {"square_avg": (rule.start or 0.0) + zero, "grad_avg": zero, **old}
    added = 1 - alpha if rule.averages == "means" else 1.0
    new = {"square_avg": alpha * old["square_avg"] + added * given.g**2}
    centered = options["centered"] if rule.centered == "as set" else rule.centered == "always"
    if centered:
        new["grad_avg"] = alpha * old["grad_avg"] + (1 - alpha) * given.g
    taken = new if rule.moments == "new" else old
    spread = taken["square_avg"] - (taken["grad_avg"] ** 2 if centered else 0)
    d = given.g / divisor(given, spread)
    mu = 0.0 if rule.velocity == "none" else float(options["momentum"])
    if mu == 0:
        return lr * d, new
    inside = rule.velocity == "lr inside"
    share = {"dampened": 1 - mu, "lr inside": lr}.get(rule.velocity, 1.0)
    v = new["momentum_buffer"] = mu * old.get("momentum_buffer", zero) + share * d
    return v if inside else lr * v, new


def adagrad(given: Given) -> tuple[Array, Memory]:
    """Divide by the root of the sum of all squares (Duchi and others, 2011)."""
    rule, options = given.rule, given.options
    start = options["initial_accumulator_value"] if rule.start is None else rule.start
    old = given.memory.get("sum", float(start) + 0 * given.g)
    new = old + given.g**2
    steps = {"before": given.t - 1, "this too": given.t, "none": 0}[rule.lr_decay]
    lr = given.lr / (1 + steps * float(options["lr_decay"]))
    return lr * given.g / divisor(given, new if rule.moments == "new" else old), {"sum": new}


def adadelta(given: Given) -> tuple[Array, Memory]:
    """Move by the root mean square of the steps over that of the gradients (Zeiler, 2012)."""
    rho, zero = float(given.options["rho"]), 0 * given.g
    squares = rho * given.memory.get("square_avg", zero) + (1 - rho) * given.g**2
    steps = given.memory.get("acc_delta", zero)
    d = divisor(given, steps) / divisor(given, squares) * given.g
    moved = given.lr * d
    steps = rho * steps + (1 - rho) * (d if given.rule.average == "d" else moved) ** 2
    return moved, {"square_avg": squares, "acc_delta": steps}


def adamax(given: Given) -> tuple[Array, Memory]:
    """Divide by the largest size so far, which fades (Kingma and Ba, 2015, algorithm 2)."""
    rule, options, old = given.rule, given.options, given.memory
    b1, b2 = given.betas
    eps, zero, stale = float(options["eps"]), 0 * given.g, rule.norm == "old"
    inside = rule.epsilon in ("torch", "inside") and not stale
    c1 = 1 - b1**given.t
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * given.g
    if rule.correction == "kept":
        m = m / c1
    size = np.abs(given.g) + (eps if inside else 0)
    largest = np.maximum(b2 * old.get("exp_inf", zero), size)
    corrected = m / c1 if rule.correction == "torch" else m
    below = old.get("exp_inf", zero) if stale else largest
    delta = given.lr * corrected / (below if inside else below + eps)
    return delta, {"exp_avg": m, "exp_inf": largest}


def nadam(given: Given) -> tuple[Array, Memory]:
    """Take Adam's step with the mean gradient of the step to come (Dozat, 2016).

    Torch keeps the product of the momenta in single precision.
    """
    rule, options, old, t = given.rule, given.options, given.memory, given.t
    b1, b2 = given.betas
    zero = 0 * given.g
    now, then = (b1 * (1 - 0.96 ** (s * options["momentum_decay"]) / 2) for s in (t, t + 1))
    product = np.float32(old.get("mu_product", np.float32(1)) * np.float32(now))
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * given.g
    v = b2 * old.get("exp_avg_sq", zero) + (1 - b2) * given.g**2
    of_g, of_m, c2 = 1 - float(product), 1 - float(product) * then, 1 - b2**t
    if rule.correction == "kept":
        m, v = m / of_m, v / c2
    new = {"exp_avg": m, "exp_avg_sq": v, "mu_product": product}
    taken = new if rule.moments == "new" else old
    m, v = taken.get("exp_avg", zero), taken.get("exp_avg_sq", zero)
    if rule.correction == "none":
        of_g = 1.0
    if rule.correction != "torch":
        of_m = c2 = 1.0
    ahead = (1 - now) / of_g * given.g + then / of_m * m
    return given.lr * ahead / divisor(given, v, c2), new


def radam(given: Given) -> tuple[Array, Memory]:
    """Divide by the second moment as far as its variance is known (Liu and others, 2020)."""
    rule, old, t = given.rule, given.memory, given.t
    b1, b2 = given.betas
    zero = 0 * given.g
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * given.g
    v = b2 * old.get("exp_avg_sq", zero) + (1 - b2) * given.g**2
    c1, c2 = 1 - b1**t, 1 - b2**t
    if rule.correction == "kept":
        m, v = m / c1, v / c2
    new = {"exp_avg": m, "exp_avg_sq": v}
    taken = new if rule.moments == "new" else old
    m, v = taken.get("exp_avg", zero), taken.get("exp_avg_sq", zero)
    most = 2 / (1 - b2) - 1
    known = most - 2 * t * b2**t / (1 - b2**t)
    if rule.correction != "torch":
        c1 = c2 = 1.0
    if known <= rule.rectified:
        return given.lr * (m / c1), new
    r = math.sqrt((known - 4) * (known - 2) * most / ((most - 4) * (most - 2) * known))
    return given.lr * r * (m / c1) / divisor(given, v, c2), new


def asgd(given: Given) -> tuple[Array, Memory]:
    """Descend by a lr that falls, as Polyak and Juditsky (1992) do whose average nobody asks for.

    Torch makes each step's lr in the step before, and keeps it in single precision.
    """
    options = given.options
    own, eta = float(options["lambd"]), float(given.memory.get("eta", np.float32(given.lr)))
    later = given.lr / (1 + own * given.lr * given.t) ** options["alpha"]
    return eta * (given.g + own * given.w), {"eta": np.asarray(later, np.float32)}


def adafactor(given: Given) -> tuple[Array, Memory]:
    """Divide by the root of rows' times columns' mean squares (Shazeer and Stern, 2018).

    A weight is one row here. Torch's lr is that of the paper's section 8, up to 1/√t.
    """
    options, old, g, w = given.options, given.memory, given.g, given.w
    least, smallest = map(float, options["eps"])
    kept = 1 - given.t ** float(options["beta2_decay"])
    zero = 0 * g
    new: dict[str, Array] = {}
    if g.ndim == 0:
        v = new["variance"] = kept * old.get("variance", zero) + (1 - kept) * g**2
    else:
        row = new["row_var"] = kept * old.get("row_var", zero.sum()) + (1 - kept) * (g**2).mean()
        columns = new["col_var"] = kept * old.get("col_var", zero) + (1 - kept) * g**2
        v = row * columns / max(row, least)
    u = g / np.maximum(np.sqrt(v), least)
    u = u / max(1, np.sqrt((u**2).mean()) / float(options["d"]))
    size = max(smallest, np.sqrt((w**2).mean()))
    lr = min(given.lr, 1 / math.sqrt(given.t)) if given.rule.capped else given.lr
    return size * lr * u, new


def muon(given: Given) -> tuple[Array, Memory]:
    """Move by the mean gradient with its singular values made equal (Jordan and others, 2024).

    A weight is one row here, whose length is its singular value; a bias that there is not stays.
    """
    options, g = given.options, given.g
    mu = 0.0 if given.rule.velocity == "none" else float(options["momentum"])
    if g.ndim == 0:
        return g, {}
    v = mu * given.memory.get("momentum_buffer", 0 * g) + (1 - mu) * g
    ahead = (
        options["nesterov"]
        if given.rule.nesterov == "as set"
        else (given.rule.nesterov == "always")
    )
    cast = in_bfloat16 if given.rule.cast else np.asarray
    E = cast(mu * v + (1 - mu) * g if ahead else v)
    E = cast(E / np.maximum(cast(np.sqrt((E**2).sum())), cast(np.asarray(options["eps"]))))
    a, b, c = map(float, options["ns_coefficients"])
    for _ in range(options["ns_steps"]):
        K = cast((E**2).sum())
        E = cast(a * E + cast(b * K + c * K**2) * E)
    size = 0.2 * math.sqrt(g.size) if options["adjust_lr_fn"] == "match_rms_adamw" else 1.0
    return (given.lr * size * E).astype(g.dtype), {"momentum_buffer": v}


def in_bfloat16(x: Array) -> Array:
    """Round to the upper half of a float32's bits, to the even one of two as near."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.int64)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    rounded: Array = upper.astype(np.uint32).view(np.float32).astype(np.asarray(x).dtype)
    return rounded


def rprop(given: Given) -> tuple[Array, Memory]:
    """Move by sizes that grow while a gradient keeps its sign (Riedmiller and Braun, 1993)."""
    options, old, g, reversal = given.options, given.memory, given.g, given.rule.reversal
    shorter, longer = options["etas"]
    agree = np.sign(g * old.get("prev", 0 * g))
    size = old.get("step_size", given.lr + 0 * g)
    size = size * np.select([agree > 0, agree < 0], [longer, shorter], 1.0).astype(g.dtype)
    size = np.clip(size, *options["step_sizes"])
    moved = size * np.sign(g)
    if reversal in ("skip", "undo"):
        undone = -old.get("moved", 0 * g) if reversal == "undo" else 0 * g
        moved = np.where(agree < 0, undone, moved)
    if reversal != "step":
        g = np.where(agree < 0, 0 * g, g)
    return moved, {"prev": g, "step_size": size, "moved": moved}


def divisor(given: Given, v: Array, correction: float = 1.0) -> Array:
    """Return √(v/c) + ε, with c the bias correction of v; ε may stand elsewhere."""
    rule, eps = given.rule, float(given.options["eps"])
    where = rule.epsilon
    if where == "torch":
        where = EPSILON.get(given.options["name"], "outside")
    root: Callable[[Array], Array] = np.sqrt if rule.root else np.positive
    if where == "uncorrected":
        return (root(v) + eps) / math.sqrt(correction)
    if where == "inside":
        return root(v / correction + eps)
    return root(v / correction) + eps


OPTIMIZERS: dict[str, Callable[[Given], tuple[Array, Memory]]] = {
    "adadelta": adadelta,
    "adafactor": adafactor,
    "adagrad": adagrad,
    "adam": adam,
    "adamax": adamax,
    "adamw": adam,
    "asgd": asgd,
    "muon": muon,
    "nadam": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "rprop": rprop,
    "sgd": sgd,
}
"""By torch's name in lower case: what a step subtracts, and what it remembers."""

DECOUPLED = frozenset({"adafactor", "adamw", "muon"})
"""The optimizers whose weight decay stands apart from the gradient."""

EPSILON: dict[str, Where] = {"adadelta": "inside", "radam": "uncorrected"}
"""Where torch adds ε in optimizers that do not have it outside the corrected root."""


def is_decoupled(options: Mapping[str, Any]) -> bool:
    """Whether torch keeps an optimizer's weight decay apart from the gradient."""
    return options["name"] in DECOUPLED or options.get("decoupled_weight_decay", False)


def corrected_rate(given: Given) -> float:
    """Return the factor on the lr by which some code corrects Adam's bias: √(1 − β₂ᵗ)/(1 − β₁ᵗ)."""
    b1, b2 = given.betas
    return float(math.sqrt(1 - b2**given.t) / (1 - b1**given.t))
