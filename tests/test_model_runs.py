"""Runs of softmax and the mlp: reports, planted faults, and users' code beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.numerics.losses import cross_entropy
from regcheck.numerics.models import model_of
from regcheck.problem.problem import build_problem, small_problem, small_problems
from regcheck.report.terminal.details import report_text
from regcheck.spec import from_mapping, read_spec
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import ROOT, in_one_line, json_text, told

Spec = dict[str, Any]

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(10, 2))
Y = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1]
SOFTMAX: Spec = {"data": {"X": X.tolist(), "y": Y}, "model": "softmax", "lr": 0.1}
MLP: Spec = SOFTMAX | {
    "model": {"mlp": {"hidden": [4], "activation": "tanh"}},
    "loss": "cross_entropy",
    "init": {"normal": {"std": 0.7, "seed": 1}},
    "weight_decay": 0.05,
    "epochs": 6,
    "batch_size": 4,
}
PENGUINS = ROOT / "configs" / "penguins-mlp.yaml"


# --- reports --------------------------------------------------------------------------------------


def test_report_names_classes_and_entries(tmp_path: Path) -> None:
    text = "length,width,kind\n1,2,wolf\n2,0.5,cat\n3,1,cat\n0.5,2,wolf\n"
    (tmp_path / "rows.csv").write_text(text)
    data = {"csv": str(tmp_path / "rows.csv"), "target": "kind"}
    more = {"weight_decay": 0.5, "epochs": 3, "convention": "doubled"}
    report = check(SOFTMAX | {"data": data} | more)
    written = in_one_line(report)
    assert "softmax, cross_entropy, float64" in written
    assert "4 training samples of 2 features, 2 classes (cat, wolf), 3 epochs" in written
    assert "weight[0, 1] (cat, width)" in written
    assert "bias[1]" in written
    assert "accuracy, train" in written
    assert told(report.diagnosis).causes == ("penalty-doubled",)
    data = json.loads(json_text(report))
    assert data["classes"] == ["cat", "wolf"]
    assert data["final"]["scratch"]["accuracy"]["train"] == 1.0


def test_report_of_an_mlp_shows_the_entries_that_differ_most() -> None:
    loss = {"cross_entropy": {"label_smoothing": 0.1, "weight": [1, 2, 1]}}
    written = report_text(check(MLP | {"loss": loss}))
    assert "mlp of 4 tanh units and a softmax head" in written
    assert "cross_entropy with label smoothing 0.1 and class weights" in " ".join(written.split())
    assert "layers.0.weight" in written
    assert "… 19 more, with smaller differences" in written


@pytest.mark.parametrize("init", ["zeros", {"constant": 0.5}])
def test_start_at_which_all_units_are_alike_is_remarked(init: Any) -> None:
    assert "units start alike, and no step makes them differ" in in_one_line(
        check(MLP | {"init": init})
    )
    assert "start alike" not in in_one_line(check(MLP))
    assert "start alike" not in in_one_line(check(SOFTMAX | {"init": init}))


def test_small_problem_keeps_the_layers() -> None:
    problem = build_problem(from_mapping(MLP))
    small = small_problem(problem)
    assert small.initial.keys() == small.weight_decay.keys() == problem.initial.keys()
    for one in small_problems(problem).values():
        trainer = NumpyTrainer(one)
        state = trainer.start()
        for batch in one.schedule.batches():
            state = trainer.step(state, batch).state
        assert all(np.isfinite(w).all() for w in state.parameters.values())


# --- planted faults -------------------------------------------------------------------------------

DECAYED: Spec = {"weight_decay": 0.05, "epochs": 4, "batch_size": 4}

CONVENTIONS: dict[str, Any] = {
    "bias-not-penalized": {"penalize_bias": False},
    "loss-summed": {"loss_reduction": "sum"},
    "penalty-divided-by-dataset": {"divide_penalty_by": "dataset"},
    "penalty-in-loss": {"penalty_in_loss": True},
    "update-sequential": {"update_order": "bias-first"},
}


@pytest.mark.sampled(every=6)
@pytest.mark.parametrize("cause", CONVENTIONS)
@pytest.mark.parametrize("spec", [SOFTMAX | DECAYED, MLP])
def test_conventions_are_named(spec: Spec, cause: str) -> None:
    report = check(spec | {"convention": CONVENTIONS[cause]})
    assert report.verdict == "diverged"
    assert told(report.diagnosis).causes == (cause,)


@pytest.mark.slow
def test_summed_loss_with_class_weights_is_named() -> None:
    """Then the sum is Σ w_y times torch's mean, which no batch size is."""
    loss = {"cross_entropy": {"weight": [1, 2, 0.5]}}
    summed = {"loss_reduction": "sum"}
    report = check(MLP | {"loss": loss, "convention": summed, "batch_size": 5})
    assert told(report.diagnosis).causes == ("loss-summed",)
    assert "total class weight" in str(told(report.diagnosis).matching)


PLANTED: dict[str, Spec] = {
    "adam-bias-correction-missing": {"bias_correction": False},
    "adam-epsilon-uncorrected": {"epsilon": "uncorrected"},
    "decay-before-clipping": {"decay": "before-clipping"},
    "loss-summed": {"loss_reduction": "sum"},
    "penalty-coupled": {"decay": "gradient"},
    "penalty-divided-by-batch": {"divide_penalty_by": "batch"},
}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize("cause", PLANTED)
def test_faults_in_the_penguins_mlp_are_named(cause: str) -> None:
    loaded = read_spec(PENGUINS)
    content = dict(loaded.document.content)  # type: ignore[call-overload]
    content["data"]["csv"] = str(ROOT / "data" / "penguins.csv")
    report = check(content | {"convention": PLANTED[cause], "epochs": 5})
    assert told(report.diagnosis).causes == (cause,)


# --- users' code ----------------------------------------------------------------------------------


def train(problem: Any, factor: float = 1.0) -> Iterator[dict[str, Any]]:
    """Train the mlp by hand: one hidden layer of tanh units, softmax, and plain SGD."""
    w = dict(problem.initial)
    for rows in problem.batches:
        x, y = problem.X[rows], problem.y[rows]
        a = np.tanh(x @ w["layers.0.weight"].T + w["layers.0.bias"])
        z = a @ w["layers.1.weight"].T + w["layers.1.bias"]
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        d = factor * (p - np.eye(3)[y]) / len(y)
        dh = (d @ w["layers.1.weight"]) * (1 - a**2)
        g = {
            "layers.0.weight": dh.T @ x,
            "layers.0.bias": dh.sum(axis=0),
            "layers.1.weight": d.T @ a,
            "layers.1.bias": d.sum(axis=0),
        }
        w = {k: w[k] - problem.lr * (g[k] + problem.weight_decay * w[k]) for k in w}
        yield {**w, "loss": loss}


@pytest.mark.slow
def test_own_code_of_an_mlp_is_compared_with_torchs() -> None:
    assert check(MLP, scratch=train).verdict == "equivalent"
    halved = check(MLP, scratch=lambda problem: train(problem, 0.5))
    assert told(halved.diagnosis).causes == ("loss-halved",)


def build(problem: Any) -> Any:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    if problem.initial["layers.0.weight"].shape == (4, 2):
        names = ("0.weight", "0.bias", "2.weight", "2.bias")
        pairs = zip(names, problem.initial.values(), strict=True)
        model.load_state_dict({name: torch.tensor(w) for name, w in pairs})
    sgd = torch.optim.SGD(model.parameters(), lr=problem.lr, weight_decay=problem.weight_decay)
    return model, nn.functional.cross_entropy, sgd


def test_own_module_goes_by_the_names_of_the_specs_mlp() -> None:
    report = check(MLP, framework=build)
    assert report.verdict == "equivalent"
    assert report.comparison.final["framework"].parameters.keys() == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    }
    other = r"0.weight \(4, 2\).*the spec's mlp model has layers.0.weight \(5, 2\)"
    with pytest.raises(UserCodeError, match=other):
        check(MLP | {"model": {"mlp": {"hidden": [5]}}}, framework=build)


def test_user_is_handed_a_softmax_models_weight_in_torchs_shape() -> None:
    seen: list[Any] = []

    def look(problem: Any) -> Iterator[dict[str, Any]]:
        seen.append((problem.initial["weight"].shape, problem.y.dtype))
        problem_of = build_problem(from_mapping(SOFTMAX))
        model = model_of(told(problem_of.architecture))
        w = problem.initial
        for rows in problem.batches:
            there = model.forward(problem.X[rows], w)
            row = cross_entropy(there.outputs, problem.y[rows])
            g = model.backward(there, row.dloss_dz / len(problem.y[rows]), w)
            w = {name: w[name] - problem.lr * g[name] for name in w}
            yield w

    assert check(SOFTMAX | {"epochs": 3}, scratch=look).verdict == "equivalent"
    assert seen == [((3, 2), np.dtype("int64"))]
