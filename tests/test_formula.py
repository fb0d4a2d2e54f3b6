from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from regcheck.convention import Convention, Decay, MomentumForm, PenaltyNorm, UpdateOrder
from regcheck.formula import (
    SYMBOLIC,
    Letters,
    bracketed,
    exact,
    letters,
    loss_text,
    number,
    rule_lines,
    symbols,
    torch_call,
)
from regcheck.numpy_trainer import NumpyTrainer, State
from regcheck.problem import Array, Parameters, build_problem
from regcheck.schedule import Batch, training_of
from regcheck.spec import from_mapping
from regcheck.training import Training
from regcheck.worked import one_step

# --- reading the text back ------------------------------------------------------------------------

TOKEN = re.compile(
    r"\s*(average\(mᵢ gᵢ\)|clip|lr|½|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|‖[wb]‖|Σ[wb]²"
    r"|[a-zλμτ]|B|[()+−·/])"
)
Value = Any  # a float or an array


class Reader:
    """Evaluates one side of an assignment, with numbers for its letters."""

    def __init__(self, text: str, values: dict[str, Value], clip: Callable[[Value], Value]) -> None:
        self.tokens = TOKEN.findall(text)
        assert "".join(self.tokens).replace(" ", "") == text.replace(" ", ""), text
        self.values, self.clip, self.at = values, clip, 0

    def next(self) -> str:
        """Give the next token without taking it."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        """Take the next token."""
        self.at += 1
        token: str = self.tokens[self.at - 1]
        return token

    def sum(self) -> Value:
        """Read terms with + and − between them."""
        value = self.product()
        while self.next() in ("+", "−"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Value:
        """Read factors with ·, / or nothing between them."""
        value = self.factor()
        while self.next() not in ("", ")", "+", "−"):
            sign = self.take() if self.next() in ("·", "/") else "·"
            value = value / self.factor() if sign == "/" else value * self.factor()
        return value

    def factor(self) -> Value:
        """Read a number, a letter, or what stands in brackets."""
        token = self.take()
        if token in ("clip", "("):
            if token == "clip":
                assert self.take() == "("
            value = self.sum()
            assert self.take() == ")"
            return self.clip(value) if token == "clip" else value
        if re.fullmatch(r"-?\d.*", token):
            return float(token)
        return self.values[token]


def unclipped(value: Value) -> Value:
    """Leave a value as it is."""
    return value


def lines_of(lines: list[str]) -> tuple[dict[str, list[str]], bool]:
    """Sort assignments by tensor; say whether the bias goes first."""
    found: dict[str, list[str]] = {"weight": [], "bias": []}
    bias_first = lines[0].startswith("first  ")
    if bias_first:
        found["bias"] = lines[0].removeprefix("first  ").split("; ")
        assert lines[-1].endswith(", with g at the new b")
        found["weight"] = [*lines[1:-1], lines[-1].removesuffix(", with g at the new b")]
    elif lines[-1].endswith(", b likewise"):
        found["weight"] = [*lines[:-1], lines[-1].removesuffix(", b likewise")]
        found["bias"] = [line.replace("w", "b") for line in found["weight"]]
    else:
        found["weight"], found["bias"] = lines[:-1], lines[-1].split("; ")
    return found, bias_first


def norm(tensor: Array) -> Value:
    """‖w‖, and 1 where it is 0: then w/‖w‖ is 0."""
    return math.sqrt(float(np.sum(tensor * tensor))) or 1.0


class Tensor(NamedTuple):
    """One tensor's value and velocity while its lines are carried out."""

    w: Array
    v: Value


def carry_out(
    lines: list[str],
    tensor: Tensor,
    first_step: bool,
    values: dict[str, Value],
    clip: Callable[[Value], Value],
) -> Tensor:
    """Carry out a tensor's assignments, one after the other."""
    w, v = tensor
    for line in lines:
        prefix, _, rest = line.rpartition(": ")
        if prefix and (prefix == "step 1") != first_step:
            continue
        target, text = rest.split(" ← ")
        own = {"w": w, "b": w, "v": v, "‖w‖": norm(w), "‖b‖": norm(w)}
        value = Reader(text, values | own, clip).sum()
        w, v = (w, value) if target == "v" else (value, v)
    return Tensor(w, v)


# --- what the letters stand for -------------------------------------------------------------------

DATA: dict[str, Any] = {
    "X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5], [0.2, -0.4], [-1.0, 1.0], [1.5, 0.1]],
    "y": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
}
BASE: dict[str, Any] = {
    "data": DATA,
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.2]},
    "lr": 0.05,
}


class Case(NamedTuple):
    """A training, and the same one by torch's convention, which gives g."""

    spec: dict[str, Any]
    trainer: NumpyTrainer
    plain: NumpyTrainer
    training: Training
    convention: Convention


def case_of(spec: dict[str, Any]) -> Case:
    """Make what a spec trains."""
    loaded = from_mapping(BASE | spec)
    plain = from_mapping(BASE | spec | {"convention": {}})
    problem = build_problem(loaded)
    return Case(
        spec,
        NumpyTrainer(problem),
        NumpyTrainer(build_problem(plain)),
        training_of(loaded.spec, len(problem.y)),
        problem.convention,
    )


def gradients(case: Case, parameters: Parameters, batch: Batch) -> dict[str, dict[str, Value]]:
    """Give g, and the average of mᵢ gᵢ, of each tensor."""
    whole = case.plain.pass_over(parameters, batch).gradient
    parts = []
    for rows, z in zip(batch.parts, case.plain.pass_over(parameters, batch).outputs, strict=True):
        one = case.plain.pass_over(parameters, batch._replace(parts=(rows,))).gradient
        parts.append({name: len(z) * g for name, g in one.items()})
    return {
        name: {
            "g": g,
            "average(mᵢ gᵢ)": sum(part[name] for part in parts) / len(parts),
        }
        for name, g in whole.items()
    }


def constants(case: Case, batch: Batch) -> dict[str, dict[str, Value]]:
    """Give the numbers of one step, for each tensor."""
    training = case.training
    shared = {
        "lr": batch.lr,
        "μ": training.momentum,
        "τ": training.dampening,
        "B": batch.size,
        "m": training.loss_rows[0],
        "n": training.train_rows,
    }
    return {name: shared | {"λ": value} for name, value in training.weight_decay.items()}


def clip_of(case: Case, arguments: dict[str, Value]) -> Callable[[Value], Value]:
    """Give what clips, for what all tensors put into it."""
    limit = case.spec.get("clip_value")
    if limit is not None:
        return lambda value: np.clip(value, -limit, limit)
    total = math.sqrt(sum(float(np.sum(value * value)) for value in arguments.values()))
    factor = min(1.0, case.spec.get("clip_norm", math.inf) / (total + 1e-6))
    return lambda value: value * factor


def follow_text(case: Case, text: list[str]) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """Train by the text alone; only g comes from elsewhere."""
    lines, bias_first = lines_of(text)
    start = case.trainer.start().parameters
    now = {name: Tensor(tensor, 0.0 * tensor) for name, tensor in start.items()}
    for batch in case.trainer.problem.schedule.batches():
        first = batch.step == 1
        known = constants(case, batch)
        slopes = gradients(case, {name: tensor.w for name, tensor in now.items()}, batch)

        def move(
            name: str,
            slopes: dict[str, dict[str, Value]],
            now: dict[str, Tensor] = now,
            known: dict[str, dict[str, Value]] = known,
            first: bool = first,
        ) -> Tensor:
            arguments: dict[str, Value] = {}
            for other, tensor in now.items():

                def keep(value: Value, other: str = other) -> Value:
                    return arguments.setdefault(other, value)

                carry_out(lines[other], tensor, first, known[other] | slopes[other], keep)
            clip = clip_of(case, arguments) if arguments else unclipped
            return carry_out(lines[name], now[name], first, known[name] | slopes[name], clip)

        bias = move("bias", slopes)
        if bias_first:
            moved = {"weight": now["weight"].w, "bias": bias.w}
            slopes = gradients(case, moved, batch) | {"bias": slopes["bias"]}
        now = {"weight": move("weight", slopes), "bias": bias}
        yield now, batch


def read_loss(text: str, case: Case, parameters: Parameters, batch: Batch) -> float:
    """Work a reported loss out."""
    rows = case.plain.pass_over(parameters, batch).rows
    sums = [float(part.values.sum()) for part in rows]
    means = [float(part.values.mean()) for part in rows]
    size = sum(len(part.values) for part in rows)
    data = {
        "average(Σℓ)": sum(sums) / len(sums),
        "average(mean ℓ)": sum(means) / len(means),
        "Σℓ": sum(sums),
        "mean ℓ": sum(sums) / size,
    }
    known = constants(case, batch)
    head, *penalties = text.split(" + ")
    name = next(name for name in data if head.endswith(name))
    factor = head.removesuffix(name)
    total = data[name] * (Reader(factor, {}, unclipped).sum() if factor else 1.0)
    for term in penalties:
        tensor = "weight" if "w" in term else "bias"
        w = parameters[tensor]
        letter = "w" if tensor == "weight" else "b"
        own = {
            f"Σ{letter}²": float(np.sum(w * w)),
            f"‖{letter}‖": math.sqrt(float(np.sum(w * w))),
            "½": 0.5,
        }
        total += Reader(term, known[tensor] | own, unclipped).sum()
    return total


# --- every combination ----------------------------------------------------------------------------

OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"optimizer": {"name": "sgd", "momentum": 0.9}},
    {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}},
    {"optimizer": {"name": "sgd", "momentum": 0.6, "dampening": 0.3}},
]
CLIPS: list[dict[str, Any]] = [{}, {"clip_norm": 0.5}, {"clip_value": 0.2}]


def specs(decay: str) -> Iterator[dict[str, Any]]:
    """Give every combination of what acts in one update; the rest is drawn for each."""
    draw = random.Random(f"texts of {decay}")
    for optimizer, clip, form, norm_kind, order in itertools.product(
        OPTIMIZERS, CLIPS, get_args(MomentumForm), get_args(PenaltyNorm), get_args(UpdateOrder)
    ):
        yield {
            **optimizer,
            **clip,
            "convention": {
                "decay": decay,
                "momentum_form": form,
                "penalty_norm": norm_kind,
                "update_order": order,
                "divide_penalty_by": draw.choice(["nothing", "batch", "dataset"]),
                "penalty_factor": draw.choice([1.0, 2.0, -0.5, 0.0]),
                "penalize_bias": draw.random() < 0.5,
                "penalty_in_loss": draw.random() < 0.7,
                "loss_reduction": draw.choice(["mean", "sum"]),
                "loss_factor": draw.choice([1.0, 0.5, -0.25]),
            },
            "weight_decay": draw.choice([0.3, {"weight": 0.3, "bias": 0.2}, {"weight": 0.3}, 0.0]),
            "batch_size": draw.choice([2, 3, 7]),
            "accumulate": draw.choice([1, 2, 3]),
            "drop_last": draw.random() < 0.3,
            "lr_schedule": draw.choice(["none", {"kind": "exponential", "factor": 0.8}]),
        }


@pytest.mark.parametrize("written", [letters, symbols])
@pytest.mark.parametrize("decay", get_args(Decay))
def test_text_is_what_the_trainer_does(decay: str, written: Callable[[Training], Letters]) -> None:
    compared = 0
    for spec in specs(decay):
        if spec["weight_decay"] == {"weight": 0.3}:
            spec["weight_decay"] = {"weight": 0.3, "bias": 0.0}
        case = case_of(spec)
        given = written(case.training)
        text = rule_lines(case.convention, given)
        state = case.trainer.start()
        for now, batch in follow_text(case, text):
            reported = read_loss(loss_text(case.convention, given), case, state.parameters, batch)
            update = case.trainer.step(state, batch)
            state = update.state
            for name, tensor in now.items():
                # Up to 4 steps of some 50 roundings, of numbers of order 1 to 10.
                np.testing.assert_allclose(
                    tensor.w, update.step.after[name], rtol=1e-12, atol=1e-13, err_msg=str(text)
                )
                if name in update.step.velocity:
                    np.testing.assert_allclose(
                        tensor.v, update.step.velocity[name], rtol=1e-12, atol=1e-13
                    )
            assert update.step.loss == pytest.approx(reported, rel=1e-12, abs=1e-13), spec
            compared += 1
    assert compared > 144


@pytest.mark.parametrize(
    ("convention", "given", "lines"),
    [
        (Convention(), SYMBOLIC, ["w ← w − lr (g + λ w), b likewise"]),
        (
            Convention(penalize_bias=False),
            SYMBOLIC,
            ["w ← w − lr (g + λ w)", "b ← b − lr g"],
        ),
        (
            Convention(update_order="bias-first"),
            SYMBOLIC,
            ["first  b ← b − lr (g + λ b)", "w ← w − lr (g + λ w), with g at the new b"],
        ),
        (
            Convention(decay="after-update", penalty_norm="unsquared"),
            SYMBOLIC,
            ["w ← w − lr g", "w ← w − lr·λ w/‖w‖, b likewise"],
        ),
    ],
)
def test_rule_is_written_as(convention: Convention, given: Letters, lines: list[str]) -> None:
    assert rule_lines(convention, given) == lines


def training(**changes: Any) -> Training:
    """Make a plain training of 8 rows with momentum options."""
    numbers: dict[str, Any] = {
        "lr": 0.1,
        "lr_varies": False,
        "weight_decay": {"weight": 0.5, "bias": 0.5},
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "clipped": False,
        "batch_rows": (8,),
        "train_rows": 8,
    }
    return Training(**(numbers | changes))


@pytest.mark.parametrize(
    ("convention", "changes", "lines"),
    [
        (
            Convention(),
            {"momentum": 0.9, "dampening": 0.3},
            [
                "step 1: v ← g + 0.5 w",
                "later: v ← 0.9 v + (1 − 0.3) (g + 0.5 w)",
                "w ← w − 0.1 v, b likewise",
            ],
        ),
        (
            Convention(momentum_form="dampened"),
            {"momentum": 0.9},
            ["v ← 0.9 v + (1 − 0.9) (g + 0.5 w)", "w ← w − 0.1 v, b likewise"],
        ),
        (
            Convention(momentum_form="lr-inside"),
            {"momentum": 0.9, "nesterov": True},
            ["v ← 0.9 v + 0.1 (g + 0.5 w)", "w ← w − (0.1 (g + 0.5 w) + 0.9 v), b likewise"],
        ),
        (
            Convention(decay="before-clipping"),
            {"clipped": True},
            ["w ← w − 0.1 clip(g + 0.5 w), b likewise"],
        ),
        (Convention(), {"clipped": True}, ["w ← w − 0.1 (clip(g) + 0.5 w), b likewise"]),
        (
            Convention(loss_reduction="sum", loss_factor=-1.0, divide_penalty_by="batch"),
            {"batch_rows": (4, 2)},
            ["w ← w − 0.1 ((-1)·B g + 0.5/B w), b likewise"],
        ),
        (
            Convention(loss_reduction="sum"),
            {"batch_rows": (5,), "micro_rows": (2, 1)},
            ["w ← w − 0.1 (average(mᵢ gᵢ) + 0.5 w), b likewise"],
        ),
        (Convention(), {"lr_varies": True}, ["w ← w − lr (g + 0.5 w), b likewise"]),
    ],
)
def test_rule_with_numbers_is_written_as(
    convention: Convention, changes: dict[str, Any], lines: list[str]
) -> None:
    assert rule_lines(convention, letters(training(**changes))) == lines


@pytest.mark.parametrize(
    ("term", "written"),
    [
        ("g", "g"),
        ("g + λ w", "(g + λ w)"),
        ("clip(g + λ w)", "clip(g + λ w)"),
        ("clip(g) + λ w", "(clip(g) + λ w)"),
        ("(1 − μ) (g + λ w)", "(1 − μ) (g + λ w)"),
    ],
)
def test_only_an_open_sum_gets_brackets(term: str, written: str) -> None:
    assert bracketed(term) == written


# --- one step worked out --------------------------------------------------------------------------


@pytest.mark.parametrize("decay", get_args(Decay))
@pytest.mark.parametrize("norm_kind", get_args(PenaltyNorm))
@pytest.mark.parametrize("factor", [1.0, 2.0, -0.5, 0.0])
@pytest.mark.parametrize("start", [1.0, -2.0, 0.0])
def test_one_step_is_the_trainers_and_its_text_the_same_number(
    decay: Decay, norm_kind: PenaltyNorm, factor: float, start: float
) -> None:
    for divide, reduction, loss_factor in itertools.product(
        ["nothing", "batch"], ["mean", "sum"], [1.0, 0.5]
    ):
        spec = {
            "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
            "init": {"weight": [start], "bias": [1.0]},
            "lr": 0.125,
            "weight_decay": 0.5,
            "convention": {
                "decay": decay,
                "penalty_norm": norm_kind,
                "penalty_factor": factor,
                "divide_penalty_by": divide,
                "loss_reduction": reduction,
                "loss_factor": loss_factor,
            },
        }
        case = case_of(spec)
        batch = next(case.trainer.problem.schedule.batches())
        state = case.trainer.start()
        g = float(case.plain.pass_over(state.parameters, batch).gradient["weight"].item())
        text, value = one_step(case.convention, case.training, start, g)
        after = float(case.trainer.step(state, batch).step.after["weight"].item())
        # Powers of two nearly everywhere: a rounding or two of numbers below 100.
        assert value == pytest.approx(after, rel=1e-14)
        # The text has six digits of each number, and there are no more here.
        assert Reader(text, {}, unclipped).sum() == pytest.approx(after, rel=1e-14), text


def test_one_step_of_the_answer_is_4_10_against_4_15() -> None:
    two = training(weight_decay={"weight": 1.0, "bias": 1.0}, batch_rows=(2,), train_rows=2)
    assert one_step(Convention(), two, 1.0, -32.0) == ("1 − 0.1 (-32 + 1·1)", 4.1)
    divided = Convention(divide_penalty_by="batch")
    assert one_step(divided, two, 1.0, -32.0) == ("1 − 0.1 (-32 + 1/2·1)", 4.15)


# --- the call and numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({}, "torch.optim.SGD(lr=0.1, weight_decay=0.5)"),
        ({"weight_decay": {"weight": 0.0, "bias": 0.0}}, "torch.optim.SGD(lr=0.1)"),
        (
            {"momentum": 0.9, "nesterov": True},
            "torch.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)",
        ),
        (
            {"momentum": 0.9, "dampening": 0.5, "weight_decay": {"weight": 0.5, "bias": 0.0}},
            (
                'torch.optim.SGD([{"params": [model.weight], "weight_decay": 0.5}, '
                '{"params": [model.bias], "weight_decay": 0}], '
                "lr=0.1, momentum=0.9, dampening=0.5)"
            ),
        ),
    ],
)
def test_torch_call_is_written_as(changes: dict[str, Any], call: str) -> None:
    assert torch_call(training(**changes)) == call


def test_numbers_are_short_for_reading_and_exact_for_copying() -> None:
    assert number(1 / 1096) == "0.000912409"
    assert float(exact(0.1 / 1096)) == 0.1 / 1096
    assert exact(0.1) == "0.1"


def test_loss_text_tells_the_loss_before_the_step() -> None:
    # The loss is told at the parameters before the step, not after it.
    case = case_of({"convention": {"penalty_in_loss": True}, "weight_decay": 0.3})
    batch = next(case.trainer.problem.schedule.batches())
    parameters = case.trainer.start().parameters
    step = case.trainer.step(State(parameters, dict.fromkeys(parameters)), batch).step
    text = loss_text(case.convention, letters(case.training))
    # A dozen roundings of a number of order 1.
    assert read_loss(text, case, parameters, batch) == pytest.approx(step.loss, rel=1e-14)
    assert read_loss(text, case, step.after, batch) != pytest.approx(step.loss, rel=1e-3)
