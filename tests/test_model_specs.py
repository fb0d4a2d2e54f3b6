"""Specs of softmax and the mlp: what they may say, heads, starts and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.errors import InputError
from regcheck.problem.data.load import load_rows
from regcheck.problem.problem import build_problem
from regcheck.rules.losses import LossOptions
from regcheck.spec import from_mapping
from tests.conftest import ROOT, told

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


def complaint(spec: Spec) -> str:
    with pytest.raises(InputError) as caught:
        build_problem(from_mapping(spec))
    return str(caught.value)


# --- what a spec may say --------------------------------------------------------------------------

WRONG: dict[str, tuple[Spec, str]] = {
    "no layers": (MLP | {"model": "mlp"}, "model: needs its hidden layers, like {mlp: {hidden"),
    "none": (MLP | {"model": {"mlp": {"hidden": []}}}, "model.mlp.hidden: must not be empty"),
    "zero units": (MLP | {"model": {"mlp": {"hidden": [4, 0]}}}, "model.mlp.hidden[1]: must be a"),
    "missing": (MLP | {"model": {"mlp": {}}}, "model.mlp.hidden: is required"),
    "activation": (
        MLP | {"model": {"mlp": {"hidden": [4], "activation": "tan"}}},
        "model.mlp.activation: must be one of gelu, relu, sigmoid, tanh, got 'tan'; did you mean",
    ),
    "key": (
        MLP | {"model": {"mlp": {"hidden": [4], "activatoin": "tanh"}}},
        "model.mlp.activatoin: unknown key; did you mean `activation`?",
    ),
    "model": (MLP | {"model": "softmx"}, "must be one of linear, logistic, mlp, softmax, got 'so"),
    "two models": (
        MLP | {"model": {"mlp": {"hidden": [4]}, "softmax": {}}},
        "model.softmax: unk",
    ),
    "open head": (
        {key: value for key, value in MLP.items() if key != "loss"},
        "loss: is required where the mlp has no head: one of bce, bce_with_logits, cross_entropy",
    ),
    "head and loss": (
        MLP | {"model": {"mlp": {"hidden": [4], "head": "linear"}}},
        "loss: cross_entropy does not fit an mlp with the head linear, which takes mse; for class",
    ),
    "model and loss": (SOFTMAX | {"loss": "mse"}, "mse does not fit the model softmax"),
    "options": (SOFTMAX | {"loss": {"mse": {}}}, "loss: only cross_entropy takes options; write"),
    "smoothing": (
        SOFTMAX | {"loss": {"cross_entropy": {"label_smoothing": 1.5}}},
        "loss.cross_entropy.label_smoothing: must be a number ≤ 1, got 1.5",
    ),
    "weights": (
        SOFTMAX | {"loss": {"cross_entropy": {"weight": [1, 2]}}},
        "loss.cross_entropy.weight: must have 3 numbers, one for each class, got 2",
    ),
    "no weight": (
        SOFTMAX | {"loss": {"cross_entropy": {"weight": [0, 0, 0]}}},
        "loss.cross_entropy.weight: must have a number above 0 for at least one class",
    ),
    "init name": (
        MLP | {"init": {"layers.0.wieght": [[1.0]]}},
        "init.'layers.0.wieght': unknown key; did you mean `layers.0.weight`?",
    ),
    "init missing": (
        MLP | {"init": {"layers.0.weight": [[1.0]]}},
        "init: must give layers.0.weight, layers.0.bias, layers.1.weight, layers.1.bias; layers.",
    ),
    "init flat": (
        SOFTMAX | {"init": {"weight": [1, 2], "bias": [0, 0, 0]}},
        "init.weight[0]: must be a list of numbers, got 1",
    ),
    "init number": (
        SOFTMAX | {"init": {"weight": [[1, 2], [3, "x"], [5, 6]], "bias": [0, 0, 0]}},
        "init.weight[1][1]: must be a finite number, got 'x'",
    ),
    "init rows": (
        SOFTMAX | {"init": {"weight": [[1, 2], [3, 4]], "bias": [0, 0, 0]}},
        "init.weight: must have 3 rows of 2 numbers, got 2 of 2",
    ),
    "init ragged": (
        SOFTMAX | {"init": {"weight": [[1, 2], [3], [5, 6]], "bias": [0, 0, 0]}},
        "init.weight: must have 3 rows of 2 numbers, got 3 of 1 and 2",
    ),
    "init bias": (
        SOFTMAX | {"init": {"weight": [[1, 2], [3, 4], [5, 6]], "bias": [0]}},
        "init.bias: must have 3 numbers, got 1",
    ),
    "half a label": (
        SOFTMAX | {"data": {"X": [[1.0], [2.0]], "y": [0, 0.5]}},
        "data.y: class labels must be 0, 1, 2, .., got 0.5 in row 2",
    ),
    "negative label": (
        SOFTMAX | {"data": {"X": [[1.0], [2.0]], "y": [0, -1]}},
        "data.y: class labels must be 0, 1, 2, .., got -1 in row 2",
    ),
    "from 1": (
        SOFTMAX | {"data": {"X": [[1.0], [2.0]], "y": [1, 2]}},
        "data.y: the labels of 2 classes must be 0 to 1, got 2, and none is 0",
    ),
    "a logistic head": (
        MLP | {"loss": "bce"},
        "data.y: a logistic head needs targets from 0 to 1, got 2 in row 3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs_are_refused(name: str) -> None:
    spec, text = WRONG[name]
    assert text in complaint(spec)


HEADS: list[tuple[Spec, str, str]] = [
    ({"loss": "mse"}, "linear", "mse"),
    ({"loss": "bce"}, "logistic", "bce"),
    ({"loss": "bce_with_logits"}, "logistic", "bce_with_logits"),
    ({"loss": {"cross_entropy": {"label_smoothing": 0.1}}}, "softmax", "cross_entropy"),
    ({"model": {"mlp": {"hidden": [4], "head": "linear"}}}, "linear", "mse"),
    ({"model": {"mlp": {"hidden": [4], "head": "logistic"}}}, "logistic", "bce"),
    ({"model": {"mlp": {"hidden": [4], "head": "logistic"}}, "loss": "mse"}, "logistic", "mse"),
    ({"data": {"csv": "a.csv", "target": "y", "positive": "yes"}}, "logistic", "bce"),
    ({"model": "softmax"}, "softmax", "cross_entropy"),
]


@pytest.mark.parametrize(("keys", "head", "loss"), HEADS)
def test_head_and_loss_follow_from_each_other(keys: Spec, head: str, loss: str) -> None:
    bare = {"data": {"X": [[1.0]], "y": [0]}, "model": {"mlp": {"hidden": [4]}}, "lr": 0.1}
    spec = from_mapping(bare | keys).spec
    assert (told(spec.architecture).head, spec.loss_name) == (head, loss)


def test_start_is_drawn_tensor_by_tensor_and_given_by_name() -> None:
    random = np.random.default_rng(1)
    initial = build_problem(from_mapping(MLP)).initial
    shapes = {name: w.shape for name, w in initial.items()}
    assert shapes == {
        "layers.0.weight": (4, 2),
        "layers.0.bias": (4,),
        "layers.1.weight": (3, 4),
        "layers.1.bias": (3,),
    }
    for w in initial.values():
        assert w.tolist() == (0.7 * random.normal(size=w.shape)).tolist()
    given = {name: w.tolist() for name, w in initial.items()}
    again = build_problem(from_mapping(MLP | {"init": given})).initial
    assert {name: w.tolist() for name, w in again.items()} == given
    constant = build_problem(from_mapping(MLP | {"init": {"constant": 2}})).initial
    assert all((w == 2.0).all() for w in constant.values())


def test_class_without_rows_needs_a_weight_of_its_own() -> None:
    """The weights say how many classes there are."""
    weight = {"cross_entropy": {"weight": [1, 2, 1, 5]}}
    problem = build_problem(from_mapping(SOFTMAX | {"loss": weight}))
    assert problem.classes == ("0", "1", "2", "3")
    assert problem.initial["weight"].shape == (4, 2)
    assert problem.loss_options == LossOptions(0.0, (1.0, 2.0, 1.0, 5.0))


def test_weight_decay_and_tolerance_go_by_the_kind_of_a_tensor() -> None:
    more = {"weight_decay": {"weight": 0.1, "bias": 0}, "tolerance": {"bias": {"rounding": 3}}}
    spec = from_mapping(MLP | more).spec
    assert spec.decays["layers.1.weight"] == 0.1
    assert spec.decays["layers.1.bias"] == 0
    assert spec.tolerance.of("layers.0.bias").limit == 3
    assert spec.tolerance.of("layers.0.weight").limit == spec.tolerance.of("loss").limit == 8


# --- labels ---------------------------------------------------------------------------------------


def csv_spec(folder: Path, text: str, **more: Any) -> Spec:
    (folder / "rows.csv").write_text(text)
    data = {"csv": str(folder / "rows.csv"), "target": "kind"}
    return SOFTMAX | {"data": data} | more


def test_labels_of_a_text_column_are_its_texts_in_sorted_order(tmp_path: Path) -> None:
    text = 'x,kind\n1,wolf\n2,"a, b"\n3,cat\n4, wolf\n'
    rows = load_rows(from_mapping(csv_spec(tmp_path, text)))
    assert rows.classes == ("a, b", "cat", "wolf")
    assert rows.y.tolist() == [2, 0, 1, 2]
    assert rows.y.dtype == np.int64
    assert rows.features == ("x",)


def test_labels_of_a_column_of_numbers_are_these(tmp_path: Path) -> None:
    rows = load_rows(from_mapping(csv_spec(tmp_path, "x,kind\n1,1\n2,0\n3,2.0\n")))
    assert (rows.classes, rows.y.tolist()) == (("0", "1", "2"), [1, 0, 2])


def test_missing_label_is_refused_with_its_place(tmp_path: Path) -> None:
    spec = csv_spec(tmp_path, "x,kind\n1,cat\n2,NA\n3,dog\n")
    assert "rows.csv:3: row 2, column `kind`: missing value ('NA')" in complaint(spec)


def test_positive_goes_with_a_logistic_head_alone(tmp_path: Path) -> None:
    spec = csv_spec(tmp_path, "x,kind\n1,cat\n2,dog\n")
    spec["data"]["positive"] = "cat"
    assert "data.positive: only the model logistic has a positive label" in complaint(
        spec | {"model": {"mlp": {"hidden": [2]}}, "loss": "mse"}
    )
    deep = spec | {"model": {"mlp": {"hidden": [2]}}}
    assert load_rows(from_mapping(deep)).y.tolist() == [1, 0]


@pytest.mark.parametrize("model", ["softmax", {"mlp": {"hidden": [3], "head": "softmax"}}])
def test_made_up_labels_are_of_three_classes(model: Any) -> None:
    data = {"synthetic": {"rows": 50, "features": 4}}
    problem = build_problem(from_mapping(SOFTMAX | {"data": data, "model": model}))
    assert problem.classes == ("0", "1", "2")
    assert set(problem.y.tolist()) == {0, 1, 2}
