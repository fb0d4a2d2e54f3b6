"""What several tests need."""

from __future__ import annotations

import copy
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from regcheck import checking
from regcheck.report.result import Report
from regcheck.report.terminal import report_text
from regcheck.trainers import sides

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores, and none needs two
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)

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


EVERY: dict[str, int] = {
    "test_cause_alone_explains_what_its_bug_does": 3,
    "test_conventions_are_named": 3,
    "test_each_tensor_may_have_a_decay_of_its_own": 3,
    "test_fault_planted_in_a_random_model_is_named": 2,
    "test_faults_in_the_penguins_mlp_are_named": 3,
    "test_form_is_named": 4,
    "test_in_ordinary_cases_the_bound_is_at_most_some_ten_times_the_worst": 3,
    "test_lr_and_weight_decay_are_fitted_behind_a_root": 4,
    "test_mistake_is_named_and_nothing_else_is": 4,
    "test_mistake_is_named_beside_groups_of_parameters": 3,
    "test_models_of_every_kind": 3,
    "test_one_entry_not_finite_on_one_side_is_caught_at_its_step": 3,
    "test_one_number_at_one_step_is_caught_there": 3,
    "test_optimizers_of_every_kind": 4,
    "test_other_lr_is_named_for_each_optimizer": 3,
    "test_other_value_of_an_option_is_named": 4,
    "test_other_value_of_each_number_is_named_for_each_optimizer": 3,
    "test_planted_cause_is_caught_at_its_own_first_step": 4,
    "test_right_code_agrees_for_300_steps": 3,
    "test_row_missing_in_the_catalogue_is_caught": 4,
    "test_saturated_rows_raise_no_alarm": 3,
    "test_several_mistakes_are_named_together": 3,
    "test_text_with_a_fault_is_what_the_trainer_does": 3,
}
"""Of these tests' many cases every nth is run by default, and all with `-m exhaustive` besides."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark first cases as quick, unless they are slow, and those left out as exhaustive."""
    seen: Counter[str] = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if not seen[name] and not item.get_closest_marker("slow"):
            item.add_marker("quick")
        if seen[name] % EVERY.get(name.rpartition("::")[2], 1):
            item.add_marker("exhaustive")
        seen[name] += 1


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


def in_one_line(report: Report) -> str:
    """Return a report's text with each line break as a space."""
    return " ".join(report_text(report).split())


def step_of(found: Any) -> int | None:
    """Return the step of a divergence; None where there is none."""
    return None if found is None else int(found.step)


T = TypeVar("T")


def told(value: T | None) -> T:
    """Give what a side tells; the built-in sides tell all."""
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
