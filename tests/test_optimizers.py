"""Each optimizer's step is torch's, with any options; and what it remembers is what torch does."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.meanings import GENERAL
from regcheck.rules.optimizers import asgd
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.optimizers.update import update
from regcheck.rules.optimizers.update_rule import StepInput
from regcheck.rules.settings import Settings
from regcheck.spec.sections.training import Optimizer

Array = NDArray[np.floating]

OTHER: dict[str, Any] = {
    "alpha": 0.3,
    "beta2_decay": -0.5,
    "betas": (0.3, 0.4),
    "d": 2.5,
    "dampening": 0.3,
    "eps": 1e-3,
    "etas": (0.3, 1.7),
    "initial_accumulator_value": 0.4,
    "lambd": 0.05,
    "lr_decay": 0.2,
    "momentum": 0.3,
    "momentum_decay": 0.3,
    "ns_coefficients": (2.0, -1.5, 0.5),
    "rho": 0.3,
    "step_sizes": (0.02, 0.3),
    "t0": 4.0,
}
"""Another value of each number that is an option of some optimizer.

Decays are below ½: from there on 1 − β is what is left of 1 divided by β.
"""

OF_ONE: dict[str, dict[str, Any]] = {"adafactor": {"eps": (0.1, 3.0)}}
"""The same where an optimizer's option is of another kind."""


def choices() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each optimizer with all its truth values, at torch's numbers and at others."""
    for name, rule in OPTIMIZERS.items():
        if rule.matrices:  # `test_muon`
            continue
        flags = [key for key, value in rule.defaults.items() if isinstance(value, bool)]
        others = OTHER | OF_ONE.get(name, {})
        numbers = {key: others[key] for key in rule.options if key not in flags}
        for values in itertools.product((False, True), repeat=len(flags)):
            for other in ({}, numbers):
                options = rule.defaults | dict(zip(flags, values, strict=True)) | other
                if options.get("nesterov"):
                    options |= {"momentum": 0.8, "dampening": 0.0}
                if not rule.errors(options):
                    yield name, options


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(3, 4), (5,)], ids=str)
@pytest.mark.parametrize(("name", "options"), list(choices()), ids=str)
def test_step_is_torchs(
    name: str, options: dict[str, Any], shape: tuple[int, ...], dtype: str
) -> None:
    assert_steps_are_torchs(name, options, shape, dtype)


def test_step_of_a_kernel_is_torchs() -> None:
    # Where the means are of rows and columns, there may be many matrices of them.
    for name, options in choices():
        if name == "adafactor":
            assert_steps_are_torchs(name, options, (2, 3, 4), "float64")


def assert_steps_are_torchs(
    name: str, options: dict[str, Any], shape: tuple[int, ...], dtype: str
) -> None:
    """Take 30 steps by a rule and by torch, from the same start with the same gradients."""
    settings, random = Settings(0.1, {}, options, name), np.random.default_rng(3)
    rule = settings.rule
    decay = 0.3 if rule.weight_decay else 0.0
    w = random.normal(size=shape).astype(dtype)
    tensor = torch.tensor(w, requires_grad=True)
    kind = getattr(torch.optim, rule.torch)
    optimizer = kind([{"params": [tensor], "weight_decay": decay}], lr=1.0, **options)
    memory = rule.init(options, settings.torchs, NO_FAULTS, w)
    for t in range(1, 31):
        lr, g = (0.1, 1.5, 0.02)[t % 3], random.normal(size=shape) * 10 ** random.uniform(-3, 1)
        g = g.astype(dtype)
        optimizer.param_groups[0]["lr"], tensor.grad = lr, torch.tensor(g)
        optimizer.step()
        at = StepInput(options, settings.torchs, NO_FAULTS, lr, t, w, g, memory)
        taken = update(rule, at, lambda x: decay * x)
        w, memory = taken.parameter, taken.memory
        # Up to 30 steps of some 20 roundings of numbers of order 1 to 100.
        rtol = 3000 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=rtol, atol=rtol)
        assert w.dtype == dtype
        for key, known in memory.items():
            theirs = optimizer.state[tensor][key].numpy()
            np.testing.assert_allclose(known, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
            assert known.dtype == theirs.dtype


def last_delta(name: str, gradients: Array, lr: float = 3.0) -> Array:
    """Return what the last of some steps by torch's defaults subtracts, with a lr of its own."""
    settings, w = Settings(lr, {}, {}, name), np.array([1.0, -2.0])
    if settings.rule.matrices:
        w, gradients = w[None], gradients[:, None]
    options = settings.rule.resolved(settings.rule.defaults, 1e-9)
    torchs = settings._replace(options=options).torchs
    memory, delta = settings.rule.init(options, torchs, NO_FAULTS, w), w
    for t, g in enumerate(gradients, 1):
        own = lr if t == len(gradients) else 3.0
        at = StepInput(options, torchs, NO_FAULTS, own, t, w, g, memory)
        taken = update(settings.rule, at, lambda x: 0 * x)
        memory, delta = taken.memory, taken.delta
    return delta


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_said_of_a_step_holds_and_only_then(name: str) -> None:
    rule, draws = OPTIMIZERS[name], np.random.default_rng(5).normal(size=(2, 6, 2))
    one, other = (last_delta(name, gradients) for gradients in draws)
    twice, both = last_delta(name, draws[0], 6.0), last_delta(name, draws.sum(axis=0))

    assert np.allclose(twice, 2 * one, rtol=1e-12) is rule.proportional
    assert np.allclose(both, one + other, rtol=1e-12) is rule.linear


@pytest.mark.parametrize("name", [name for name, rule in OPTIMIZERS.items() if rule.correction])
def test_correction_of_the_lr_by_hand(name: str) -> None:
    correction = OPTIMIZERS[name].correction
    assert correction is not None

    # √(1 − β₂ᵗ)/(1 − β₁ᵗ), by fractions.
    assert correction({"betas": (0.5, 0.75)}, 1) == pytest.approx(math.sqrt(1 / 4) / (1 / 2))
    assert correction({"betas": (0.5, 0.75)}, 2) == pytest.approx(math.sqrt(7 / 16) / (3 / 4))


# --- options ------------------------------------------------------------------------------------

ELSEWHERE = {"params", "lr", "weight_decay", "foreach", "capturable", "differentiable", "fused"}
"""Arguments of torch's that are no options here: they have keys of their own, or change no step."""

STRICTER = {("asgd", "lambd"), ("muon", "eps"), ("rprop", "step_sizes")}
"""Options that are sizes and must not be negative, which torch does not look at."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_and_their_defaults_are_torchs(name: str) -> None:
    rule = OPTIMIZERS[name]
    theirs = inspect.signature(getattr(torch.optim, rule.torch)).parameters
    own = {key: theirs[key].default for key in theirs if key not in ELSEWHERE}
    if name == "sgd":
        del own["maximize"]

    assert rule.defaults == own
    assert rule.weight_decay is ("weight_decay" in theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_are_refused_where_torch_does(name: str) -> None:
    rule = OPTIMIZERS[name]
    kind, parameters = getattr(torch.optim, rule.torch), [torch.zeros(1, 1, requires_grad=True)]
    for key, number in rule.numbers.items():
        for value in (-2.0, -1.0, -1e-9, 0.0, 1e-9, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0, 1e9):
            options = number.put(rule.defaults, value)
            theirs = refuses(partial(kind, parameters, lr=0.1, **options))
            sized = (name, number.key) in STRICTER and value < 0
            own = refuses(partial(Optimizer.of, name, **options))
            assert own == (theirs or sized), (key, value)


def refuses(make: Callable[[], object]) -> bool:
    """Whether making something fails for a value."""
    try:
        make()
    except ValueError:
        return True
    return False


def test_a_letter_has_one_meaning() -> None:
    known: dict[str, set[str]] = {}
    for rule in OPTIMIZERS.values():
        for letter, text in rule.meanings.items():
            known.setdefault(letter, set()).add(text)

    assert {letter: texts for letter, texts in known.items() if len(texts) > 1} == {}
    assert GENERAL.keys().isdisjoint(known)


def test_asgd_has_no_rate_where_its_root_has_none() -> None:
    options = {"lambd": -3.0, "alpha": 0.75}
    assert math.isnan(asgd.rate(options, 0.5, 2))
    assert asgd.rate(options | {"lambd": 1.5}, 0.5, 4) == pytest.approx(0.5 / 4**0.75)
