"""The reference trainer: a one-layer model as users train it, with faults planted in the code.

It shares no formula with regcheck. The same code trains in a user's dtype, row by row, and in
extended precision, where it says what a step comes to without rounding; `tests.faults` puts it in
the place of regcheck's own NumPy trainer, and into functions as users write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from regcheck.user_code.problem_api import UserProblem
from tests.reference_optimizers import OPTIMIZERS, Given, corrected_rate, is_decoupled
from tests.rule import Array, Kept, Moment, Moved, Pair, Passed, Reported, Rows, Rule, Taken, Wrong

COUNTING = ("adam", "adamax", "adamw")
"""The optimizers whose corrections count the steps by themselves."""


class Training:
    """One training of a problem; it holds the data, and nothing that changes."""

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
        self.bias = "bias" in problem.initial
        self.per_epoch = problem.steps // problem.epochs
        self.optimizer = problem.optimizer
        self.random = np.random.default_rng(0)

    def pair(self, weight: Array, bias: Array | None) -> Pair:
        """Write a weight and a bias in the dtype; a bias that there is not is 0."""
        return weight.reshape(-1).astype(self.dtype), self.dtype(0 if bias is None else bias.item())

    def start(self) -> Pair:
        return self.pair(self.problem.initial["weight"], self.problem.initial.get("bias"))

    def micro_batches(self, step: int) -> list[Rows]:
        micro = self.problem.micro_batches
        return [self.problem.batches[step]] if micro is None else micro[step]

    def step(self, kept: Kept, before: Pair, step: int, parts: list[Rows] | None = None) -> Taken:
        """Take a step, by default on the rows that the problem says."""
        parts = self.micro_batches(step) if parts is None else parts
        rows = np.concatenate(parts)
        with np.errstate(all="ignore"):
            passed = self.pass_over(before, parts)
            gradient, total = passed.gradient, kept.total
            if self.wrong is not None:
                last = kept.last or gradient
                data = self.X[rows], self.y[rows]
                moment = Moment(self.problem, before, gradient, last, *data, self.random)
                gradient = self.wrong(moment)
            gradient = summed(gradient if self.bias else (gradient[0], 0 * gradient[1]), total)
            lr = self.rule.rate * self.schedule(max(0, step + self.rule.early))
            strengths = self.strengths(len(rows))
            if step % self.per_epoch == 0 and self.rule.state != "goes on":
                kept = kept._replace(memory=({}, {}))
            of_weight, of_bias = self.count(step)
            bias = self.moved(1, before, gradient, kept, lr, of_bias, strengths)
            if self.rule.order == "bias first":
                late = self.pass_over((before[0], bias.after), parts).gradient
                gradient = summed(late, total)[0], gradient[1]
            weight = self.moved(0, before, gradient, kept, lr, of_weight, strengths)
        first = step % self.per_epoch == 0
        kept = Kept(
            (weight.memory, bias.memory),
            None if self.rule.zeroed else gradient,
            passed.gradient,
            (*(() if first else kept.losses), passed.loss),
            (*(() if first else kept.sizes), len(rows)),
        )
        return Taken(passed, gradient, weight, bias, kept)

    def count(self, step: int) -> tuple[int, int]:
        """Return the number of a step, from 0 on, as the corrections of weight and bias count."""
        if self.rule.state == "anew":
            step %= self.per_epoch
        if self.optimizer["name"] in COUNTING:
            if self.rule.counts == "nothing":
                return 1, 1
            if self.rule.counts == "epochs":
                step //= self.per_epoch
            if self.rule.counts == "tensors":
                return (2 * step + 1, 2 * step + 2) if self.bias else (step + 1, step + 1)
        return step + self.rule.counted, step + self.rule.counted

    def pass_over(self, at: Pair, parts: list[Rows]) -> Passed:
        """Go over the rows, forward and backward."""
        own, mean = self.dtype(0), self.dtype(0)
        weight, bias = 0 * at[0], 0 * at[1]
        outputs, found = [], []
        for rows in parts:
            X, y = self.X[rows], self.y[rows]
            z = X @ at[0] + at[1]
            values, slopes = self.row_losses(z, y)
            mean = mean + values.mean()
            if self.rule.target == "broadcast":
                values, slopes = self.broadcast(z, y)
            divisor = {"mean": len(y), "sum": 1, "nominal": self.problem.batch_size}
            scale = self.rule.half / divisor[self.rule.reduce]
            if self.rule.micro_batches == "by rows":
                scale *= len(y) * len(parts) / sum(map(len, parts))
            own = own + scale * values.sum()
            if self.loops and self.rule.target == "row":
                one = self.looped(at, X, y)
            else:
                one = (X.T @ slopes, slopes.sum())
            if self.rule.micro_batches == "last":
                weight, bias = 0 * at[0], 0 * at[1]
            weight, bias = weight + scale * one[0], bias + scale * one[1]
            outputs.append(z)
            found.append((values, slopes))
        factor = self.rule.gradient / (
            1 if self.rule.micro_batches in {"sum", "last"} else len(parts)
        )
        gradient = (factor * weight, factor * bias if self.bias else 0 * bias)
        return Passed(outputs, found, float(own / len(parts)), float(mean / len(parts)), gradient)

    def row_losses(self, z: Array, y: Array) -> Pair:
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
        """Return what stands before w in the penalty's gradient, of weight and bias."""
        decay = self.problem.weight_decay
        by_name = {"weight": decay, "bias": decay} if isinstance(decay, float) else decay
        weight, bias = by_name["weight"], by_name["bias"] if self.bias else 0.0
        if self.bias and self.rule.bias != "own":
            bias = weight if self.rule.bias == "of weight" else 0.0
        divisor = {"nothing": 1, "rows": rows, "all rows": len(self.y)}[self.rule.divide]
        factor = self.rule.penalty / divisor
        return factor * weight, factor * bias

    def penalty(self, strength: float, w: Array) -> Array:
        if self.rule.shape == "constant":
            return strength + 0 * w
        if self.rule.shape == "unit":
            norm = np.sqrt((w * w).sum())
            return 0 * w if norm == 0 else strength * w / norm
        return strength * w

    def moved(
        self,
        which: int,
        before: Pair,
        gradient: Pair,
        kept: Kept,
        lr: float,
        t: int,
        strengths: tuple[float, float],
    ) -> Moved:
        """Move the weight (0) or the bias (1)."""
        rule, w, strength = self.rule, before[which], strengths[which]
        decay = rule.decay
        if decay == "torch":
            decay = "apart" if is_decoupled(self.optimizer) else "gradient"
        if self.optimizer.get("maximize", False):
            gradient = (-gradient[0], -gradient[1])
        if decay == "clipped":
            gradient = summed(
                gradient,
                (self.penalty(strengths[0], before[0]), self.penalty(strengths[1], before[1])),
            )
        g = self.clipped(gradient)[which]
        penalty = self.penalty(strength, w)
        if decay == "gradient":
            g = g + penalty
        options = {**self.optimizer, **dict(rule.other)}
        given = Given(rule, options, lr, t, g, kept.memory[which], w)
        delta, memory = OPTIMIZERS[self.optimizer["name"]](given)
        after: Array = w - delta
        if decay == "late":
            penalty = self.penalty(strength, after)
        if rule.decay_rate == "corrected":
            lr *= corrected_rate(given)
        pull = penalty if decay == "bare" else lr * penalty
        if decay in ("velocity", "apart", "bare", "late"):
            after, delta = after - pull, delta + pull
        return Moved(after, memory, pull, delta)

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
        scales = [np.minimum(1.0, self.problem.clip_norm / (norm + 1e-6)) for norm in norms]
        return gradient[0] * self.dtype(scales[0]), gradient[1] * self.dtype(scales[1])

    def reported(
        self, report: Reported, taken: Taken, before: Pair, step: int, parts: list[Rows]
    ) -> float:
        """Return the loss that is reported of a step."""
        kept = taken.kept
        with np.errstate(all="ignore"):
            match report.base:
                case "epoch":
                    base = float(np.mean(kept.losses))
                case "epoch by rows":
                    base = float(np.average(kept.losses, weights=kept.sizes))
                case "last":
                    base = float(taken.passed.rows[-1][0].mean())
                case "after":
                    base = self.pass_over(taken.after, parts).loss
                case _:
                    base = taken.passed.own_loss if report.base == "own" else taken.passed.loss
            base *= kept.sizes[-1] if report.times == "rows" else report.times
            divisor = 2 * kept.sizes[-1] if report.per_batch else 2
            squares = [(np.asarray(w, np.float64) ** 2).sum() for w in before]
            pairs = zip(report.strengths, squares, strict=True)
            added = sum(strength / divisor * square for strength, square in pairs if strength)
            return float(base * (1 + report.wobble * math.sin(step)) + added)


def summed(gradient: Pair, other: Pair | None) -> Pair:
    """Add two gradients, of which the second may be none."""
    return gradient if other is None else (other[0] + gradient[0], other[1] + gradient[1])


def row_losses(problem: UserProblem, z: Array, y: Array) -> Pair:
    if problem.model == "linear":
        return (z - y) * (z - y), 2 * (z - y)
    p, other = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    if problem.loss == "mse":
        return (p - y) * (p - y), 2 * (p - y) * p * other
    if problem.loss == "bce_with_logits":
        return np.logaddexp(0 * z, z) - z * y, p - y
    # As torch has it: logarithms stop at −100, and the slope fades out where p is 0 or 1. That it
    # is 1 by the rounding of the problem's dtype belongs to it, in extended precision too.
    rest = 1 - (p.astype(problem.initial["weight"].dtype) if p.dtype == np.longdouble else p)
    logs = np.maximum(np.log(p), -100), np.maximum(np.log(rest), -100)
    faded = p * rest / np.maximum(p * rest, float(np.float32(1e-12)))
    return -y * logs[0] - (1 - y) * logs[1], (p - y) * faded
