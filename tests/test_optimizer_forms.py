"""Other libraries' forms of optimizers, written as they do it, and the causes that name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import put_in
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.optimizers.update import update
from regcheck.rules.optimizers.update_rule import StepInput
from regcheck.rules.settings import Settings, with_faults
from regcheck.trainers.numpy_trainer import NumpyTrainer

GRADIENTS = (0.5, -2.0, 0.1, 0.3, -0.7)
RATES = (0.1, 0.1, 0.05, 0.02, 0.02)


class Form(NamedTuple):
    """An optimizer's options, what is changed in torch's rule, and the steps that this makes."""

    options: dict[str, Any]
    change: dict[str, Any]
    steps: Callable[[], Iterator[float]]
    cause: str


def pairs() -> Iterator[tuple[float, float]]:
    """Yield each step's gradient and lr."""
    return zip(GRADIENTS, RATES, strict=True)


def keras_rmsprop() -> Iterator[float]:
    """keras/src/optimizers/rmsprop.py, `update_step`; ρ = 0.9, momentum 0.8."""
    v = m = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        m = 0.8 * m + lr * g / math.sqrt(v + 1e-3)
        yield m


def keras_rmsprop_without_momentum() -> Iterator[float]:
    v = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        yield lr * g / math.sqrt(v + 1e-3)


def lr_in_velocity() -> Iterator[float]:
    v = m = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        m = 0.8 * m + lr * g / (math.sqrt(v) + 1e-3)
        yield m


def tf1_rmsprop() -> Iterator[float]:
    """tensorflow/python/training/rmsprop.py: the mean square starts at 1."""
    v = 1.0
    for g, lr in pairs():
        v += (g * g - v) * 0.1
        yield lr * g / (math.sqrt(v) + 1e-3)


def centered() -> Iterator[float]:
    v = mean = 0.0
    for g, lr in pairs():
        v, mean = 0.9 * v + 0.1 * g * g, 0.9 * mean + 0.1 * g
        yield lr * g / (math.sqrt(v - mean**2) + 1e-3)


def uncentered() -> Iterator[float]:
    v = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        yield lr * g / (math.sqrt(v) + 1e-3)


def rootless() -> Iterator[float]:
    v = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        yield lr * g / (v + 1e-3)


def moving_average() -> Iterator[float]:
    v = m = 0.0
    for g, lr in pairs():
        v = 0.9 * v + 0.1 * g * g
        m = 0.8 * m + 0.2 * g / (math.sqrt(v) + 1e-3)
        yield lr * m


def optax_adagrad() -> Iterator[float]:
    """optax/_src/transform.py, `scale_by_rss`: the sum starts at 0.1."""
    s = 0.1
    for g, lr in pairs():
        s += g * g
        yield lr * g / (math.sqrt(s) + 1e-3)


def adagrad_inside() -> Iterator[float]:
    s = 0.0
    for g, lr in pairs():
        s += g * g
        yield lr * g / math.sqrt(s + 1e-3)


def adagrad(t: int, decay: float) -> Iterator[float]:
    """Count the steps from t on."""
    s = 0.0
    for g, lr in pairs():
        s += g * g
        yield lr / (1 + t * decay) * g / (math.sqrt(s) + 1e-3)
        t += 1


def adadelta(inside: bool, of_lr: bool) -> Iterator[float]:
    """Zeiler's algorithm 1, with an lr; ρ = 0.9."""
    s = d = 0.0
    for g, lr in pairs():
        s = 0.9 * s + 0.1 * g * g
        above, below = (math.sqrt(x + 1e-3) if inside else math.sqrt(x) + 1e-3 for x in (d, s))
        x = above / below * g
        d = 0.9 * d + 0.1 * (lr * x if of_lr else x) ** 2
        yield lr * x


def adamax(corrected: bool, outside: bool, compounded: bool = False) -> Iterator[float]:
    """keras/src/optimizers/adamax.py, `update_step`, where ε is outside; β = 0.7, 0.95."""
    m = u = 0.0
    for t, (g, lr) in enumerate(pairs(), 1):
        m = 0.7 * m + 0.3 * g
        if compounded:
            m /= 1 - 0.7**t
        u = max(0.95 * u, abs(g) + (0 if outside else 1e-3))
        yield lr * m / (1 - 0.7**t if corrected else 1) / (u + (1e-3 if outside else 0))


RMSPROP = {"name": "rmsprop", "alpha": 0.9, "eps": 1e-3}
HEAVY = RMSPROP | {"momentum": 0.8}
ADAGRAD = {"name": "adagrad", "eps": 1e-3}
FADING = ADAGRAD | {"lr_decay": 0.2}
ADADELTA = {"name": "adadelta", "eps": 1e-3}
ADAMAX = {"name": "adamax", "betas": (0.7, 0.95), "eps": 1e-3}

FORMS: dict[str, Form] = {
    "adadelta, lr inside": Form(
        ADADELTA, {"lr_in_average": "inside"}, lambda: adadelta(True, True), "adadelta-lr-inside"
    ),
    "adadelta, ε outside": Form(
        ADADELTA, {"epsilon": "outside"}, lambda: adadelta(False, False), "epsilon-outside"
    ),
    "adagrad from 0.1 on": Form(
        ADAGRAD, {"accumulator_start": 0.1}, optax_adagrad, "adagrad-accumulator-initial"
    ),
    "adagrad without lr_decay": Form(
        FADING, {"lr_decay": "missing"}, lambda: adagrad(0, 0.0), "adagrad-lr-decay-missing"
    ),
    "adagrad, t from 1 on": Form(
        FADING, {"lr_decay": "early"}, lambda: adagrad(1, 0.2), "adagrad-lr-decay-early"
    ),
    "adagrad, ε inside": Form(
        ADAGRAD, {"epsilon": "inside"}, adagrad_inside, "rmsprop-epsilon-inside"
    ),
    "adamax uncorrected": Form(
        ADAMAX,
        {"bias_correction": False},
        lambda: adamax(False, False),
        "adam-bias-correction-missing",
    ),
    "adamax, correction kept": Form(
        ADAMAX,
        {"bias_correction": "compounded"},
        lambda: adamax(False, False, True),
        "adam-bias-correction-compounded",
    ),
    "adamax, ε outside": Form(
        ADAMAX, {"epsilon": "outside"}, lambda: adamax(True, True), "epsilon-outside"
    ),
    "rmsprop averaging steps": Form(
        HEAVY, {"momentum_form": "dampened"}, moving_average, "momentum-dampened"
    ),
    "rmsprop centered": Form(RMSPROP, {"centered": "added"}, centered, "rmsprop-centered-added"),
    "rmsprop from 1 on": Form(
        RMSPROP, {"accumulator_start": 1.0}, tf1_rmsprop, "adagrad-accumulator-initial"
    ),
    "rmsprop not centered": Form(
        RMSPROP | {"centered": True},
        {"centered": "missing"},
        uncentered,
        "rmsprop-centered-missing",
    ),
    "rmsprop without momentum": Form(
        HEAVY, {"momentum": "ignored"}, uncentered, "momentum-missing"
    ),
    "rmsprop without root": Form(RMSPROP, {"root": "missing"}, rootless, "root-missing"),
    "rmsprop without root, ε inside": Form(
        RMSPROP, {"root": "missing", "epsilon": "inside"}, rootless, ""
    ),
    "rmsprop, lr inside": Form(
        HEAVY, {"momentum_form": "lr-inside"}, lr_in_velocity, "momentum-lr-inside"
    ),
    "rmsprop, lr and ε inside": Form(
        HEAVY, {"momentum_form": "lr-inside", "epsilon": "inside"}, keras_rmsprop, ""
    ),
    "rmsprop, ε inside": Form(
        RMSPROP,
        {"epsilon": "inside"},
        keras_rmsprop_without_momentum,
        "rmsprop-epsilon-inside",
    ),
}


def settings_of(form: Form) -> Settings:
    name = form.options["name"]
    given = {key: value for key, value in form.options.items() if key != "name"}
    plain = Settings(1.0, {}, {}, name)
    return plain._replace(options=plain.rule.defaults | given)


@pytest.mark.parametrize("name", FORMS)
def test_form_is_what_others_do(name: str) -> None:
    form = FORMS[name]
    settings = settings_of(form)
    convention, faults = put_in(form.change, settings.torchs, NO_FAULTS)
    options, rule = with_faults(settings, faults).options, settings.rule
    w = np.zeros(1)
    memory = rule.init(options, convention, faults, w)
    for t, ((g, lr), expected) in enumerate(zip(pairs(), form.steps(), strict=True), 1):
        at = StepInput(options, convention, faults, lr, t, w, np.array([g]), memory)
        taken = update(rule, at, lambda x: 0 * x)
        memory = taken.memory
        assert taken.delta[0] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("shape", [(1, 2), (2,)], ids=["matrix", "vector"])
def test_adafactors_mean_of_a_step_alone_keeps_none_of_the_one_before(
    shape: tuple[int, ...],
) -> None:
    # By ζ = 0, V is g² at every step: V + (g² − V) would lose most digits of a smaller g.
    settings = Settings(1.0, {}, {}, "adafactor")
    options, rule = settings.rule.defaults | {"beta2_decay": 0.0, "eps": (0.0, 1.0)}, settings.rule
    convention, faults = put_in({}, settings.torchs, NO_FAULTS)
    w = np.zeros(shape)
    memory = rule.init(options, convention, faults, w)
    for t, entry in enumerate((3.0, 1e-9), 1):
        g = np.reshape([entry, 1.0], shape)
        delta, memory = rule.step(StepInput(options, convention, faults, 0.1, t, w, g, memory))
        assert delta == pytest.approx(np.full(shape, 0.1), rel=1e-15)


@pytest.mark.slow
@pytest.mark.sampled(every=16)
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.cause])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_form_is_named(name: str, dtype: str) -> None:
    form, random = FORMS[name], np.random.default_rng(4)
    X = random.normal(size=(20, 3))
    spec = {
        "data": {"X": X.tolist(), "y": random.normal(size=20).tolist()},
        "model": "linear",
        "optimizer": form.options,
        "lr": 0.05,
        "lr_schedule": {"kind": "step", "every": 6, "factor": 0.5},
        "weight_decay": 0.1,
        "batch_size": 8,
        "epochs": 8,
        "dtype": dtype,
        "expect": {"cause": form.cause},
    }
    with patch.object(
        checking, "NumpyTrainer", lambda problem: NumpyTrainer(problem.with_change(form.change))
    ):
        report = check(spec)

    assert report.diagnosis is not None
    assert report.expected, report.diagnosis
    assert CAUSES[form.cause].concerns(report.training, settings_of(form).torchs)
