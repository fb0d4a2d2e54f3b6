"""First steps and the bounds of their rounding, and runs in which rounding is all that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regcheck.checking import check
from regcheck.numerics.bounds.rounding import Bounds, RoundingModel
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem, Step, build_problem
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import agrees

Array = NDArray[np.floating]
U64, TINY64 = 2.0**-53, 2.0**-1022
U32, TINY32 = 2.0**-24, 2.0**-126
MIXED = {"scratch": "float64", "framework": "float32"}


def close(expected: Any, rel: float = 1e-12, abs: float = 0.0) -> Any:  # noqa: A002
    """Compare by relative size alone: pytest's own absolute 1e-12 is far above these bounds."""
    return pytest.approx(expected, rel=rel, abs=abs)


def problem_of(**settings: Any) -> Problem:
    spec: dict[str, Any] = {"data": {"X": [[3.0, 4.0]], "y": [1.0]}, "model": "linear", "lr": 0.5}
    return build_problem(from_mapping(spec | settings))


def bounds_of(problem: Problem, batch: Batch, step: Step, dloss_dz: Sequence[Array]) -> Bounds:
    """Bound a first step."""
    return RoundingModel(problem).bounds(RoundingState(), batch, step, dloss_dz)[0]


def first_step(problem: Problem) -> tuple[Batch, Step, Bounds]:
    trainer, batch = NumpyTrainer(problem), next(problem.schedule.batches())
    update = trainer.step(trainer.start(), batch)
    return batch, update.step, bounds_of(problem, batch, update.step, update.dloss_dz)


def first_bounds(**settings: Any) -> Bounds:
    return first_step(problem_of(**settings))[2]


def no_alarm(kind: tuple[str, str], **spec: Any) -> None:
    report = check({"model": kind[0], "loss": kind[1], **spec})
    assert (agrees(report), report.comparison.first_by_stage) == (True, {}), spec
