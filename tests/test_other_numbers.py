"""Another value of an option, another lr and other decays are fitted, and named with torch's own.

Users' functions by hand, and torch's own optimizers in their place, with other options than the
framework side has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.fixes import fixes
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, BATCHES, LAMBDA, LR, Spec, Train

ADAM: Spec = {"optimizer": "adam"}
ADAMW: Spec = {"optimizer": "adamw"}
HEAVY: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}


class Numbers(NamedTuple):
    """What a user's code has; torch's own by default."""

    lr: float = LR
    decay: float = LAMBDA
    of_bias: float = LAMBDA
    gradient: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    dampening: float = 0.0


def gradients(problem: UserProblem, P: Spec, rows: Any) -> Spec:
    """Take the gradient of the mean squared error."""
    X, y = problem.X[rows], problem.y[rows]
    r = X @ P["weight"] + P["bias"] - y
    return {"weight": 2 * X.T @ r / len(y), "bias": 2 * r.mean(keepdims=True)}


def adam(n: Numbers, *, apart: bool = False) -> Train:
    """Write Adam, or AdamW where λ w stays apart from the gradient."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P = dict(problem.initial)
        m, s = ({name: 0 * w for name, w in P.items()} for _ in range(2))
        for t, rows in enumerate(problem.batches, start=1):
            G, after = gradients(problem, P, rows), {}
            for name, w in P.items():
                penalty = (n.of_bias if name == "bias" else n.decay) * w
                g = n.gradient * G[name] + (0 if apart else penalty)
                m[name] = n.beta1 * m[name] + (1 - n.beta1) * g
                s[name] = n.beta2 * s[name] + (1 - n.beta2) * g**2
                root = np.sqrt(s[name] / (1 - n.beta2**t))
                step = m[name] / (1 - n.beta1**t) / (root + n.eps)
                after[name] = w - n.lr * (step + (penalty if apart else 0))
            P = after
            yield P

    return train


def adamw(n: Numbers) -> Train:
    return adam(n, apart=True)


def sgd(n: Numbers) -> Train:
    """Write SGD with momentum."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P, V = dict(problem.initial), dict[str, Any]()
        for rows in problem.batches:
            G, after = gradients(problem, P, rows), {}
            for name, w in P.items():
                g = G[name] + (n.of_bias if name == "bias" else n.decay) * w
                V[name] = n.momentum * V[name] + (1 - n.dampening) * g if name in V else g
                after[name] = w - n.lr * V[name]
            P = after
            yield P

    return train


def run(train: Train, **spec: Any) -> Report:
    return check(BASE | {"compare": ["parameters"]} | spec, scratch=train)


def best_of(report: Report) -> Any:
    assert report.diagnosis is not None
    assert report.diagnosis.best is not None
    return report.diagnosis.best


def found_options(report: Report) -> dict[str, float]:
    return {name: fit.factor for name, fit in best_of(report).options.items()}


OPTION = ("option-differs",)

CASES: list[tuple[Spec, Train, dict[str, float]]] = [
    (ADAM, adam(Numbers(beta1=0.95)), {"betas[0]": 0.95}),
    (ADAM, adam(Numbers(beta1=0.0)), {"betas[0]": 0.0}),
    (ADAM, adam(Numbers(beta2=0.99)), {"betas[1]": 0.99}),
    (ADAM, adam(Numbers(eps=1e-7)), {"eps": 1e-7}),
    (ADAM, adam(Numbers(eps=0.5)), {"eps": 0.5}),
    (ADAM, adam(Numbers(beta1=0.95, beta2=0.98)), {"betas[0]": 0.95, "betas[1]": 0.98}),
    (ADAMW, adamw(Numbers(beta1=0.8)), {"betas[0]": 0.8}),
    (ADAMW | BATCHES, adamw(Numbers(beta2=0.9)), {"betas[1]": 0.9}),
    (HEAVY, sgd(Numbers(momentum=0.8)), {"momentum": 0.8}),
    (HEAVY | BATCHES, sgd(Numbers(dampening=0.3)), {"dampening": 0.3}),
    ({}, sgd(Numbers(momentum=0.7)), {"momentum": 0.7}),  # where torch has none
    (HEAVY, sgd(Numbers(momentum=0.7, dampening=0.2)), {"momentum": 0.7, "dampening": 0.2}),
]


@pytest.mark.sampled(every=16)
@pytest.mark.slow
@pytest.mark.parametrize(("spec", "train", "options"), CASES)
def test_other_value_of_an_option_is_named(
    spec: Spec, train: Train, options: dict[str, float]
) -> None:
    report = run(train, **spec)

    assert best_of(report).causes == OPTION
    assert found_options(report) == options
    told = report.to_dict()["diagnosis"]
    for name, value in options.items():
        assert told["effective_options"][name]["scratch"] == value
        # Some bounds of 1e-15 over what a step changes by the number.
        assert told["effective_options"][name]["deviation"] < 1e-10
    assert_fix_makes_the_sides_agree(report, train, spec)


@pytest.mark.parametrize(
    "own",
    [
        {"name": "adadelta", "rho": 0.95, "eps": 1e-8},
        {"name": "rmsprop", "alpha": 0.9, "eps": 1e-3, "momentum": 0.9},
    ],
)
def test_defaults_of_other_libraries_are_named_though_too_far_off_to_be_fitted(own: Spec) -> None:
    spec = BASE | {"optimizer": own, "epochs": 4, "weight_decay": 0}
    report = check(spec | {"framework": {"optimizer": own["name"]}})
    assert best_of(report).causes == OPTION
    assert {"name": own["name"], **found_options(report)} == own
    assert report.to_dict()["diagnosis"]["matching"].items() >= found_options(report).items()


def assert_fix_makes_the_sides_agree(report: Report, train: Train, spec: Spec) -> None:
    """Run with the change of the spec that the report names."""
    changes = report.to_dict()["diagnosis"]["fixed_spec"]
    assert changes is not None
    assert run(train, **(spec | changes)).verdict == "equivalent"


@pytest.mark.slow
def test_report_says_both_values_and_how_to_call_torch() -> None:
    report = run(adam(Numbers(beta1=0.95)), **ADAM)

    [cause] = report.to_dict()["diagnosis"]["causes"]
    assert cause["title"] == "uses another value of an optimizer option"
    assert cause["fix"] == "use torch's value: betas[0] 0.9"
    assert "M ← 0.95 M + (1 − 0.95) G" in cause["scratch_formula"]
    assert "M ← 0.9 M + (1 − 0.9) G" in cause["framework_formula"]
    ways = fixes(report)
    assert ways["or in torch"] == [
        "torch.optim.Adam(lr=0.05, betas=(0.95, 0.999), weight_decay=0.1)"
    ]
    assert ways["in the spec"] == ["framework: {optimizer: {name: adam, betas: [0.95, 0.999]}}"]


@pytest.mark.sampled(every=8)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "train", "causes", "lr", "decay"),
    [
        (ADAM, adam(Numbers(lr=0.013)), ("learning-rate-scaled",), 0.013, LAMBDA),
        (ADAM, adam(Numbers(decay=0.137, of_bias=0.137)), ("penalty-scaled",), LR, 0.137),
        (ADAMW, adamw(Numbers(decay=0.137, of_bias=0.137)), ("penalty-scaled",), LR, 0.137),
        (
            ADAM,
            adam(Numbers(lr=0.02, decay=0.5, of_bias=0.5)),
            ("learning-rate-scaled", "penalty-scaled"),
            0.02,
            0.5,
        ),
    ],
)
def test_lr_and_weight_decay_are_fitted_behind_a_root(
    spec: Spec, train: Train, causes: tuple[str, ...], lr: float, decay: float
) -> None:
    report = run(train, **spec)

    assert best_of(report).causes == causes
    told = report.to_dict()["diagnosis"]
    for name in ("weight", "bias"):
        assert told["effective_lr"]["scratch"][name] == pytest.approx(lr, rel=1e-9)
        assert told["effective_weight_decay"]["scratch"][name] == pytest.approx(decay, rel=1e-9)
    assert (told["matching"]["lr"], told["matching"]["weight_decay"]) == (lr, decay)
    assert_fix_makes_the_sides_agree(report, train, spec)


@pytest.mark.exhaustive
@pytest.mark.sampled(every=3)
@pytest.mark.slow
@pytest.mark.parametrize(("spec", "write"), [(ADAM, adam), (ADAMW, adamw)])
def test_each_tensor_may_have_a_decay_of_its_own(spec: Spec, write: Any) -> None:
    report = run(write(Numbers(decay=0.05, of_bias=0.3)), **spec)

    assert best_of(report).causes == ("penalty-scaled",)
    assert best_of(report).note == (
        "applies a weight decay of 0.05 to weight, torch's is 0.1; "
        "applies a weight decay of 0.3 to bias, torch's is 0.1"
    )
    assert report.to_dict()["diagnosis"]["matching"]["weight_decay"] == {
        "weight": 0.05,
        "bias": 0.3,
    }


@pytest.mark.slow
def test_all_numbers_together_are_fitted() -> None:
    own = Numbers(lr=0.01, decay=0.02, of_bias=0.02, beta1=0.95, beta2=0.98, eps=1e-6)
    report = run(adamw(own), **ADAMW)

    assert best_of(report).causes == ("learning-rate-scaled", "option-differs", "penalty-scaled")
    assert found_options(report) == {"betas[0]": 0.95, "betas[1]": 0.98, "eps": 1e-6}
    match = report.to_dict()["diagnosis"]["matching"]
    assert match == {
        "weight_decay": 0.02,
        "lr": 0.01,
        "optimizer": "adamw",
        "betas": [0.95, 0.98],
        "eps": 1e-6,
        "amsgrad": False,
        "maximize": False,
    }


# --- a gradient that is scaled --------------------------------------------------------------------


@pytest.mark.sampled(every=8)
@pytest.mark.slow
@pytest.mark.parametrize(("spec", "write"), [(ADAM, adam), (ADAMW, adamw)])
@pytest.mark.parametrize("c", [7.7, 0.03])
def test_scaled_gradient_is_told_by_what_it_is_beside(spec: Spec, write: Any, c: float) -> None:
    # c g is g with ε/c and λ/c: where λ w is apart, ε alone tells.
    report = run(write(Numbers(gradient=c)), **spec)

    best = best_of(report)
    assert best.causes == ("gradient-scaled",)
    assert best.fits["gradient-scaled"].factor == pytest.approx(c, rel=1e-3)
    assert_fix_makes_the_sides_agree(report, write(Numbers(gradient=c)), spec)


def test_epsilon_is_named_before_a_gradient_that_is_scaled() -> None:
    report = run(adamw(Numbers(eps=1e-7)), **ADAMW)

    assert report.diagnosis is not None
    assert [one.causes for one in report.diagnosis.explanations] == [OPTION, ("gradient-scaled",)]


@pytest.mark.slow
@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("spec", [ADAM, ADAM | {"weight_decay": 0}])
def test_no_gradient_is_scaled_absurdly_to_explain_what_is_wrong(spec: Spec) -> None:
    def wrong(problem: UserProblem) -> Iterator[Spec]:
        for P in adam(Numbers())(problem):
            yield {name: w * (1 + 1e-4 * np.sin(37 * w)) for name, w in P.items()}

    report = run(wrong, **spec)
    assert report.diagnosis is not None
    assert report.diagnosis.explanations == ()
    assert report.diagnosis.stage == "update"
    text = " ".join(one.text for one in report.diagnosis.evidence)
    assert "multiple" not in text
    assert "Finite differences" not in text
    told = report.to_dict()["diagnosis"]
    assert told["effective_lr"]["scratch"] == {"weight": None, "bias": None}
    assert told["matching"] is None


@pytest.mark.slow
def test_too_few_steps_tell_no_option() -> None:
    # β₁ and β₂ show from step 2 on, and one entry's step tells no number.
    spec = {"epochs": 2, "bias": False, "data": {"X": [[1.0], [2.0]], "y": [1.0, 0.0]}}
    spec |= {"init": {"constant": 0.5}}

    def train(problem: UserProblem) -> Iterator[Spec]:
        w = problem.initial["weight"]
        for step in (0.05, 0.0123):
            w = w - step
            yield {"weight": w}

    report = run(train, **(ADAM | spec | {"weight_decay": 0}))
    assert report.diagnosis is not None
    assert not any(one.options for one in report.diagnosis.explanations)
