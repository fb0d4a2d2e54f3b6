"""What several tests need."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from regcheck.report.result import Report

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores, and none needs two
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)

ROOT = Path(__file__).resolve().parent.parent

SMALL: dict[str, Any] = {
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


T = TypeVar("T")


def told(value: T | None) -> T:
    """Give what a side tells; the built-in sides tell all."""
    assert value is not None
    return value


@pytest.fixture
def small() -> dict[str, Any]:
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
