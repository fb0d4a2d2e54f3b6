"""Entries that go by torch's rule with numbers of their own, and a sum that is added to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.compare.history import History
from regcheck.diagnosis.records import Diagnosis
from regcheck.problem.batches import Schedule
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from regcheck.report.terminal.short import short_text
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import Spec, told

Numbers = Callable[[np.ndarray, np.ndarray], np.ndarray]

LAMBDA, LR, ROWS = 0.1, 0.02, 40
RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(ROWS, 4))
Y = X @ [0.5, -1.5, 2.0, 0.3] + 0.3 * RANDOM.normal(size=ROWS)

BASE: Spec = {
    "data": {"X": X.tolist(), "y": Y.tolist()},
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9, 0.2], "bias": [0.3]},
    "epochs": 4,
    "batch_size": 16,  # 16, 16 and 8 rows
    "lr": LR,
    "weight_decay": LAMBDA,
}
MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
BOTH = pytest.mark.parametrize("spec", [{}, MOMENTUM], ids=["plain", "momentum"])


def code(
    decay: Any = LAMBDA,
    rate: Any = LR,
    factor: Any = 1.0,
    added: Callable[[Any, Any, int], tuple[Any, Any]] | None = None,
) -> Callable[[UserProblem], Iterator[Spec]]:
    """Write w ← w − rate (factor·g + decay·w), of (weights.., bias) each, or with what is added."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        at = np.append(problem.initial["weight"], problem.initial["bias"])
        v, mu = np.zeros(5), problem.optimizer["momentum"]
        for rows in problem.batches:
            A = np.column_stack([problem.X[rows], np.ones(len(rows))])
            g = factor * (2 * A.T @ (A @ at - problem.y[rows]) / len(rows))
            g = g + (decay * at if added is None else np.append(*added(at[:-1], at[-1], len(rows))))
            v = mu * v + g
            at = at - rate * v
            yield {"weight": at[:-1], "bias": at[-1:]}

    return train


def diagnosed(
    train: Callable[[UserProblem], Iterator[Spec]], spec: Spec
) -> tuple[Report, Diagnosis]:
    report = check(BASE | spec, scratch=train)
    assert report.diagnosis is not None
    return report, report.diagnosis


CASES: dict[str, tuple[Spec, str, str]] = {
    "penalty-missing": (
        {"decay": np.array([LAMBDA, LAMBDA, LAMBDA, 0, LAMBDA])},
        "penalty",
        "weight[0, 3]: no weight decay",
    ),
    "penalty-scaled": (
        {"decay": np.array([0.3, LAMBDA, 0.3, LAMBDA, 0])},
        "penalty",
        "bias: no weight decay; weight[0, 0] and weight[0, 2]: weight_decay 0.3 instead of 0.1",
    ),
    "learning-rate-scaled": (
        {"rate": np.array([LR, 0.05, 0.05, LR, LR])},
        "optimizer",
        "weight[0, 1:3]: lr 0.05 instead of 0.02",
    ),
    "gradient-scaled": (
        {"factor": np.array([1, 1, 1, 1, 1.7])},
        "gradient",
        "bias: 1.7 times the gradient",
    ),
}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("cause", CASES)
def test_entries_with_numbers_of_their_own_are_named(cause: str, spec: Spec) -> None:
    numbers, stage, own = CASES[cause]
    note = f"{own}; all else follows torch's rule"
    report, found = diagnosed(code(**numbers), spec)

    assert found.best is not None
    assert (found.explained, found.causes, found.best.note) == (True, (cause,), note)
    assert found.best.residual <= 1
    assert report.first_divergence is not None
    assert (found.stage, report.first_divergence.stage) == (stage, stage)
    told = " ".join(report_text(report).split())
    missing = "applies no weight decay to weight[0, 3]; all else follows torch's rule"
    assert (missing if cause == "penalty-missing" else note) in told
    assert own in told  # beside the rule that both sides share
    assert "then all 12 steps agree" in told
    assert "entries" in report.to_dict()["diagnosis"]["causes"][0]["fix"]
    assert "factor c" not in told


@pytest.mark.slow
@BOTH
def test_numbers_of_all_entries_are_told(spec: Spec) -> None:
    decay = np.array([0.3, 0.3, LAMBDA, LAMBDA, 0])
    _, found = diagnosed(code(decay=decay), spec)

    assert found.best is not None
    assert found.best.by_entry is not None
    assert found.best.by_entry.what == "weight_decay"
    np.testing.assert_allclose(found.best.by_entry.values, decay, rtol=1e-9)


@pytest.mark.slow
def test_number_is_told_with_the_digits_that_it_takes() -> None:
    decay = np.array([LAMBDA, LAMBDA, LAMBDA, np.float32(LAMBDA), LAMBDA])
    _, found = diagnosed(code(decay=decay), {})

    assert told(found.best).note.startswith(
        "weight[0, 3]: weight_decay 0.100000001 instead of 0.1;"
    )


def test_lr_and_gradient_of_an_entry_are_one_and_the_same_without_a_penalty() -> None:
    twice = np.array([1, 1, 2, 1, 1])
    _, found = diagnosed(code(decay=0, factor=twice), {"weight_decay": 0})

    causes = [one.causes for one in found.explanations]
    assert causes == [("learning-rate-scaled",), ("gradient-scaled",)]


NOT_EXPLAINED: dict[str, Spec] = {
    "every weight has a number of its own": {"factor": np.array([1.1, 1.2, 1.3, 1.4, 1])},
    "a sign is wrong": {"factor": np.array([1, 1, 1, -1, 1])},
    "one entry goes by nothing": {
        "added": lambda w, b, _: (LAMBDA * w + [0, 0, 0, 1e-3], LAMBDA * b)
    },
}


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_EXPLAINED)
def test_what_is_no_rule_of_entries_is_not_explained(name: str) -> None:
    _, found = diagnosed(code(**NOT_EXPLAINED[name]), {})

    assert found.explanations == ()


def test_too_few_steps_explain_no_entry() -> None:
    # One step of one entry comes to any number.
    decay = np.array([LAMBDA, LAMBDA, LAMBDA, 0, LAMBDA])
    _, found = diagnosed(code(decay=decay), {"epochs": 1, "batch_size": "full"})

    assert found.explanations == ()


# --- one number that is added to every entry ------------------------------------------------------

SUMS: dict[str, tuple[Callable[[Any, Any, int], tuple[Any, Any]], str]] = {
    "of the weights": (lambda w, b, _: (np.full(4, LAMBDA * w.sum()), LAMBDA * b), "0.1 Σw,"),
    "of the weights, over the rows": (
        lambda w, b, rows: (np.full(4, LAMBDA / rows * w.sum()), 0),
        "0.1 Σw/B,",
    ),
    "of all, over the rows": (
        lambda w, b, rows: (
            np.full(4, LAMBDA / rows * (w.sum() + b)),
            LAMBDA / rows * (w.sum() + b),
        ),
        "0.1 Σw/B over weights and biases,",
    ),
}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("name", SUMS)
def test_sum_that_is_added_to_every_entry_is_told_as_a_penalty(name: str, spec: Spec) -> None:
    added, text = SUMS[name]
    _, found = diagnosed(code(added=added), spec)

    assert not found.explained
    assert found.stage == "penalty"
    (clue,) = (one.text for one in found.evidence if "with one number" in one.text)
    assert text in clue
    assert "multiply λ by each weight, not by their sum" in clue


# --- modules of one's own -------------------------------------------------------------------------


def layers() -> nn.Module:
    """Make tensors by names of their own, and no bias."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 5, bias=False), nn.Linear(5, 1, bias=False)
    return nn.Sequential(first, nn.Tanh(), last, nn.Flatten(0)).double()


def framework(problem: UserProblem) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    model = layers()
    return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=LR, weight_decay=LAMBDA)


def by_hand(name: str, decay: Any) -> Callable[[UserProblem], Iterator[Spec]]:
    """Train the same by hand, one tensor with a decay of its own."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        model = layers()
        for rows in problem.batches:
            model.zero_grad()
            rest = model(torch.from_numpy(problem.X[rows])) - torch.from_numpy(problem.y[rows])
            (rest**2).mean().backward()
            with torch.no_grad():
                for key, w in model.named_parameters():
                    own = torch.as_tensor(decay if key == name else LAMBDA, dtype=torch.float64)
                    assert w.grad is not None
                    w.sub_(LR * (w.grad + own * w))
            yield {key: w.detach().numpy().copy() for key, w in model.named_parameters()}

    return train


@pytest.mark.slow
def test_entries_of_a_module_of_ones_own_are_named() -> None:
    spec = {key: value for key, value in BASE.items() if key not in ("model", "init")}
    decay = np.full((5, 4), LAMBDA)
    decay[2, 1:4] = 0
    report = check(spec, scratch=by_hand("0.weight", decay), framework=framework)
    found = told(report.diagnosis)
    assert found.causes == ("penalty-missing",)
    assert (
        told(found.best).note == "0.weight[2, 1:4]: no weight decay; all else follows torch's rule"
    )
    assert "0.weight[2, 1:4]" in report_text(report)


@pytest.mark.slow
def test_tensor_of_a_module_with_a_decay_of_its_own_is_named() -> None:
    spec = {key: value for key, value in BASE.items() if key not in ("model", "init")}
    report = check(spec, scratch=by_hand("2.weight", 0.0), framework=framework)
    found = told(report.diagnosis)
    assert found.best is not None
    assert found.causes == ("penalty-missing",)
    assert told(found.best.weight_decay)["2.weight"] == 0
    text = " ".join(short_text(report).split())
    assert "DIVERGED at step 1: scratch applies no weight decay to 2.weight both" in text
    assert "2.weight: w ← w − 0.02 g" in text  # beside what both sides share
    assert "Fix scratch decay 2.weight by torch's weight_decay, 0.1 or torch" in text


def test_entries_are_named_as_slices() -> None:
    schedule = Schedule(1, 1, 1, False, 1, None, 0.1, None)
    history = History({"a": (2, 3), "b": (2,), "c": (2, 2, 2)}, schedule)

    def names(*places: int) -> str:
        return history.named(np.array(places))

    assert names(0, 1, 2, 3, 4, 5) == "a"
    assert names(1, 2, 3, 6, 7) == "a[0, 1:3], a[1, 0] and b"
    assert names(7, 8, 11) == "b[1], c[0, 0, 0] and c[0, 1, 1]"
    assert names(0, 2, 4, 6, 8, 11) == "a[0, 0], a[0, 2], a[1, 1], b[0] and 2 more"
