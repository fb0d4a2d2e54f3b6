"""Each kind of schedule: its formula beside torch's class, which the framework side runs."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from regcheck.problem.batches import Schedule, schedule_of
from regcheck.rules.optimizers.lr_schedules import KINDS, scheduler_call
from regcheck.spec import from_mapping
from regcheck.trainers.framework.schedulers import UNIT, GroupSchedulers, LrScheduler
from tests.by_hand import Spec

ROWS, PER_EPOCH = 10, 3

LR = st.floats(1e-6, 1e2)
STEPS = st.integers(1, 60)


def schedule(lr: float = 0.4, epochs: int = 20, **keys: Any) -> Schedule:
    data = {"X": [[1.0], [2.0]], "y": [1.0, 2.0]}
    spec = {"data": data, "model": "linear", "lr": lr, "epochs": epochs, "batch_size": 4}
    return schedule_of(from_mapping(spec | {"lr_schedule": keys}).spec, ROWS)


Make = Callable[[Any, float, Spec], lr_scheduler.LRScheduler]

TORCHS: dict[str, tuple[dict[str, st.SearchStrategy[Any]], Make]] = {
    "step": (
        {"every": STEPS, "factor": st.floats(0, 1.2)},
        lambda o, _, k: lr_scheduler.StepLR(o, k["every"], k["factor"]),
    ),
    "multistep": (
        {
            "milestones": st.lists(STEPS, min_size=1, max_size=5, unique=True).map(sorted),
            "factor": st.floats(0, 1.2),
        },
        lambda o, _, k: lr_scheduler.MultiStepLR(o, k["milestones"], k["factor"]),
    ),
    "exponential": (
        {"factor": st.floats(0, 1.2)},
        lambda o, _, k: lr_scheduler.ExponentialLR(o, k["factor"]),
    ),
    "cosine": (
        {"steps": STEPS, "floor": st.floats(0, 1)},
        lambda o, _, k: lr_scheduler.CosineAnnealingLR(o, k["steps"], k["floor"]),
    ),
    "linear": (
        {"steps": STEPS, "start_factor": st.floats(1e-3, 1), "end_factor": st.floats(0, 1)},
        lambda o, _, k: lr_scheduler.LinearLR(o, k["start_factor"], k["end_factor"], k["steps"]),
    ),
    "warmup": (
        {"steps": STEPS},
        lambda o, _, k: lr_scheduler.LinearLR(o, 1 / k["steps"], 1.0, k["steps"] - 1),
    ),
    "one-cycle": (
        {
            "steps": STEPS,
            "pct_start": st.floats(0, 1),
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
            "div_factor": st.floats(1, 100),
            "final_div_factor": st.floats(1, 1e5),
            "three_phase": st.booleans(),
        },
        lambda o, lr, k: lr_scheduler.OneCycleLR(
            o, lr, k["steps"], cycle_momentum=False, **{x: k[x] for x in k if x != "steps"}
        ),
    ),
    "list": (
        {"values": st.lists(st.floats(0, 10), min_size=1, max_size=8)},
        lambda o, lr, k: lr_scheduler.LambdaLR(
            o, lambda t: k["values"][min(t, len(k["values"]) - 1)] / lr
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.sampled(every=8)
@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(draw=st.data())
def test_formula_is_torchs_scheduler(kind: str, per: str, draw: st.DataObject) -> None:
    strategies, make = TORCHS[kind]
    lr, keys = draw.draw(LR), {key: draw.draw(one) for key, one in strategies.items()}
    if kind == "one-cycle" and keys["pct_start"] * keys["steps"] == 1:
        keys["pct_start"] /= 2
    # torch's cosine rises after its end, and its cycle raises.
    last = {"cosine": keys.get("steps"), "one-cycle": keys.get("steps", 0) - 1}.get(kind, 75)
    steps = schedule(lr, 25, kind=kind, per=per, **keys)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, t = make(optimizer, lr, keys), 0
    ours = LrScheduler(steps)
    for batch in steps.batches():
        torchs = optimizer.param_groups[0]["lr"]
        # 75 steps of torch's, each of some roundings; and what is left of a difference.
        assert batch.lr == pytest.approx(torchs, rel=1e-13, abs=1e-15 * max(lr, 1.0))
        assert ours.lr(batch.lr) == batch.lr
        optimizer.step()
        ours.step(batch)
        if (per == "step" or batch.batch == PER_EPOCH) and t < last:
            scheduler.step()
            t += 1


@pytest.mark.parametrize("kind", KINDS)
def test_keys_left_out_are_torchs_defaults(kind: str) -> None:
    torchs = inspect.signature(getattr(lr_scheduler, KINDS[kind].torch)).parameters
    names = {"floor": "eta_min"}
    for key, value in KINDS[kind].options.items():
        assert torchs[names.get(key, key)].default == value


@pytest.mark.parametrize(
    ("keys", "call"),
    [
        (
            {"kind": "multistep", "milestones": [30, 80], "factor": 0.1},
            "MultiStepLR(optimizer, milestones=[30, 80], gamma=0.1)",
        ),
        (
            {"kind": "one-cycle", "steps": 9},
            """OneCycleLR(optimizer, max_lr=0.4, total_steps=9, pct_start=0.3, \
anneal_strategy='cos', div_factor=25, final_div_factor=10000, three_phase=False, \
cycle_momentum=False)""",
        ),
        (
            {"kind": "list", "values": [0.3, 0.2]},
            "LambdaLR(optimizer, lr_lambda=lambda t: [0.3, 0.2][min(t, 1)] / 0.4)",
        ),
        ({"kind": "warmup", "steps": 5}, "LinearLR(optimizer, start_factor=0.2, total_iters=4)"),
    ],
)
def test_call_is_what_one_writes_in_torch(keys: Spec, call: str) -> None:
    one = schedule(**keys)
    assert one.lr_schedule is not None
    text = scheduler_call(one.lr_schedule.kind, one.lr_schedule.all_keys, 0.4)
    assert text == f"torch.optim.lr_scheduler.{call}"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    written = eval(text, {"torch": torch, "optimizer": optimizer})
    ours = LrScheduler(one)
    for batch in list(one.batches())[:8]:
        torchs = optimizer.param_groups[0]["lr"]
        assert torchs == pytest.approx(batch.lr, rel=1e-14)
        assert torchs == pytest.approx(ours.lr(math.nan), rel=1e-14)  # no lr at all gives way
        optimizer.step()
        written.step()
        ours.step(batch)


def test_lr_stays_at_its_end() -> None:
    cosine = schedule(kind="cosine", steps=10, floor=0.1)
    listed = schedule(kind="list", values=[0.3, 0.2])
    warm = schedule(kind="warmup", steps=5)
    cycle = schedule(kind="one-cycle", steps=10, div_factor=2, final_div_factor=4)
    linear = schedule(kind="linear", steps=10, end_factor=0.5)
    assert [one.lr for one in cosine.batches()][10:] == [0.1] * 50
    assert [one.lr for one in listed.batches()] == [0.3] + [0.2] * 59
    assert [one.lr for one in warm.batches()][4:] == [0.4] * 56
    assert [one.lr for one in cycle.batches()][9:] == [0.05] * 51
    assert [one.lr for one in linear.batches()][10:] == [0.2] * 50
    assert warm.lr_at(0) == warm.lr_at(-3) == warm.lr_at(1) == 0.4 * 0.2


def test_cycle_by_hand() -> None:
    # Up to t = 0.5·9 − 1 = 3.5, down to 2·3.5 = 7, and to the end at t = 8, in straight lines.
    cycle = schedule(
        kind="one-cycle",
        steps=9,
        pct_start=0.5,
        anneal_strategy="linear",
        div_factor=4,
        final_div_factor=10,
        three_phase=True,
    )
    lrs = [batch.lr for batch in cycle.batches()][:9]
    up = [0.1 + 0.3 * t / 3.5 for t in range(4)]
    assert lrs == pytest.approx([*up, *(0.4 - 0.3 * (t - 3.5) / 3.5 for t in range(4, 8)), 0.01])


@pytest.mark.parametrize(
    ("lr", "factor", "t", "expected"),
    [
        (0.4, 10.0, 400, math.inf),
        (0.0, 10.0, 400, 0.0),
        (1e-300, 10.0, 320, 1e20),  # 10³²⁰ by itself overflows
        (1e300, 1e-10, 33, 1e-30),  # 10⁻³³⁰ by itself underflows
        (1.0, 0.5, 2000, 0.0),
        (0.4, 0.0, 0, 0.4),
        (0.4, 0.0, 3, 0.0),
    ],
)
def test_powers_beyond_the_range_of_floats(
    lr: float, factor: float, t: int, expected: float
) -> None:
    one = schedule(lr, 1000, kind="exponential", factor=factor)
    assert one.lr_at(t + 1) == pytest.approx(expected, rel=1e-13)


# --- the comparison with torch's ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_formula_that_is_not_torchs_gives_way_to_it(kind: str) -> None:
    keys: dict[str, Spec] = {
        "step": {"every": 4, "factor": 0.5},
        "multistep": {"milestones": [3, 8], "factor": 0.1},
        "exponential": {"factor": 0.9},
        "list": {"values": [0.3, 0.2]},
    }
    one = schedule(kind=kind, **keys.get(kind, {"steps": 12}))
    ours = LrScheduler(one)
    for batch in list(one.batches())[:11]:
        assert ours.lr(batch.lr) == batch.lr
        assert ours.lr(batch.lr * (1 + 2 * UNIT)) == batch.lr * (1 + 2 * UNIT)
        for off in (1e-6, -1e-6, 1e-12):
            assert ours.lr(batch.lr * (1 + off)) == pytest.approx(batch.lr, rel=1e-14)
        assert ours.lr(math.inf) == pytest.approx(batch.lr)
        ours.step(batch)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_million_steps_are_within_their_rounding() -> None:
    one = schedule(1.0, 334_000, kind="exponential", factor=1 - 1e-6)
    ours = LrScheduler(one)
    for _ in range(1_000_000):
        ours.optimizer.step()
        ours.torchs.step()
    ours.t = 1_000_000
    formula, torchs = one.lr_at(1_000_001), ours.optimizer.param_groups[0]["lr"]
    assert torchs != formula
    assert ours.lr(formula) == formula
    assert ours.lr(formula * (1 + 1e-6)) == torchs


def test_groups_have_schedules_of_their_own_lr() -> None:
    one = schedule(kind="cosine", steps=6, floor=0.1)
    groups = GroupSchedulers(one, [0.4, 0.8, 0.1])
    for batch in one.batches():
        # A floor goes with its group's lr, which one scheduler of torch's would not have.
        assert groups.now(batch) == pytest.approx([batch.lr, 2 * batch.lr, batch.lr / 4])
        groups.step(batch)


def test_scheduler_runs_none_of_the_hooks_of_all_optimizers() -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    called: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda *_: called.append(1))
    try:
        one = schedule(kind="step", every=2, factor=0.5)
        ours = LrScheduler(one)
        for batch in one.batches():
            ours.step(batch)
    finally:
        handle.remove()
    assert not called
    assert np.isclose(ours.optimizer.param_groups[0]["lr"], 0.4 * 0.5**30)


@pytest.mark.slow
def test_schedulers_load_no_compiler_and_warn_of_nothing() -> None:
    import subprocess

    spec = {
        "data": {"synthetic": {"rows": 20, "features": 2, "seed": 0}},
        "model": "linear",
        "lr": 0.05,
        "epochs": 4,
        "lr_schedule": {"kind": "one-cycle", "steps": 4},
    }
    code = f"""
import sys
from regcheck import check
assert check({spec}).verdict == "equivalent"
print([one for one in ("torch._dynamo", "torch._inductor", "sympy") if one in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ran.stderr, ran.stdout) == ("", "[]\n")
