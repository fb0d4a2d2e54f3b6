"""The kinds of lr schedules: their keys, formulas, and torch's class of each with its arguments.

With lr the spec's, and t the steps or epochs so far, from 0. torch calls scheduler.step() after
optimizer.step(), at each step or at an epoch's end, so that the first update is that of t = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from regcheck.rules.settings import exact

Keys = Mapping[str, Any]
"""The keys of one schedule, those that a spec leaves out with torch's defaults."""


class Kind(NamedTuple):
    """One kind of schedule.

    Attributes:
        call: torch's class in torch.optim.lr_scheduler, called with the spec's keys.
        needs: the keys that it must have.
        formulas: the lr at t, in lines.
        arguments: those of the class, by the keys and the lr.
        options: the keys that it may have, with torch's defaults.
        last: the t from which on the lr stays; None where torch's own stays by itself, or none.
        cancels: whether the lr is a difference of larger numbers, and keeps their rounding.
        remark: what a report says beside the keys.
    """

    call: str
    needs: tuple[str, ...]
    formulas: tuple[str, ...]
    arguments: Callable[[Keys, float], dict[str, Any]]
    options: Keys = MappingProxyType({})
    last: Callable[[Keys], int] | None = None
    cancels: bool = False
    remark: str = ""

    @property
    def torch(self) -> str:
        """The name of torch's class."""
        return self.call.partition("(")[0]


def of_one_cycle(keys: Keys, lr: float) -> dict[str, Any]:
    """Return the arguments of OneCycleLR; the momentum stays what the optimizer has."""
    options = {key: keys[key] for key in KINDS["one-cycle"].options}
    return {"max_lr": lr, "total_steps": keys["steps"], **options, "cycle_momentum": False}


@dataclass(frozen=True)
class Values:
    """The values of a list as LambdaLR calls them, for an optimizer whose lr is 1."""

    values: Sequence[float]

    def __call__(self, t: int) -> float:
        """Return the value at t; the last one stays."""
        return self.values[min(t, len(self.values) - 1)]


KINDS: dict[str, Kind] = {
    "step": Kind(
        "StepLR(step_size=every, gamma=factor)",
        ("every", "factor"),
        ("lr·factor^⌊t/every⌋",),
        lambda keys, _: {"step_size": keys["every"], "gamma": keys["factor"]},
    ),
    "multistep": Kind(
        "MultiStepLR(milestones, gamma=factor)",
        ("milestones", "factor"),
        ("lr·factor^(number of milestones ≤ t)",),
        lambda keys, _: {"milestones": keys["milestones"], "gamma": keys["factor"]},
    ),
    "exponential": Kind(
        "ExponentialLR(gamma=factor)",
        ("factor",),
        ("lr·factor^t",),
        lambda keys, _: {"gamma": keys["factor"]},
    ),
    "cosine": Kind(
        "CosineAnnealingLR(T_max=steps, eta_min=floor)",
        ("steps",),
        ("floor + (lr − floor)(1 + cos(π t/steps))/2", "t ≥ steps: floor"),
        lambda keys, _: {"T_max": keys["steps"], "eta_min": keys["floor"]},
        options={"floor": 0.0},
        last=lambda keys: int(keys["steps"]),
        cancels=True,
    ),
    "linear": Kind(
        "LinearLR(start_factor, end_factor, total_iters=steps)",
        ("steps",),
        (
            "lr (start_factor + (end_factor − start_factor) t/steps)",
            "t ≥ steps: lr·end_factor",
        ),
        lambda keys, _: {
            "start_factor": keys["start_factor"],
            "end_factor": keys["end_factor"],
            "total_iters": keys["steps"],
        },
        options={"start_factor": 1 / 3, "end_factor": 1.0},
        cancels=True,
    ),
    "warmup": Kind(
        "LinearLR(start_factor=1/steps, total_iters=steps − 1)",
        ("steps",),
        ("lr (t + 1)/steps", "t ≥ steps − 1: lr"),
        lambda keys, _: {"start_factor": 1 / keys["steps"], "total_iters": keys["steps"] - 1},
    ),
    "one-cycle": Kind(
        "OneCycleLR(max_lr=lr, total_steps=steps, .., cycle_momentum=False)",
        ("steps",),
        (
            "up from lr/div_factor to lr at t = pct_start·steps − 1,",
            "(three_phase: to lr/div_factor at t = 2 pct_start·steps − 2,)",
            "down to lr/(div_factor·final_div_factor) at t = steps − 1",
            "cos: from a to b by a + (b − a)(1 − cos π s)/2, s from 0 to 1",
            "linear: by a + (b − a) s",
        ),
        of_one_cycle,
        options={
            "pct_start": 0.3,
            "anneal_strategy": "cos",
            "div_factor": 25.0,
            "final_div_factor": 1e4,
            "three_phase": False,
        },
        last=lambda keys: int(keys["steps"]) - 1,
        cancels=True,
        remark="the momentum not cycled",
    ),
    "list": Kind(
        "LambdaLR(lambda t: values[min(t, len(values) - 1)] / lr)",
        ("values",),
        ("values[t], and the last one from there",),
        lambda keys, _: {"lr_lambda": Values(keys["values"])},
    ),
}
"""By their names in a spec."""

KEYS = tuple(dict.fromkeys(key for one in KINDS.values() for key in (*one.needs, *one.options)))
"""The keys of all kinds."""


def scheduler_call(kind: str, keys: Keys, lr: float) -> str:
    """Write the call of torch's scheduler.

    >>> scheduler_call("step", {"every": 5, "factor": 0.5}, 0.1)
    'torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)'
    """
    arguments = KINDS[kind].arguments(keys, lr).items()
    written = [f"{name}={argument_text(value, lr)}" for name, value in arguments]
    return f"torch.optim.lr_scheduler.{KINDS[kind].torch}(optimizer, {', '.join(written)})"


def argument_text(value: Any, lr: float) -> str:
    """Write an argument as Python does."""
    if isinstance(value, Values):
        over = "" if lr == 1 else f" / {exact(lr)}"
        return f"lambda t: {value.values}[min(t, {len(value.values) - 1})]{over}"
    return exact(value) if isinstance(value, float) else repr(value)
