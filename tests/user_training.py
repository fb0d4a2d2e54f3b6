"""Training code as users write it: torch's rule, with any of the catalogue's causes in it.

It shares no formula with regcheck. The same code trains in a user's dtype, in loops over rows, and
in extended precision, where it tells what a step comes to without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.user_code.problem_api import UserProblem

Array = NDArray[np.floating]
Pair = tuple[Array, Array]
"""Something of the weight, (d,), and of the bias, a scalar."""


class Rule(NamedTuple):
    """What the code does at each step; the defaults are torch's.

    Attributes:
        divide: what λ is divided by: nothing, the step's rows, or all rows.
        penalty: a factor on λ.
        shape: the penalty's gradient: λ w, λ alone, or λ w/‖w‖.
        bias: the bias has its own λ, none, or that of the weight.
        decay: where λ w goes: into the gradient, past the momentum, past both and times lr,
            past both and not times lr, onto the updated w, or into what is clipped.
        reduce: rows' gradients are averaged, summed, or divided by the spec's batch size.
        half, gradient, rate: factors on the loss, on its gradient, and on the lr.
        early: how many steps early the lr's schedule is.
        velocity: torch's, with 1 − μ on the gradient, with the lr in it, or none.
        nesterov: as the spec says, always, or never.
        first: the first step's velocity is the gradient, or dampened like all others.
        clip: one norm over both tensors, or one for each.
        parts: the micro-batches' gradients are averaged or summed.
        target: the row's own, or broadcast, each output against each target.
        slope: BCELoss's as torch has it, or p − y.
        zeroed: whether gradients are set to 0 after each step.
        order: both tensors move together, or the bias first.
    """

    divide: str = "nothing"
    penalty: float = 1.0
    shape: str = "w"
    bias: str = "own"
    decay: str = "gradient"
    reduce: str = "mean"
    half: float = 1.0
    gradient: float = 1.0
    rate: float = 1.0
    early: int = 0
    velocity: str = "torch"
    nesterov: str = "as set"
    first: str = "gradient"
    clip: str = "together"
    parts: str = "mean"
    target: str = "row"
    slope: str = "torch"
    zeroed: bool = True
    order: str = "together"


class Report(NamedTuple):
    """What the code reports as its loss.

    Attributes:
        base: no loss, the loss of its own rule, torch's mean loss, the mean of the epoch's losses
            so far (plain, or weighted by rows), or the loss after the update.
        strengths: κ of weight and bias in κ/2 Σw², which is added.
        plain: whether κ is λ, or λ times or over a plain number.
        per_batch: whether κ is divided by each step's rows.
        wobble: the size of a mistake that is no known one.
    """

    base: str = "own"
    strengths: tuple[float, float] = (0.0, 0.0)
    plain: bool = False
    per_batch: bool = False
    wobble: float = 0.0


class Taken(NamedTuple):
    """One step: the parameters after it, its own loss, torch's loss, both before the update."""

    weight: Array
    bias: Array
    own_loss: float
    loss: float


Wrong = Callable[["Training", Pair, Pair, tuple[Array, Array]], Pair]
"""Spoils a gradient: from the training, the parameters, the gradient, and the step's X and y."""


class Training:
    """One training of a problem; it holds no parameters, but what the optimizer remembers."""

    def __init__(
        self,
        problem: UserProblem,
        rule: Rule,
        schedule: Callable[[int], float],
        dtype: Any,
        *,
        loops: bool = False,
        wrong: Wrong | None = None,
    ) -> None:
        """Take the problem and the rule.

        Args:
            problem: what the user's function is given.
            rule: what the code does.
            schedule: the lr of any step, from 0 on.
            dtype: that all is computed in.
            loops: whether to go over the rows in loops.
            wrong: what spoils the gradient.
        """
        self.problem, self.rule, self.schedule = problem, rule, schedule
        self.dtype, self.loops, self.wrong = np.dtype(dtype).type, loops, wrong
        self.X, self.y = problem.X.astype(dtype), problem.y.astype(dtype)
        self.velocities: list[Array | None] = [None, None]
        self.sums: Pair | None = None
        self.memory: dict[str, Any] = {}
        self.bias = "bias" in problem.initial
        self.mu = float(problem.optimizer["momentum"])
        self.tau = float(problem.optimizer["dampening"])

    def start(self) -> Pair:
        """Give the problem's start in the dtype."""
        initial = self.problem.initial
        bias = self.dtype(initial["bias"].item()) if self.bias else self.dtype(0)
        return initial["weight"].astype(self.dtype), bias

    def entries(self, values: Array) -> Pair:
        """Split all entries into the weight and the bias, which stays 0 where there is none."""
        wide = values.astype(self.dtype)
        return (wide[:-1], wide[-1]) if self.bias else (wide, self.dtype(0))

    def parts(self, step: int) -> list[NDArray[np.intp]]:
        """Give the rows of a step's micro-batches."""
        micro = self.problem.micro_batches
        return [self.problem.batches[step]] if micro is None else micro[step]

    def step(self, before: Pair, step: int, parts: list[NDArray[np.intp]] | None = None) -> Taken:
        """Take a step, by default on the rows that the problem says."""
        parts = self.parts(step) if parts is None else parts
        with np.errstate(all="ignore"):
            own, loss, gradient = self.passed(before, parts)
            rows = np.concatenate(parts)
            if self.wrong is not None:
                gradient = self.wrong(self, before, gradient, (self.X[rows], self.y[rows]))
            gradient = gradient if self.bias else (gradient[0], 0 * gradient[1])
            kept = self.sums
            gradient = self.summed(gradient, kept)
            lr = self.rule.rate * self.schedule(max(0, step + self.rule.early))
            strengths = self.strengths(len(rows))
            weight: Array
            if self.rule.order == "bias first":
                bias = self.moved(1, before, gradient, lr, strengths)
                late = self.summed(self.passed((before[0], bias), parts)[2], kept)
                gradient = (late[0], gradient[1])
                weight = self.moved(0, before, gradient, lr, strengths)
            else:
                weight = self.moved(0, before, gradient, lr, strengths)
                bias = self.moved(1, before, gradient, lr, strengths)
            self.sums = None if self.rule.zeroed else gradient
        return Taken(weight, bias, own, loss)

    def summed(self, gradient: Pair, kept: Pair | None) -> Pair:
        """Add what was not set to 0."""
        return gradient if kept is None else (kept[0] + gradient[0], kept[1] + gradient[1])

    def passed(self, at: Pair, parts: list[NDArray[np.intp]]) -> tuple[float, float, Pair]:
        """Go over the rows: the rule's loss, torch's, and the rule's gradient."""
        own, mean = self.dtype(0), self.dtype(0)
        weight, bias = 0 * at[0], 0 * at[1]
        for rows in parts:
            X, y = self.X[rows], self.y[rows]
            z = X @ at[0] + at[1]
            values, slopes = self.row_losses(z, y)
            mean = mean + values.mean()
            if self.rule.target == "broadcast":
                values, slopes = self.broadcast(z, y)
            divisor = {"mean": len(y), "sum": 1, "nominal": self.problem.batch_size}
            scale = self.rule.half / divisor[self.rule.reduce]
            own = own + scale * values.sum()
            if self.loops and self.rule.target == "row":
                one = self.looped(at, X, y)
            else:
                one = (X.T @ slopes, slopes.sum())
            weight, bias = weight + scale * one[0], bias + scale * one[1]
        count = len(parts) if self.rule.parts == "mean" else 1
        factor = self.rule.gradient / count
        gradient = (factor * weight, factor * bias if self.bias else 0 * bias)
        return float(own / len(parts)), float(mean / len(parts)), gradient

    def row_losses(self, z: Array, y: Array) -> Pair:
        """Give the rows' losses and the slopes that the rule takes."""
        values, slopes = row_losses(self.problem, z, y)
        if self.rule.slope == "plain" and self.problem.loss == "bce":
            slopes = 1 / (1 + np.exp(-z)) - y
        return values, slopes

    def broadcast(self, z: Array, y: Array) -> Pair:
        """Take each output against all targets, as (B, 1) against (B,) does."""
        if len(y) <= 256:
            values, slopes = self.row_losses(z[:, None], y[None, :])
            return values.mean(axis=1), slopes.mean(axis=1)
        values, slopes = self.row_losses(z, np.full_like(y, y.mean()))
        return values + (y.var() if self.problem.loss == "mse" else 0), slopes

    def looped(self, at: Pair, X: Array, y: Array) -> Pair:
        """Sum the gradient row by row and feature by feature."""
        weight, bias = [self.dtype(0)] * X.shape[1], self.dtype(0)
        for i in range(len(y)):
            z = at[1]
            for j in range(X.shape[1]):
                z = z + X[i, j] * at[0][j]
            slope = self.row_losses(z, y[i])[1]
            bias = bias + slope
            for j in range(X.shape[1]):
                weight[j] = weight[j] + slope * X[i, j]
        return np.array(weight), bias

    def strengths(self, rows: int) -> tuple[float, float]:
        """Give what stands before w in the penalty's gradient, of weight and bias."""
        decay = self.problem.weight_decay
        weight, bias = (decay, decay) if isinstance(decay, float) else both(decay)
        if not self.bias:
            bias = 0.0
        elif self.rule.bias != "own":
            bias = weight if self.rule.bias == "of weight" else 0.0
        divisor = {"nothing": 1, "rows": rows, "all rows": len(self.y)}[self.rule.divide]
        factor = self.rule.penalty / divisor
        return factor * weight, factor * bias

    def pull(self, strength: float, w: Array) -> Array:
        """Give the penalty's gradient."""
        if self.rule.shape == "constant":
            return strength + 0 * w
        if self.rule.shape == "unit":
            norm = np.sqrt((w * w).sum())
            return 0 * w if norm == 0 else strength * w / norm
        return strength * w

    def moved(
        self, which: int, before: Pair, gradient: Pair, lr: float, strengths: tuple[float, float]
    ) -> Array:
        """Move the weight (0) or the bias (1)."""
        rule, w, strength = self.rule, before[which], strengths[which]
        if rule.decay == "clipped":
            gradient = (
                gradient[0] + self.pull(strengths[0], before[0]),
                gradient[1] + self.pull(strengths[1], before[1]),
            )
        g = self.clipped(gradient)[which]
        if rule.decay == "gradient":
            g = g + self.pull(strength, w)
        if rule.velocity == "lr inside" and self.mu:
            shift = self.direction(which, lr * g)
        elif rule.decay == "velocity":
            shift = lr * (self.direction(which, g) + self.pull(strength, w))
        else:
            shift = lr * self.direction(which, g)
        if rule.velocity == "lr inside" and self.mu and rule.decay == "velocity":
            shift = shift + lr * self.pull(strength, w)
        after: Array = w - shift
        if rule.decay == "apart":
            after = after - lr * self.pull(strength, w)
        elif rule.decay == "bare":
            after = after - self.pull(strength, w)
        elif rule.decay == "late":
            after = after - lr * self.pull(strength, after)
        return after

    def clipped(self, gradient: Pair) -> Pair:
        """Clip by value, or by norm as torch does it."""
        if self.problem.clip_value is not None:
            limit = self.problem.clip_value
            return np.clip(gradient[0], -limit, limit), np.clip(gradient[1], -limit, limit)
        if self.problem.clip_norm is None:
            return gradient
        squares = [(g * g).sum() for g in gradient]
        norms = [np.sqrt(squares[0] + squares[1])] * 2
        if self.rule.clip == "each":
            norms = [np.sqrt(square) for square in squares]
        scales = [min(1.0, self.problem.clip_norm / (norm + 1e-6)) for norm in norms]
        return gradient[0] * self.dtype(scales[0]), gradient[1] * self.dtype(scales[1])

    def direction(self, which: int, g: Array) -> Array:
        """Put the gradient through the momentum."""
        if self.mu == 0 or self.rule.velocity == "none":
            return g
        last = self.velocities[which]
        share = 1 - (self.mu if self.rule.velocity == "dampened" else self.tau)
        v: Array
        if last is not None:
            v = self.mu * last + share * g
        elif self.rule.velocity == "dampened" or self.rule.first == "dampened":
            v = share * g
        else:
            v = g
        self.velocities[which] = v
        ahead = self.problem.optimizer["nesterov"]
        if self.rule.nesterov != "as set":
            ahead = self.rule.nesterov == "always"
        return g + self.mu * v if ahead else v


def both(decay: Any) -> tuple[float, float]:
    """Read λ of weight and bias."""
    return decay["weight"], decay["bias"]


def row_losses(problem: UserProblem, z: Array, y: Array) -> Pair:
    """Give the rows' losses and their slopes."""
    if problem.model == "linear":
        return (z - y) * (z - y), 2 * (z - y)
    p, other = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    if problem.loss == "mse":
        return (p - y) * (p - y), 2 * (p - y) * p * other
    if problem.loss == "bce_with_logits":
        return np.logaddexp(0 * z, z) - z * y, p - y
    # As torch has it: logarithms stop at −100, and the slope fades out where p is 0 or 1. That it
    # is 1 by float64's rounding belongs to it, in extended precision too.
    rest = 1 - p.astype(np.float64) if p.dtype == np.longdouble else 1 - p
    logs = np.maximum(np.log(p), -100), np.maximum(np.log(rest), -100)
    faded = p * rest / np.maximum(p * rest, float(np.float32(1e-12)))
    return -y * logs[0] - (1 - y) * logs[1], (p - y) * faded


def schedule_of(spec: dict[str, Any], per_epoch: int) -> Callable[[int], float]:
    """Write a spec's schedule as a function of the step, from 0 on."""
    lr, set_up = spec["lr"], spec.get("lr_schedule")
    if set_up is None:
        return lambda step: lr

    def rate(step: int) -> float:
        t = step // per_epoch if set_up.get("per") == "epoch" else step
        match set_up["kind"]:
            case "step":
                value = lr * set_up["factor"] ** (t // set_up["every"])
            case "exponential":
                value = lr * set_up["factor"] ** t
            case "cosine":
                turn = math.cos(math.pi * min(1, t / set_up["steps"]))
                value = set_up["floor"] + (lr - set_up["floor"]) * (1 + turn) / 2
            case "warmup":
                value = lr * min(1, (t + 1) / set_up["steps"])
            case _:
                value = set_up["values"][min(t, len(set_up["values"]) - 1)]
        return float(value)

    return rate


class Code(NamedTuple):
    """A user's function in the making: `train` is what regcheck calls.

    Attributes:
        spec: the spec that it is written for.
        rule: what it does.
        report: what it reports.
        single: whether it computes in float32, whatever it is given.
        loops: whether it goes over the rows in loops.
        start: its own start, where that is not the spec's.
        in_file_order: whether it takes the rows in the file's order, shuffled or not.
        wrong: what spoils its gradients.
    """

    spec: dict[str, Any]
    rule: Rule
    report: Report = Report()
    single: bool = False
    loops: bool = False
    start: Pair | None = None
    in_file_order: bool = False
    wrong: Wrong | None = None

    def train(self, problem: UserProblem) -> Iterator[dict[str, Any]]:
        """Train, and yield what each update came to."""
        dtype = np.float32 if self.single else problem.X.dtype
        per_epoch = problem.steps // problem.epochs
        training = Training(
            problem,
            self.rule,
            schedule_of(self.spec, per_epoch),
            dtype,
            loops=self.loops,
            wrong=self.wrong,
        )
        at = training.start()
        if self.start is not None:
            at = self.start[0].astype(dtype), training.dtype(self.start[1])
        losses: list[float] = []
        sizes: list[int] = []
        for step in range(problem.steps):
            if step % per_epoch == 0:
                losses, sizes = [], []
            parts = training.parts(step)
            if self.in_file_order:
                parts = in_file_order(parts, step % per_epoch, problem)
            taken = training.step(at, step, parts)
            losses.append(taken.loss)
            sizes.append(sum(map(len, parts)))
            after = (taken.weight, taken.bias)
            yielded: dict[str, Any] = {"weight": taken.weight}
            if training.bias:
                yielded["bias"] = taken.bias
            if self.report.base != "none":
                with np.errstate(all="ignore"):
                    late = training.passed(after, parts)[1]
                    base = {
                        "own": taken.own_loss,
                        "torch": taken.loss,
                        "epoch": float(np.mean(losses)),
                        "epoch by rows": float(np.average(losses, weights=sizes)),
                        "after": late,
                    }[self.report.base]
                    yielded["loss"] = self.reported(base, at, step, sizes[-1])
            yield yielded
            at = after

    def reported(self, base: float, at: Pair, step: int, rows: int) -> float:
        """Add to a loss what is reported with it."""
        divisor = 2 * rows if self.report.per_batch else 2
        squares = [(np.asarray(w, np.float64) ** 2).sum() for w in at]
        pairs = zip(self.report.strengths, squares, strict=True)
        added = sum(strength / divisor * square for strength, square in pairs if strength)
        return float(base * (1 + self.report.wobble * math.sin(step)) + added)


def in_file_order(
    parts: list[NDArray[np.intp]], batch: int, problem: UserProblem
) -> list[NDArray[np.intp]]:
    """Give the rows that a loop over the file would take in the place of shuffled ones."""
    micro = problem.micro_batches
    ahead = 1 if micro is None else len(micro[0])
    first, found = batch * ahead * problem.batch_size, []
    for rows in parts:
        found.append(np.arange(first, first + len(rows)))
        first += len(rows)
    return found


# --- gradients that are simply wrong --------------------------------------------------------------


def bias_sign(_: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Move the bias the wrong way."""
    return g[0], -g[1]


def bias_sum(_: Training, __: Pair, g: Pair, data: tuple[Array, Array]) -> Pair:
    """Sum the bias's gradient, and average the weight's."""
    return g[0], len(data[1]) * g[1]


def bias_fast(_: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Move the bias 1.7 times as fast."""
    return g[0], 1.7 * g[1]


def stale(training: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Use the gradient of the step before."""
    last: Pair = training.memory.get("gradient", g)
    training.memory["gradient"] = g
    return last


def stale_weight(training: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Use the weight's gradient of the step before."""
    last = training.memory.get("gradient", g)
    training.memory["gradient"] = g
    return last[0], g[1]


def wrong_slope(training: Training, at: Pair, _: Pair, data: tuple[Array, Array]) -> Pair:
    """Take a derivative that is not the loss's."""
    X, y = data
    z = X @ at[0] + at[1]
    if training.problem.model == "linear":
        s = 2 * (z - y) * (1 + 0.1 * np.tanh(z))
    else:
        p = 1 / (1 + np.exp(-z))
        s = (p - y) * p * (1 - p) * (1 if training.problem.loss != "mse" else p)
    return X.T @ s / len(y), s.mean()


def extra_term(_: Training, at: Pair, g: Pair, data: tuple[Array, Array]) -> Pair:
    """Add a multiple of the features' means."""
    size = np.abs(g[0]).max()
    mean = data[0].mean(axis=0)
    return g[0] + 0.3 * size * mean / max(np.abs(mean).max(), 1e-30), g[1]


def cubic_penalty(_: Training, at: Pair, g: Pair, __: tuple[Array, Array]) -> Pair:
    """Add 0.05 w³."""
    return g[0] + 0.05 * at[0] ** 3, g[1] + 0.05 * at[1] ** 3


def one_feature(_: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Double the gradient of the first feature."""
    return np.concatenate([2 * g[0][:1], g[0][1:]]), g[1]


def forgotten_row(training: Training, at: Pair, g: Pair, data: tuple[Array, Array]) -> Pair:
    """Leave out the last row of each batch."""
    X, y = data[0][:-1], data[1][:-1]
    if not len(y):
        return g
    s = row_losses(training.problem, X @ at[0] + at[1], y)[1]
    return X.T @ s / len(y), s.mean()


def noisy(training: Training, _: Pair, g: Pair, __: tuple[Array, Array]) -> Pair:
    """Add noise of one percent."""
    random = training.memory.setdefault("random", np.random.default_rng(0))
    return g[0] * (1 + 0.01 * random.normal(size=g[0].shape)), g[1]


def own_target(training: Training, at: Pair, g: Pair, data: tuple[Array, Array]) -> Pair:
    """Take other targets: half of each."""
    X, y = data[0], data[1] / 2
    s = row_losses(training.problem, X @ at[0] + at[1], y)[1]
    return X.T @ s / len(y), s.mean()


def signs(_: Training, __: Pair, g: Pair, ___: tuple[Array, Array]) -> Pair:
    """Move by the gradient's signs."""
    return np.sign(g[0]), np.sign(g[1])


def no_bias(training: Training, at: Pair, g: Pair, data: tuple[Array, Array]) -> Pair:
    """Forget the bias in the prediction."""
    X, y = data
    s = row_losses(training.problem, X @ at[0], y)[1]
    return X.T @ s / len(y), s.mean()


WRONG: dict[str, Wrong] = {
    "bias-sign": bias_sign,
    "bias-sum": bias_sum,
    "bias-fast": bias_fast,
    "stale": stale,
    "stale-weight": stale_weight,
    "wrong-slope": wrong_slope,
    "extra-term": extra_term,
    "cubic-penalty": cubic_penalty,
    "one-feature": one_feature,
    "forgotten-row": forgotten_row,
    "noisy": noisy,
    "own-target": own_target,
    "signs": signs,
    "no-bias": no_bias,
}
"""Mistakes that are in no catalogue."""
