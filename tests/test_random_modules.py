"""Random modules of a user's own: none wrongly blamed, none wrongly passed.

More of them: `pytest -n 2 tests/test_random_modules.py --count 2000 --seed 1000`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regcheck.checking import check
from regcheck.report.result import Report
from tests.random_modules import Case, effect, faults_of, random_case, run

Record = Callable[[str, object], None]


@pytest.mark.search(sample=60, whole=300)
def test_random_module_is_neither_blamed_nor_passed_wrongly(
    seed: int, record_property: Record
) -> None:
    case = random_case(seed)
    report, found = faults_of(case, doubled=seed % 10 == 0)
    record_property(f"modules {'with a fault' if case.fault else 'that are right'}", report.verdict)
    if report.verdict == "inconclusive":
        record_property("why inconclusive", report.reason[:60])
    print(case)

    assert not found
    # Of the first 300, none is; of many more, less than 2 % may be.
    assert report.verdict != "inconclusive" or seed >= 300


def test_half_of_the_modules_have_a_fault_and_all_kinds_occur() -> None:
    cases = [random_case(seed) for seed in range(300)]

    assert 0.4 < sum(bool(case.fault) for case in cases) / 300 < 0.6
    assert len({case.fault for case in cases}) > 20
    assert {len(case.sizes) for case in cases} == {2, 3, 4, 5}
    assert {case.dtype for case in cases} == {"float32", "float64"}
    assert len({case.optimizer for case in cases}) == 6
    assert len({case.cast for case in cases if case.loss == "cross_entropy"}) == 6


def test_an_effect_is_a_share_of_the_step() -> None:
    case = replace(random_case(0), fault="lr one percent", optimizer="sgd", decay=0.0, epochs=1)

    assert effect(case) == pytest.approx(0.01)
    assert effect(replace(case, fault="lr tripled")) == pytest.approx(2.0)


# --- integer targets, however they are made of float ones ---------------------------------------

ROWS, CLASSES = 30, 3


def labelled() -> dict[str, Any]:
    random = np.random.default_rng(5)
    X = random.normal(size=(ROWS, 4))
    return {"X": X.tolist(), "y": random.integers(CLASSES, size=ROWS).astype(float).tolist()}


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "long": lambda z, y: functional.cross_entropy(z, y.long()),
    "round": lambda z, y: functional.cross_entropy(z, y.round().long()),
    "int": lambda z, y: functional.cross_entropy(z, y.int().long()),
    "where": lambda z, y: functional.cross_entropy(
        z, torch.where(y == 1, 1, torch.where(y == 2, 2, 0))
    ),
}


class Rule:
    """The code of a user: a layer of tanh, cross entropy and SGD by hand.

    Args:
        lr, penalty: factors on lr and λ.
        slope: the derivative of tanh, of a.
    """

    def __init__(
        self,
        lr: float = 1.0,
        penalty: float = 1.0,
        slope: Callable[[Any], Any] = lambda a: 1 - a * a,
    ) -> None:
        self.lr, self.penalty, self.slope = lr, penalty, slope

    def __call__(self, problem: Any) -> Iterator[dict[str, Any]]:
        w = {name: x.copy() for name, x in problem.initial.items()}
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows].astype(int)
            a = np.tanh(X @ w["0.weight"].T + w["0.bias"])
            z = a @ w["2.weight"].T + w["2.bias"]
            e = np.exp(z - z.max(axis=1, keepdims=True))
            p = e / e.sum(axis=1, keepdims=True)
            loss = -np.log(p[np.arange(len(y)), y]).mean()
            dz = (p - np.eye(CLASSES)[y]) / len(y)
            da = (dz @ w["2.weight"]) * self.slope(a)
            g = {
                "0.weight": da.T @ X,
                "0.bias": da.sum(axis=0),
                "2.weight": dz.T @ a,
                "2.bias": dz.sum(axis=0),
            }
            for name, x in w.items():
                w[name] = x - self.lr * 0.1 * (g[name] + self.penalty * 0.01 * x)
            yield {**w, "loss": loss}


RULES: dict[str, tuple[Rule, str]] = {
    "right": (Rule(), "equivalent"),
    "three times the lr": (Rule(lr=3), "diverged"),
    "lr by one percent": (Rule(lr=1.01), "diverged"),
    "wrong tanh′": (Rule(slope=lambda a: 1 - a), "diverged"),
    "no tanh′": (Rule(slope=np.ones_like), "diverged"),
    "doubled penalties": (Rule(penalty=2), "diverged"),
}


def checked(rule: Rule, loss: Callable[[Tensor, Tensor], Tensor]) -> Report:
    def build(problem: Any) -> tuple[Any, Any, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
        return model, loss, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)

    spec = {"data": labelled(), "lr": 0.1, "weight_decay": 0.01, "epochs": 4, "batch_size": 12}
    return check(spec, scratch=rule, framework=build)


@pytest.mark.parametrize("cast", LOSSES)
@pytest.mark.parametrize("name", RULES)
def test_targets_that_are_made_integers_hide_nothing(cast: str, name: str) -> None:
    rule, verdict = RULES[name]
    report = checked(rule, LOSSES[cast])

    assert (report.verdict, report.reason) == (verdict, "")
    if verdict == "diverged":
        assert report.first_divergence is not None
        assert report.first_divergence.step == 1


def test_a_case_is_checked_as_its_code_is_written() -> None:
    case: Case = replace(random_case(2), fault="", times=(1.0, 1.0, 1.0))

    assert run(case).verdict == "equivalent"
    assert run(replace(case, times=(1.01, 1.0, 1.0))).verdict == "diverged"
