"""Functions that train as users write them: with faults, or gradients that are simply wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from regcheck.user_code.problem_api import UserProblem
from tests.reference import Training, row_losses
from tests.rule import Array, Kept, Moment, Pair, Reported, Rows, Rule, Wrong, keys_of


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
    rule: Rule = Rule()
    report: Reported = Reported()
    single: bool = False
    loops: bool = False
    start: Pair | None = None
    in_file_order: bool = False
    wrong: Wrong | None = None

    def train(self, problem: UserProblem) -> Iterator[dict[str, Any]]:
        dtype = np.float32 if self.single else problem.X.dtype
        schedule = schedule_of(self.spec, problem.steps // problem.epochs, self.rule)
        training = Training(problem, self.rule, schedule, dtype, loops=self.loops, wrong=self.wrong)
        at, kept = training.start(), Kept()
        if self.start is not None:
            at = self.start[0].astype(dtype), training.dtype(self.start[1])
        for step in range(problem.steps):
            parts = training.micro_batches(step)
            if self.in_file_order:
                parts = in_file_order(parts, step % training.per_epoch, problem)
            taken = training.step(kept, at, step, parts)
            yielded: dict[str, Any] = {"weight": taken.weight.after}
            if training.bias:
                yielded["bias"] = taken.bias.after
            if self.report.base != "none":
                yielded["loss"] = training.reported(self.report, taken, at, step, parts)
            yield yielded
            at, kept = taken.after, taken.kept


def in_file_order(parts: list[Rows], batch: int, problem: UserProblem) -> list[Rows]:
    """Return the rows that a loop over the file would take in the place of shuffled ones."""
    micro = problem.micro_batches
    ahead = 1 if micro is None else len(micro[0])
    first, found = batch * ahead * problem.batch_size, []
    for rows in parts:
        found.append(np.arange(first, first + len(rows)))
        first += len(rows)
    return found


def schedule_of(
    spec: dict[str, Any],
    per_epoch: int,
    rule: Rule = Rule(),  # noqa: B008 - never changed
) -> Callable[[int], float]:
    """Write a spec's schedule, with a rule's other keys, as a function of the step, from 0 on."""
    lr, set_up = spec["lr"], spec.get("lr_schedule")
    if set_up is None:
        return lambda step: lr
    set_up = set_up | keys_of(rule, set_up.get("per", "step"))

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
            case "multistep":
                value = lr * set_up["factor"] ** sum(one <= t for one in set_up["milestones"])
            case "linear":
                share = min(1, t / set_up["steps"])
                first, last = set_up["start_factor"], set_up["end_factor"]
                value = lr * (first * (1 - share) + last * share)
            case "one-cycle":
                value = cycle(lr, set_up, t)
            case _:
                value = set_up["values"][min(t, len(set_up["values"]) - 1)]
        return float(value)

    return rate


def cycle(lr: float, set_up: dict[str, Any], t: int) -> float:
    """Return the lr of a cycle that rises for 0.3 of its steps, as OneCycleLR does by itself."""
    steps, low = set_up["steps"], lr / float(set_up["div_factor"])
    end, peak = low / float(set_up["final_div_factor"]), 0.3 * set_up["steps"] - 1
    if t <= peak:
        return low + (lr - low) * math.sin(math.pi / 2 * t / peak) ** 2
    fallen = (min(t, steps - 1) - peak) / (steps - 1 - peak)
    return lr - (lr - end) * math.sin(math.pi / 2 * fallen) ** 2


# --- gradients that are simply wrong --------------------------------------------------------------


def by_slopes(X: Array, slopes: Array) -> Pair:
    """Return the mean gradient of some rows."""
    return X.T @ slopes / len(slopes), slopes.mean()


def wrong_slope(moment: Moment) -> Pair:
    """Take a derivative that is not the loss's."""
    z, y = moment.X @ moment.at[0] + moment.at[1], moment.y
    if moment.problem.model == "linear":
        return by_slopes(moment.X, 2 * (z - y) * (1 + 0.1 * np.tanh(z)))
    p = 1 / (1 + np.exp(-z))
    slopes = (p - y) * p * (1 - p) * (1 if moment.problem.loss != "mse" else p)
    return by_slopes(moment.X, slopes)


def extra_term(moment: Moment) -> Pair:
    """Add a multiple of the features' means."""
    weight, bias = moment.gradient
    mean = moment.X.mean(axis=0)
    return weight + 0.3 * np.abs(weight).max() * mean / max(np.abs(mean).max(), 1e-30), bias


def forgotten_row(moment: Moment) -> Pair:
    X, y = moment.X[:-1], moment.y[:-1]
    if not len(y):
        return moment.gradient
    return by_slopes(X, row_losses(moment.problem, X @ moment.at[0] + moment.at[1], y)[1])


def noisy(moment: Moment) -> Pair:
    weight, bias = moment.gradient
    return weight * (1 + 0.01 * moment.random.normal(size=weight.shape)), bias


def own_target(moment: Moment) -> Pair:
    """Take other targets: half of each."""
    z = moment.X @ moment.at[0] + moment.at[1]
    return by_slopes(moment.X, row_losses(moment.problem, z, moment.y / 2)[1])


def no_bias(moment: Moment) -> Pair:
    """Forget the bias in the prediction."""
    z = moment.X @ moment.at[0]
    return by_slopes(moment.X, row_losses(moment.problem, z, moment.y)[1])


WRONG: dict[str, Wrong] = {
    "bias-fast": lambda moment: (moment.gradient[0], 1.7 * moment.gradient[1]),
    "bias-sign": lambda moment: (moment.gradient[0], -moment.gradient[1]),
    "bias-sum": lambda moment: (moment.gradient[0], len(moment.y) * moment.gradient[1]),
    "cubic-penalty": lambda moment: (
        moment.gradient[0] + 0.05 * moment.at[0] ** 3,
        moment.gradient[1] + 0.05 * moment.at[1] ** 3,
    ),
    "extra-term": extra_term,
    "forgotten-row": forgotten_row,
    "no-bias": no_bias,
    "noisy": noisy,
    "one-feature": lambda moment: (
        np.concatenate([2 * moment.gradient[0][:1], moment.gradient[0][1:]]),
        moment.gradient[1],
    ),
    "own-target": own_target,
    "signs": lambda moment: (np.sign(moment.gradient[0]), np.sign(moment.gradient[1])),
    "stale": lambda moment: moment.last,
    "stale-weight": lambda moment: (moment.last[0], moment.gradient[1]),
    "wrong-slope": wrong_slope,
}
"""Mistakes that are in no catalogue."""
