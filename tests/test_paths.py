"""The parameters' paths: of the entries farthest apart, thinned, and the sides' own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from regcheck import cli
from regcheck.checking import check_loaded, no_progress
from regcheck.report.page import paths
from regcheck.report.page.paths import PathMeter
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from tests.conftest import SMALL, Spec


def followed(spec: Spec) -> tuple[Report, paths.Paths]:
    meter = PathMeter()
    report = check_loaded(from_mapping(spec), no_progress, watch=meter.take)
    found = meter.result()
    assert found is not None
    return report, found


def test_paths_end_where_both_sides_end_and_the_farthest_is_first() -> None:
    report, found = followed(SMALL | {"convention": "doubled"})
    final = report.comparison.final
    assert found.steps == (1, 2, 3)
    assert {one.name for one in found.entries} == {"weight[0, 0]", "weight[0, 1]", "bias"}
    for one in found.entries:
        name, _, index = one.name.partition("[")
        at = tuple(map(int, index.rstrip("]").split(","))) if index else (0,)
        assert one.scratch[-1] == final["scratch"].parameters[name][at]
        assert one.torch[-1] == final["framework"].parameters[name][at]
    apart = [max(np.abs(np.subtract(one.scratch, one.torch))) for one in found.entries]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [400, 401, 2000])
def test_long_runs_keep_evenly_spaced_points(epochs: int) -> None:
    _, found = followed(SMALL | {"epochs": epochs})
    (every,) = set(np.diff(found.steps))
    assert paths.MOST_POINTS // 4 <= len(found.steps) < paths.MOST_POINTS
    assert found.steps[0] == every
    assert epochs - found.steps[-1] < every


def test_of_many_entries_some_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MOST_ENTRIES", 4)
    monkeypatch.setattr(paths, "SHOWN", 3)
    spec = {"data": {"synthetic": {"rows": 20, "features": 30, "seed": 0}}, "model": "linear"}
    _, found = followed(spec | {"lr": 0.01, "epochs": 2})
    assert len(found.entries) == 3
    assert {one.name for one in found.entries} < {
        "weight[0, 0]",
        "weight[0, 10]",
        "weight[0, 20]",
        "bias",
    }


def test_page_holds_them_and_other_reports_are_as_before(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SMALL | {"convention": "doubled"}), encoding="utf-8")
    page, plain, beside = (tmp_path / name for name in ("a.html", "a.json", "b.json"))
    command = ["run", "--quiet", str(spec), "--report"]
    assert cli.exit_code([*command, str(page), "--report", str(beside)]) == 1
    assert cli.exit_code([*command, str(plain)]) == 1
    assert '"paths": {"step"' in page.read_text(encoding="utf-8")
    assert plain.read_bytes() == beside.read_bytes()
