"""Processes that train together: what their steps come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.checking import check
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from regcheck.trainers.framework.built_in import built_in
from regcheck.trainers.framework.distributed.processes import Processes
from tests.conftest import Spec, agrees, told
from tests.ranks import MODELS, left, spec_of


def mean_of_means(report: Report, spec: Spec) -> dict[str, Any]:
    """Take the gradient of the sampled step with torch in one process, share by share."""
    sample = told(report.comparison.sample)
    problem = build_problem(from_mapping(spec))
    module = built_in(problem)
    with torch.no_grad():
        for name, tensor in module.tensors.items():
            tensor.copy_(torch.from_numpy(sample.framework.before[name]))
    [batch] = [one for one in problem.schedule.batches() if one.step == sample.step]
    dtype = module.dtype
    for rows in batch.micro_batches:
        index = np.arange(len(problem.y))[rows]
        inputs, y = torch.from_numpy(problem.X[index]).to(dtype), torch.from_numpy(problem.y[index])
        y = y[:, None].to(dtype) if module.column else y
        loss = module.loss(module.model(inputs), y) / len(batch.micro_batches)
        loss.backward()  # type: ignore[no-untyped-call]
    return {name: told(tensor.grad).numpy() for name, tensor in module.tensors.items()}


def see_equivalent(spec: Spec) -> None:
    """Check that a spec agrees, and that its gradients are those of one process."""
    report = check(spec)
    assert report.verdict == "equivalent", report.reason
    ratio = told(report.smallest_tolerance().rounding)
    assert ratio < 2
    sample = told(report.comparison.sample)
    found = told(sample.framework.gradient)
    of_both = zip(told(sample.framework.outputs), told(sample.scratch.outputs), strict=True)
    for z, other in of_both:  # share by share, in their order
        np.testing.assert_allclose(z, other, rtol=1e-5, atol=1e-5)
    eps = np.finfo(report.dtypes[1]).eps
    for name, g in mean_of_means(report, spec).items():
        # Some ten roundings of the rows' terms, which are of order 1 or of the gradient's.
        np.testing.assert_allclose(found[name], g, rtol=0, atol=10 * eps * (1 + np.abs(g).max()))


@pytest.mark.whole
@pytest.mark.slow
def test_three_ranks_with_uneven_shares_take_the_scratch_sides_steps(
    started: list[Processes],
) -> None:
    # Of 11 rows they have 4, 4 and 3, and of 9 three each; two such batches make a step.
    see_equivalent(
        spec_of(
            "mlp",
            3,
            optimizer="adamw",
            dtype="float32",
            accumulate=2,
            shuffle={"seed": 1},
            clip_norm=0.5,
            lr_schedule={"kind": "exponential", "factor": 0.5},
        )
    )
    assert left(started) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, "adamw", "adafactor"])
def test_ranks_take_the_scratch_sides_steps(
    model: str, count: int, dtype: str, optimizer: Any
) -> None:
    see_equivalent(spec_of(model, count, optimizer=optimizer, dtype=dtype))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ranks_follow_a_users_code(started: list[Processes]) -> None:
    def train(problem: Any) -> Iterator[Mapping[str, Any]]:
        w, b, v, u = problem.initial["weight"], problem.initial["bias"], 0.0, 0.0
        for shares in problem.micro_batches:
            r = [problem.X[rows] @ w + b - problem.y[rows] for rows in shares]
            loss = np.mean([(one**2).mean() for one in r])
            pairs = zip(shares, r, strict=True)
            g = np.mean([2 * problem.X[i].T @ e / len(i) for i, e in pairs], axis=0)
            v = 0.9 * v + g + 0.1 * w
            u = 0.9 * u + np.mean([2 * one.mean() for one in r]) + 0.1 * b
            w, b = w - problem.lr * v, b - problem.lr * u
            yield {"weight": w, "bias": b, "loss": loss}

    spec = spec_of("linear", 2, optimizer={"name": "sgd", "momentum": 0.9})
    report = check(spec, scratch=train)
    assert agrees(report)
    assert report.comparison.losses.reported
    assert told(report.smallest_tolerance().rounding) < 2
    assert left(started) == []
