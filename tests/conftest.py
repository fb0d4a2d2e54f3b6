"""What several tests need."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml

from regcheck import checking
from regcheck.report.files.envelope import run_chunks
from regcheck.report.record import record_of
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from regcheck.trainers import sides
from regcheck.trainers.framework.distributed.processes import Processes

# Else each process that a test starts, of which there are many, compiles the whole package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):  # the runs of tests are not its own
    os.environ.pop(name, None)

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores, and none needs two
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


@pytest.fixture(autouse=True)
def overflow_is_an_outcome() -> Iterator[None]:
    """Let NumPy not warn, as in a run: `checking.check_problem` says so once for all of it."""
    with np.errstate(all="ignore"):
        yield


# --- what is run ----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("random searches")
    group.addoption("--count", type=int, help="runs of each random search; default: a sample")
    group.addoption("--seed", type=int, default=0, help="the first seed of each")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that is marked `search(sample, whole)` its seeds: as many, or `--count`."""
    search = metafunc.definition.get_closest_marker("search")
    if search is not None:
        option = metafunc.config.option
        exhaustive = option.markexpr == "exhaustive"
        count = option.count or search.kwargs["whole" if exhaustive else "sample"]
        marks = [pytest.mark.exhaustive] if exhaustive else []
        seeds = range(option.seed, option.seed + count)
        metafunc.parametrize("seed", [pytest.param(seed, marks=marks) for seed in seeds])


GOLDEN = (math.sqrt(5) - 1) / 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark first cases as quick, unless they are slow, and those left out as exhaustive."""
    seen: Counter[str] = Counter()
    for item in items:
        name, sampled = item.nodeid.partition("[")[0], item.get_closest_marker("sampled")
        marks = {mark.name for mark in item.iter_markers()}
        if not seen[name] and marks.isdisjoint(("exhaustive", "slow", "whole")):
            item.add_marker("quick")
        # Multiples of the golden ratio keep no step with a parameter that has every nth case.
        if sampled and seen[name] * GOLDEN % 1 >= 1 / sampled.kwargs["every"]:
            item.add_marker("exhaustive")
        seen[name] += 1


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector pass over what stays for good: torch, and the tests themselves."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what long searches came to: outcomes are counted, of numbers there are quantiles."""
    option = terminalreporter.config.option
    if not (option.count or option.markexpr == "exhaustive"):
        return
    found = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    found[name].append(value)
    for name, values in sorted(found.items()):
        terminalreporter.write_line(f"{name}: {summary(values)}")


def summary(values: list[Any]) -> str:
    """Count words; or write the 0.1, 0.5, 0.9 and 1.0 quantiles of numbers."""
    if isinstance(values[0], str):
        return ", ".join(f"{count} {word}" for word, count in sorted(Counter(values).items()))
    ordered = sorted(values)
    return "  ".join(f"{ordered[int(q * (len(ordered) - 1))]:9.3g}" for q in (0.1, 0.5, 0.9, 1.0))


# --- what several tests need ----------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent

Spec = dict[str, Any]

SMALL: Spec = {
    "data": {"X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5]], "y": [1.0, 2.0, -1.0, 0.5]},
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
    "lr": 0.1,
    "weight_decay": 0.5,
    "epochs": 3,
}


def agrees(report: Report) -> bool:
    """Return whether nothing differs: equivalent, or a run of which rounding leaves nothing."""
    if report.verdict == "inconclusive":
        return (
            report.comparison.power is not None
            and report.reason == report.comparison.power.reason() != ""
        )
    return report.verdict == "equivalent"


def json_text(report: Report) -> str:
    """Return a report as the JSON file has it, without the envelope."""
    return "".join(run_chunks(record_of(report)))


def runs_of(text: str) -> list[dict[str, Any]]:
    """Return the runs in the JSON that the command line writes."""
    envelope = json.loads(text)
    assert envelope.keys() == {"schema_version", "runs"}
    assert envelope["schema_version"] == 1
    runs: list[dict[str, Any]] = envelope["runs"]
    return runs


def run_of(text: str) -> dict[str, Any]:
    """Return the only run in it."""
    (run,) = runs_of(text)
    return run


def in_one_line(report: Report) -> str:
    """Return a report's text with each line break as a space."""
    return " ".join(report_text(report).split())


def step_of(found: Any) -> int | None:
    """Return the step of a divergence; None where there is none."""
    return None if found is None else int(found.step)


T = TypeVar("T")


def told(value: T | None) -> T:
    """Return what a side reports, of which the built-in sides leave nothing out."""
    assert value is not None
    return value


@pytest.fixture
def small() -> Spec:
    """Four rows of two features, from a start at which every term shows."""
    return copy.deepcopy(SMALL)


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Write a spec to a file: the small one, with some keys changed."""

    def write(name: str = "small.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(copy.deepcopy(SMALL) | changes), encoding="utf-8")
        return path

    return write


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a trainer in the place of the scratch side's own."""
    return lambda trainer: monkeypatch.setattr(checking, "NumpyTrainer", trainer)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a trainer in the place of torch's."""
    return lambda trainer: monkeypatch.setattr(sides, "TorchTrainer", trainer)


@pytest.fixture
def place(
    scratch: Callable[[Any], None], framework: Callable[[Any], None]
) -> dict[str, Callable[[Any], None]]:
    """Put a trainer in the place of a side's, by the side's name."""
    return {"scratch": scratch, "framework": framework}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Processes]:
    """List what is started, to see that it has ended."""
    found: list[Processes] = []
    init = Processes.__init__

    def kept(self: Processes, *args: Any) -> None:
        init(self, *args)
        found.append(self)

    monkeypatch.setattr(Processes, "__init__", kept)
    return found
