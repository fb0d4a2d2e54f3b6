from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regcheck.errors import InputError, Place, shortened, suggest
from regcheck.rules.convention import NAMED, Convention
from regcheck.spec import from_mapping, read_spec
from regcheck.spec.dtype import Dtype
from regcheck.spec.schema import Spec
from regcheck.spec.sections.data import (
    CsvData,
    HeldOut,
    InlineData,
    NpzData,
    Standardize,
    Synthetic,
    SyntheticData,
)
from regcheck.spec.sections.fields import shown
from regcheck.spec.sections.init import Init, Normal
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.spec.sections.tolerance import Expect, Tolerance, Tolerances
from regcheck.spec.sections.training import (
    Optimizer,
    Shuffle,
    TorchSettings,
    WeightDecay,
)

GOOD = "data: {X: [[1.0], [2.0]], y: [0, 1]}\nmodel: logistic\nlr: 0.1\n"


def read(tmp_path: Path, text: str) -> Spec:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return read_spec(path).spec


def complaints(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    return [str(one).replace(f"{tmp_path}/", "") for one in caught.value.complaints]


def test_spec_defaults_are_torchs(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    assert spec.loss == "bce"
    assert spec.init == Init(constant=0.0)
    assert spec.optimizer == Optimizer.of("sgd", momentum=0.0, nesterov=False, dampening=0.0)
    assert spec.weight_decay == WeightDecay(weight=0.0, bias=0.0)
    assert spec.dtype == Dtype(scratch="float64", framework="float64")
    assert (spec.epochs, spec.batch_size, spec.accumulate, spec.drop_last) == (1, "full", 1, False)
    assert (spec.shuffle, spec.lr_schedule, spec.clip_norm, spec.clip_value) == (None,) * 4
    assert (spec.scratch, spec.framework) == (None, None)
    assert spec.compare == ["parameters", "loss"]
    assert spec.tolerance.of("weight").limit == 8.0
    assert spec.named_convention() == Convention()


SMALL = Optimizer.of("sgd", momentum=0.9, nesterov=True)
FORMS: dict[str, Any] = {
    "init: zeros": Init(constant=0.0),
    "init: {constant: 1}": Init(constant=1.0),
    "init: {normal: {std: .1}}": Init(normal=Normal(std=0.1, seed=0)),
    "init: {normal: {std: 0.1, seed: 7}}": Init(normal=Normal(std=0.1, seed=7)),
    "init: {weight: [1], bias: [2]}": Init(weight=[1.0], bias=[2.0]),
    "init: {weight: [[1]], bias: 2}": Init(weight=[1.0], bias=[2.0]),
    "init: {weight: 1, bias: 2}": Init(weight=[1.0], bias=[2.0]),
    "optimizer: sgd": Optimizer.of("sgd"),
    "optimizer: {name: sgd}": Optimizer.of("sgd"),
    "optimizer: {name: sgd, momentum: 0.9, nesterov: true, dampening: 0}": SMALL,
    "optimizer: {name: sgd, dampening: 0.5}": Optimizer.of("sgd", dampening=0.5),
    "weight_decay: 1e-3": WeightDecay(weight=0.001, bias=0.001),
    "weight_decay: {weight: 1, bias: 0}": WeightDecay(weight=1.0, bias=0.0),
    "epochs: 1e3": 1000,
    "epochs: 1000.0": 1000,
    "batch_size: full": "full",
    "batch_size: 3.2e1": 32,
    "batch_size: 1000000000000000000000": 10**21,
    "shuffle: false": None,
    "shuffle: {seed: 3}": Shuffle(seed=3),
    f"shuffle: {{seed: {2**64 - 1}}}": Shuffle(seed=2**64 - 1),
    "drop_last: true": True,
    "drop_last: False": False,
    "accumulate: 4": 4,
    "lr_schedule: none": None,
    "lr_schedule: {kind: step, every: 5, factor: 0.1, per: epoch}": LrSchedule(
        kind="step", every=5, factor=0.1, per="epoch"
    ),
    "lr_schedule: {kind: exponential, factor: 2}": LrSchedule(kind="exponential", factor=2.0),
    "lr_schedule: {kind: cosine, steps: 10}": LrSchedule(kind="cosine", steps=10),
    "lr_schedule: {kind: cosine, steps: 9, floor: 1}": LrSchedule(kind="cosine", steps=9, floor=1),
    "lr_schedule: {kind: warmup, steps: 3}": LrSchedule(kind="warmup", steps=3),
    "lr_schedule: {kind: list, values: [1, .5]}": LrSchedule(kind="list", values=[1.0, 0.5]),
    "clip_norm: none": None,
    "clip_norm: 5": 5.0,
    "clip_value: none": None,
    "clip_value: .5": 0.5,
    "dtype: float32": Dtype(scratch="float32", framework="float32"),
    "dtype: {scratch: float64, framework: float32}": Dtype(scratch="float64", framework="float32"),
    "compare: [loss]": ["loss"],
    "tolerance: {rounding: 2}": Tolerances(rounding=2.0),
    "loss: bce_with_logits": "bce_with_logits",
    "loss: mse": "mse",
    "scratch: my.py:train": "my.py:train",
    "scratch: ' my.py:train '": "my.py:train",
    "scratch: ../my code/my.py:_train2": "../my code/my.py:_train2",
    "scratch: C:\\my.py:train": "C:\\my.py:train",
    "framework: my.py:build": "my.py:build",
    "framework: ' my.py:build '": "my.py:build",
    "framework: {lr: 0}": TorchSettings(lr=0.0),
    "framework: {weight_decay: .5}": TorchSettings(weight_decay=WeightDecay(weight=0.5, bias=0.5)),
    "framework: {lr: 0.2, optimizer: sgd}": TorchSettings(lr=0.2, optimizer=Optimizer.of("sgd")),
}


@pytest.mark.parametrize(("line", "meant"), FORMS.items(), ids=str)
def test_spec_form_of_a_key_is_read(tmp_path: Path, line: str, meant: object) -> None:
    key = line.partition(":")[0]
    assert getattr(read(tmp_path, f"{GOOD}{line}\n"), key) == meant


@pytest.mark.parametrize("name", NAMED)
def test_spec_named_convention_is_that_convention(tmp_path: Path, name: str) -> None:
    spec = read(tmp_path, f"{GOOD}convention: {name}\n")
    assert spec.named_convention() == NAMED[name].convention


def test_spec_convention_key_by_key_is_read(tmp_path: Path) -> None:
    numbers = {"penalty_factor": 2.0, "penalize_bias": False, "penalty_in_loss": True}
    words = {"divide_penalty_by": "batch", "decay": "after-momentum", "penalty_norm": "unsquared"}
    other = {"loss_reduction": "sum", "momentum_form": "lr-inside", "update_order": "bias-first"}
    adaptive = {"epsilon": "inside", "bias_correction": False, "accumulator_start": 0.1}
    changes: dict[str, Any] = {**numbers, **words, **other, **adaptive, "loss_factor": 0.5}
    assert changes.keys() == set(Convention._fields)
    for key, value in changes.items():
        spec = read(tmp_path, f"{GOOD}convention: {{{key}: {str(value).lower()}}}\n")
        assert spec.named_convention() == Convention()._replace(**{key: value})


SOURCES: dict[str, object] = {
    "{X: [[1, 2], [3, 4]], y: [0, 1]}": InlineData(X=[[1.0, 2.0], [3.0, 4.0]], y=[0.0, 1.0]),
    "{npz: a.npz}": NpzData(npz="a.npz", X="X", y="y"),
    "{npz: a.npz, X: features, y: labels}": NpzData(npz="a.npz", X="features", y="labels"),
    "{npz: a.npz, X: features}": NpzData(npz="a.npz", X="features"),
    "{csv: a.csv, target: y}": CsvData(csv="a.csv", target="y"),
    "{csv: a.csv, target: 2020, features: [1, b], positive: 3}": CsvData(
        csv="a.csv", target="2020", features=["1", "b"], positive="3"
    ),
    "{csv: a.csv, target: y, positive: no}": CsvData(csv="a.csv", target="y", positive="no"),
    "{csv: a.csv, target: y, positive: 'True'}": CsvData(csv="a.csv", target="y", positive="True"),
    "{synthetic: {rows: 1e3, features: 4}}": SyntheticData(
        synthetic=Synthetic(rows=1000, features=4, seed=0)
    ),
    "{synthetic: {rows: 9, features: 4, seed: 5}, standardize: true, test: 0.2}": SyntheticData(
        synthetic=Synthetic(rows=9, features=4, seed=5),
        standardize=Standardize(ddof=0),
        test=HeldOut(share=0.2),
    ),
    "{X: [[1]], y: [0], standardize: false}": InlineData(X=[[1.0]], y=[0.0]),
    "{X: [[1]], y: [0], standardize: {ddof: 1}}": InlineData(
        X=[[1.0]], y=[0.0], standardize=Standardize(ddof=1)
    ),
    "{X: [[1]], y: [0], test: {share: .5, seed: 1}}": InlineData(
        X=[[1.0]], y=[0.0], test=HeldOut(share=0.5, seed=1)
    ),
}


@pytest.mark.parametrize("text", SOURCES)
def test_spec_source_is_read(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"data: {text}\nmodel: logistic\nlr: 1\n").data == SOURCES[text]


@pytest.mark.parametrize(("model", "loss"), [("linear", "mse"), ("logistic", "bce")])
def test_spec_loss_follows_the_model(tmp_path: Path, model: str, loss: str) -> None:
    assert read(tmp_path, GOOD.replace("logistic", model)).loss == loss


def test_from_mapping_of_the_same_content_is_the_same_spec(tmp_path: Path) -> None:
    content = {"data": {"X": [[1.0], [2.0]], "y": [0, 1]}, "model": "logistic", "lr": 0.1}
    loaded = from_mapping(content)
    assert (loaded.spec, loaded.name) == (read(tmp_path, GOOD), "spec")
    of_file = read_spec(tmp_path / "spec.yaml")
    assert (of_file.name, of_file.folder) == (f"{tmp_path}/spec.yaml", tmp_path)


def test_from_mapping_takes_the_records_of_a_spec() -> None:
    spec = from_mapping(
        {
            "data": InlineData(X=[[1.0]], y=[0.0]),
            "model": "linear",
            "lr": 0.1,
            "init": Init(constant=1.0),
            "optimizer": Optimizer.of("sgd", momentum=0.5),
            "weight_decay": WeightDecay(weight=1.0, bias=0.0),
            "shuffle": Shuffle(seed=1),
            "dtype": Dtype(scratch="float32", framework="float64"),
            "lr_schedule": LrSchedule(kind="warmup", steps=2),
            "expect": Expect(step=1),
            "tolerance": Tolerances(weight=Tolerance(rtol=0.1)),
            "scratch": "my.py:train",
            "framework": TorchSettings(lr=0.2, optimizer=Optimizer.of("sgd", momentum=0.9)),
        }
    ).spec
    assert from_mapping(dict(spec)).spec == spec


def test_from_mapping_takes_none_for_what_is_not_given(tmp_path: Path) -> None:
    content = {"data": {"X": [[1.0], [2.0]], "y": [0, 1]}, "model": "logistic", "lr": 0.1}
    absent = dict.fromkeys(("shuffle", "lr_schedule", "clip_norm", "expect"))
    assert from_mapping(content | absent).spec == read(tmp_path, GOOD)


def test_from_mapping_with_a_key_that_is_no_word_is_refused() -> None:
    with pytest.raises(InputError, match="a key must be a string, got 5"):
        from_mapping({"data": {"X": [[1.0]], "y": [0]}, "model": "linear", "lr": 1, 5: 1})  # type: ignore[dict-item]


def test_complaint_gives_the_nearest_place(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    loaded = read_spec(path)
    (complaint,) = loaded.error(("data", "X", 1, 0), "is odd").complaints
    assert complaint == (Place(str(path), 1, 20), "data.X[1][0]: is odd")
    (other,) = loaded.error(("data", "positive"), "is odd").complaints
    assert other.place == Place(str(path), 1, 7)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (GOOD.replace("[0, 1]", "[0, null, 1]"), ["spec.yaml:1:34: data.y[1]: has no value"]),
        (GOOD + "init: {normal: null}\n", ["spec.yaml:4:16: init.normal: has no value"]),
        (GOOD + "lr: 1\nlr: 2\n", ["spec.yaml:4:1: lr:", "spec.yaml:5:1: lr:"]),
        (GOOD + "epochs: 0\nepochs: 1\n", ["spec.yaml:4:9: epochs:", "spec.yaml:5:1: epochs:"]),
    ],
    ids=[
        "a null",
        "a null of which the whole is made",
        "a key given three times",
        "a repeated key whose first value is wrong",
    ],
)
def test_complaints_are_one_for_each_mistake(tmp_path: Path, text: str, starts: list[str]) -> None:
    found = complaints(tmp_path, text)
    assert len(found) == len(starts)
    assert all(one.startswith(start) for one, start in zip(found, starts, strict=True))


@pytest.mark.parametrize("number", ["3.4028234663852886e38", "-3.4028234663852886e38"])
def test_spec_largest_float32_is_allowed(tmp_path: Path, number: str) -> None:
    text = f"{GOOD}init: {{constant: {number}}}\ndtype: float32\n"
    assert read(tmp_path, text).init == Init(constant=float(number))


def test_suggest_gives_the_known_spelling_or_lists_what_there_is() -> None:
    assert suggest("TRUE", ["True", "False"]) == "did you mean `True`?"
    assert suggest("q", ["a", "b"]) == "known here: a, b"
    assert suggest("q", [f"x{i}" for i in range(25)]).endswith("x18, x19 and 5 more")
    assert (shortened("a" * 60), shortened("a" * 61)) == ("a" * 60, "a" * 58 + "..")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "nothing"),
        ("a\n", "'a\\n'"),
        (0.5, "0.5"),
        ({"a": [1, {"b": False}]}, "{a: [1, {b: false}]}"),
        ([[[[[1]]]]], "[[[[[...]]]]]"),
        (list(range(50)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11..."),
    ],
)
def test_shown_writes_as_a_spec_would(value: object, text: str) -> None:
    assert shown(value) == text
