"""The JSON report: its keys, full precision, and nothing that is not JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.json import plain
from tests.conftest import Spec, json_text

KEYS = [
    "regcheck",
    "spec",
    "verdict",
    "expected",
    "steps",
    "compared",
    "first_divergence",
    "first_loss_divergence",
    "diagnosis",
    "not_distinguished",
    "final",
    "environment",
    "rows",
]


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_text_is_the_report_as_data(small: Spec) -> None:
    report = check(small | {"convention": "divided-by-batch"})
    assert strict(json_text(report)) == report.to_dict()


def test_json_has_the_keys_that_programs_rely_on(small: Spec) -> None:
    data = check(small | {"convention": "divided-by-batch"}).to_dict()
    assert [key for key in data if key in KEYS] == KEYS
    assert set(data["first_divergence"]) >= {
        *("step", "epoch", "batch", "stage", "tensor", "index"),
        *("scratch", "framework", "difference", "bound", "ratio"),
    }
    assert set(data["first_loss_divergence"]) == {
        *("step", "scratch", "framework", "difference", "bound")
    }
    assert set(data["final"]) == {"scratch", "framework", "max_drift"}
    assert set(data["final"]["scratch"]) == {"weight", "bias", "loss", "accuracy"}
    row = data["rows"][0]
    assert set(row) == {"step", "epoch", "batch", "loss", "tensors"}
    assert set(row["tensors"]["weight"]) == {
        *("drift", "local", "bound", "ratio", "tolerance_ratio")
    }


def test_json_of_an_equivalent_run_has_no_divergence(small: Spec) -> None:
    data = check(small).to_dict()
    assert data["verdict"] == "equivalent"
    assert data["first_divergence"] is None
    assert data["first_loss_divergence"] is None
    assert data["convention_differences"] == {}
    assert len(data["rows"]) == data["compared"] == 3


def test_json_divergence_agrees_with_its_row(small: Spec) -> None:
    data = check(small | {"convention": "doubled"}).to_dict()
    found = data["first_divergence"]
    tensor = data["rows"][found["step"] - 1]["tensors"][found["tensor"]]
    assert found["difference"] == tensor["local"]
    assert found["bound"] == tensor["bound"]
    assert found["ratio"] == tensor["ratio"]
    assert abs(found["scratch"] - found["framework"]) == found["difference"]
    assert found["within"]["tensor"] == found["tensor"]


def test_json_keeps_full_precision(small: Spec) -> None:
    report = check(small)
    read = strict(json_text(report))
    final = report.comparison.final["framework"]
    assert np.array_equal(
        np.array(read["final"]["framework"]["weight"]), final.parameters["weight"]
    )
    assert read["final"]["framework"]["loss"] == final.loss


def test_json_of_a_blow_up_has_words_for_what_is_no_number(small: Spec) -> None:
    read = strict(json_text(check(small | {"lr": 1e6, "epochs": 100})))
    assert read["verdict"] == "inconclusive"
    assert read["compared"] < 100
    last = read["rows"][-1]["tensors"]["weight"]
    assert last["ratio"] == "nan"
    final = read["final"]["framework"]
    assert {str(part) for part in [*final["weight"][0], *final["bias"]]} & {"nan", "inf", "-inf"}


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.5, 1.5), (math.inf, "inf"), (-math.inf, "-inf"), (np.float32(0.1), float(np.float32(0.1)))],
)
def test_number_is_json(value: float, written: float | str) -> None:
    assert plain(value) == written


def test_numbers_keep_the_shape_and_spell_what_is_not_finite() -> None:
    assert plain(np.array([[1.0, np.inf], [np.nan, 2.0]])) == [[1.0, "inf"], ["nan", 2.0]]
