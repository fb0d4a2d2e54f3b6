"""The diagnosis of a run: causes, alone and together, fitted factors, clues where none explains."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.report.json import json_chunks
from regcheck.report.result import Report
from regcheck.report.terminal import report_text
from regcheck.rules.convention import NAMED
from regcheck.user_code.problem_api import UserProblem

Spec = dict[str, Any]
Train = Callable[[UserProblem], Iterator[Spec]]
Step = Callable[["At"], tuple[Any, Any]]

LAMBDA, LR, ROWS = 0.1, 0.05, 40


def data(labels: bool = False) -> Spec:
    random = np.random.default_rng(1)
    X = random.normal(size=(ROWS, 3))
    y = X @ [0.5, -1.5, 2.0] + 0.3 * random.normal(size=ROWS)
    return {"X": X.tolist(), "y": ((y > 0).astype(float) if labels else y).tolist()}


BASE: Spec = {
    "data": data(),
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9], "bias": [0.3]},
    "epochs": 12,
    "lr": LR,
    "weight_decay": LAMBDA,
}
BATCHES: Spec = {"batch_size": 16, "epochs": 4}  # 16, 16 and 8 rows
MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
LOGISTIC: Spec = {"data": data(labels=True), "model": "logistic"}


class At:
    """Where a user's code is within a step: parameters, data gradient, rows, what it remembers."""

    def __init__(self, problem: UserProblem) -> None:
        self.w, self.b = problem.initial["weight"], problem.initial["bias"]
        self.memory: Spec = {}
        self.X = self.y = self.z = self.gw = self.gb = np.zeros(0)
        self.loss = 0.0

    def look(self, problem: UserProblem, rows: Any) -> None:
        self.X, self.y = problem.X[rows], problem.y[rows]
        self.z = z = self.X @ self.w + self.b
        if problem.model == "linear":
            self.loss, slope = ((z - self.y) ** 2).mean(), 2 * (z - self.y)
        else:
            p = 1 / (1 + np.exp(-z))
            self.loss = -(self.y * np.log(p) + (1 - self.y) * np.log(1 - p)).mean()
            slope = p - self.y
        self.gw, self.gb = self.X.T @ slope / len(slope), slope.mean(keepdims=True)


def code(step: Step, loss: Callable[[At], Any] | None = None, grad: Step | None = None) -> Train:
    """Write a user's function: what it makes of a step, and what it tells beside it."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        at = At(problem)
        for rows in problem.batches:
            at.look(problem, rows)
            told: Spec = {"loss": at.loss if loss is None else loss(at)}
            if grad is not None:
                told["grad"] = dict(zip(("weight", "bias"), grad(at), strict=True))
            at.w, at.b = step(at)
            yield {"weight": at.w, "bias": at.b, **told}

    return train


def descent(penalty: float, of_bias: float | None = None, by: float = 1.0, lr: float = LR) -> Step:
    """Write w ← w − lr (by·g + penalty·w); of_bias is the bias's own penalty."""
    other = penalty if of_bias is None else of_bias
    return lambda at: (
        at.w - lr * (by * at.gw + penalty * at.w),
        at.b - lr * (by * at.gb + other * at.b),
    )


TORCHS = descent(LAMBDA)
"""What torch does."""


def found_by(train: Train | None, **spec: Any) -> Spec:
    """Give the diagnosis as JSON has it."""
    found: Spec = check(BASE | spec, scratch=train).to_dict()["diagnosis"]
    return found


def causes_of(found: Spec) -> list[str]:
    return [cause["id"] for cause in found["causes"]]


# --- several causes at once -----------------------------------------------------------------------

OVER_N = descent(LAMBDA / ROWS, of_bias=0.0)


def damped_and_late(at: At) -> tuple[Any, Any]:
    v = at.memory["v"] = 0.9 * at.memory.get("v", 0) + 0.1 * at.gw
    c = at.memory["c"] = 0.9 * at.memory.get("c", 0) + 0.1 * at.gb
    return at.w - LR * (v + LAMBDA * at.w), at.b - LR * (c + LAMBDA * at.b)


PAIRS: dict[str, tuple[Step, Spec, list[str], list[list[str]]]] = {
    "λ/n and a free bias, full batch": (
        OVER_N,
        {},
        ["bias-not-penalized", "penalty-divided-by-batch"],
        [["bias-not-penalized", "penalty-divided-by-dataset"]],
    ),
    "λ/n and a free bias, mini-batches": (
        OVER_N,
        BATCHES,
        ["bias-not-penalized", "penalty-divided-by-dataset"],
        [],
    ),
    "half the loss and a doubled penalty": (
        descent(2 * LAMBDA, by=0.5),
        {},
        ["loss-halved", "penalty-doubled"],
        [],
    ),
    "a doubled lr that makes up for half the loss": (
        descent(LAMBDA, by=0.5, lr=2 * LR),
        {},
        ["penalty-doubled"],
        [["learning-rate-scaled", "loss-halved"]],
    ),
    "dampened momentum and decay after it": (
        damped_and_late,
        MOMENTUM,
        ["decay-after-momentum", "momentum-dampened"],
        [
            ["momentum-dampened", "penalty-decoupled"],
            ["decay-after-momentum", "gradient-scaled"],
            ["gradient-scaled", "penalty-decoupled"],
        ],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_causes_that_act_together_are_told_together(name: str) -> None:
    step, spec, causes, others = PAIRS[name]
    found = found_by(code(step), **spec)
    assert found["explained"]
    assert causes_of(found) == causes
    assert found["alternatives"] == others
    assert all(cause["kind"] == "update" for cause in found["causes"])
    assert found["residual_ratio"] <= 8  # the default tolerance, in rounding bounds
    assert found["clues"] == []


def test_half_loss_and_doubled_penalty_with_a_doubled_lr_are_a_fourfold_penalty() -> None:
    # 2 lr (g/2 + 2 λ w) = lr (g + 4 λ w)
    found = found_by(code(descent(2 * LAMBDA, by=0.5, lr=2 * LR)))
    assert causes_of(found) == ["penalty-scaled"]
    assert found["causes"][0]["factor"] == pytest.approx(4, rel=1e-9)
    assert ["learning-rate-scaled", "loss-halved", "penalty-doubled"] in found["alternatives"]


# --- factors that are fitted ----------------------------------------------------------------------

FITTED: dict[str, Callable[[float], Step]] = {
    "penalty-scaled": lambda c: descent(c * LAMBDA),
    "gradient-scaled": lambda c: descent(LAMBDA, by=c),
    "learning-rate-scaled": lambda c: descent(LAMBDA, lr=c * LR),
}


@pytest.mark.parametrize("cause", FITTED)
@pytest.mark.parametrize("c", [0.137, 3.0, 7.77])
@pytest.mark.parametrize("spec", [{}, BATCHES, LOGISTIC], ids=["full", "batches", "logistic"])
def test_factor_is_fitted(cause: str, c: float, spec: Spec) -> None:
    found = found_by(code(FITTED[cause](c)), **spec)
    assert causes_of(found) == [cause]
    assert found["causes"][0]["factor"] == pytest.approx(c, rel=1e-6)
    alpha, kappa = {
        "penalty-scaled": (1.0, c),
        "gradient-scaled": (c, 1.0),
        "learning-rate-scaled": (c, c),
    }[cause]
    for tensor in ("weight", "bias"):
        measured = found["effective_lr"]["scratch"][tensor], LR * alpha
        assert measured[0] == pytest.approx(measured[1], rel=1e-6)
        decay = found["effective_weight_decay"]["scratch"][tensor]
        assert decay == pytest.approx(LAMBDA * kappa / alpha, rel=1e-6)
        deviation = found["deviation"][tensor]
        # What one rounding bound, some 1e-16 of numbers near 1, makes of λ = 0.1 in a lr of 0.05:
        # more than nothing, and far from what the digits above need.
        assert 1e-18 < deviation["lr"] < 1e-10
        assert 1e-17 < deviation["weight_decay"] < 1e-8
        assert abs(measured[0] - measured[1]) <= 20 * deviation["lr"]
    # lr′ = c lr, λ′ = κ λ/c; one division of fitted numbers.
    assert found["matching"]["lr"] == pytest.approx(LR * alpha, rel=1e-6)
    assert found["matching"]["weight_decay"] == pytest.approx(LAMBDA * kappa / alpha, rel=1e-6)


def test_factor_fitted_in_float32_says_how_sure_it_is() -> None:
    c = 0.137

    def single(at: At) -> tuple[Any, Any]:
        w, b = descent(c * LAMBDA)(at)
        return np.float32(w), np.float32(b)

    found = found_by(code(single))
    assert causes_of(found) == ["penalty-scaled", "precision"]
    error = abs(found["causes"][0]["factor"] - c)
    deviation = found["deviation"]["weight"]["weight_decay"] / LAMBDA
    assert error <= 20 * deviation
    assert deviation < 0.01  # float32 has seven digits, and the penalty is some 1e-3 of w a step


KNOWN_RULES: dict[str, tuple[Step, dict[str, float], dict[str, float]]] = {
    "torch's own but for the bias": (
        descent(LAMBDA, of_bias=0.0),
        {"weight": LR, "bias": LR},
        {"weight": LAMBDA, "bias": 0.0},
    ),
    "λ/n and a free bias": (
        OVER_N,
        {"weight": LR, "bias": LR},
        {"weight": LAMBDA / ROWS, "bias": 0.0},
    ),
    "flipped": (
        descent(-LAMBDA),
        {"weight": LR, "bias": LR},
        {"weight": -LAMBDA, "bias": -LAMBDA},
    ),
    "half loss": (
        descent(LAMBDA, by=0.5),
        {"weight": LR / 2, "bias": LR / 2},
        {"weight": 2 * LAMBDA, "bias": 2 * LAMBDA},
    ),
    "no cause, each tensor in its own way": (
        lambda at: (at.w - LR * 3 * at.gw, at.b - LR * (at.gb / 7 + 0.2 * at.b)),
        {"weight": 3 * LR, "bias": LR / 7},
        {"weight": 0.0, "bias": 1.4},
    ),
}


@pytest.mark.parametrize("name", KNOWN_RULES)
def test_effective_lr_and_weight_decay_are_those_of_the_rule(name: str) -> None:
    step, rates, decays = KNOWN_RULES[name]
    found = found_by(code(step))
    assert found["effective_lr"]["framework"] == LR
    assert found["effective_weight_decay"]["framework"] == {"weight": LAMBDA, "bias": LAMBDA}
    # Twelve steps that round at 1e-16 tell a decay of 0.005 w a step to some ten digits.
    assert found["effective_lr"]["scratch"] == pytest.approx(rates, rel=1e-9)
    assert found["effective_weight_decay"]["scratch"] == pytest.approx(decays, rel=1e-9, abs=1e-11)


# --- what is simply wrong -------------------------------------------------------------------------


def wrong_sign_of_bias(at: At) -> tuple[Any, Any]:
    return at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * (-at.gb + LAMBDA * at.b)


def uphill(at: At) -> tuple[Any, Any]:
    return at.w + LR * (at.gw + LAMBDA * at.w), at.b + LR * (at.gb + LAMBDA * at.b)


def stale(at: At) -> tuple[Any, Any]:
    gw, gb = at.memory.get("last", (at.gw, at.gb))
    at.memory["last"] = at.gw, at.gb
    return at.w - LR * (gw + LAMBDA * at.w), at.b - LR * (gb + LAMBDA * at.b)


def absolute(at: At) -> tuple[Any, Any]:
    return (
        at.w - LR * (at.gw + LAMBDA * np.sign(at.w)),
        at.b - LR * (at.gb + LAMBDA * np.sign(at.b)),
    )


def wrong_derivative(at: At) -> tuple[Any, Any]:
    slope = 2 * np.abs(at.z - at.y)
    gw, gb = at.X.T @ slope / len(slope), slope.mean(keepdims=True)
    return at.w - LR * (gw + LAMBDA * at.w), at.b - LR * (gb + LAMBDA * at.b)


WRONG: dict[str, tuple[Step, Spec, int, str, list[str]]] = {
    "a sign in one tensor": (
        wrong_sign_of_bias,
        {},
        1,
        "gradient",
        ["weight goes by torch's rule.", "bias goes by a wrong sign: −1 times torch's gradient."],
    ),
    "all signs": (
        uphill,
        {},
        1,
        "gradient",
        ["weight and bias go by −1 times torch's step: a sign is wrong."],
    ),
    "the gradient of the step before": (
        stale,
        {},
        2,
        "gradient",
        ["Each step is made from the gradient of the step before: take the predictions"],
    ),
    "the gradient of the step before, of a batch": (
        stale,
        BATCHES,
        2,
        "gradient",
        ["Each step is made from the gradient of the step before: take the predictions"],
    ),
    "a derivative": (
        wrong_derivative,
        {},
        1,
        "gradient",
        ["Finite differences of the loss side with torch: at step 1, its gradient is off by at"],
    ),
    "a sum in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * (ROWS * at.gb)),
        {},
        1,
        "gradient",
        ["weight goes by torch's rule.", "bias goes by 40 times torch's gradient"],
    ),
    "an L1 penalty": (
        absolute,
        {},
        1,
        "penalty",
        ["The steps are torch's with a penalty of 0.1 sign(w), as an L1 penalty of λ Σ|w| has"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_code_is_not_explained_and_what_is_known_is_told(name: str) -> None:
    step, spec, first, stage, clues = WRONG[name]
    report = check(BASE | spec, scratch=code(step))
    found = report.to_dict()["diagnosis"]
    assert not found["explained"]
    assert (causes_of(found), found["alternatives"], found["matching"]) == ([], [], None)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (first, stage)
    assert found["stage"] == stage
    for clue in clues:
        assert any(one.startswith(clue) for one in found["clues"]), found["clues"]
    text = " ".join(report_text(report).split())
    assert "not explained: no known cause" in text
    assert all(" ".join(clue.split()) in text for clue in found["clues"])
    assert report.diagnosis is not None
    assert report.diagnosis.fix is None


def mlp_framework(problem: UserProblem) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.from_numpy(random.normal(size=tuple(tensor.shape))))
    return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=LR, weight_decay=LAMBDA)


def mlp_scratch(slope: Callable[[Any, Any], Any]) -> Train:
    def train(problem: UserProblem) -> Iterator[Spec]:
        P = problem.initial
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            a = X @ P["0.weight"].T + P["0.bias"]
            h = np.tanh(a)
            z = h @ P["2.weight"][0] + P["2.bias"]
            dz = 2 * (z - y) / len(y)
            da = dz[:, None] * P["2.weight"] * slope(a, h)
            gradient = {
                "0.weight": da.T @ X,
                "0.bias": da.sum(0),
                "2.weight": dz @ h,
                "2.bias": dz.sum(),
            }
            P = {name: w - LR * (gradient[name] + LAMBDA * w) for name, w in P.items()}
            yield {**P, "loss": ((z - y) ** 2).mean()}

    return train


def test_derivative_of_tanh_from_the_wrong_side_of_it_is_told_by_its_tensors() -> None:
    spec = {key: value for key, value in BASE.items() if key not in ("model", "init")}
    right = check(spec, scratch=mlp_scratch(lambda a, h: 1 - h**2), framework=mlp_framework)
    assert right.verdict == "equivalent"
    wrong = check(spec, scratch=mlp_scratch(lambda a, h: 1 - a**2), framework=mlp_framework)
    first, found = wrong.first_divergence, wrong.diagnosis
    assert first is not None
    assert found is not None
    assert (first.step, first.stage, found.explained) == (1, "gradient", False)
    told = " ".join(found.evidence)
    assert "0.weight and 0.bias go by no multiple of torch's gradient" in told
    assert "2.weight and 2.bias go by torch's rule." in told
    assert "Finite differences of the loss side with torch" in told


# --- the gradient that the code yields ------------------------------------------------------------


def curved(at: At) -> tuple[Any, Any]:
    """Make something of the gradient that no cause makes."""
    return at.w - LR * (at.gw + 0.1 * at.gw**2 + LAMBDA * at.w), TORCHS(at)[1]


def own(at: At) -> tuple[Any, Any]:
    return at.gw, at.gb


def with_penalty(at: At) -> tuple[Any, Any]:
    return at.gw + LAMBDA * at.w, at.gb + LAMBDA * at.b


def flipped(at: At) -> tuple[Any, Any]:
    return -at.gw, at.gb


@pytest.mark.parametrize(
    ("grad", "stage", "clue"),
    [
        (None, "gradient", "If your code yields its gradient too"),
        (own, "optimizer", "The gradient that your code yields is torch's, to rounding"),
        (with_penalty, "optimizer", "The gradient that your code yields is torch's, to rounding"),
        (flipped, "gradient", "The gradient that your code yields is not torch's."),
    ],
    ids=["none", "data gradient", "with the penalty", "wrong"],
)
def test_gradient_that_is_yielded_decides_the_stage(
    grad: Step | None, stage: str, clue: str
) -> None:
    report = check(BASE, scratch=code(curved, grad=grad))
    found = report.diagnosis
    assert report.first_divergence is not None
    assert found is not None
    assert not found.explained
    assert (report.first_divergence.stage, found.stage) == (stage, stage)
    assert sum(one.startswith(clue) for one in found.evidence) == 1
    assert sum(one.startswith("The gradient that your code yields") for one in found.evidence) == (
        grad is not None
    )


@pytest.mark.parametrize("grad", [own, with_penalty, flipped])
def test_gradient_that_is_yielded_does_not_decide_the_verdict(grad: Step) -> None:
    # It is told for the diagnosis; what trains is what comes of it.
    assert check(BASE, scratch=code(TORCHS, grad=grad)).verdict == "equivalent"
    found = found_by(code(descent(2 * LAMBDA), grad=grad))
    assert causes_of(found) == ["penalty-doubled"]


# --- causes of the reported loss alone ------------------------------------------------------------


def squares(at: At) -> tuple[float, float]:
    return float((at.w**2).sum()), float((at.b**2).sum())


def after_update(at: At) -> float:
    w, b = TORCHS(at)
    return float(((at.X @ w + b - at.y) ** 2).mean())


def epoch_mean(by_rows: bool) -> Callable[[At], float]:
    def mean(at: At) -> float:
        share = len(at.y) if by_rows else 1
        seen = at.memory.get("seen", [])
        if sum(rows for rows, _, _ in seen) == ROWS:
            seen = []
        at.memory["seen"] = seen = [*seen, (len(at.y), share, at.loss)]
        weighted = sum(part * loss for _, part, loss in seen)
        return float(weighted / sum(part for _, part, _ in seen))

    return mean


REPORTS: dict[str, tuple[Callable[[At], float], Spec, list[str], int]] = {
    "the penalty": (
        lambda at: at.loss + LAMBDA / 2 * sum(squares(at)),
        {},
        ["penalty-in-loss"],
        1,
    ),
    "the penalty of the weights": (
        lambda at: at.loss + LAMBDA / 2 * squares(at)[0],
        {},
        ["penalty-in-loss"],
        1,
    ),
    "the penalty without its ½": (
        lambda at: at.loss + LAMBDA * sum(squares(at)),
        {},
        ["penalty-in-loss"],
        1,
    ),
    "a penalty of its own": (
        lambda at: at.loss + 0.0731 * squares(at)[0] + 0.02 * squares(at)[1],
        {},
        ["penalty-in-loss"],
        1,
    ),
    "the loss after the update": (after_update, {}, ["loss-after-update"], 1),
    "the loss after the update, of a batch": (after_update, BATCHES, ["loss-after-update"], 1),
    "the mean of the epoch's batches": (epoch_mean(False), BATCHES, ["loss-epoch-mean"], 2),
    "the mean of the epoch's rows": (epoch_mean(True), BATCHES, ["loss-epoch-mean"], 2),
    "the sum": (lambda at: at.loss * len(at.y), {}, ["reported-loss-scaled"], 1),
    "the sum of a batch": (lambda at: at.loss * len(at.y), BATCHES, ["reported-loss-scaled"], 1),
    "half of it": (lambda at: at.loss / 2, {}, ["reported-loss-scaled"], 1),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reported_loss_is_told_from_the_training(name: str) -> None:
    loss, spec, causes, first = REPORTS[name]
    report = check(BASE | spec, scratch=code(TORCHS, loss))
    data = report.to_dict()
    found = data["diagnosis"]
    assert (data["verdict"], data["first_divergence"]) == ("diverged", None)
    assert data["first_loss_divergence"]["step"] == first
    assert found["explained"]
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [
        (cause, "reporting") for cause in causes
    ]
    assert found["matching"] is None  # torch's settings do not change what the code reports
    text = report_text(report)
    assert (
        f"DIVERGED at step {first} of 12, in the reported loss; the training itself agree" in text
    )
    alone = check(BASE | spec | {"compare": ["parameters"]}, scratch=code(TORCHS, loss))
    assert (alone.verdict, alone.comparison.compared) == ("equivalent", 12)


@pytest.mark.parametrize(
    ("strengths", "written"),
    [
        ((LAMBDA, LAMBDA), "torch's loss + ½·0.1 Σw² + ½·0.1 Σb²"),
        ((LAMBDA, 0.0), "torch's loss + ½·0.1 Σw²"),
        ((2 * LAMBDA, 2 * LAMBDA), "torch's loss + ½·0.2 Σw² + ½·0.2 Σb²"),
        ((0.1462, 0.04), "torch's loss + ½·0.1462 Σw² + ½·0.04 Σb²"),
    ],
)
def test_penalty_in_the_loss_has_its_strength(strengths: tuple[float, float], written: str) -> None:
    def loss(at: At) -> float:
        of_weight, of_bias = squares(at)
        return at.loss + strengths[0] / 2 * of_weight + strengths[1] / 2 * of_bias

    report = check(BASE, scratch=code(TORCHS, loss))
    assert report.diagnosis is not None
    assert report.diagnosis.reporting is not None
    fits = report.diagnosis.reporting.strengths
    measured = [fits[name].factor if name in fits else 0.0 for name in ("weight", "bias")]
    # Fitted to twelve losses near 5 that are rounded at some 1e-15.
    assert measured == pytest.approx(strengths, abs=1e-10)
    assert written in report_text(report)


def test_training_and_reporting_that_differ_are_told_apart() -> None:
    report = check(
        BASE,
        scratch=code(
            descent(LAMBDA / ROWS), lambda at: at.loss + LAMBDA / 2 / ROWS * sum(squares(at))
        ),
    ).to_dict()
    found = report["diagnosis"]
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [
        ("penalty-divided-by-batch", "update"),
        ("penalty-in-loss", "reporting"),
    ]
    assert report["first_divergence"]["step"] == report["first_loss_divergence"]["step"] == 1


def test_loss_that_its_own_rule_makes_is_no_further_cause() -> None:
    # The sum is trained by and reported: one cause.
    train = code(descent(LAMBDA, by=ROWS, lr=LR), lambda at: at.loss * ROWS)
    report = check(BASE | {"epochs": 3}, scratch=train).to_dict()
    assert causes_of(report["diagnosis"]) == ["loss-summed"]
    assert report["first_loss_divergence"]["step"] == 1
    assert report["diagnosis"]["explained"]


def test_loss_that_nothing_explains_leaves_the_training_explained_in_part() -> None:
    report = check(BASE, scratch=code(descent(2 * LAMBDA), lambda at: at.loss + np.sin(at.w[0])))
    found = report.to_dict()["diagnosis"]
    assert not found["explained"]
    assert causes_of(found) == ["penalty-doubled"]
    assert "no known cause explains why the reported losses differ" in report_text(report)


# --- other starts, rows and dtypes ----------------------------------------------------------------


def moved_start(problem: UserProblem) -> Iterator[Spec]:
    at = At(problem)
    at.w = at.w + 0.25
    for rows in problem.batches:
        at.look(problem, rows)
        at.w, at.b = TORCHS(at)
        yield {"weight": at.w, "bias": at.b, "loss": at.loss}


def in_file_order(problem: UserProblem) -> Iterator[Spec]:
    at = At(problem)
    for step in range(problem.steps):
        first = step % 3 * 16
        at.look(problem, np.arange(ROWS)[first : first + 16])
        at.w, at.b = TORCHS(at)
        yield {"weight": at.w, "bias": at.b, "loss": at.loss}


def all_in_float32(problem: UserProblem) -> Iterator[Spec]:
    single = np.float32
    w: Any = problem.initial["weight"].astype(single)
    b: Any = problem.initial["bias"].astype(single)
    for rows in problem.batches:
        X, y = problem.X[rows].astype(single), problem.y[rows].astype(single)
        r = X @ w + b - y
        loss = (r**2).mean()
        w = w - single(LR) * (2 * X.T @ r / single(len(y)) + single(LAMBDA) * w)
        b = b - single(LR) * (2 * r.mean() + single(LAMBDA) * b)
        yield {"weight": w, "bias": b, "loss": loss}


def single(at: At) -> tuple[Any, Any]:
    return np.float32(TORCHS(at)[0]), np.float32(TORCHS(at)[1])


OTHERWISE: dict[str, tuple[Train, Spec, str]] = {
    "another start": (moved_start, {}, "initial-parameters"),
    "the file's order": (in_file_order, BATCHES | {"shuffle": {"seed": 3}}, "row-order"),
    "parameters in float32": (code(single), {}, "precision"),
    "all in float32": (all_in_float32, {}, "precision"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_start_rows_and_dtype_are_causes_of_their_own(name: str) -> None:
    train, spec, cause = OTHERWISE[name]
    report = check(BASE | spec, scratch=train)
    found = report.to_dict()["diagnosis"]
    assert (report.verdict, found["explained"]) == ("diverged", True)
    assert causes_of(found) == [cause]
    if cause == "initial-parameters":
        start = found["start"]
        # The start is found by running the rule backwards from step 1, to rounding.
        assert start["weight"][0] == pytest.approx([0.75, -0.45, 1.15], abs=1e-13)
        assert start["bias"] == pytest.approx([0.3], abs=1e-13)
    else:
        assert found["start"] is None


def test_precision_is_told_beside_another_cause() -> None:
    def both(at: At) -> tuple[Any, Any]:
        w, b = descent(2 * LAMBDA)(at)
        return np.float32(w), np.float32(b)

    assert causes_of(found_by(code(both))) == ["penalty-doubled", "precision"]


# --- the built-in conventions ---------------------------------------------------------------------

NAMED_CAUSES = {
    "divided-by-batch": ["penalty-divided-by-batch", "penalty-in-loss"],
    "divided-by-dataset": ["penalty-divided-by-dataset"],
    "doubled": ["penalty-doubled"],
    "bias-free": ["bias-not-penalized"],
    "coursera": ["bias-not-penalized", "penalty-divided-by-dataset", "penalty-in-loss"],
    "keras-l2": ["bias-not-penalized", "penalty-doubled", "penalty-in-loss"],
    "sklearn-mlp": ["bias-not-penalized", "penalty-divided-by-batch", "penalty-in-loss"],
}


def test_each_named_convention_has_its_causes() -> None:
    # Without momentum, decay apart from the gradient is the same rule as torch's.
    assert NAMED.keys() - NAMED_CAUSES.keys() == {"pytorch", "decoupled"}


@pytest.mark.parametrize("name", NAMED_CAUSES)
@pytest.mark.parametrize("spec", [BATCHES, BATCHES | LOGISTIC], ids=["linear", "logistic"])
def test_named_convention_is_told_by_its_causes(name: str, spec: Spec) -> None:
    found = found_by(None, **spec, convention=name)
    assert found["explained"]
    assert causes_of(found) == NAMED_CAUSES[name]


@pytest.mark.parametrize("name", ["pytorch", "decoupled"])
def test_named_convention_that_comes_to_torchs_rule_is_equivalent(name: str) -> None:
    assert check(BASE | BATCHES | {"convention": name}).verdict == "equivalent"


def test_factor_on_the_loss_is_told_of_the_training_and_of_what_is_reported() -> None:
    found = found_by(None, convention={"loss_factor": 0.81})
    assert found["explained"]
    assert causes_of(found) == ["gradient-scaled", "reported-loss-scaled"]
    assert found["causes"][0]["factor"] == pytest.approx(0.81, rel=1e-6)


def test_decoupled_with_momentum_is_told() -> None:
    found = found_by(None, **MOMENTUM, convention="decoupled")
    assert causes_of(found) == ["decay-after-momentum"]
    assert found["alternatives"] == [["penalty-decoupled"]]


@pytest.mark.parametrize(
    ("convention", "cause", "factor"),
    [
        ({"penalty_factor": 1.37}, "penalty-scaled", 1.37),
        ({"penalty_factor": 0.5}, "penalty-halved", None),
        ({"penalty_factor": 0}, "penalty-missing", None),
        ({"penalty_factor": -1}, "penalty-sign-flipped", None),
        ({"loss_factor": 0.5}, "loss-halved", None),
        ({"update_order": "bias-first"}, "update-sequential", None),
        ({"penalty_norm": "unsquared"}, "penalty-norm-not-squared", None),
        ({"decay": "after-update"}, "decay-after-update", None),
        ({"decay": "decoupled-unscaled"}, "decay-not-scaled-by-lr", None),
    ],
)
def test_convention_of_any_numbers_is_told(
    convention: Spec, cause: str, factor: float | None
) -> None:
    found = found_by(None, convention=convention)
    assert found["explained"]
    assert causes_of(found) == [cause]
    told = found["causes"][0]["factor"]
    if factor is None:
        assert told is None
    else:
        assert told == pytest.approx(factor, rel=1e-6)


# --- tolerances of the drift ----------------------------------------------------------------------

TIGHT: list[Any] = ["exact", {"rtol": 1e-16}, {"atol": 1e-17}, {"weight": "exact"}]


@pytest.mark.parametrize("tolerance", TIGHT, ids=repr)
@pytest.mark.parametrize("train", [code(TORCHS), None], ids=["own code", "built in"])
def test_divergence_by_rounding_alone_has_no_cause(tolerance: Any, train: Train | None) -> None:
    report = check(BASE | {"tolerance": tolerance}, scratch=train)
    found = report.to_dict()["diagnosis"]
    assert (report.verdict, found["explained"]) == ("diverged", True)
    assert (found["causes"], found["alternatives"]) == ([], [])
    assert found["residual_ratio"] <= 8  # rounding bounds: the default tolerance
    assert "the sides differ by rounding alone" in report_text(report)
    assert found["fixed_spec"] == {"tolerance": {"rounding": 8}}


@pytest.mark.parametrize("tolerance", [*TIGHT, {"rtol": 1e-9, "atol": 1e-12}], ids=repr)
def test_cause_is_found_whatever_the_tolerance(tolerance: Any) -> None:
    found = found_by(code(descent(2 * LAMBDA)), tolerance=tolerance)
    assert causes_of(found) == ["penalty-doubled"]


def test_divergence_by_the_dtypes_alone_is_precision() -> None:
    spec = {"tolerance": "exact", "dtype": {"scratch": "float64", "framework": "float32"}}
    found = found_by(code(TORCHS), **spec)
    assert causes_of(found) == ["precision"]
    assert found["fixed_spec"] == {"tolerance": {"rounding": 8}}


# --- what a spec expects, and the JSON ------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expect", "as_expected"),
    [
        (descent(2 * LAMBDA), {"cause": "penalty-doubled"}, True),
        (descent(2 * LAMBDA), {"verdict": "diverged", "step": 1, "cause": "penalty-doubled"}, True),
        (descent(2 * LAMBDA), {"cause": "penalty-halved"}, False),
        (descent(2 * LAMBDA), {"step": 2, "cause": "penalty-doubled"}, False),
        (descent(LAMBDA / ROWS), {"cause": "penalty-divided-by-dataset"}, True),  # an alternative
        (OVER_N, {"cause": "bias-not-penalized"}, True),  # one of two
        (TORCHS, {"cause": "penalty-doubled"}, False),
        (uphill, {"cause": "penalty-sign-flipped"}, False),
    ],
)
def test_expected_cause_is_looked_for_in_what_explains_the_users_code(
    step: Step, expect: Spec, as_expected: bool
) -> None:
    report = check(BASE | {"expect": expect}, scratch=code(step))
    assert report.expected is as_expected


def test_expected_cause_of_the_reported_loss() -> None:
    loss = REPORTS["the penalty"][0]
    expect = {"verdict": "diverged", "cause": "penalty-in-loss"}
    assert check(BASE | {"expect": expect}, scratch=code(TORCHS, loss)).expected is True
    assert check(BASE | {"expect": expect}, scratch=code(TORCHS, after_update)).expected is False


DIVERGING: dict[str, Train] = {
    "explained": code(OVER_N, REPORTS["the penalty"][0]),
    "fitted": code(descent(0.137 * LAMBDA)),
    "not explained": code(wrong_derivative),
    "loss alone": code(TORCHS, after_update),
}


def reported(name: str) -> Report:
    return check(copy.deepcopy(BASE), scratch=DIVERGING[name])


@pytest.mark.parametrize("name", DIVERGING)
def test_json_of_a_diagnosis_has_the_keys_that_programs_rely_on(name: str) -> None:
    found = json.loads("".join(json_chunks(reported(name))))["diagnosis"]
    assert set(found) >= {
        *("explained", "causes", "alternatives", "residual_ratio"),
        *("effective_weight_decay", "matching"),
    }
    assert isinstance(found["explained"], bool)
    assert all(isinstance(one, list) for one in found["alternatives"])
    assert set(found["effective_weight_decay"]) == {"scratch", "framework"}
    for side in found["effective_weight_decay"].values():
        assert set(side) == {"weight", "bias"}
    for cause in found["causes"]:
        assert cause["kind"] in ("update", "reporting")
        assert all(
            isinstance(cause[key], str) and cause[key]
            for key in ("id", "title", "fix", "scratch_formula", "framework_formula")
        )
    if name in ("explained", "fitted"):
        assert set(found["matching"]) >= {"weight_decay", "lr"}
        assert 0 <= found["residual_ratio"] <= 8
    else:
        assert (found["matching"], found["residual_ratio"]) == (None, None)


@pytest.mark.parametrize("name", DIVERGING)
def test_json_of_two_runs_of_users_code_is_the_same_to_the_byte(name: str) -> None:
    first, second = ("".join(json_chunks(reported(name))) for _ in range(2))
    assert first == second


def test_json_of_an_equivalent_run_has_no_diagnosis() -> None:
    assert check(BASE, scratch=code(TORCHS)).to_dict()["diagnosis"] is None


def test_mean_of_batch_means_told_at_the_end_of_an_epoch_is_the_epoch_s() -> None:
    draw = np.random.default_rng(1)
    X = draw.normal(size=(41, 3))
    y = X @ [1.0, -2.0, 0.5] + 0.3 * draw.normal(size=41)

    def train(problem: Any) -> Iterator[dict[str, Any]]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        means: list[float] = []
        for step, rows in enumerate(problem.batches, start=1):
            error = problem.X[rows] @ w + b - problem.y[rows]
            means.append(float(np.mean(error**2)))
            w = w - problem.lr * 2 * error @ problem.X[rows] / len(rows)
            b = b - problem.lr * 2 * error.mean()
            ends = step % 3 == 0  # batches of 16, 16 and 9 rows
            yield {"weight": w, "bias": b, "loss": np.mean(means) if ends else None}
            means = [] if ends else means

    spec = {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": "linear",
        "lr": 0.05,
        "epochs": 4,
        "batch_size": 16,
    }
    report = check(spec, scratch=train)
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == 3
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    assert report.diagnosis.causes == ("loss-epoch-mean",)
