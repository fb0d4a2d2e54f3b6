"""Code with another schedule than the spec's: named by the key in which it differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.fits.other_schedules import by_other_unit
from regcheck.diagnosis.fits.rates import lrs_between
from regcheck.diagnosis.records import SpecFix
from regcheck.problem.batches import Schedule
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from regcheck.report.texts.diagnosis.next_steps import next_steps
from regcheck.report.texts.headline import headline
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LAMBDA, LR, MOMENTUM, At, Spec, Step, code
from tests.conftest import told
from tests.rule import Rule
from tests.user_functions import schedule_of

TWO = {"batch_size": 20, "epochs": 8}
"""Two steps an epoch, 16 in all."""

SCHEDULES: dict[str, Spec] = {
    "step": {"every": 3, "factor": 0.5},
    "multistep": {"milestones": [2, 5], "factor": 0.1},
    "exponential": {"factor": 0.7},
    "cosine": {"steps": 12, "floor": 0.01},
    "linear": {"steps": 5, "start_factor": 0.2, "end_factor": 1.0},
    "warmup": {"steps": 5},
    "one-cycle": {"steps": 12, "div_factor": 25.0, "final_div_factor": 1e4},
    "list": {"values": [0.03, 0.01, 0.04]},
}

OTHERS: list[tuple[str, Spec, str]] = [
    ("step", {"every": 4}, "every 4 instead of 3"),
    ("step", {"factor": 0.25}, "factor 0.25 instead of 0.5"),
    ("step", {"per": "epoch"}, "per epoch instead of step"),
    ("multistep", {"milestones": [3, 5]}, "milestones [3, 5] instead of [2, 5]"),
    ("multistep", {"milestones": [2]}, "milestones [2] instead of [2, 5]"),
    ("multistep", {"milestones": [2, 5, 9]}, "milestones [2, 5, 9] instead of [2, 5]"),
    ("multistep", {"factor": 0.2}, "factor 0.2 instead of 0.1"),
    (
        "multistep",
        {"milestones": [3, 6], "factor": 0.2},
        "milestones [3, 6] instead of [2, 5], factor 0.2 instead of 0.1",
    ),
    ("multistep", {"per": "epoch"}, "per epoch instead of step"),
    ("exponential", {"factor": 0.69}, "factor 0.69 instead of 0.7"),
    ("exponential", {"factor": 0.0}, "factor 0 instead of 0.7"),
    ("cosine", {"floor": 0.0}, "floor 0 instead of 0.01"),
    ("cosine", {"floor": 0.02}, "floor 0.02 instead of 0.01"),
    ("cosine", {"steps": 15}, "steps 15 instead of 12"),
    ("cosine", {"steps": 40}, "steps 40 instead of 12"),
    ("linear", {"start_factor": 0.25}, "start_factor 0.25 instead of 0.2"),
    ("linear", {"end_factor": 0.9}, "end_factor 0.9 instead of 1"),
    ("linear", {"steps": 7}, "steps 7 instead of 5"),
    ("cosine", {"per": "epoch"}, "per epoch instead of step"),
    ("cosine", {"per": "epoch", "steps": 6}, "per epoch instead of step, steps 6 instead of 12"),
    ("linear", {"per": "epoch", "steps": 3}, "per epoch instead of step, steps 3 instead of 5"),
    ("one-cycle", {"per": "epoch", "steps": 6}, "per epoch instead of step, steps 6 instead of 12"),
    ("warmup", {"steps": 6}, "steps 6 instead of 5"),
    ("warmup", {"per": "epoch"}, "per epoch instead of step"),
    ("one-cycle", {"steps": 10}, "steps 10 instead of 12"),
    ("one-cycle", {"div_factor": 10.0}, "div_factor 10 instead of 25"),
    ("one-cycle", {"final_div_factor": 100.0}, "final_div_factor 100 instead of 10000"),
    ("list", {"per": "epoch"}, "per epoch instead of step"),
]


def by_lrs(keys: Spec) -> Step:
    """Step by the lrs of a schedule, written without regcheck."""
    rate = schedule_of({"lr": LR, "lr_schedule": keys}, 2, Rule())
    return lambda at: at.along(at.gw, at.gb, lr=rate(at.t))


def run(kind: str, other: Spec, **spec: Any) -> Report:
    keys = {"kind": kind, "per": "step", **SCHEDULES[kind]}
    return check(BASE | TWO | {"lr_schedule": keys} | spec, scratch=code(by_lrs(keys | other)))


@pytest.mark.sampled(every=18)
@pytest.mark.parametrize(("kind", "other", "note"), OTHERS, ids=str)
def test_key_that_differs_is_named_and_given_to_the_spec(kind: str, other: Spec, note: str) -> None:
    report = run(kind, other)
    found = told(report.diagnosis)
    assert (found.explained, found.causes, found.stage) == (
        True,
        ("schedule-differs",),
        "optimizer",
    )
    assert (told(found.best).note, len(found.explanations)) == (note, 1)
    text = " ".join(report_text(report).split())
    assert f"another value in the lr schedule: {note}" in text
    assert f"lr_schedule: {note} torch" in text  # below the rule, which is torch's
    fix = found.fix
    assert isinstance(fix, SpecFix)
    fixed = BASE | TWO | fix.changes
    assert all(fixed["lr_schedule"][key] == value for key, value in other.items())
    keys = {"kind": kind, **SCHEDULES[kind]}
    assert check(fixed, scratch=code(by_lrs(keys | other))).verdict == "equivalent"


def test_lrs_between_which_one_makes_all_steps_by_hand() -> None:
    # 1 to 3, 4 to 8 and 0.5 to 2.5 by the three entries that move: none is in all.
    slope = np.array([[1.0, 0.0], [0.5, -1.0]])
    assert lrs_between(slope, np.array([[2.0, 9.0], [3.0, -1.5]])) == (4.0, 2.5)
    assert lrs_between(slope, np.array([[2.0, 9.0], [1.25, -1.5]])) == (1.0, 2.5)


@pytest.mark.slow
def test_report_says_what_to_write_on_either_side() -> None:
    text = " ".join(report_text(run("multistep", {"milestones": [3, 5]})).split())
    assert "use the spec's value: milestones [2, 5]" in text
    call = "torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 5], gamma=0.1)"
    assert call in text
    assert "lr_schedule: {kind: multistep, milestones: [3, 5], factor: 0.1, per: step}" in text


def test_other_key_beside_a_cause_is_named_with_it() -> None:
    keys = {"kind": "cosine", **SCHEDULES["cosine"]}
    rate = schedule_of({"lr": LR, "lr_schedule": keys | {"steps": 15}}, 2, Rule())

    def step(at: At) -> tuple[Any, Any]:
        return at.w - rate(at.t) * (at.gw + LAMBDA * at.w), at.b - rate(at.t) * at.gb

    report = check(BASE | TWO | {"lr_schedule": keys}, scratch=code(step))
    assert told(report.diagnosis).causes == ("bias-not-penalized", "schedule-differs")
    assert headline(report).endswith(
        "applies no weight decay to the bias, and uses another value in the lr schedule: steps 15 "
        "instead of 12"
    )


def lr_inside(at: At) -> tuple[Any, Any]:
    lr, v = LR / (1 + at.t), at.memory.setdefault("v", [0.0, 0.0])
    v[0] = 0.9 * v[0] + lr * (at.gw + LAMBDA * at.w)
    v[1] = 0.9 * v[1] + lr * (at.gb + LAMBDA * at.b)
    return at.w - v[0], at.b - v[1]


def summed(at: At) -> tuple[Any, Any]:
    v = at.memory.setdefault("v", [0.0, 0.0])
    v[0], v[1] = (0.9 * old + len(at.y) * g for old, g in zip(v, (at.gw, at.gb), strict=True))
    return at.w - LR * v[0], at.b - LR * v[1]


@pytest.mark.parametrize(
    ("schedule", "step", "known"),
    [
        # Also an lr in the velocity that is, in each step, B times the spec's.
        (
            {
                "lr_schedule": {"kind": "exponential", "factor": 0.9},
                "batch_size": 16,
                "weight_decay": 0,
            },
            summed,
            (
                "takes the gradient of the summed loss, not of the mean loss, and takes the "
                "constant lr 0.05"
            ),
        ),
        (
            {"lr_schedule": {"kind": "exponential", "factor": 0.9}},
            lambda at: at.along(at.gw, at.gb),
            "ignores the momentum, and takes the constant lr 0.05",
        ),
        ({}, lr_inside, "includes the lr in the velocity, and takes other lrs"),
    ],
)
def test_other_lrs_beside_a_cause_are_told_with_it(schedule: Spec, step: Step, known: str) -> None:
    report = check(BASE | TWO | MOMENTUM | schedule, scratch=code(step))
    assert headline(report).partition(": ")[2] == f"the scratch side {known}"
    assert told(report.diagnosis).stage == "optimizer"
    assert not next_steps(report)


@pytest.mark.slow
def test_lrs_of_no_such_schedule_are_told_and_not_named() -> None:
    report = run("list", {"values": [0.03, 0.02, 0.04]})
    found = told(report.diagnosis)
    assert not found.explained
    assert any("other lrs: from step 2 on 0.02, 0.04" in one.text for one in found.evidence)


def test_schedules_are_tried_by_the_other_unit_with_their_numbers_or_as_long() -> None:
    own = Schedule(40, 8, 20, False, 1, None, 0.1, LrSchedule(kind="cosine", steps=5))
    per = ("per", "epoch")
    assert [*by_other_unit(own)] == [(per,), (per, ("steps", 2)), (per, ("steps", 3))]
    own = replace(own, lr_schedule=LrSchedule(kind="multistep", milestones=[1, 4], factor=0.5))
    assert [*by_other_unit(own)][1:] == [(per, ("milestones", at)) for at in ((1, 2), (1, 2))]
    own = own.with_keys([per])
    assert [*by_other_unit(own)][1] == (("per", "step"), ("milestones", (2, 8)))
    own = replace(own, lr_schedule=LrSchedule(kind="exponential", factor=0.5))
    assert [*by_other_unit(own)] == [(per,)]


@pytest.mark.parametrize(
    ("per", "how"), [("step", "followed"), ("epoch", "stepped every step, not epoch, and followed")]
)
def test_cosine_past_its_end_is_told(per: str, how: str) -> None:
    """As CosineAnnealingLR itself goes on: up again, where the schedule's lr stays."""

    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw, at.gb, lr=LR * (1 + np.cos(np.pi * at.t / 6)) / 2)

    schedule = {"kind": "cosine", "steps": 6, "per": per}
    report = check(BASE | TWO | {"lr_schedule": schedule}, scratch=code(step))
    text = f"the updates are torch's with the lr schedule {how} past its end of 6 steps"
    assert text in " ".join(headline(report).split())
    assert next_steps(report) == ["let the lr stay as it is at the end of the schedule"]


@pytest.mark.sampled(every=60)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adadelta"])
def test_milestone_that_differs_is_named_by_any_optimizer(optimizer: str, dtype: str) -> None:
    """By an lr of torch's own in the code: only the schedule is by hand."""
    keys = {"kind": "multistep", "per": "epoch", **SCHEDULES["multistep"]}
    rate = schedule_of({"lr": LR, "lr_schedule": keys | {"milestones": [2, 4]}}, 2, Rule())
    torch_name = {"sgd": "SGD", "adamw": "AdamW", "adadelta": "Adadelta"}[optimizer]
    options = {"momentum": 0.9} if optimizer == "sgd" else {}

    def train(problem: UserProblem) -> Iterator[Spec]:
        import torch

        start = (problem.initial["weight"], problem.initial["bias"])
        w, b = (torch.tensor(x, requires_grad=True) for x in start)
        made = getattr(torch.optim, torch_name)([w, b], lr=LR, weight_decay=LAMBDA, **options)
        X, y = torch.tensor(problem.X), torch.tensor(problem.y)
        for t, rows in enumerate(problem.batches):
            made.param_groups[0]["lr"] = rate(t)
            made.zero_grad()
            ((X[rows] @ w + b - y[rows]) ** 2).mean().backward()  # type: ignore[no-untyped-call]
            made.step()
            yield {name: x.detach().numpy().copy() for name, x in (("weight", w), ("bias", b))}

    spec = BASE | TWO | {"lr_schedule": keys, "dtype": dtype}
    report = check(spec | {"optimizer": {"name": optimizer, **options}}, scratch=train)
    found = told(report.diagnosis)
    assert found.causes == ("schedule-differs",)
    assert told(found.best).note == "milestones [2, 4] instead of [2, 5]"


@pytest.mark.slow
def test_one_step_of_two_entries_tells_no_number() -> None:
    """Any step that is longer is that of some factor: two entries leave one number to choose."""
    spec: Spec = {
        "data": {"X": [[1.0], [-2.0], [0.5]], "y": [1.0, 0.0, 2.0]},
        "lr_schedule": {"kind": "exponential", "factor": 0.7},
        "init": "zeros",
        "epochs": 2,
    }
    found = told(
        check(BASE | spec, scratch=code(by_lrs({"kind": "exponential", "factor": 0.6}))).diagnosis
    )
    assert "schedule-differs" not in found.causes


@pytest.mark.slow
def test_wrong_gradient_is_no_other_schedule() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw + 0.1 * np.abs(at.w), at.gb, lr=at.lrs[at.t])

    keys = {"kind": "multistep", **SCHEDULES["multistep"]}
    found = told(check(BASE | TWO | {"lr_schedule": keys}, scratch=code(step)).diagnosis)
    assert "schedule-differs" not in found.causes
