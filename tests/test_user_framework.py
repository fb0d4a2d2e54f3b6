"""The framework side as a user's own function: model, loss function and optimizer."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from regcheck import cli
from regcheck.checking import check
from regcheck.report.result import Report
from regcheck.user_code.problem_api import UserProblem

Spec = dict[str, Any]
Made = tuple[Any, Any, Any]
Build = Callable[[UserProblem], Made]
Train = Callable[[UserProblem], Iterator[Spec]]

ROWS = 24


def data(labels: bool = False) -> Spec:
    random = np.random.default_rng(1)
    X = random.normal(size=(ROWS, 3))
    y = X @ [0.5, -1.5, 2.0] + 0.3 * random.normal(size=ROWS)
    return {"X": X.tolist(), "y": ((y > 0).astype(float) if labels else y).tolist()}


BASE: Spec = {
    "data": data(),
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9], "bias": [0.3]},
    "epochs": 8,
    "lr": 0.05,
    "weight_decay": 0.1,
}
BATCHES: Spec = {"batch_size": 10, "shuffle": {"seed": 3}}  # 10, 10 and 4 rows
LOGISTIC: Spec = {"data": data(labels=True), "model": "logistic"}
NO_MODEL: Spec = {key: BASE[key] for key in ("data", "epochs", "lr", "weight_decay")}


def line(problem: UserProblem, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Make the model with the problem's start."""
    model = nn.Linear(problem.X.shape[1], 1, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model.bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model


def flat_line(problem: UserProblem, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Let the model give (n,), as the targets are."""
    return nn.Sequential(line(problem, dtype), nn.Flatten(0))


def sgd(problem: UserProblem, model: nn.Module, **settings: Any) -> torch.optim.SGD:
    given = {"lr": problem.lr, "weight_decay": problem.weight_decay} | settings
    return torch.optim.SGD(model.parameters(), **given)


def user(
    model: Callable[[UserProblem], nn.Module] = flat_line,
    loss: Any = None,
    optimizer: Callable[[UserProblem, Any], torch.optim.Optimizer] = sgd,
) -> Build:
    """Write a user's function."""

    def build(problem: UserProblem) -> Made:
        made = model(problem)
        return made, loss or nn.MSELoss(), optimizer(problem, made)

    return build


def with_sgd(**settings: Any) -> Build:
    """Write a user's function whose optimizer has other settings."""
    return user(optimizer=lambda problem, model: sgd(problem, model, **settings))


def scratch(penalty: float = 0.1, lr: float = 0.05, times: float = 1.0) -> Train:
    """Write w ← times·(w − lr (g + penalty·w)) for the linear model."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            r = X @ w + b - y
            loss = (r**2).mean()
            w = times * (w - lr * (2 * X.T @ r / len(y) + penalty * w))
            b = times * (b - lr * (2 * r.mean() + penalty * b))
            yield {"weight": w, "bias": b, "loss": loss}

    return train


def causes_of(report: Report) -> list[str]:
    return [cause["id"] for cause in report.to_dict()["diagnosis"]["causes"]]


# --- what trains as the built-in framework side does ----------------------------------------------

HEAVY = {"name": "sgd", "momentum": 0.9}
SAME: dict[str, tuple[Spec, Build]] = {
    "sgd": ({}, user()),
    "mini-batches": (BATCHES, user()),
    "momentum": ({"optimizer": HEAVY}, with_sgd(momentum=0.9)),
    "nesterov": ({"optimizer": HEAVY | {"nesterov": True}}, with_sgd(momentum=0.9, nesterov=True)),
    "dampening": ({"optimizer": HEAVY | {"dampening": 0.5}}, with_sgd(momentum=0.9, dampening=0.5)),
    "schedule": ({"lr_schedule": {"kind": "exponential", "factor": 0.9}}, user()),
    "schedule by epochs": (
        BATCHES | {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.1, "per": "epoch"}},
        user(),
    ),
    "clip_norm": ({"clip_norm": 1.0}, user()),
    "clip_value": ({"clip_value": 0.5}, user()),
    "accumulation": ({"batch_size": 5, "accumulate": 2}, user()),
    "logistic": (LOGISTIC | {"loss": "bce_with_logits"}, user(loss=nn.BCEWithLogitsLoss())),
    "float32": ({}, user(lambda problem: flat_line(problem, torch.float32))),
}


@pytest.mark.parametrize("name", SAME)
def test_same_training_is_the_built_in_framework_side_bit_for_bit(name: str) -> None:
    spec, own = SAME[name]
    report = check(BASE | spec, framework=own)
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps > 0
    assert report.first_loss_divergence is None
    dtype = {"dtype": {"scratch": "float64", "framework": "float32"}} if name == "float32" else {}
    ours = check(BASE | spec | dtype).comparison.final["framework"]
    theirs = report.comparison.final["framework"]
    if not dtype:
        assert theirs.loss == ours.loss
    for tensor, values in ours.parameters.items():
        # Bit for bit but for the shapes that torch's kernels are given: (n,) here, (n, 1) there.
        assert theirs.parameters[tensor] == pytest.approx(values, rel=1e-6 if dtype else 0)


@pytest.mark.parametrize("spec", [{}, BATCHES], ids=["full", "batches"])
def test_own_code_on_both_sides_is_equivalent(spec: Spec) -> None:
    report = check(BASE | spec, framework=user(), scratch=scratch())
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == report.comparison.steps


def test_float32_module_widens_what_rounding_may_do() -> None:
    report = check(BASE, framework=user(lambda problem: flat_line(problem, torch.float32)))
    # At the framework's 24 bits, and not at 53: the drift is far above float64's 1e-16.
    assert 1e-9 < report.comparison.drift.largest < 1e-5
    assert check(BASE | {"dtype": "float64"}, framework=user()).comparison.drift.largest < 1e-13


# --- what trains by other settings ----------------------------------------------------------------


@pytest.mark.parametrize("code", [None, scratch()], ids=["built in", "own code"])
@pytest.mark.parametrize(
    ("own", "cause", "matching"),
    [
        (with_sgd(weight_decay=0.2), "penalty-halved", (0.1, 0.05)),
        (with_sgd(weight_decay=0.037), "penalty-scaled", (0.1, 0.05)),
        (with_sgd(lr=0.1), "learning-rate-scaled", (0.1, 0.05)),
        (with_sgd(lr=0.037), "learning-rate-scaled", (0.1, 0.05)),
        (with_sgd(momentum=0.9), "momentum-missing", (0.1, 0.05)),
    ],
    ids=["twice the decay", "another decay", "twice the lr", "another lr", "momentum"],
)
def test_other_settings_of_the_optimizer_are_told(
    code: Train | None, own: Build, cause: str, matching: tuple[float, float]
) -> None:
    report = check(BASE, framework=own, scratch=code)
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    assert causes_of(report) == [cause]
    match = report.to_dict()["diagnosis"]["matching"]
    # Fitted from eight steps that round at 1e-16, or one division.
    found = match["weight_decay"], match["lr"]
    assert found == pytest.approx(matching, rel=1e-9)
    own_side = "the framework side is your own" if code is None else "both sides are your own"
    assert own_side in str(report.diagnosis.fix)


def test_nesterov_that_only_the_framework_has_is_told() -> None:
    spec = BASE | {"optimizer": HEAVY}
    report = check(spec, framework=with_sgd(momentum=0.9, nesterov=True))
    assert causes_of(report) == ["nesterov-missing"]


@pytest.mark.slow
def test_momentum_that_only_the_spec_has_is_a_divergence_from_step_2_on() -> None:
    report = check(BASE | {"optimizer": HEAVY}, framework=user())
    first = report.first_divergence
    assert first is not None
    assert (report.verdict, first.step) == ("diverged", 2)  # at step 1 the velocity is the gradient


def test_start_that_was_not_copied_is_told() -> None:
    forgot = user(lambda _: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double())
    report = check(BASE, framework=forgot)
    first = report.first_divergence
    assert first is not None
    assert (first.step, first.stage) == (1, "initial")
    assert causes_of(report) == ["initial-parameters"]
    assert report.diagnosis is not None
    assert report.diagnosis.explained


# --- any module -----------------------------------------------------------------------------------


def mlp(_: UserProblem) -> nn.Module:
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.from_numpy(random.normal(size=tuple(tensor.shape))))
    return model


MLP = user(mlp, optimizer=lambda problem, model: sgd(problem, model, momentum=0.9))


def mlp_by_hand(strength: Callable[[int], float]) -> Train:
    def train(problem: UserProblem) -> Iterator[Spec]:
        P = problem.initial
        V = {name: 0 * w for name, w in P.items()}
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            h = np.tanh(X @ P["0.weight"].T + P["0.bias"])
            z = h @ P["2.weight"][0] + P["2.bias"]
            dz = 2 * (z - y) / len(y)
            da = dz[:, None] * P["2.weight"] * (1 - h**2)
            G = {"0.weight": da.T @ X, "0.bias": da.sum(0), "2.weight": dz @ h, "2.bias": dz.sum()}
            for name, w in P.items():
                V[name] = 0.9 * V[name] + G[name] + strength(len(y)) * w
            P = {name: w - problem.lr * V[name] for name, w in P.items()}
            yield {**P, "loss": ((z - y) ** 2).mean()}

    return train


@pytest.mark.parametrize("spec", [{}, BATCHES | {"epochs": 3}], ids=["full", "batches"])
def test_any_module_agrees_with_the_users_own_scratch(spec: Spec) -> None:
    report = check(NO_MODEL | spec, framework=MLP, scratch=mlp_by_hand(lambda rows: 0.1))
    assert (report.verdict, report.comparison.compared) == ("equivalent", report.comparison.steps)
    names = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert set(report.comparison.final["framework"].parameters) == names
    assert set(report.to_dict()["rows"][0]["tensors"]) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "others"), [({}, True), (BATCHES | {"epochs": 3}, False)], ids=["full", "batches"]
)
def test_penalty_divided_by_the_batch_is_found_in_any_module(spec: Spec, others: bool) -> None:
    code = mlp_by_hand(lambda rows: 0.1 / rows)
    report = check(NO_MODEL | spec, framework=MLP, scratch=code)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (1, "penalty")
    assert causes_of(report) == ["penalty-divided-by-batch"]
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    told = [one.causes for one in report.diagnosis.explanations[1:]]
    assert (("penalty-divided-by-dataset",) in told) is others


# --- other optimizers -----------------------------------------------------------------------------

ADAM: Spec = {
    "data": {"X": [[1, 2], [3, -1], [-2, 0.5], [0.5, 1.5]], "y": [1, 2, -1, 0.5]},
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
    "model": "linear",
    "epochs": 10,
    "lr": 0.1,
}
Shift = Callable[[Any, Any, Any, int], Any]
"""Of w, the moments m and v, and the step t: what is subtracted from w."""


def torchs(w: Any, m: Any, v: Any, t: int, eps: float = 1e-8) -> Any:
    return 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)


def raw(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * m / (np.sqrt(v) + 1e-8)


def eps_hat(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 0.1)


def decoupled(w: Any, m: Any, v: Any, t: int) -> Any:
    return 0.1 * 0.1 * w + torchs(w, m, v, t)


def decay_late(w: Any, m: Any, v: Any, t: int) -> Any:
    return w - (w - torchs(w, m, v, t)) * (1 - 0.1 * 0.1)


def adam(shift: Shift, penalty: float = 0.0) -> Train:
    """Write Adam by hand; the penalty is what is added to the gradient."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P = {name: w.ravel() for name, w in problem.initial.items()}
        m = {name: 0 * w for name, w in P.items()}
        v = {name: 0 * w for name, w in P.items()}
        for t, rows in enumerate(problem.batches, start=1):
            X, y = problem.X[rows], problem.y[rows]
            r = X @ P["weight"] + P["bias"] - y
            G = {"weight": 2 * X.T @ r / len(y), "bias": 2 * r.mean(keepdims=True)}
            for name, w in P.items():
                g = G[name] + penalty * w
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
            P = {name: w - shift(w, m[name], v[name], t) for name, w in P.items()}
            yield {**P, "loss": (r**2).mean()}

    return train


def by(kind: Any, **settings: Any) -> Build:
    return user(optimizer=lambda _, model: kind(model.parameters(), **({"lr": 0.1} | settings)))


@pytest.mark.parametrize("epochs", [10, 100])
@pytest.mark.parametrize(
    ("own", "code"),
    [
        (by(torch.optim.Adam), adam(torchs)),
        (by(torch.optim.Adam, weight_decay=0.1), adam(torchs, 0.1)),
        (by(torch.optim.AdamW, weight_decay=0.1), adam(decoupled)),
        (
            by(torch.optim.Adam, eps=0.1),
            adam(lambda w, m, v, t: torchs(w, m, v, t, eps=0.1)),
        ),
    ],
    ids=["Adam", "Adam with a penalty", "AdamW", "Adam with a large eps"],
)
def test_own_adam_agrees_with_torchs(own: Build, code: Train, epochs: int) -> None:
    report = check(ADAM | {"epochs": epochs}, framework=own, scratch=code)
    assert (report.verdict, report.comparison.compared) == ("equivalent", epochs)
    # Measured noise bounds it; agreement is not for want of a bound.
    rows = report.to_dict()["rows"]
    bounds = [tensor["bound"] for row in rows for tensor in row["tensors"].values()]
    assert all(0 < bound < 1e-11 for bound in bounds)


Numbers = tuple[float, float, float]

ENDS: dict[str, tuple[Numbers, Numbers]] = {
    "Adam": (
        (0.5999999986666666, -0.2000000007079646, 0.19999999885714287),
        (0.5802703873103345, 0.09300097444462212, 0.2341345135835295),
    ),
    "Adam of g + 0.1 w": (
        (0.5999999985714286, -0.2000000006932409, 0.1999999988439306),
        (0.5883992023598928, 0.09389972370650997, 0.2181343292732808),
    ),
    "AdamW": (
        (0.5949999986666666, -0.19700000070796458, 0.19899999885714287),
        (0.5887045275353404, 0.08894893847574425, 0.22121242685354164),
    ),
    "decay late": (
        (0.59399999868, -0.19800000070088494, 0.19799999886857145),
        (0.5866909560546759, 0.09088606808302147, 0.22469668000021614),
    ),
    "raw": (
        (0.8162276326835607, 0.016227695220393412, 0.4162276517311647),
        (0.4647409022467533, 0.22804599131560171, 0.2120675858232071),
    ),
    "Adam, eps 0.1": (
        (0.5882352941176471, -0.2066115702479339, 0.18974358974358974),
        (0.5592109375898268, 0.11315294179949988, 0.2739275560371412),
    ),
    "eps-hat": (
        (0.5191704184914043, -0.26912418253026066, 0.12167302013019107),
        (0.6454108573438362, 0.06745412927538706, 0.33151777111264175),
    ),
}
"""The parameters after 1 step and after 10."""

WRONG_ADAMS: dict[str, tuple[Build, Train, str, str]] = {
    # google-deepmind/optax#417
    "adaml2-vs-adamw": (
        by(torch.optim.Adam, weight_decay=0.1),
        adam(decoupled),
        "Adam of g + 0.1 w",
        "AdamW",
    ),
    # huggingface/transformers#14539, stanford-cs336/assignment1-basics#54
    "adamw-after-update": (
        by(torch.optim.AdamW, weight_decay=0.1),
        adam(decay_late),
        "AdamW",
        "decay late",
    ),
    # ml-explore/mlx#1623
    "adam-no-bias-corr": (by(torch.optim.Adam), adam(raw), "Adam", "raw"),
    # tensorflow/tensorflow#9047, huggingface/transformers#35504
    "adam-eps-hat": (by(torch.optim.Adam, eps=0.1), adam(eps_hat), "Adam, eps 0.1", "eps-hat"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_ADAMS)
def test_reported_adams_diverge_at_once_and_no_cause_is_made_up(name: str) -> None:
    own, code, framework, by_hand = WRONG_ADAMS[name]
    for at, epochs in enumerate((1, 10)):
        report = check(ADAM | {"epochs": epochs}, framework=own, scratch=code)
        assert (report.verdict, report.first_divergence and report.first_divergence.step) == (
            "diverged",
            1,
        )
        for side, numbers in (("framework", ENDS[framework]), ("scratch", ENDS[by_hand])):
            ends = report.comparison.final[side].parameters
            found = [*ends["weight"].ravel(), *ends["bias"].ravel()]
            # Ten steps of some 30 roundings of numbers below 5, divided by √v no smaller than 0.1.
            assert found == pytest.approx(numbers[at], rel=0, abs=1e-12)
        found_by = report.diagnosis
        assert found_by is not None
        assert (found_by.explained, found_by.causes) == (False, ())
        assert any("causes are known for torch.optim.SGD" in clue for clue in found_by.evidence)


# --- what own code does besides, through the command line -----------------------------------------

HEAD = """
import os, sys
import torch
from torch import nn

def start(problem):
    model = nn.Sequential(nn.Linear(2, 1, dtype=torch.float64), nn.Flatten(0))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model[0].bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=problem.lr)

class At3(nn.Module):
    def __init__(self, model, act):
        super().__init__()
        self.model, self.act, self.calls = model, act, 0

    def forward(self, X):
        self.calls += 1
        if self.calls == 3:
            self.act()
        return self.model(X)

def leave():
    sys.exit(0)

def fail():
    {}["width"]

def endless():
    while True:
        pass

def interrupt():
    raise KeyboardInterrupt
"""

BUILDS: dict[str, tuple[str, int, list[str]]] = {
    "prints": (
        "print('hello'); return model, lambda z, y: (print('loss'), loss(z, y))[1], optimizer",
        0,
        ["hello", "loss"],
    ),
    "turns gradients off": (
        "torch.set_grad_enabled(False); return model, loss, optimizer",
        0,
        [],
    ),
    "sets the default dtype": (
        "torch.set_default_dtype(torch.float16); return model, loss, optimizer",
        0,
        [],
    ),
    "is in eval mode": ("return model.eval(), loss, optimizer", 0, []),
    "raises": (
        "raise KeyError('width')",
        2,
        ["build.py:build: raised KeyError: 'width'", "fix it there", "in build"],
    ),
    "exits": ("sys.exit(0)", 2, ["build.py:build: tried to end the program"]),
    "raises in forward": (
        "return At3(model, fail), loss, optimizer",
        2,
        ["framework: raised KeyError: 'width'", "in forward", "in fail"],
    ),
    "exits in forward": (
        "return At3(model, leave), loss, optimizer",
        2,
        ["framework: tried to end the program", "in leave"],
    ),
    "exits hard in forward": (
        "return At3(model, lambda: os._exit(0)), loss, optimizer",
        2,
        ["framework: tried to end the program"],
    ),
    "never comes back": (
        "return At3(model, endless), loss, optimizer",
        2,
        ["framework: took longer than 0.5 seconds", "--timeout SECONDS", "in endless"],
    ),
    "is interrupted": ("return At3(model, interrupt), loss, optimizer", 130, ["interrupted"]),
    "raises in the loss": (
        "return model, lambda z, y: 1 / 0, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in backward": (
        "model[0].weight.register_hook(lambda g: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in step": (
        "optimizer.register_step_pre_hook(lambda *a: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_own_framework_code_does_besides_is_no_harm_or_is_told(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body, code, told = BUILDS[name]
    source = (
        f"{HEAD}\ndef build(problem):\n    model, loss, optimizer = start(problem)\n    {body}\n"
    )
    (tmp_path / "build.py").write_text(textwrap.dedent(source), encoding="utf-8")
    spec = ADAM | {"epochs": 5, "framework": "build.py:build"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert cli.exit_code(["run", "--json", "--timeout", "0.5", str(path)]) == code
    captured = capfd.readouterr()
    for words in told:
        assert words in captured.err
    assert "/regcheck/regcheck/" not in captured.err
    assert str(Path(cli.__file__).parent) not in captured.err  # none of regcheck's own frames
    if code == 0:
        assert json.loads(captured.out)["verdict"] == "equivalent"
    else:
        assert captured.out.strip() == ""
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
