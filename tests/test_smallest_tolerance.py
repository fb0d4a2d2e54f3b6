"""The smallest tolerance that would have passed: it passes, as told and as printed, and no less."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from regcheck.checking import check
from regcheck.report.result import Report
from tests.conftest import SMALL, Spec, agrees, in_one_line
from tests.test_tolerance import MIXED

TENSORS = ("weight", "bias", "loss")


def any_spec(seed: int) -> Spec:
    """Make a small spec, of two sides that agree or differ, that ends with finite numbers."""
    random = np.random.default_rng([seed, 20])
    rows, features = int(random.integers(1, 9)), int(random.integers(1, 4))
    model, loss = [("linear", "mse"), ("logistic", "bce"), ("logistic", "mse")][seed % 3]
    X = random.normal(size=(rows, features)).round(3) * 10 ** random.uniform(-2, 2)
    y = random.integers(2, size=rows) if model == "logistic" else random.normal(size=rows)
    conventions = ["pytorch", "pytorch", "doubled", {"penalty_factor": 1 + 1e-10}, "keras-l2"]
    curvature = 2 * (1 + float(np.square(X).sum(axis=1).max()))
    return {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": model,
        "loss": loss,
        "init": {"normal": {"std": 1.0, "seed": seed}},
        "optimizer": ["sgd", {"name": "sgd", "momentum": 0.9}][seed % 2],
        "lr": float(random.uniform(0.05, 1.2)) / curvature,
        "weight_decay": float(10 ** random.uniform(-4, -1)),
        "epochs": int(random.integers(1, 7)),
        "batch_size": ["full", 2][int(random.integers(2))],
        "dtype": ["float32", "float64", MIXED][int(random.integers(3))],
        "convention": conventions[int(random.integers(len(conventions)))],
    }


def smallest_of(report: Report) -> dict[str, dict[str, float]]:
    smallest = report.to_dict()["smallest_tolerance"]
    return {
        name: {kind: float(value) for kind, value in smallest[name].items()} for name in TENSORS
    }


def lowered(tolerance: dict[str, dict[str, float]], kind: str) -> Iterator[tuple[str, Spec]]:
    """Lower one tensor's number by a thousandth, one after the other."""
    for name in TENSORS:
        value = tolerance[name][kind]
        if value > 1e-300:
            yield name, tolerance | {name: tolerance[name] | {kind: value * 0.999}}


@pytest.mark.slow
@pytest.mark.search(sample=3, whole=40)
def test_smallest_tolerance_put_into_the_spec_passes_and_a_smaller_one_does_not(seed: int) -> None:
    spec = any_spec(seed)
    report = check(spec)
    assert report.verdict == "diverged" or agrees(report)
    smallest = smallest_of(report)
    for kind in ("rounding", "rtol", "atol"):
        # A number that must be positive stands in where 0 would do.
        each = {name: {kind: smallest[name][kind] or 1e-300} for name in TENSORS}
        assert all(math.isfinite(one[kind]) for one in each.values())
        common = {kind: max(one[kind] for one in each.values())}
        for tolerance in (each, common):
            assert agrees(check(spec | {"tolerance": tolerance})), kind
        for name, less in lowered(each, kind):
            found = check(spec | {"tolerance": less})
            assert found.verdict == "diverged", (kind, name)
            first = found.first_loss_divergence if name == "loss" else found.first_divergence
            assert first is not None
            assert first.at.tensor == name


@pytest.mark.slow
@pytest.mark.search(sample=2, whole=30)
@pytest.mark.parametrize("kind", ["rtol", "atol"])
def test_smallest_rtol_and_atol_are_those_beside_the_spec_s_other_one(seed: int, kind: str) -> None:
    spec = any_spec(seed)
    free = smallest_of(check(spec))
    other = "atol" if kind == "rtol" else "rtol"
    # Half of what would do alone, so that both count; a third of the seeds has next to all.
    share = [0.5, 0.9, 1 - 1e-12][seed % 3]
    given_other = {name: {other: free[name][other] * share, kind: 0.0} for name in TENSORS}
    smallest = smallest_of(check(spec | {"tolerance": given_other}))
    each = {name: given_other[name] | {kind: smallest[name][kind]} for name in TENSORS}

    assert agrees(check(spec | {"tolerance": each}))
    if share < 0.99:  # else what is left is of the size of its own rounding
        for name, less in lowered(each, kind):
            assert check(spec | {"tolerance": less}).verdict == "diverged", name


def test_smallest_atol_beside_an_rtol_is_taken_in_float64_where_parameters_are_float32() -> None:
    # In float32 rtol |w| would be off by 6e-8 of itself, far more than is left.
    spec = SMALL | {"dtype": "float32", "epochs": 1, "convention": "doubled"}
    spec |= {"compare": ["parameters"], "init": {"weight": [0.5, -0.3], "bias": [0.0]}}
    free = check(spec | {"tolerance": {"rtol": 0.0}}).comparison.drift.needed["weight"]
    beside = {"rtol": free.rtol * (1 - 1e-9)}
    left = check(spec | {"tolerance": beside}).smallest_tolerance().atol
    assert 0 < left < 1e-8
    assert check(spec | {"tolerance": beside | {"atol": left}}).verdict == "equivalent"
    assert check(spec | {"tolerance": beside | {"atol": left * 0.99}}).verdict == "diverged"


def printed_forms(report: Report) -> list[str]:
    found = re.search(r"Smallest tolerance that passes: (.*?)\.(?: |$)", in_one_line(report))
    assert found
    return re.findall(r"\{[^}]*\}|\bexact\b", found[1])


@pytest.mark.slow
@pytest.mark.search(sample=4, whole=30)
def test_smallest_tolerance_as_printed_passes_as_a_spec_s_own(seed: int, tmp_path: Path) -> None:
    spec = any_spec(seed)
    if seed % 2:
        spec["tolerance"] = {"rtol": 1e-3, "atol": 1e-7}
    report = check(spec)
    if report.verdict == "inconclusive":  # rounding hides the step, and none is printed
        assert agrees(report)
        return
    smallest = report.smallest_tolerance()
    forms = printed_forms(report)
    kinds = set()
    for form in forms:
        path = tmp_path / "again.yaml"
        head = {key: value for key, value in spec.items() if key != "tolerance"}
        path.write_text(f"{yaml.safe_dump(head)}tolerance: {form}\n", encoding="utf-8")
        assert agrees(check(path)), form
        number = re.search(r"(rounding|rtol|atol): ([^,}]*)\}?$", form.split(", atol: 1e-07")[0])
        if number and "exact" not in form:
            kinds.add(number[1])
            alone = "rounding" not in form and not ("rtol" in form and "atol" in form)
            value = getattr(smallest, number[1] + ("_alone" if alone else ""))
            # Two digits, rounded up: at most a tenth more, and never less.
            assert value <= float(number[2]) <= value * 1.1001
    assert kinds == {"rounding", "rtol", "atol"} or forms == ["exact"]


@pytest.mark.search(sample=4, whole=60)
def test_verdict_json_and_text_agree_on_whether_the_tolerance_is_kept(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = ("rounding", "rtol", "atol")[seed % 3]
    tolerance = {kind: float(10 ** random.uniform(*((-2, 12) if seed % 3 == 0 else (-17, 0))))}
    report = check(any_spec(seed) | {"tolerance": tolerance})
    data, text = report.to_dict(), in_one_line(report)
    most = max(float(data["smallest_tolerance"][name][kind]) for name in TENSORS)
    kept = most <= tolerance[kind]

    assert data["verdict"] == ("equivalent" if kept else "diverged")
    assert (data["first_divergence"] or data["first_loss_divergence"]) is None or not kept
    assert ("EQUIVALENT over" in text) == kept
    assert ("DIVERGED at step" in text) == (not kept)
    limit = tolerance[kind] if kind == "rounding" else 1.0
    judged = [
        float(one["tolerance_ratio"])
        for row in data["rows"]
        for one in (row["loss"], *row["tensors"].values())
    ]
    start_kept = data["first_divergence"] is None or data["first_divergence"]["stage"] != "initial"
    assert (max(judged) <= limit and start_kept) == kept
    assert ("!" in text or "≠" in text) == (max(judged) > limit)
