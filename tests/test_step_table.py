"""Which rows, entries and names a report's tables show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regcheck.checking import check
from regcheck.compare.trace import TensorTrace
from regcheck.report.texts.step_table import chosen, step_cells
from tests.conftest import told
from tests.printed import Spec, printed

MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}


def test_report_of_all_steps_leaves_none_out(small: Spec) -> None:
    assert "not shown" not in printed(small | {"epochs": 50}, rows=None)


def test_chosen_rows_hold_the_divergence_first(small: Spec) -> None:
    schedule = {"kind": "step", "every": 20, "factor": 0.5}
    report = check(
        small
        | MOMENTUM
        | {"epochs": 40, "convention": {"momentum_form": "lr-inside"}, "lr_schedule": schedule}
    )
    for rows in (1, 2, 3, 5, 9, 40):
        shown = chosen(report, rows)
        assert len(shown) == rows
        assert shown == sorted(set(shown))
        assert told(report.first_divergence).step - 1 in shown
        assert rows < 5 or {0, 19, 20, 39} <= set(shown)


def test_chosen_rows_hold_the_divergence_of_the_loss(small: Spec) -> None:
    report = check(
        small | {"init": "zeros"} | {"epochs": 40, "convention": {"penalty_in_loss": True}}
    )
    assert told(report.first_loss_divergence).step == 2
    assert chosen(report, 1) == [1]


def test_row_of_tensors_that_all_agree_shows_the_one_that_is_farthest_apart(small: Spec) -> None:
    report = check(small)
    agrees = TensorTrace(drift=0.0, local=0.0, bound=1.0, ratio=0.0, judged=0.0)
    tensors = {"weight": agrees, "bias": agrees._replace(drift=0.5)}
    row = report.comparison.trace[0]._replace(tensors=tensors)

    (cells,) = step_cells(report, row, worst_alone=True)
    assert "bias" in cells.texts


def test_final_entries_listed_are_those_that_differ_most(small: Spec) -> None:
    spec = small | {
        "data": {"synthetic": {"rows": 30, "features": 20}},
        "init": {"normal": {"std": 1.0}},
        "convention": "doubled",
    }
    final = check(spec).comparison.final
    differences = abs(
        final["scratch"].parameters["weight"][0] - final["framework"].parameters["weight"][0]
    )
    text = printed(spec).split("after step")[1]
    assert "… 13 more, with smaller differences" in text
    listed = [int(index) for index in re.findall(r"^weight\[0, (\d+)\] ", text, re.MULTILINE)]
    assert len(listed) >= 7
    assert set(listed) == set(map(int, (-differences).argsort()[: len(listed)]))


@pytest.mark.parametrize("width", [60, 80])
def test_long_feature_names_are_cut_and_numbers_are_not(tmp_path: Path, width: int) -> None:
    name = "a very very long column name with spaces and more of them than anyone would want"
    (tmp_path / "d.csv").write_text(f"{name},t\n1.5,2\n2.5,1\n", encoding="utf-8")
    data = {"csv": str(tmp_path / "d.csv"), "target": "t"}
    spec = {"data": data, "model": "linear", "lr": 0.123456, "epochs": 3}
    text = printed(spec, width=width)
    final = check(spec).comparison.final["framework"].parameters["weight"][0, 0]
    line = next(line for line in text.splitlines() if line.startswith("weight[0, 0]"))
    assert "…" in line
    assert f"{final:.9g}" in line
