"""The default report: what it looks like at four widths, and that the verdict stays on a screen."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pytest_regressions.file_regression import FileRegressionFixture
from rich.console import Console

from regcheck import check
from regcheck.report.terminal.short import MOST_LINES, print_short, short_text
from tests.by_hand import BASE, TORCHS, code
from tests.conftest import ROOT, SMALL, Spec

ROUNDING = re.compile(
    r"\b\d\.\de-1\d\b|\b0\.\d+(?=\s+rounding\s+bounds)|\b\d\.\de-\d\d !?$", re.MULTILINE
)
"""Numbers that are rounding errors, and may be others on another machine."""

ADAM: Spec = SMALL | {"optimizer": "adam", "convention": {"bias_correction": False}, "lr": 0.05}

CASES: dict[str, Any] = {
    "question": "configs/stackoverflow.yaml",
    "own-code": "configs/question.yaml",
    "mlp-agrees": "configs/penguins-mlp.yaml",
    "adam": ADAM,
    "loss-alone": SMALL | {"convention": {"penalty_in_loss": True}},
    "nothing-moves": SMALL | {"lr": 0.0},
    "inconclusive": SMALL | {"lr": 1e200, "epochs": 20},
    "not-as-expected": SMALL | {"expect": {"verdict": "diverged", "step": 2}},
    "on-drift": SMALL | {"convention": "doubled", "tolerance": {"rtol": 1e-5, "atol": 1e-8}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_report_looks_as_it_was_approved_and_fits_a_screen(
    name: str, file_regression: FileRegressionFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    report = check(CASES[name])
    for width in (60, 80, 120, 160):
        text = short_text(report, width)
        shown = ROUNDING.sub(lambda found: "~" * len(found[0].rstrip(" !")), text)
        file_regression.check(shown, encoding="utf-8", basename=f"{name}-{width}")
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert all(line == line.rstrip() for line in lines)
        assert "More: --details" in " ".join(lines[-2:])
        if width >= 80:
            assert len(lines) <= (20 if report.verdict == "equivalent" else 40)
            assert report.verdict.upper() in "\n".join(lines[:5])


def test_colour_is_not_the_only_signal() -> None:
    report, stream = check(CASES["adam"]), StringIO()
    print_short(
        report, Console(file=stream, width=80, force_terminal=True, color_system="standard")
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "\x1b[" in stream.getvalue()
    assert plain == short_text(report, 80)
    marked = [line for line in plain.splitlines() if line.startswith(">")]
    assert [line.endswith("!") for line in marked] == [True]


@pytest.mark.parametrize(("rows", "shown"), [(2, 2), (None, 3)])
def test_steps_option_shows_so_many_with_all_tensors(rows: int | None, shown: int) -> None:
    stream = StringIO()
    report = check(SMALL | {"convention": "doubled"})
    print_short(report, Console(file=stream, width=80, color_system=None), rows)
    table = re.findall(r"^>? +\d+ .*weight .*\n +bias ", stream.getvalue(), re.MULTILINE)
    assert len(table) == shown


def test_long_names_are_not_lost(tmp_path: Path) -> None:
    name = "a_feature_with_a_very_long_name_that_no_column_holds"
    (tmp_path / "rows.csv").write_text(f"{name},y\n1,2\n3,1\n-2,0.5\n", encoding="utf-8")
    spec: Spec = {"data": {"csv": str(tmp_path / "rows.csv"), "target": "y"}, "model": "linear"}
    spec |= {
        "init": {"constant": 1.0},
        "convention": "doubled",
        "lr": 0.1,
        "weight_decay": {"weight": 0.5, "bias": 0},
    }
    for width in (60, 80):
        text = short_text(check(spec), width)
        assert name in text
        assert max(map(len, text.splitlines())) <= width


def test_what_a_run_cannot_distinguish_is_kept_before_any_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = check(BASE | {"batch_size": "full"}, scratch=code(TORCHS))
    assert report.verdict == "equivalent"
    assert "←" in short_text(report)
    monkeypatch.setitem(MOST_LINES, "equivalent", 9)
    least = short_text(report)

    assert " Note " in least
    assert "←" not in least
