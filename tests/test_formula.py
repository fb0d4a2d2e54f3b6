from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from regcheck.explain import one_step
from regcheck.problem.batches import Batch, training_of
from regcheck.problem.problem import Array, Parameters, build_problem
from regcheck.rules.cause import Change, put_in
from regcheck.rules.cause_formula import formulas_of, framework_formula, scratch_formula
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import (
    NO_FAULTS,
    TORCH,
    Convention,
    Decay,
    Faults,
    MomentumForm,
    PenaltyNorm,
    UpdateOrder,
)
from regcheck.rules.equivalent import torch_call
from regcheck.rules.formula import (
    bracketed,
    decay_text,
    delta_text,
    gradient_text,
    loss_text,
    meanings,
    penalty_text,
    rule_lines,
    update_lines,
)
from regcheck.rules.settings import (
    SYMBOLIC,
    Letters,
    SgdSettings,
    Training,
    exact,
    letters,
    number,
    symbols,
)
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer, State
from tests.test_causes import HalfLossReported, LossAfterUpdate, LossEpochMean

# --- reading the text back ------------------------------------------------------------------------

TOKEN = re.compile(
    r"\s*((?:average|sum)\(mᵢ gᵢ(?:\((?:p−)?[ȳy]\))?\)|g\((?:p−)?[ȳy]\)|clip_[wb]|clip|lr[₊₋]₁|lr|½"
    r"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|‖[wb]‖|Σ[wb]²|Σℓ|mean ℓᵢⱼ|mean ℓ|Σ|batch_size|mᵢ"
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
        if token == "Σ":
            return self.values["Σ"](self.factor())
        if token in ("clip", "clip_w", "clip_b", "("):
            if token != "(":
                assert self.take() == "("
            value = self.sum()
            assert self.take() == ")"
            if token.startswith("clip_"):
                return self.values[token](value)
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


FACTOR = 1.75
"""What stands for c."""


class Case(NamedTuple):
    """A training, and the same one by torch's convention, which gives g."""

    spec: dict[str, Any]
    trainer: NumpyTrainer
    plain: NumpyTrainer
    training: Training
    convention: Convention


def case_of(spec: dict[str, Any], faults: Faults = NO_FAULTS) -> Case:
    """Make what a spec trains, with faults in its rule."""
    loaded = from_mapping(BASE | spec)
    plain = from_mapping(BASE | spec | {"convention": {}})
    problem = replace(build_problem(loaded), faults=faults)
    return Case(
        spec,
        NumpyTrainer(problem),
        NumpyTrainer(build_problem(plain)),
        training_of(loaded.spec, len(problem.y)),
        problem.convention,
    )


def gradients(case: Case, parameters: Parameters, batch: Batch) -> dict[str, dict[str, Value]]:
    """Give g of each tensor, and the average and the sum of mᵢ gᵢ, all at ȳ and from p − y too."""
    found: dict[str, dict[str, Value]] = {name: {} for name in parameters}
    mean = at_mean_target(case.plain, batch)
    unfloored = replace(case.plain.problem, faults=Faults(bce_slope="plain"))
    trainers = {"": case.plain, "(ȳ)": mean}
    trainers |= {"(p−y)": case.plain.by(unfloored), "(p−ȳ)": mean.by(unfloored)}
    for at, trainer in trainers.items():
        whole = trainer.forward_backward(parameters, batch)
        parts = []
        for rows, z in zip(batch.micro_batches, whole.outputs, strict=True):
            one = trainer.forward_backward(
                parameters, batch._replace(micro_batches=(rows,))
            ).gradient
            parts.append({name: len(z) * g for name, g in one.items()})
        for name, g in whole.gradient.items():
            total = sum(part[name] for part in parts)
            found[name] |= {
                f"g{at}": g,
                f"sum(mᵢ gᵢ{at})": total,
                f"average(mᵢ gᵢ{at})": total / len(parts),
            }
    return found


def at_mean_target(trainer: NumpyTrainer, batch: Batch) -> NumpyTrainer:
    """Put the mean of each loss's targets in the place of each of them."""
    other = copy(trainer)
    other.y = trainer.y.copy()
    for rows in batch.micro_batches:
        other.y[rows] = trainer.y[rows].mean()
    return other


def constants(case: Case, batch: Batch) -> dict[str, dict[str, Value]]:
    """Give the numbers of one step, for each tensor."""
    training = case.training
    longer = replace(case.trainer.problem.schedule, epochs=batch.epoch + 1)
    rates = [one.lr for one in itertools.islice(longer.batches(), batch.step + 1)]
    shared = {
        "lr": batch.lr,
        "lr₊₁": rates[batch.step],
        "lr₋₁": rates[max(0, batch.step - 2)],
        "μ": training.sgd.momentum,
        "τ": training.sgd.dampening,
        "B": batch.size,
        "m": training.loss_rows[0],
        "n": training.train_rows,
        "k": len(batch.micro_batches),
        "batch_size": case.spec.get("batch_size", training.train_rows),
        "c": FACTOR,
    }
    own = {f"clip_{letter}": own_clip(case) for letter in "wb"}
    decays = training.sgd.weight_decay
    # A penalty on a bias that has no λ of its own is by that of the weight.
    return {name: shared | own | {"λ": decays[name] or decays["weight"]} for name in decays}


def own_clip(case: Case) -> Callable[[Value], Value]:
    """Give what clips one tensor by its own norm."""
    return lambda value: clip_of(case, {"own": value})(value)


def clip_of(case: Case, arguments: dict[str, Value]) -> Callable[[Value], Value]:
    """Give what clips, for what all tensors put into it."""
    limit = case.spec.get("clip_value")
    if limit is not None:
        return lambda value: np.clip(value, -limit, limit)
    total = math.sqrt(sum(float(np.sum(value * value)) for value in arguments.values()))
    factor = min(1.0, case.spec.get("clip_norm", math.inf) / (total + 1e-6))
    return lambda value: value * factor


class Sums:
    """What Σ adds up over the steps, for each tensor; a step may be worked out more than once."""

    def __init__(self) -> None:
        self.past: dict[str, Value] = {}
        self.now: dict[str, Value] = {}

    def of(self, name: str) -> dict[str, Value]:
        """Give Σ for one tensor."""

        def add(value: Value) -> Value:
            self.now[name] = self.past.get(name, 0.0) + value
            return self.now[name]

        return {"Σ": add}

    def end_step(self) -> None:
        """Keep what this step added."""
        self.past = dict(self.now)


def follow_text(case: Case, text: list[str]) -> Iterator[tuple[dict[str, Tensor], Batch]]:
    """Train by the text alone; only g comes from elsewhere."""
    lines, bias_first = lines_of(text)
    start = case.trainer.start().parameters
    now = {name: Tensor(tensor, 0.0 * tensor) for name, tensor in start.items()}
    sums = Sums()
    for batch in case.trainer.problem.schedule.batches():
        first = batch.step == 1
        known = {name: one | sums.of(name) for name, one in constants(case, batch).items()}
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
        sums.end_step()
        yield now, batch


def read_loss(text: str, case: Case, parameters: Parameters, batch: Batch) -> float:
    """Work a reported loss out."""
    known = constants(case, batch)
    head, *penalties = text.split(" + ")
    shared = known["weight"]
    if head.endswith(")"):
        factor, inner = head.removesuffix(")").split("average(")
        parts = [data_losses(case, parameters, (rows,)) for rows in batch.micro_batches]
        total = sum(Reader(inner, shared | part, unclipped).sum() for part in parts) / len(parts)
        total *= Reader(factor, {}, unclipped).sum() if factor else 1.0
    else:
        whole = data_losses(case, parameters, batch.micro_batches)
        total = Reader(head, shared | whole, unclipped).sum()
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
    return float(total)


def data_losses(case: Case, parameters: Parameters, parts: tuple[Any, ...]) -> dict[str, Value]:
    """Give the losses of some rows, each output's against its own target and against all."""
    rows, pairs = [], []
    for index in parts:
        X, y = case.plain.X[index], case.plain.y[index]
        z = X @ parameters["weight"][0] + parameters["bias"][0]
        rows += list(case.plain.row_losses(z, y).values)
        pairs += [case.plain.row_losses(z, np.full_like(y, target)).values for target in y]
    return {
        "mᵢ": len(rows),
        "Σℓ": math.fsum(rows),
        "mean ℓ": math.fsum(rows) / len(rows),
        "mean ℓᵢⱼ": float(np.mean(pairs)) if len(parts) == 1 else math.nan,
    }


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
        compared += agreeing_steps(case, text, loss_text(case.convention, given))
    assert compared > 144


@np.errstate(all="ignore")  # a logarithm of 0, where p is 1
def agreeing_steps(case: Case, text: list[str], loss: str) -> int:
    """Train by the text and by the trainer; count the steps, each of which must be the same."""
    state = case.trainer.start()
    steps = 0
    for now, batch in follow_text(case, text):
        reported = read_loss(loss, case, state.parameters, batch)
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
        assert update.step.loss == pytest.approx(reported, rel=1e-12, abs=1e-13), case.spec
        steps += 1
    return steps


# --- faults ---------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Any, ...]] = {
    "penalty_form": ("constant",),
    "bias_decay": ("of-weight",),
    "target": ("batch-mean",),
    "bce_slope": ("plain",),
    "batch_divisor": ("batch-size",),
    "accumulation": ("sum",),
    "zeroing": ("never",),
    "gradient_factor": (FACTOR, -0.5),
    "lr_factor": (FACTOR, 0.5),
    "lr_shift": (1, -1),
    "clip_scope": ("tensor",),
    "momentum": ("ignored",),
    "nesterov": ("added", "missing"),
    "first_step": ("dampened",),
}
"""Each way to fault."""

EACH = [Faults(**{key: value}) for key, values in FAULTS.items() for value in values]


def faulty_specs(draw: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Draw some of the combinations of what a spec can ask for."""
    combinations = [spec for decay in get_args(Decay) for spec in specs(decay)]
    for spec in draw.sample(combinations, count):
        model = draw.choice(["linear", "logistic"])
        if "clip_value" in spec:
            spec.pop("clip_value")  # it has no norm that a fault could take
            spec["clip_norm"] = 0.3
        if spec["weight_decay"] == {"weight": 0.3}:
            spec["weight_decay"] = {"weight": 0.3, "bias": 0.0}
        yield spec | {"model": model}


def own_decay(spec: dict[str, Any], faults: Faults) -> dict[str, Any]:
    """Leave the bias no λ of its own where a rule takes the weight's: both are one letter."""
    decay = spec["weight_decay"]
    if faults.bias_decay == "of-weight" and isinstance(decay, dict):
        return spec | {"weight_decay": decay | {"bias": 0.0}}
    return spec


def with_open_factors(faults: Faults) -> Faults:
    """Leave the factors open that are c."""
    changes = {
        key: math.nan for key in ("gradient_factor", "lr_factor") if getattr(faults, key) == FACTOR
    }
    return faults._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("faults", EACH, ids=str)
@pytest.mark.parametrize("written", [letters, symbols])
def test_text_with_a_fault_is_what_the_trainer_does(
    faults: Faults, written: Callable[[Training], Letters]
) -> None:
    changed = 0
    for spec in faulty_specs(random.Random(f"{faults}"), 40):
        case = case_of(own_decay(spec, faults), faults)
        given, told = written(case.training), with_open_factors(faults)
        text = rule_lines(case.convention, given, told)
        changed += text != rule_lines(case.convention, given)
        agreeing_steps(case, text, loss_text(case.convention, given, told))
    assert changed >= 3


@pytest.mark.parametrize("written", [letters, symbols])
@pytest.mark.parametrize("seed", range(4))
def test_text_with_any_faults_together_is_what_the_trainer_does(
    seed: int, written: Callable[[Training], Letters]
) -> None:
    draw = random.Random(seed)
    for spec in faulty_specs(draw, 40):
        chosen = draw.sample(list(FAULTS), draw.randint(2, 5))
        faults = Faults(**{key: draw.choice(FAULTS[key]) for key in chosen})
        case = case_of(own_decay(spec, faults), faults)
        given, told = written(case.training), with_open_factors(faults)
        text = rule_lines(case.convention, given, told)
        agreeing_steps(case, text, loss_text(case.convention, given, told))


MOVING = SYMBOLIC._replace(momentum="μ", clipped=True)


@pytest.mark.parametrize(
    ("faults", "lines"),
    [
        (Faults(penalty_form="constant"), ["v ← μ v + clip(g) + λ", "w ← w − lr v"]),
        (Faults(target="batch-mean"), ["v ← μ v + clip(g(ȳ)) + λ w", "w ← w − lr v"]),
        (Faults(bce_slope="plain"), ["v ← μ v + clip(g(p−y)) + λ w", "w ← w − lr v"]),
        (
            Faults(target="batch-mean", bce_slope="plain"),
            ["v ← μ v + clip(g(p−ȳ)) + λ w", "w ← w − lr v"],
        ),
        (
            Faults(batch_divisor="batch-size"),
            ["v ← μ v + clip(B/batch_size g) + λ w", "w ← w − lr v"],
        ),
        (Faults(accumulation="sum"), ["v ← μ v + clip(k g) + λ w", "w ← w − lr v"]),
        (Faults(zeroing="never"), ["v ← μ v + clip(Σg) + λ w", "w ← w − lr v"]),
        (Faults(gradient_factor=0.25), ["v ← μ v + clip(0.25 g) + λ w", "w ← w − lr v"]),
        (Faults(gradient_factor=math.nan), ["v ← μ v + clip(c g) + λ w", "w ← w − lr v"]),
        (Faults(lr_factor=2.0), ["v ← μ v + clip(g) + λ w", "w ← w − 2·lr v"]),
        (Faults(lr_factor=math.nan), ["v ← μ v + clip(g) + λ w", "w ← w − c·lr v"]),
        (Faults(lr_shift=1), ["v ← μ v + clip(g) + λ w", "w ← w − lr₊₁ v"]),
        (Faults(lr_shift=-1), ["v ← μ v + clip(g) + λ w", "w ← w − lr₋₁ v"]),
        (Faults(clip_scope="tensor"), ["v ← μ v + clip_w(g) + λ w", "w ← w − lr v"]),
        (Faults(momentum="ignored"), ["w ← w − lr (clip(g) + λ w)"]),
        (
            Faults(nesterov="added"),
            ["v ← μ v + clip(g) + λ w", "w ← w − lr (clip(g) + λ w + μ v)"],
        ),
    ],
    ids=str,
)
def test_fault_is_written_as(faults: Faults, lines: list[str]) -> None:
    assert update_lines(TORCH, MOVING, "weight", faults) == lines


def test_fault_leaves_what_it_is_not_about_as_it_is() -> None:
    assert delta_text(TORCH, SYMBOLIC, "weight", Faults(lr_factor=math.nan)) == "c·lr (g + λ w)"
    assert penalty_text(TORCH, SYMBOLIC, "bias", Faults(penalty_form="constant")) == "λ"
    free = SYMBOLIC._replace(weight_decay={"weight": "λ", "bias": ""})
    assert decay_text(TORCH, free, "bias") == ""
    assert decay_text(TORCH, free, "bias", Faults(bias_decay="of-weight")) == "λ"
    assert gradient_text(TORCH, SYMBOLIC, Faults(lr_factor=2.0)) == "g"
    assert loss_text(TORCH, SYMBOLIC, Faults(gradient_factor=2.0)) == "mean ℓ"
    assert decay_text(Convention(penalty_factor=math.nan), SYMBOLIC, "weight") == "c·λ"


def test_tensors_of_other_names_have_their_letters() -> None:
    decays = {"layers.0.weight": 0.1, "layers.0.bias": 0.0, "layers.1.weight": 0.1, "gain": 0.2}
    given = letters(training(weight_decay=decays))

    assert update_lines(TORCH, given, "layers.1.weight") == ["w ← w − 0.1 (g + 0.1 w)"]
    assert update_lines(TORCH, given, "layers.0.bias") == ["b ← b − 0.1 g"]
    assert delta_text(TORCH, given, "gain") == "0.1 (g + 0.2 w)"
    sibling = Faults(bias_decay="of-weight")
    assert penalty_text(TORCH, given, "layers.0.bias", sibling) == "0.1 b"
    assert loss_text(Convention(penalty_in_loss=True), given) == "mean ℓ + ½·0.1 Σw² + ½·0.2 Σw²"


def test_every_letter_of_a_fault_has_its_meaning() -> None:
    lines = [line for faults in EACH for line in update_lines(TORCH, MOVING, "weight", faults)]
    lines += update_lines(TORCH, MOVING, "weight", Faults(lr_factor=math.nan))
    told = [meaning.split(" ", 1)[0] for meaning in meanings(lines)]

    letters_in_order = "w g Σg p−y ȳ v clip clip_w lr lr₊₁ lr₋₁ c λ μ B k batch_size"
    assert told == letters_in_order.split()
    # Σ alone tells of no sum of gradients, nor lr of its neighbours.
    assert meanings(["½·λ Σw²"], ["w", "Σg", "λ"]) == ["w weight", "λ weight_decay"]
    assert meanings(["w ← w − lr g"], ["lr", "lr₊₁", "lr₋₁"]) == ["lr learning rate"]


# --- causes ---------------------------------------------------------------------------------------

UNWRITTEN = {"initial-parameters", "precision", "row-order"}
"""Causes that are no difference of formulas."""

UPDATING = [
    name for name, cause in CAUSES.items() if cause.kind == "update" and name not in UNWRITTEN
]


def concerned_case(name: str, change: Change) -> Case:
    """Make a training that a cause concerns, with the cause in it."""
    momentum = {"name": "sgd", "momentum": 0.9}
    spec: dict[str, Any] = {
        "weight_decay": {"weight": 0.3, "bias": 0.2},
        "clip_norm": 0.5,
        "batch_size": 2,
        "accumulate": 2,
        "epochs": 3,
        "lr_schedule": {"kind": "exponential", "factor": 0.8},
        "optimizer": {
            "dampening-on-first-step": momentum | {"dampening": 0.3},
            "nesterov-missing": momentum | {"nesterov": True},
        }.get(name, momentum),
    }
    if name == "bce-saturated":
        X = 60 * np.array(DATA["X"])
        spec |= {"data": {"X": X.tolist(), "y": (X[:, 0] < 0).astype(int).tolist()}}
        spec |= {"model": "logistic", "loss": "bce"}
    if name == "bias-penalized":
        spec["weight_decay"] = {"weight": 0.3, "bias": 0.0}
    convention, faults = put_in(change, TORCH, NO_FAULTS)
    case = case_of(spec, faults)
    problem = replace(case.trainer.problem, convention=convention)
    case = case._replace(trainer=NumpyTrainer(problem), convention=convention)
    assert CAUSES[name].concerns(case.training, TORCH)
    return case


def in_order(lines: list[str]) -> list[str]:
    """Put lines into the order in which they act."""

    def place(line: str) -> int:
        if line.startswith("first  "):
            return 0
        if "b ← " in line:
            return 3
        return 1 if "v ← " in line else 2

    return sorted(lines, key=place)


@pytest.mark.parametrize("name", UPDATING)
@pytest.mark.parametrize("written", [letters, symbols])
def test_formula_of_a_cause_is_what_its_sabotage_does(
    name: str, written: Callable[[Training], Letters]
) -> None:
    key = CAUSES[name].factor_key
    changes: tuple[Change, ...] = CAUSES[name].changes if key is None else ({key: FACTOR},)
    for way, change in enumerate(changes):
        case = concerned_case(name, change)
        given = written(case.training)
        formulas = formulas_of(name, given)
        assert formulas.framework
        assert formulas.scratch[way]
        assert formulas.scratch[way] != formulas.framework
        torch = rule_lines(TORCH, given)
        kept = [line for line in torch if line not in formulas.framework]
        rule = in_order([*kept, *formulas.scratch[way]])
        loss = loss_text(case.convention, given, case.trainer.problem.faults)
        assert agreeing_steps(case, rule, loss) >= 4
        # What is not the cause's rule is told from it: by torch's own text it does not hold.
        with pytest.raises(AssertionError):
            agreeing_steps(case, torch, loss)


@pytest.mark.parametrize("name", UPDATING)
def test_formulas_of_a_cause_are_its_lines_in_one(name: str) -> None:
    case = concerned_case(name, CAUSES[name].changes[0])
    formulas = formulas_of(name, letters(case.training))

    ways = ["; ".join(lines) for lines in formulas.scratch]
    assert scratch_formula(name, case.training) == ", or ".join(ways)
    assert framework_formula(name, case.training) == "; ".join(formulas.framework)


@pytest.mark.parametrize(
    ("name", "changes", "scratch", "framework"),
    [
        (
            "penalty-divided-by-batch",
            {},
            "w ← w − 0.1 (g + 0.5/8 w), b likewise",
            "w ← w − 0.1 (g + 0.5 w), b likewise",
        ),
        (
            "bias-not-penalized",
            {"momentum": 0.9},
            "w ← w − 0.1 v; v ← 0.9 v + g; b ← b − 0.1 v",
            "w ← w − 0.1 v, b likewise",
        ),
        (
            "momentum-dampened",
            {"momentum": 0.9},
            "v ← 0.9 v + (1 − 0.9) (g + 0.5 w)",
            "v ← 0.9 v + g + 0.5 w",
        ),
        (
            "schedule-shifted",
            {"lr_varies": True},
            "w ← w − lr₊₁ (g + 0.5 w), b likewise, or w ← w − lr₋₁ (g + 0.5 w), b likewise",
            "w ← w − lr (g + 0.5 w), b likewise",
        ),
        (
            "last-batch-divisor",
            {"batch_rows": (3, 2)},
            "w ← w − 0.1 (B/3 g + 0.5 w), b likewise",
            "w ← w − 0.1 (g + 0.5 w), b likewise",
        ),
        (
            "accumulation-not-averaged",
            {"micro_rows": (3, 2)},
            "w ← w − 0.1 (3 g + 0.5 w), b likewise",
            "w ← w − 0.1 (g + 0.5 w), b likewise",
        ),
        ("penalty-in-loss", {}, "reports  mean ℓ + ½·0.5 Σw² + ½·0.5 Σb²", "reports  mean ℓ"),
        (
            "loss-epoch-mean",
            {"batch_rows": (4,)},
            "reports  mean over the epoch's batches so far of mean ℓ",
            "reports  mean ℓ",
        ),
        (
            "loss-after-update",
            {},
            "reports  mean ℓ, at the parameters after the update",
            "reports  mean ℓ",
        ),
    ],
)
def test_formulas_of_a_cause_are_written_as(
    name: str, changes: dict[str, Any], scratch: str, framework: str
) -> None:
    given = training(**changes)
    assert CAUSES[name].concerns(given, TORCH)
    assert scratch_formula(name, given) == scratch
    assert framework_formula(name, given) == framework


@pytest.mark.parametrize(
    ("name", "known", "unknown"),
    [
        (
            "penalty-scaled",
            "w ← w − 0.1 (g + 0.25·0.5 w), b likewise",
            "w ← w − 0.1 (g + c·0.5 w), b likewise",
        ),
        (
            "gradient-scaled",
            "w ← w − 0.1 (0.25 g + 0.5 w), b likewise",
            "w ← w − 0.1 (c g + 0.5 w), b likewise",
        ),
        (
            "learning-rate-scaled",
            "w ← w − 0.25·0.1 (g + 0.5 w), b likewise",
            "w ← w − c·0.1 (g + 0.5 w), b likewise",
        ),
    ],
)
def test_factor_that_may_be_anything_is_c_until_it_is_known(
    name: str, known: str, unknown: str
) -> None:
    assert scratch_formula(name, training(), 0.25) == known
    assert scratch_formula(name, training()) == unknown
    assert framework_formula(name, training()) == "w ← w − 0.1 (g + 0.5 w), b likewise"


@pytest.mark.parametrize("name", sorted(UNWRITTEN))
def test_cause_that_is_no_difference_of_formulas_has_none(name: str) -> None:
    assert scratch_formula(name, training()) == framework_formula(name, training()) == ""


def test_formulas_of_the_reported_loss_are_what_is_reported() -> None:
    spec = {"batch_size": 3, "epochs": 2, "weight_decay": 0.3}
    case = case_of(spec)
    problem = case.trainer.problem
    in_loss = replace(problem, convention=Convention(penalty_in_loss=True))
    trainers = {
        "penalty-in-loss": NumpyTrainer(in_loss),
        "loss-after-update": LossAfterUpdate(problem),
        "loss-epoch-mean": LossEpochMean(problem),
        "reported-loss-scaled": HalfLossReported(problem),
    }
    assert set(trainers) == {name for name, one in CAUSES.items() if one.kind == "reporting"}
    for name, trainer in trainers.items():
        text = scratch_formula(name, case.training).removeprefix("reports  ")
        torch = framework_formula(name, case.training).removeprefix("reports  ")
        state, parted = trainer.start(), 0
        so_far: list[float] = []
        for batch in problem.schedule.batches():
            update = trainer.step(state, batch)
            of, at = text, state.parameters
            if text.endswith(", at the parameters after the update"):
                of, at = (
                    text.removesuffix(", at the parameters after the update"),
                    update.step.after,
                )
            averaged = text.startswith("mean over the epoch's batches so far of ")
            of = of.removeprefix("mean over the epoch's batches so far of ")
            if of.startswith("c "):
                of = f"0.5 {of.removeprefix('c ')}"
            told = read_loss(of, case, at, batch)
            so_far = [*(so_far if batch.batch > 1 else []), told]
            expected = sum(so_far) / len(so_far) if averaged else told
            # Some dozen roundings of numbers of order 1.
            assert update.step.loss == pytest.approx(expected, rel=1e-13)
            parted += abs(read_loss(torch, case, state.parameters, batch) - expected) > 1e-3
            state = update.state
        assert parted >= 3


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
    """Make a plain training of 8 rows; changes of torch's settings are put into these."""
    given = SgdSettings(0.1, {"weight": 0.5, "bias": 0.5})
    sgd = given._replace(**{key: changes.pop(key) for key in given._fields if key in changes})
    return Training(sgd, batch_rows=(8,), train_rows=8)._replace(**changes)


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
        g = float(case.plain.forward_backward(state.parameters, batch).gradient["weight"].item())
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
    assert torch_call(training(**changes).sgd) == call


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
