"""Mismatches that users reported, as their own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.result import Report
from regcheck.user_code.problem_api import UserProblem

Spec = dict[str, Any]
Move = Callable[[UserProblem, Any, Any, Any, bool], tuple[Any, Any]]
"""Moves an array of numbers: problem, w, gradient, velocity, is it the bias → w, v."""

MOMENTUM = {"name": "sgd", "momentum": 0.9}

ON_WEIGHT = {"weight": 0.5, "bias": 0}

BASE: Spec = {
    "data": {"X": [[1, 2], [3, -1], [-2, 0.5], [0.5, 1.5]], "y": [1, 2, -1, 0.5]},
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
    "model": "linear",
    "epochs": 10,
}


def doubled(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    return (w - p.lr * g if bias else w - p.lr * (g + 2 * 0.5 * w)), v


def over_rows(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    return (w - p.lr * g if bias else w - p.lr * (g + 0.5 / len(p.y) * w)), v


def bias_free(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    return (w - p.lr * g if bias else w - p.lr * (g + 0.5 * w)), v


def late_decay(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    v = 0.9 * v + g
    return w - p.lr * (v + 0.5 * w), v


def dampened(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    v = 0.9 * v + (1 - 0.9) * g
    return w - p.lr * v, v


def keras(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    v = 0.9 * v - p.lr * g
    return w + v, v


def heavy_ball(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    v = 0.9 * v + g
    return w - p.lr * v, v


def half(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    return w - p.lr * (g / 2), v


def summed(p: UserProblem, w: Any, g: Any, v: Any, bias: bool) -> tuple[Any, Any]:
    return w - p.lr * (g * len(p.y)), v


def vectorised(move: Move) -> Callable[[UserProblem], Iterator[Spec]]:
    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        v, c = np.zeros_like(w), np.zeros_like(b)
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            r = X @ w + b - y
            gw, gb = 2 * X.T @ r / len(y), 2 * r.mean(keepdims=True)
            w, v = move(problem, w, gw, v, False)
            b, c = move(problem, b, gb, c, True)
            yield {"weight": w, "bias": b, "loss": np.mean(r**2)}

    return train


# --- the cases ------------------------------------------------------------------------------------

Numbers = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Both weights and the bias after step 1, and after step 10."""


class Case(NamedTuple):
    """A reported mismatch, recomputed in float64.

    Attributes:
        spec: what torch is given.
        move: what the user's code does.
        cause: what explains it, in the `step` and `stage` that the sides part in.
        others: what explains it just as well.
        matching: the weight_decay and lr with which torch does as the code; None: there are none.
    """

    spec: Spec
    move: Move
    cause: str
    step: int
    stage: str
    others: list[list[str]]
    matching: tuple[Any, float] | None
    framework: Numbers
    scratch: Numbers


DECAYED: Numbers = (
    (0.55, -0.14375, 0.1875),
    (0.5654037764361873, 0.0197647647148401, 0.2596892205703198),
)
HEAVY_BALL: Numbers = (
    (0.5075, -0.285875, 0.10875),
    (0.6560574983815296, 0.09414162714346556, 0.3180523417274259),
)

CASES = {
    # bbabenko.github.io weight-decay, titu1994/DenseNet#57, mlcommons/hpc#22
    "l2-factor2": Case(
        {"lr": 0.1, "weight_decay": ON_WEIGHT},
        doubled,
        "penalty-doubled",
        1,
        "penalty",
        [["learning-rate-scaled", "loss-halved"]],
        ({"weight": 1.0, "bias": 0.0}, 0.1),
        DECAYED,
        (
            (0.525, -0.12874999999999998, 0.1875),
            (0.5269911862984832, 0.008138666291138501, 0.2813765664040223),
        ),
    ),
    # community.deeplearning.ai t/736960
    "l2-over-m": Case(
        {"lr": 0.1, "weight_decay": ON_WEIGHT},
        over_rows,
        "penalty-divided-by-batch",
        1,
        "penalty",
        [["penalty-divided-by-dataset"], ["learning-rate-scaled", "loss-summed"]],
        ({"weight": 0.125, "bias": 0.0}, 0.1),
        DECAYED,
        (
            (0.56875, -0.15499999999999997, 0.1875),
            (0.5979619106902007, 0.030572218740558276, 0.24158686600015197),
        ),
    ),
    # discuss.pytorch.org t/1796, t/151583
    "bias-decay": Case(
        {"lr": 0.1, "weight_decay": 0.5},
        bias_free,
        "bias-not-penalized",
        1,
        "penalty",
        [],
        ({"weight": 0.5, "bias": 0.0}, 0.1),
        (
            (0.55, -0.14375, 0.1825),
            (0.5753727624714456, 0.03788013185654308, 0.2024823262827207),
        ),
        DECAYED,
    ),
    # pytorch/pytorch PR 13801. Step 1 is the same: there v is the gradient.
    "wd-after-momentum": Case(
        {"lr": 0.01, "weight_decay": 0.5, "optimizer": MOMENTUM},
        late_decay,
        "decay-after-momentum",
        2,
        "optimizer",
        [["penalty-decoupled"]],
        None,
        (
            (0.505, -0.284375, 0.10825),
            (0.6013617981396238, 0.11659991579825559, 0.2925501021572205),
        ),
        (
            (0.505, -0.284375, 0.10825),
            (0.6475067036649665, 0.09585293162776282, 0.3113555489768795),
        ),
    ),
    # HIPS/autograd#289, ml-explore/mlx PR 87
    "momentum-1-minus-mu": Case(
        {"lr": 0.01, "optimizer": MOMENTUM},
        dampened,
        "momentum-dampened",
        1,
        "optimizer",
        [["gradient-scaled"], ["learning-rate-scaled"]],
        (0.0, 0.001),
        HEAVY_BALL,
        (
            (0.50075, -0.2985875, 0.100875),
            (0.5290807805474281, -0.24373461533379495, 0.13450395107337992),
        ),
    ),
    # keras-team/keras#14115
    "nesterov-vs-plain": Case(
        {"lr": 0.01, "optimizer": MOMENTUM | {"nesterov": True}},
        heavy_ball,
        "nesterov-missing",
        1,
        "optimizer",
        [],
        (0.0, 0.01),
        (
            (0.51425, -0.2731625, 0.116625),
            (0.6409026350420314, 0.08767812224040812, 0.3055763907238575),
        ),
        HEAVY_BALL,
    ),
    # Stack Overflow: MLP from scratch and in PyTorch
    "mse-half": Case(
        {"lr": 0.1},
        half,
        "loss-halved",
        1,
        "gradient",
        [["learning-rate-scaled"]],
        (0.0, 0.05),
        (
            (0.575, -0.15874999999999997, 0.1875),
            (0.6096272746605916, 0.034628708655996224, 0.23517112117708827),
        ),
        (
            (0.5375, -0.229375, 0.14375),
            (0.6031430583523371, -0.0009407763708532031, 0.24679465209088314),
        ),
    ),
    # discuss.pytorch.org t/2517
    "mse-sum-vs-mean": Case(
        {"lr": 0.01},
        summed,
        "loss-summed",
        1,
        "gradient",
        [["gradient-scaled"], ["learning-rate-scaled"]],
        (0.0, 0.04),
        (*HEAVY_BALL[:1], (0.5544118325747941, -0.18339728027256225, 0.1686820813007844)),
        (
            (0.53, -0.24349999999999997, 0.135),
            (0.6000848918448554, -0.022042786540793856, 0.24245523202876235),
        ),
    ),
}

# Ten steps of some 30 roundings of numbers below 5 stay below 1e-13 (and torch's kernels may add
# in another order on another machine).
TOLERANCE = 1e-12


def ended(report: Report, side: str) -> list[float]:
    final = report.to_dict()["final"][side]
    return [*final["weight"][0], *final["bias"]]


@pytest.mark.parametrize("name", CASES)
def test_users_code_has_its_cause_and_the_settings_that_match(name: str) -> None:
    case = CASES[name]
    spec, scratch = BASE | case.spec, vectorised(case.move)
    report = check(spec, scratch=scratch)
    told = report.to_dict()
    first, found = told["first_divergence"], told["diagnosis"]
    assert (told["verdict"], told["compared"]) == ("diverged", 10)
    assert (first["step"], first["stage"]) == (case.step, case.stage)
    assert told["first_loss_divergence"] is None
    assert found["explained"]
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [(case.cause, "update")]
    assert found["alternatives"] == case.others
    for side, numbers in (("framework", case.framework), ("scratch", case.scratch)):
        assert ended(report, side) == pytest.approx(numbers[1], rel=0, abs=TOLERANCE)
    assert found["residual_ratio"] <= 8  # the default tolerance, in rounding bounds
    match = found["matching"]
    if case.matching is None:
        assert match is None
        return
    # A named cause has its numbers from the spec, with a rounding or two.
    assert match["weight_decay"] == pytest.approx(case.matching[0], rel=1e-15)
    assert match["lr"] == pytest.approx(case.matching[1], rel=1e-15)
    settings = {key: match[key] for key in ("lr", "weight_decay")}
    if "optimizer" in case.spec:
        settings["optimizer"] = {"name": "sgd", **{k: match[k] for k in ("momentum", "nesterov")}}
    again = check(spec | {"framework": settings}, scratch=scratch)
    assert (again.verdict, again.comparison.compared) == ("equivalent", 10)
    assert ended(again, "framework") == pytest.approx(case.scratch[1], rel=0, abs=TOLERANCE)


def test_velocity_that_holds_the_lr_is_the_same_rule_at_a_constant_lr() -> None:
    # pytorch/pytorch#1099: the negative control.
    report = check(BASE | {"lr": 0.01, "optimizer": MOMENTUM}, scratch=vectorised(keras))
    assert (report.verdict, report.comparison.compared) == ("equivalent", 10)
    assert report.diagnosis is None
    for side in ("scratch", "framework"):
        assert ended(report, side) == pytest.approx(HEAVY_BALL[1], rel=0, abs=TOLERANCE)
