"""What an equivalent run could have told; and that one that could have told nothing is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from regcheck import cli
from regcheck.checking import check
from regcheck.compare.detectability import (
    MARGIN,
    ROUNDING_ALONE,
    SHARE,
    AlteredOptimizers,
    Power,
    swallowed_text,
)
from regcheck.numerics.packing import flat
from regcheck.numerics.rounding import Bounds
from regcheck.problem.problem import Step, build_problem
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from regcheck.trainers.measured_bounds import MeasuredBounds
from regcheck.trainers.sides import Steps
from regcheck.trainers.torch_trainer import TorchTrainer, torch_settings
from regcheck.trainers.user_module import of_module, wrap_user_module

Array = NDArray[np.floating]
Made = tuple[Any, Any, torch.optim.Optimizer]


# --- worked by hand -----------------------------------------------------------------------------


def steps_of(
    before: dict[str, list[float]], after: dict[str, list[float]], gradient: dict[str, list[float]]
) -> Steps:
    """Make a step of both sides."""
    given = [{name: np.array(x) for name, x in one.items()} for one in (before, after, gradient)]
    step = Step(given[0], None, None, given[2], None, {}, None, given[1])
    return Steps(step, step, step, step, None)


def bounds_of(after: dict[str, list[float]]) -> Bounds:
    """Make bounds of the parameters after a step."""
    entries = {name: np.array(x) for name, x in after.items()}
    return Bounds((), 0.0, entries, entries, entries, entries)


def taken(power: Power, bound: list[float], noise: float = 0.0) -> Power:
    """Take in a step of w = (1, 2, 3), which moves by (0.1, 0.5, 0)."""
    steps = steps_of({"w": [1.0, 2.0, 3.0]}, {"w": [1.1, 2.5, 3.0]}, {"w": [1.0, 5.0, 0.0]})
    power.take(steps, bounds_of({"w": bound}), {"w": np.full(3, noise)})
    return power


def test_the_share_is_the_smallest_of_all_entries_that_move() -> None:
    power = taken(Power({"w": 8.0}), [0.05, 0.05, 1e-12])

    assert power.shares == pytest.approx({"w": 8 * 0.05 / 0.5})
    assert power.swallowed == power.shares


def test_and_of_all_steps() -> None:
    power = taken(Power({"w": 8.0}), [0.05, 0.05, 0.05])
    taken(power, [0.1, 0.1, 0.1])
    assert power.shares == pytest.approx({"w": 0.8})

    taken(power, [1e-5, 0.1, 0.1])
    assert power.shares == pytest.approx({"w": 8 * 1e-5 / 0.1})
    assert (power.swallowed, power.reason()) == ({}, "")


@pytest.mark.parametrize(
    ("limit", "passes"), [(SHARE * 0.999, True), (SHARE * 1.001, False), (np.inf, False)]
)
def test_a_tensor_is_judged_from_a_hundredth_on(limit: float, passes: bool) -> None:
    power = taken(Power({"w": limit}), [9.0, 0.5, 0.5])

    assert (power.reason() == "") is passes


def test_a_bound_that_is_no_number_shows_nothing() -> None:
    power = taken(Power({"w": 8.0}), [np.nan, np.nan, 0.0])

    assert "as large as the step of w itself" in power.reason()


def test_a_tensor_that_does_not_move_is_not_asked() -> None:
    power = Power({"w": 8.0, "frozen": 8.0})
    before, after = {"w": [1.0], "frozen": [1.0]}, {"w": [2.0], "frozen": [1.0]}
    steps = steps_of(before, after, {"w": [1.0], "frozen": [0.0]})
    power.take(steps, bounds_of({"w": [1e-9], "frozen": [1.0]}), None)

    assert power.shares == pytest.approx({"w": 8e-9})
    assert power.reason() == ""


def test_a_tensor_whose_gradient_is_rounding_alone_does_not_count_beside_others() -> None:
    def seen(noise: float) -> Power:
        power = Power({"w": 8.0, "b": 8.0})
        steps = steps_of(
            {"w": [1.0], "b": [0.0]}, {"w": [2.0], "b": [1.0]}, {"w": [1.0], "b": [1e-16]}
        )
        own = {"w": np.zeros(1), "b": np.array([noise])}
        power.take(steps, bounds_of({"w": [1e-9], "b": [1.0]}), own)
        return power

    alone, clear = seen(1.1 * ROUNDING_ALONE * 1e-16), seen(0.9 * ROUNDING_ALONE * 1e-16)
    assert alone.swallowed == clear.swallowed == {"b": 8.0}
    assert (alone.reason(), alone.clear) == ("", {"w"})
    assert "the step of b itself" in clear.reason()


def test_but_where_all_are_swallowed_that_is_the_reason() -> None:
    power = taken(Power({"w": 8.0}), [0.05, 0.05, 0.05], noise=100.0)

    assert power.clear == set()
    assert "80 %" in power.reason()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.04, "as large as 4 % of the step of w; a wrong lr of 4 % would pass"),
        (0.00042, "as large as 0.00042 of the step of w; a wrong lr of 0.00042 would pass"),
        (0.999, "as large as 1e+02 % of the step of w"),
        (1.0, "as large as the step of w itself, so that any lr or gradient would pass"),
        (np.nan, "as large as the step of w itself"),
    ],
)
def test_the_reason_names_the_share(share: float, text: str) -> None:
    assert text in swallowed_text("w", share)


def test_a_fault_that_would_not_have_shown_is_a_reason() -> None:
    power = taken(Power({"w": 1e-6}), [0.05, 0.05, 0.05])
    power.hidden = ("a doubled weight decay", "a missing weight decay")

    assert power.reason() == (
        "a doubled weight decay and a missing weight decay would have passed too"
    )


# --- faults along a run -------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "data": {"X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]], "y": [1.0, 2.0, -1.0]},
    "lr": 0.1,
    "epochs": 3,
}


def line(start: tuple[float, float] = (0.5, -0.3), dtype: torch.dtype = torch.float64) -> nn.Module:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([start])
    return model.to(dtype)


def squared(z: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(z.squeeze(1), y)


def builder(
    optimizer: Callable[[Any], torch.optim.Optimizer],
    model: Callable[[], nn.Module] = line,
    loss: Callable[[Tensor, Tensor], Tensor] = squared,
) -> Callable[[Any], Made]:
    def build(problem: Any) -> Made:
        made = model()
        return made, loss, optimizer(made.parameters())

    return build


def hidden_after(
    optimizer: Callable[[Any], torch.optim.Optimizer], bound: float, limit: float = 1.0
) -> tuple[str, ...]:
    """Take three steps whose bounds are this, and return what they hide."""
    build = builder(optimizer)
    problem = build_problem(from_mapping(SPEC | {"scratch": build, "framework": build}))
    module = wrap_user_module(
        build(None), "build", lambda function, *args: function(*args), problem
    )
    trainer = TorchTrainer(of_module(problem, module), module)
    with torch_settings(1):
        faults = AlteredOptimizers(trainer, {"weight": limit})
        for batch in problem.schedule.batches():
            step = trainer.step(batch)
            steps = Steps(step, step, step, step, None)
            faults.advance(batch.step, steps, bounds_of({"weight": [bound, bound]}))
        return faults.hidden()


def sgd(**options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda w: torch.optim.SGD(w, lr=0.1, **options)


ALL = ("a doubled lr", "a missing lr", "a doubled gradient", "a missing gradient")


def test_every_fault_shows_where_nothing_is_rounded() -> None:
    assert hidden_after(sgd(weight_decay=0.1), 0.0) == ()


def test_none_shows_where_a_bound_is_wider_than_all_steps() -> None:
    assert hidden_after(sgd(), 1e3) == ALL
    assert hidden_after(sgd(), np.inf) == ALL
    decay = ("a doubled weight decay", "a missing weight decay")
    assert hidden_after(sgd(weight_decay=0.1), 1e3) == ALL + decay


def test_a_fault_shows_from_the_limit_and_a_margin_on() -> None:
    # The first step is lr g: with a doubled lr it is off by so much.
    X, y = (np.array(SPEC["data"][key]) for key in ("X", "y"))
    w = np.array([0.5, -0.3], np.float32).astype(np.float64)
    largest = float(np.abs(0.1 * 2 * X.T @ (X @ w - y) / 3).max())
    at = largest / MARGIN / 8

    assert "a doubled lr" not in hidden_after(sgd(), at * 0.999, limit=8.0)
    assert set(hidden_after(sgd(), at * 1.001, limit=8.0)) == set(ALL)


def test_a_small_weight_decay_is_what_is_hidden_first() -> None:
    # λ w is 1e-6 of a gradient of the size 1.
    hidden = hidden_after(sgd(weight_decay=1e-6), 1e-5)

    assert hidden == ("a doubled weight decay", "a missing weight decay")


def test_a_doubled_gradient_alone_is_no_fault_where_an_optimizer_divides_by_it() -> None:
    assert hidden_after(lambda w: torch.optim.Adam(w, lr=0.1), 1e-6) == ()
    assert len(hidden_after(lambda w: torch.optim.Adam(w, lr=0.1), 1.0)) == 4


# --- runs that prove nothing --------------------------------------------------------------------


def by_hand(
    lr: float, start: tuple[float, float] = (0.5, -0.3), dtype: str = "float64"
) -> Callable[[Any], Iterator[dict[str, Any]]]:
    def train(problem: Any) -> Iterator[dict[str, Any]]:
        w = np.asarray(start, dtype)
        X, y = (np.asarray(one, dtype) for one in (problem.X, problem.y))
        for rows in problem.batches:
            g = 2 * X[rows].T @ (X[rows] @ w - y[rows]) / len(X[rows])
            w = (w - np.asarray(lr, dtype) * g).astype(dtype)
            yield {"weight": w.reshape(1, 2)}

    return train


def run(lr: float, *, times: float = 1.0, dtype: str = "float64", **changes: Any) -> Report:
    """Check SGD on a line by hand with a factor on its lr."""
    of = getattr(torch, dtype)
    build = builder(lambda w: torch.optim.SGD(w, lr=lr), lambda: line(dtype=of))
    start = (float(np.float32(0.5)), float(np.float32(-0.3)))
    spec = SPEC | {"lr": lr, "dtype": dtype} | changes
    return check(spec, scratch=by_hand(lr * times, start, dtype), framework=build)


def test_an_ordinary_run_is_one() -> None:
    assert (run(0.1).verdict, run(0.1).reason) == ("equivalent", "")
    assert run(0.1, times=1.01).verdict == "diverged"


@pytest.mark.parametrize("times", [1.0, 1.5, 0.0])
def test_rounding_that_swallows_the_step_proves_nothing(times: float) -> None:
    # lr g is about 1e-9, and the unit of 0.5 in float32 is 6e-8.
    report = run(1e-9, times=times, dtype="float32")

    assert report.verdict == "inconclusive"
    assert report.first_divergence is None
    assert "any lr or gradient would pass" in report.reason or "passed too" in report.reason


def test_nor_does_a_step_of_which_rounding_is_some_percent() -> None:
    report = run(2e-6, dtype="float32")

    assert report.verdict == "inconclusive"
    assert "% of the step of weight; a wrong lr of" in report.reason
    # And so it is.
    assert report.comparison.power is not None
    share = report.comparison.power.shares["weight"]
    assert 0.01 < share < 1
    assert run(2e-6, times=1 + 3 * share, dtype="float32").verdict == "diverged"


def test_a_wide_tolerance_is_a_specs_own_choice() -> None:
    assert run(0.1, times=3.0).verdict == "diverged"
    assert run(0.1, times=3.0, tolerance={"rounding": 1e17}).verdict == "equivalent"
    # What rounding swallows, no tolerance brings back.
    assert run(1e-9, dtype="float32", tolerance={"rounding": 1e9}).verdict == "inconclusive"


def test_a_start_at_the_optimum_proves_nothing() -> None:
    # y = X (0.5, −0.3) up to rounding, so that there is nothing to learn.
    X = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]])
    y = X @ [float(np.float32(0.5)), float(np.float32(-0.3))]
    report = run(0.1, data={"X": X.tolist(), "y": y.tolist()})

    assert report.verdict == "inconclusive"
    assert report.reason


def test_steps_before_the_optimum_count() -> None:
    # The step is 1/10 of what is left at first; 300 steps later it is rounding.
    report = run(0.1, epochs=300)

    assert (report.verdict, report.reason) == ("equivalent", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_exit_code_is_4(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np, torch\n"
        "from torch import nn\n"
        "\n"
        "def build(problem):\n"
        "    model = nn.Linear(2, 1, bias=False)\n"
        "    model.weight.data = torch.tensor([[0.5, -0.25]])\n"
        "    loss = lambda z, y: nn.functional.mse_loss(z.squeeze(1), y)\n"
        "    return model, loss, torch.optim.SGD(model.parameters(), lr=problem.lr)\n"
        "\n"
        "def train(problem):\n"
        "    w = np.float32([0.5, -0.25])\n"
        "    X, y = np.float32(problem.X), np.float32(problem.y)\n"
        "    for rows in problem.batches:\n"
        "        g = 2 * X[rows].T @ (X[rows] @ w - y[rows]) / len(X[rows])\n"
        "        w = w - np.float32(problem.lr) * g\n"
        "        yield {'weight': w.reshape(1, 2)}\n",
        encoding="utf-8",
    )
    spec = SPEC | {
        "scratch": "own.py:train", "framework": "own.py:build", "lr": 1e-9, "dtype": "float32",
    }  # fmt: skip
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    arguments = ["run", *(["--quiet"] if quiet else []), str(path)]

    assert cli.exit_code(arguments) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "inconclusive" in printed.lower()
    assert "would pass" in printed or "passed too" in printed

    path.write_text(yaml.safe_dump(spec | {"lr": 0.1}), encoding="utf-8")
    assert cli.exit_code(arguments) == 0


def test_a_bias_before_batch_norm_leaves_the_rest_judged() -> None:
    # BatchNorm subtracts it again: its gradient is 0, and what torch gives is rounding.
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()

    build = builder(lambda w: torch.optim.Adam(w, lr=0.01), normed)

    def train(problem: Any, lr: float = 0.01) -> Iterator[dict[str, Any]]:
        model = normed()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
        for batch in problem.batches:
            rows = torch.as_tensor(np.arange(len(y))[batch]).flip(0)
            optimizer.zero_grad()
            squared(model(X[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield {name: w.detach().numpy().copy() for name, w in model.named_parameters()}

    right = check(SPEC | {"epochs": 6}, scratch=train, framework=build)
    wrong = check(
        SPEC | {"epochs": 6}, scratch=lambda problem: train(problem, 0.0101), framework=build
    )

    assert right.comparison.power is not None
    assert "0.bias" in right.comparison.power.swallowed
    assert "0.bias" not in right.comparison.power.clear
    assert (right.verdict, right.reason) == ("equivalent", "")
    assert wrong.verdict == "diverged"


def test_the_noise_that_is_asked_for_is_that_of_the_last_step() -> None:
    build = builder(sgd())
    problem = build_problem(from_mapping(SPEC | {"scratch": build, "framework": build}))
    module = wrap_user_module(
        build(None), "build", lambda function, *args: function(*args), problem
    )
    trainer = TorchTrainer(of_module(problem, module), module)
    with torch_settings(1):
        bounder = MeasuredBounds(trainer, "float64")
        batch = next(iter(problem.schedule.batches()))
        step = trainer.step(batch)
        bounder.bounds(batch, Steps(step, step, step, step, None), None)
    noise = flat(bounder.gradient_noise())

    assert step.gradient is not None
    assert ((noise > 0) & (noise < 1e-13 * np.abs(flat(step.gradient)).max())).all()
