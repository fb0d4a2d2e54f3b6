"""The JSON Schema of reports: every report keeps to it, and it describes every key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from regcheck.checking import check
from regcheck.report.record import Record, record_of, record_of_error
from regcheck.report.schema.model import schema_text
from tests.conftest import Spec
from tests.records import inconclusive, question, run
from tests.report_schema import FILE, complaints, envelope, published

MLP = {"mlp": {"hidden": [3], "activation": "tanh", "head": "linear"}}
RANDOM = {"normal": {"std": 0.5, "seed": 0}}

RUNS: dict[str, Callable[[], Record]] = {
    "question": question,
    "equivalent": run,
    "inconclusive": inconclusive,
    "error": lambda: record_of_error("x.yaml", "x.yaml:3: wrong", 3),
    "error without a line": lambda: record_of_error("x.yaml", "no such file"),
    "not as expected": lambda: run(expect={"verdict": "diverged"}),
    "drift": lambda: run(convention="doubled", tolerance={"rtol": 1e-5, "atol": 1e-8}),
    "exact": lambda: run(convention="doubled", tolerance="exact"),
    "many tensors": lambda: run(model=MLP, init=RANDOM, convention="bias-free"),
    "options": lambda: run(
        optimizer={"name": "adam"}, framework={"optimizer": {"name": "adam", "eps": 1e-2}}
    ),
    "factor": lambda: run(convention={"penalty_factor": 1.7}),
    "mixed": lambda: run(dtype={"scratch": "float64", "framework": "float32"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_report_keeps_to_its_schema_and_has_no_other_keys(name: str) -> None:
    assert complaints(envelope([RUNS[name]()])) == []


def from_elsewhere(problem: Any) -> Iterator[dict[str, Any]]:
    """Train by half the lr from another start, without a loss."""
    w, b = problem.initial["weight"] + 1.0, problem.initial["bias"]
    for rows in problem.batches:
        r = problem.X[rows] @ w.ravel() + b - problem.y[rows]
        w = w - problem.lr * (r @ problem.X[rows] / len(rows)).reshape(w.shape)
        b = b - problem.lr * r.mean()
        yield {"weight": w, "bias": b}


@pytest.mark.slow
def test_report_of_own_code_keeps_to_its_schema(small: Spec) -> None:
    report = check(small, scratch=from_elsewhere)
    assert report.verdict == "diverged"
    assert complaints(envelope([record_of(report, line=2)])) == []


def test_published_schema_is_that_of_the_types() -> None:
    Draft202012Validator.check_schema(published())
    assert FILE.read_text(encoding="utf-8") == schema_text(), "write schema_text() there"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda run: run.pop("verdict"),
        lambda run: run.update(verdict="perhaps"),
        lambda run: run["rows"][0]["tensors"]["weight"].update(drift="NaN"),
        lambda run: run["first_divergence"].update(step="2"),
        lambda run: run["diagnosis"]["causes"][0].pop("fix"),
    ],
)
def test_schema_refuses_what_is_no_report(wrong: Callable[[dict[str, Any]], Any]) -> None:
    report = envelope([question()])
    assert complaints(report, strict=False) == []
    wrong(report["runs"][0])
    assert complaints(report, strict=False) != []


def test_schema_allows_keys_that_are_added() -> None:
    report = envelope([question()])
    report["runs"][0]["later"] = report["runs"][0]["summary"]["later"] = 1
    assert complaints(report, strict=False) == []


def test_schema_describes_every_key_with_a_type() -> None:
    kinds = {"type", "anyOf", "$ref", "const", "enum"}
    parts = [published(), *published()["$defs"].values()]
    described = [(key, of) for part in parts for key, of in part.get("properties", {}).items()]
    assert len(described) > 100
    assert [key for key, of in described if not (of.get("description") and kinds & of.keys())] == []
