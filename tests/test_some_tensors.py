"""A mistake in some tensors alone is named with them, where all others go by torch's rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch.optim import AdamW

from regcheck.checking import check
from regcheck.report.result import Report
from tests.by_hand import BASE, LAMBDA, LR, MOMENTUM
from tests.conftest import Spec, in_one_line
from tests.own_rules import KINDS, Rule, build, by_hand, spec
from tests.test_own_rules import COMMON, LAST, OF_BOTH


def run(mistake: str, wrong: tuple[str, ...], kind: str = "mlp") -> Report:
    """Step some tensors with a mistake by hand, and the others as torch's AdamW does."""

    class Mixed(Rule):
        def step(self, name: str, w: Any, g: Any, kept: Any, t: int, rows: int) -> Any:
            return Rule(mistakes=(mistake,) if name in wrong else ()).step(
                name, w, g, kept, t, rows
            )

    of = KINDS[kind]
    made = build(of.module, lambda model: AdamW(model.parameters(), **COMMON))
    return check(spec(kind), framework=made, scratch=by_hand(of.gradients, Mixed()))


NO_NUMBERS = sorted(
    set(OF_BOTH) - {"by batch", "by data", "decay doubled", "lr halved", "no decay"}
)
"""Mistakes that are no other lr or weight decay, which each tensor may have of its own."""


@pytest.mark.sampled(every=30)
@pytest.mark.slow
@pytest.mark.parametrize("wrong", [("last.weight",), LAST, ("first.bias",)])
@pytest.mark.parametrize("mistake", [one for one in NO_NUMBERS if one != "no decay of biases"])
def test_mistake_in_some_tensors_is_named_with_them(mistake: str, wrong: tuple[str, ...]) -> None:
    report = run(mistake, wrong)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    best = report.diagnosis.best
    assert best is not None
    assert best.causes == (OF_BOTH[mistake],)
    assert best.tensors == wrong
    assert f"in {' and '.join(wrong)} alone; all else follows torch's rule" in in_one_line(report)
    found = report.to_dict()["diagnosis"]
    assert found["only_in"] == list(wrong)
    verb = "differs" if len(wrong) == 1 else "differ"
    assert found["no_match_because"] == f"only {' and '.join(wrong)} {verb} from torch's rule"
    assert found["fixed_spec"] is None


def momentum_of_weight_alone(problem: Any) -> Iterator[Spec]:
    w, b, v = problem.initial["weight"], problem.initial["bias"], 0.0
    for rows in problem.batches:
        X, y = problem.X[rows], problem.y[rows]
        r = (X @ w.ravel() + b) - y
        v = 0.9 * v + (2 / len(y) * r @ X + LAMBDA * w)
        w, b = w - LR * v, b - LR * (2 * r.mean() + LAMBDA * b)
        yield {"weight": w, "bias": b, "loss": float(np.mean(r**2))}


@pytest.mark.slow
def test_rule_is_written_of_the_biases_where_they_alone_differ() -> None:
    report = check(BASE | MOMENTUM, scratch=momentum_of_weight_alone)

    text = in_one_line(report)
    assert "momentum-missing: the scratch side ignores the momentum: in bias alone" in text
    assert "scratch b ← b − 0.05 (g + 0.1 b)" in text
    assert "torch v ← 0.9 v + g + 0.1 b b ← b − 0.05 v" in text


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["no root"])
def test_mistake_in_all_tensors_is_no_matter_of_some(mistake: str) -> None:
    report = run(mistake, tuple(KINDS["mlp"].module().state_dict()))

    assert report.diagnosis is not None
    assert report.diagnosis.causes == (OF_BOTH[mistake],)
    assert report.to_dict()["diagnosis"]["only_in"] is None


@pytest.mark.slow
def test_what_no_cause_explains_in_some_tensors_stays_unexplained() -> None:
    def train(problem: Any) -> Iterator[Spec]:
        for step, told in enumerate(by_hand(KINDS["mlp"].gradients, Rule())(problem)):
            told["last.bias"] = told["last.bias"] + 1e-3 * np.sin(step)
            yield told

    made = build(KINDS["mlp"].module, lambda model: AdamW(model.parameters(), **COMMON))
    report = check(spec("mlp"), framework=made, scratch=train)
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.causes == ()
