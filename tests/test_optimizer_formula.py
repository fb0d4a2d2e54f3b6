"""Each optimizer's formula as text, with any options and forms: it is what the trainer does."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest

from regcheck.rules.convention import Decay
from regcheck.rules.formulas.formula import loss_text, rule_lines
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.settings import Settings, letters, symbols
from tests.formula_cases import case_of
from tests.formula_reader import agreeing_steps

OTHER: dict[str, list[Any]] = {
    "alpha": [0.7],
    "beta2_decay": [-0.5, 0.0],
    "betas": [[0.7, 0.6], [0.0, 0.3], [0.4, 0.0]],
    "d": [1.5],
    "dampening": [0.3],
    "eps": [0.01, 0.0],
    "etas": [[0.3, 1.7]],
    "initial_accumulator_value": [0.4],
    "lambd": [0.5, 0.0],
    "lr_decay": [0.2],
    "momentum": [0.8],
    "momentum_decay": [0.3, 0.0],
    "rho": [0.6],
    "step_sizes": [[0.02, 0.06]],
    "t0": [2.0],
}
"""Other values of the numbers among the options, which show within a few steps."""

OF_ONE: dict[str, dict[str, list[Any]]] = {
    "adafactor": {"eps": [[0.1, 3.0], [None, 0.0], [0.0, 0.01]]},
    "asgd": {"alpha": [1.5, 0.0, -1.0]},
}
"""The same where an optimizer's option is of another kind."""

FORMS: dict[str, list[Any]] = {
    "accumulator_start": [0.3],
    "bias_correction": [False, "compounded"],
    "decay": list(get_args(Decay)),
    "epsilon": ["outside", "uncorrected", "inside"],
    "momentum_form": ["dampened", "lr-inside"],
}


def single_forms(name: str) -> list[tuple[str, Any]]:
    """Return each form that an optimizer's step may have, but for torch's own."""
    rule = OPTIMIZERS[name]
    torchs = Settings(0.1, {}, rule.defaults, name).torchs._asdict()
    keys = sorted(rule.keys & FORMS.keys())
    return [(key, form) for key in keys for form in FORMS[key] if form != torchs[key]]


def random_spec(name: str, seed: int) -> dict[str, Any]:
    """Draw options and surroundings of an optimizer; first come torch's own, then single forms."""
    draw, rule = random.Random(f"{name} {seed}"), OPTIMIZERS[name]
    options: dict[str, Any] = {}
    for key, option in rule.options.items():
        if seed and draw.random() < 0.6:
            flag = isinstance(option.default, bool)
            values = [True] if flag else (OTHER | OF_ONE.get(name, {}))[key]
            options[key] = values[0] if seed <= len(single_forms(name)) else draw.choice(values)
    forms = dict(single_forms(name)[max(0, seed - 1) : seed])
    if seed > len(single_forms(name)):
        drawn = {key: draw.choice(values) for key, values in FORMS.items() if draw.random() < 0.4}
        forms = {key: form for key, form in drawn.items() if key in rule.keys | {"decay"}}
    if options.get("nesterov") or "momentum_form" in forms:
        options |= {"momentum": 0.8}
    if options.get("nesterov"):
        options |= {"dampening": 0.0}
    return {
        "optimizer": {"name": name} | options,
        "convention": forms,
        "weight_decay": draw.choice([0.3, 0.0]) if rule.weight_decay else 0.0,
        **draw.choice([{"batch_size": 3, "epochs": 2}, {"batch_size": 7, "epochs": 4}]),
        "lr_schedule": draw.choice(["none", {"kind": "exponential", "factor": 0.8}]),
    } | draw.choice([{}, {"clip_norm": 0.5}])


@pytest.mark.search(sample=3, whole=30)
@pytest.mark.parametrize("name", [name for name, rule in OPTIMIZERS.items() if not rule.matrices])
def test_formula_of_an_optimizer_is_what_the_trainer_does(name: str, seed: int) -> None:
    case = case_of(random_spec(name, seed))
    for written in (letters, symbols):
        given = written(case.training)
        text = rule_lines(case.convention, given)
        assert agreeing_steps(case, text, loss_text(case.convention, given)) >= 3
