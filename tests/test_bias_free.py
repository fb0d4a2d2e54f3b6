"""`bias: false`: the built-in models with one weight alone, on both sides and in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from regcheck import cli
from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.numerics.bounds.rounding import RoundingModel, split
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.numerics.models import gradient, predict
from regcheck.numerics.packing import flat
from regcheck.problem.problem import build_problem, small_problem
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.convention import NAMED
from regcheck.spec import from_mapping
from regcheck.trainers.framework.built_in import built_in
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec
from tests.faults import FAULTS, OPEN
from tests.random_functions import BIASED, Facts, planted
from tests.random_specs import KINDS
from tests.user_functions import Code

ROWS, FEATURES = 11, 3
RANDOM = np.random.default_rng(7)
X = RANDOM.normal(loc=(0.0, 0.5, -1.0), size=(ROWS, FEATURES))
TARGETS = {
    "linear": X @ [1.0, -2.0, 0.5] + RANDOM.normal(size=ROWS),
    "logistic": np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]),
}
START = [0.5, -0.3, 0.8]


def spec_of(model: str = "linear", loss: str = "mse", **settings: Any) -> Spec:
    """Make the spec of a training in which all that a weight can have acts."""
    return {
        "data": {"X": X.tolist(), "y": TARGETS[model].tolist()},
        "model": model,
        "loss": loss,
        "bias": False,
        "init": {"weight": START},
        "lr": 0.1,
        "weight_decay": {"weight": 0.5},
        "batch_size": 4,
        "epochs": 3,
    } | settings


SETTINGS: dict[str, Spec] = {
    "plain": {},
    "zeros": {"init": "zeros", "weight_decay": 0.5},
    "normal": {"init": {"normal": {"std": 0.3, "seed": 1}}},
    "momentum": {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.2}},
    "nesterov": {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}},
    "clipped": {"clip_norm": 0.05},
    "clipped by value": {"clip_value": 0.05},
    "accumulated": {"batch_size": 3, "accumulate": 2},
    "mixed": {"dtype": {"scratch": "float64", "framework": "float32"}},
    "float32": {"dtype": "float32", "shuffle": {"seed": 2}},
}


# --- both sides follow the same rule ------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("model", "loss"), KINDS)
def test_sides_agree_on_one_weight(model: str, loss: str, name: str) -> None:
    report = check(spec_of(model, loss, **SETTINGS[name]))

    assert report.verdict == "equivalent"
    for side in ("scratch", "framework"):
        assert {key: w.shape for key, w in report.comparison.final[side].parameters.items()} == {
            "weight": (1, FEATURES)
        }
    assert (report.comparison.final["scratch"].accuracy == {}) == (model == "linear")


def test_model_is_a_product_and_its_gradient_has_one_tensor() -> None:
    assert predict(np.array([[1.0, 2.0]]), {"weight": np.array([[3.0, 4.0]])}).tolist() == [11.0]
    found = gradient(np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([1.0, -2.0]), bias=False)
    assert {name: w.tolist() for name, w in found.items()} == {"weight": [[-5.0, 4.0]]}


def test_torchs_model_has_no_bias() -> None:
    module = built_in(build_problem(from_mapping(spec_of())))
    assert isinstance(module.model, nn.Linear)
    assert module.model.bias is None
    assert [group["weight_decay"] for group in module.optimizer.param_groups] == [0.5]


def test_start_draws_the_weight_that_a_model_with_a_bias_draws() -> None:
    init: Spec = {"init": {"normal": {"std": 0.3, "seed": 1}}}
    plain: list[Spec] = [{}, {"bias": True, "weight_decay": 0}]
    starts = [build_problem(from_mapping(spec_of(**init, **more))).initial for more in plain]
    assert starts[0].keys() == {"weight"}
    assert starts[0]["weight"].tolist() == starts[1]["weight"].tolist()


# --- bounds on rounding ---------------------------------------------------------------------------


def test_bounds_are_of_the_columns_that_there_are() -> None:
    problem = build_problem(from_mapping(spec_of()))
    model = RoundingModel(problem)
    assert model.column_norms.tolist() == pytest.approx(np.linalg.norm(X, axis=0).tolist())
    assert model.decay.tolist() == [0.5] * FEATURES

    vector = flat(problem.initial)
    assert vector.tolist() == START
    parted = split(vector, problem.initial)
    assert {name: w.tolist() for name, w in parted.items()} == {"weight": [START]}


def test_bounds_are_those_of_a_weight_beside_a_bias_that_is_nothing() -> None:
    # |b| = 0 adds nothing to the output's bound, and so nothing to the gradient's.
    found = []
    beside: Spec = {"bias": True, "init": {"weight": START, "bias": [0.0]}, "weight_decay": 0.5}
    for more in ({}, beside):
        problem = build_problem(from_mapping(spec_of(**more)))
        trainer = NumpyTrainer(problem)
        batch = next(problem.schedule.batches())
        update = trainer.step(trainer.start(), batch)
        model, state = RoundingModel(problem), RoundingState()
        found.append(model.bounds(state, batch, update.step, update.dloss_dz)[0])
    without, other = found
    assert without.after.keys() == {"weight"}
    for name in ("gradient", "penalty", "delta", "after"):
        one, beside_it = getattr(without, name)["weight"], getattr(other, name)["weight"]
        np.testing.assert_allclose(one, beside_it, rtol=1e-15)
    np.testing.assert_allclose(without.outputs[0], other.outputs[0], rtol=1e-15)


# --- causes ---------------------------------------------------------------------------------------

NEEDED: dict[str, Spec] = {
    "micro-batches": {"batch_size": 2, "accumulate": 2},
    "momentum": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "nesterov": {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}},
    "dampening": {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.25}},
    "clip": {"clip_norm": 0.2},
    "schedule": {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.5}},
    "plain-momentum": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "remembered": {"optimizer": {"name": "sgd", "momentum": 0.9}},
}
HAD_ALREADY = {"decay", "uneven"}

OF_SGD = [cause for cause, one in FAULTS.items() if one.needs - HAD_ALREADY <= NEEDED.keys()]
"""What SGD can get wrong: the others' causes have nothing to do with a bias."""


def code_with(cause: str) -> tuple[Spec, Code]:
    """Write a user's code with a cause in it, and the spec that it is for."""
    spec = spec_of()
    for need in sorted(FAULTS[cause].needs & NEEDED.keys()):
        spec |= NEEDED[need]
    spec["optimizer"] = spec.get("optimizer", {"name": "sgd"})
    spec.setdefault("accumulate", 1)
    rule, factors = planted(np.random.default_rng(3), [cause], Facts(ROWS, 4, 0.9))
    assert factors.keys() == {cause} & OPEN
    return spec, Code(spec, rule)


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("cause", sorted(set(OF_SGD) - BIASED - {"option-differs"}))
def test_cause_in_a_users_code_is_named(cause: str) -> None:
    spec, code = code_with(cause)
    report = check(spec, scratch=code.train)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    assert any(cause in one.causes for one in report.diagnosis.explanations)
    assert says_nothing_of_a_bias(report)


def says_nothing_of_a_bias(report: Report) -> bool:
    """Say whether no formula of a report has a b, and no line has the word."""
    text = report_text(report) + str(report.to_dict()["diagnosis"])
    fixes = [cause.fix for cause in CAUSES.values()]
    for told in fixes:  # they are the catalogue's, whatever the model
        text = text.replace(told, "")
    return not re.search(r"b ←|b likewise|Σb|\bbias", text)


@pytest.mark.slow
def test_torchs_own_code_agrees() -> None:
    spec = spec_of(optimizer={"name": "sgd"}, accumulate=1)
    report = check(spec, scratch=Code(spec, planted(RANDOM, [], Facts(ROWS, 4, 0))[0]).train)
    assert report.verdict == "equivalent"
    assert says_nothing_of_a_bias(report)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_cause_of_a_bias_could_have_shown(name: str) -> None:
    report = check(spec_of(**SETTINGS[name]))
    assert not BIASED.intersection(one.cause for one in report.not_distinguished)


def test_small_problem_that_tells_rules_apart_has_no_bias() -> None:
    problem = small_problem(build_problem(from_mapping(spec_of())))
    assert problem.initial.keys() == problem.weight_decay.keys() == {"weight"}


# --- what a spec says -----------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", NAMED)
def test_named_conventions_are_usable_without_their_word_on_the_bias(name: str) -> None:
    report = check(spec_of(convention=name))
    assert (report.verdict == "equivalent") == (name in ("pytorch", "bias-free", "decoupled"))
    assert "penalize_bias" not in report.to_dict()["convention_differences"]
    assert f"NumPy, {name}" in report_text(report)
    assert says_nothing_of_a_bias(report) or name == "bias-free"  # its own name


SPEC = """\
data: {X: [[1.0, 2.0], [2.0, -1.0], [0.5, 3.0]], y: [1, 0, 1]}
model: logistic
bias: false
lr: 0.1
"""
NONE = "the model has no bias (`bias: false`); leave it out"

REFUSED = {
    "init: {weight: [1, 2], bias: [0]}": f"5:30: init.bias: {NONE}",
    "weight_decay: {weight: 0.1, bias: 0}": f"5:35: weight_decay.bias: {NONE}",
    "convention: {penalize_bias: false}": f"5:29: convention.penalize_bias: {NONE}",
    "convention: {update_order: bias-first}": f"5:28: convention.update_order: {NONE}",
    "tolerance: {bias: {rounding: 9}}": f"5:19: tolerance.bias: {NONE}",
    "framework: {weight_decay: {bias: 1, weight: 2}}": f"5:34: framework.weight_decay.bias: {NONE}",
    "init: {weight: [1, 2, 3]}": "5:16: init.weight: must have 2 numbers",
    "weight_decay: {}": "5:1: weight_decay.weight: is required",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_said_of_a_bias_is_refused_where_it_stands(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC + line + "\n", encoding="utf-8")
    assert cli.exit_code(["run", str(tmp_path / "spec.yaml")]) == 2
    assert f"spec.yaml:{REFUSED[line]}" in capsys.readouterr().err


ALLOWED = [
    "init: {weight: [1, 2]}",
    "init: {constant: 2}",
    "weight_decay: {weight: 0.1}",
    "weight_decay: 0.1",
    "convention: {penalize_bias: true, update_order: simultaneous}",
    "framework: {weight_decay: {weight: 0}}",
]


@pytest.mark.parametrize("line", ALLOWED)
def test_what_is_said_of_the_weight_alone_is_taken(line: str) -> None:
    assert check(yaml.safe_load(SPEC + line)).verdict == "equivalent"


@pytest.mark.parametrize("value", ["no", 0])
def test_bias_is_true_or_false(value: object) -> None:
    with pytest.raises(InputError, match="bias: must be true or false"):
        check(spec_of(bias=value))


def test_with_a_bias_both_are_needed_as_before() -> None:
    told = "weight_decay.bias: is required: 0 means no weight decay on the bias"
    with pytest.raises(InputError, match=told):
        check(spec_of(bias=True, init="zeros"))
    with pytest.raises(InputError, match="init: must give both weight and bias; bias is missing"):
        check(spec_of(bias=True, weight_decay=0))
