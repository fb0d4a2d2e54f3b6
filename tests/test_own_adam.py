"""Adam by hand beside torch's own: right, and wrong in the ways that were reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.checking import check
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import Spec, Train
from tests.conftest import SMALL, told
from tests.user_modules import (
    Build,
    user,
)

ADAM: Spec = {key: SMALL[key] for key in SMALL if key != "weight_decay"} | {"epochs": 10}
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


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("epochs", [10, 100])
@pytest.mark.parametrize(
    ("own", "train"),
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
def test_own_adam_agrees_with_torchs(own: Build, train: Train, epochs: int) -> None:
    report = check(ADAM | {"epochs": epochs}, framework=own, scratch=train)
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


REPORTED = {
    "adaml2-vs-adamw": "penalty-decoupled",
    "adamw-after-update": "decay-after-update",
    "adam-no-bias-corr": "adam-bias-correction-missing",
    "adam-eps-hat": "adam-epsilon-uncorrected",
}


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_ADAMS)
def test_reported_adams_diverge_at_once_and_are_named(name: str) -> None:
    own, train, framework, by_hand = WRONG_ADAMS[name]
    for at, epochs in enumerate((1, 10)):
        report = check(ADAM | {"epochs": epochs}, framework=own, scratch=train)
        assert (report.verdict, report.first_divergence and report.first_divergence.step) == (
            "diverged",
            1,
        )
        for side, numbers in (("framework", ENDS[framework]), ("scratch", ENDS[by_hand])):
            ends = report.comparison.final[side].parameters
            found = [*ends["weight"].ravel(), *ends["bias"].ravel()]
            # Ten steps of some 30 roundings of numbers below 5, divided by √v no smaller than 0.1.
            assert found == pytest.approx(numbers[at], rel=0, abs=1e-12)
        found_by = told(report.diagnosis)
        assert (found_by.explained, found_by.causes) == (True, (REPORTED[name],)), epochs


def test_t_that_stays_at_1_is_named_before_two_causes_that_make_the_same_numbers() -> None:
    spec = ADAM | {"lr": 0.1, "optimizer": "adam"}
    found = told(check(spec, scratch=adam(lambda w, m, v, t: torchs(w, m, v, 1))).diagnosis)
    assert [one.causes for one in found.explanations] == [
        ("adam-steps-not-counted",),
        ("adam-bias-correction-missing", "moments-not-averaged"),
    ]
