"""Whole runs with a schedule: beside a plain script in torch, and beside code with another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.problem import batches, lrs
from regcheck.problem.problem import Parameters, build_problem
from regcheck.spec import from_mapping
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.trainers.framework.schedulers import GroupSchedulers
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LAMBDA, LR, Spec, causes_of, code, found_by
from tests.conftest import told
from tests.user_modules import flat_line, with_sgd

MICRO: Spec = {"batch_size": 7, "accumulate": 3, "drop_last": True, "epochs": 6}
"""Five micro-batches an epoch: a step of 21 rows, and one of 14; five rows are left out."""

KINDS: dict[str, tuple[Spec, Callable[[Any], lr_scheduler.LRScheduler]]] = {
    "step": (
        {"every": 3, "factor": 0.5},
        lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    ),
    "multistep": (
        {"milestones": [2, 5], "factor": 0.1},
        lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.1),
    ),
    "exponential": ({"factor": 0.7}, lambda o: lr_scheduler.ExponentialLR(o, 0.7)),
    "cosine": (
        {"steps": 12, "floor": 0.01},
        lambda o: lr_scheduler.CosineAnnealingLR(o, 12, eta_min=0.01),
    ),
    "linear": (
        {"steps": 5, "start_factor": 0.2},
        lambda o: lr_scheduler.LinearLR(o, 0.2, 1.0, total_iters=5),
    ),
    "warmup": ({"steps": 5}, lambda o: lr_scheduler.LinearLR(o, 0.2, 1.0, total_iters=4)),
    "one-cycle": (
        {"steps": 12},
        lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=12, cycle_momentum=False),
    ),
    "list": (
        {"values": [0.03, 0.01, 0.04]},
        lambda o: lr_scheduler.LambdaLR(o, lambda t: [0.03, 0.01, 0.04][min(t, 2)] / LR),
    ),
}

OPTIMIZERS: dict[str, Spec] = {
    "SGD": {"name": "sgd", "momentum": 0.9},
    "AdamW": {"name": "adamw"},
    "Adadelta": {"name": "adadelta"},
}

MLP: Spec = {"mlp": {"hidden": [4], "activation": "tanh"}}
START: Spec = {"normal": {"std": 0.5, "seed": 2}}


def plain_script(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, per: str
) -> None:
    """Train as one does in torch: unequal micro-batches, and the scheduler after the optimizer."""
    X, y = (torch.tensor(BASE["data"][key], dtype=torch.float64) for key in "Xy")
    for _ in range(MICRO["epochs"]):
        for first, last in ((0, 21), (21, 35)):
            parts = range(first, last, 7)
            for start in parts:
                rows = slice(start, start + 7)
                loss = nn.functional.mse_loss(model(X[rows])[:, 0], y[rows]) / len(parts)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if per == "step":
                scheduler.step()
        if per == "epoch":
            scheduler.step()


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("error")
def test_run_is_a_plain_script_in_torch(optimizer: str, kind: str, per: str) -> None:
    """A model of one layer for one half of the cases, and of two for the other."""
    keys, make = KINDS[kind]
    deep = (list(KINDS).index(kind) + (per == "epoch")) % 2 == 1
    spec = BASE | MICRO | {"optimizer": OPTIMIZERS[optimizer]}
    spec |= {"lr_schedule": {"kind": kind, "per": per, **keys}}
    spec |= {"model": MLP, "loss": "mse", "init": START} if deep else {}
    report = check(spec)
    assert (report.verdict, report.diagnosis) == ("equivalent", None)
    assert report.comparison.compared == 12

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) if deep else nn.Linear(3, 1)
    model = model.double()
    with torch.no_grad():
        for tensor, value in zip(model.parameters(), started(spec).values(), strict=True):
            tensor.copy_(torch.tensor(value))
    options = {key: x for key, x in OPTIMIZERS[optimizer].items() if key != "name"}
    kind_of = getattr(torch.optim, optimizer)
    made = kind_of(model.parameters(), lr=LR, weight_decay=LAMBDA, **options)
    plain_script(model, made, make(made), per)
    ends = report.comparison.final["framework"].parameters.values()
    for tensor, end in zip(model.parameters(), ends, strict=True):
        # The lrs of a dozen steps, and the sums, round otherwise.
        assert tensor.detach().numpy() == pytest.approx(end, rel=1e-11, abs=1e-13)


def started(spec: Spec) -> Parameters:
    """Return the start of a spec."""
    return build_problem(from_mapping(spec)).initial


# --- a model of one's own, with groups ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_ones_own_keep_their_proportion(kind: str) -> None:
    def build(problem: Any) -> Any:
        model = flat_line(problem)
        weight, bias = model.parameters()
        groups: list[Spec] = [{"params": [weight]}, {"params": [bias], "lr": LR / 5}]
        optimizer = torch.optim.SGD(groups, lr=LR, weight_decay=LAMBDA)
        return model, nn.MSELoss(), optimizer

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for lr, rows in zip(problem.lrs, problem.batches, strict=True):
            X, y = problem.X[rows], problem.y[rows]
            slope = 2 * (X @ w + b - y) / len(y)
            dw, db = X.T @ slope + LAMBDA * w, slope.sum() + LAMBDA * b
            w, b = w - lr * dw, b - lr / 5 * db
            yield {"weight": w, "bias": b}

    keys, make = KINDS[kind]
    spec = BASE | {"lr_schedule": {"kind": kind, **keys}}
    report = check(spec, scratch=train, framework=build)
    assert report.verdict == "equivalent"

    schedulers = GroupSchedulers(report.schedule, [LR, LR / 5])
    alone = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler = make(alone)
    for batch in report.schedule.batches():
        lr = alone.param_groups[0]["lr"]
        assert schedulers.now(batch) == pytest.approx([lr, lr / 5], rel=1e-13)
        alone.step()
        scheduler.step()
        schedulers.step(batch)


# --- another schedule in the scratch code ---------------------------------------------------------

WRONG: dict[str, tuple[Spec, int]] = {
    "step": ({"every": 4}, 4),
    "multistep": ({"milestones": [3, 5]}, 3),
    "exponential": ({"factor": 0.69}, 2),
    "cosine": ({"floor": 0.0}, 2),
    "linear": ({"start_factor": 0.25}, 1),
    "warmup": ({"steps": 6}, 1),
    "one-cycle": ({"pct_start": 0.5}, 2),
    "list": ({"values": [0.03, 0.02, 0.04]}, 2),
}
"""Other keys than the spec's, and the first t + 1 at which they make another lr."""


def by_schedule(keys: Spec, unit: int = 1) -> Any:
    """Write code that takes the lrs of some schedule."""
    schedule = LrSchedule(**keys)

    def step(at: Any) -> Any:
        lr = lrs.scheduled_lr(LR, schedule, at.t // unit)
        return at.along(at.gw, at.gb, lr=lr)

    return code(step)


@pytest.mark.slow
@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("kind", KINDS)
def test_other_schedule_is_found_at_its_first_other_step(kind: str) -> None:
    keys = {"kind": kind, **KINDS[kind][0]}
    wrong, first = WRONG[kind]
    spec = BASE | {"lr_schedule": keys}
    assert check(spec, scratch=by_schedule(keys)).verdict == "equivalent"
    report = check(spec, scratch=by_schedule(keys | wrong))
    assert report.verdict == "diverged"
    assert told(report.first_divergence).step == first


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("kind", KINDS)
def test_schedule_late_by_one_is_named(kind: str, per: str) -> None:
    keys = {"kind": kind, **KINDS[kind][0]}
    spec = {"lr_schedule": keys | {"per": per}, "batch_size": 20, "epochs": 8}
    unit, schedule = {"step": 1, "epoch": 2}[per], LrSchedule(**keys)

    def step(at: Any) -> Any:
        lr = lrs.scheduled_lr(LR, schedule, max(0, at.t // unit - 1))
        return at.along(at.gw, at.gb, lr=lr)

    found = found_by(code(step), **spec)
    names = [causes_of(found), *([c["id"] for c in one["causes"]] for one in found["alternatives"])]
    assert ["schedule-shifted"] in names


@pytest.mark.parametrize("kind", KINDS)
def test_formula_off_by_a_millionth_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = BASE | {"lr_schedule": {"kind": kind, **KINDS[kind][0]}}
    assert check(spec).verdict == "equivalent"

    def off(lr: float, schedule: LrSchedule, t: int) -> float:
        return lrs.scheduled_lr(lr, schedule, t) * (1 + 1e-6 * (t >= 3))

    monkeypatch.setattr(batches, "scheduled_lr", off)
    report = check(spec)
    assert report.verdict == "diverged"
    assert told(report.first_divergence).step == 4


@pytest.mark.exhaustive
def test_processes_follow_a_schedule() -> None:
    keys = {"kind": "one-cycle", "steps": 12, "div_factor": 5.0}
    spec = BASE | {"lr_schedule": keys, "batch_size": 21, "epochs": 6}
    alone, together = check(spec), check(spec | {"framework": {"processes": 2}})
    assert alone.verdict == together.verdict == "equivalent"


def test_lr_that_the_spec_gives_no_proportion_is_refused() -> None:

    spec = BASE | {"lr": 0.0, "lr_schedule": {"kind": "list", "values": [0.1]}}
    with pytest.raises(UserCodeError, match=r"has lr 0.1 where the spec has lr 0"):
        check(spec, framework=with_sgd(lr=0.1))


# --- micro-batches --------------------------------------------------------------------------------


def accumulated(weigh: str) -> Any:
    """Write code that accumulates; `weigh` says how the micro-batches of a step count."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        assert problem.micro_batches is not None
        for lr, parts in zip(problem.lrs, problem.micro_batches, strict=True):
            gw, gb = 0 * w, 0 * b
            rows = sum(map(len, parts))
            for one in parts:
                X, y = problem.X[one], problem.y[one]
                share = len(one) / rows if weigh == "rows alike" else 1 / len(parts)
                share = 1 / 3 if weigh == "as if all had three" else share
                slope = 2 * (X @ w + b - y) / len(y)
                gw, gb = gw + share * X.T @ slope, gb + share * slope.sum()
            w, b = w - lr * (gw + LAMBDA * w), b - lr * (gb + LAMBDA * b)
            yield {"weight": w, "bias": b}

    return train


BY_EPOCH: Spec = {"kind": "multistep", "milestones": [2, 4], "factor": 0.1, "per": "epoch"}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("weigh", "drop_last", "first"),
    [
        ("micro-batches alike", True, None),
        ("micro-batches alike", False, None),
        ("rows alike", True, None),  # all that are left have seven
        ("rows alike", False, 2),  # one has five
        ("as if all had three", True, 2),
        ("as if all had three", False, None),
    ],
)
def test_unequal_micro_batches_with_a_schedule_by_epochs(
    weigh: str, drop_last: bool, first: int | None
) -> None:
    spec = BASE | MICRO | {"drop_last": drop_last, "lr_schedule": BY_EPOCH}
    assert check(spec).verdict == "equivalent"
    report = check(spec, scratch=accumulated(weigh))
    assert report.verdict == ("diverged" if first else "equivalent")
    divergence = report.first_divergence
    assert (divergence.step if divergence else None) == first
    assert math.isfinite(report.comparison.drift.largest)
