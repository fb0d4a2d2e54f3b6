from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regcheck.errors import InputError, Place, shortened, suggest
from regcheck.rules.convention import NAMED, Convention
from regcheck.spec import from_mapping, read_spec
from regcheck.spec.data import (
    CsvData,
    HeldOut,
    InlineData,
    NpzData,
    Standardize,
    Synthetic,
    SyntheticData,
)
from regcheck.spec.fields import shown
from regcheck.spec.schema import Dtype, Spec
from regcheck.spec.tolerance import Expect, Tolerance, Tolerances
from regcheck.spec.training import (
    Init,
    LrSchedule,
    Normal,
    Sgd,
    Shuffle,
    TorchSettings,
    WeightDecay,
)

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
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
    assert spec.optimizer == Sgd(name="sgd", momentum=0.0, nesterov=False, dampening=0.0)
    assert spec.weight_decay == WeightDecay(weight=0.0, bias=0.0)
    assert spec.dtype == Dtype(scratch="float64", framework="float64")
    assert (spec.epochs, spec.batch_size, spec.accumulate, spec.drop_last) == (1, "full", 1, False)
    assert (spec.shuffle, spec.lr_schedule, spec.clip_norm, spec.clip_value) == (None,) * 4
    assert (spec.scratch, spec.framework) == (None, None)
    assert spec.compare == ["parameters", "loss"]
    assert spec.tolerance.of("weight").limit == 8.0
    assert spec.named_convention() == Convention()


FORMS: list[tuple[str, str, Any]] = [
    ("init: zeros", "init", Init(constant=0.0)),
    ("init: {constant: 1}", "init", Init(constant=1.0)),
    ("init: {normal: {std: .1}}", "init", Init(normal=Normal(std=0.1, seed=0))),
    ("init: {normal: {std: 0.1, seed: 7}}", "init", Init(normal=Normal(std=0.1, seed=7))),
    ("init: {weight: [1], bias: [2]}", "init", Init(weight=[1.0], bias=[2.0])),
    ("init: {weight: [[1]], bias: 2}", "init", Init(weight=[1.0], bias=[2.0])),
    ("init: {weight: 1, bias: 2}", "init", Init(weight=[1.0], bias=[2.0])),
    ("optimizer: sgd", "optimizer", Sgd(name="sgd")),
    ("optimizer: {name: sgd}", "optimizer", Sgd(name="sgd")),
    (
        "optimizer: {name: sgd, momentum: 0.9, nesterov: true, dampening: 0}",
        "optimizer",
        Sgd(name="sgd", momentum=0.9, nesterov=True),
    ),
    (
        "optimizer: {name: sgd, momentum: 0.9, dampening: 0.5}",
        "optimizer",
        Sgd(name="sgd", momentum=0.9, dampening=0.5),
    ),
    ("weight_decay: 1e-3", "weight_decay", WeightDecay(weight=0.001, bias=0.001)),
    ("weight_decay: {weight: 1, bias: 0}", "weight_decay", WeightDecay(weight=1.0, bias=0.0)),
    ("epochs: 5", "epochs", 5),
    ("epochs: 1e3", "epochs", 1000),
    ("epochs: 1000.0", "epochs", 1000),
    ("batch_size: full", "batch_size", "full"),
    ("batch_size: 32", "batch_size", 32),
    ("batch_size: 3.2e1", "batch_size", 32),
    ("batch_size: 1000000000000000000000", "batch_size", 10**21),
    ("shuffle: false", "shuffle", None),
    ("shuffle: {seed: 3}", "shuffle", Shuffle(seed=3)),
    (f"shuffle: {{seed: {2**64 - 1}}}", "shuffle", Shuffle(seed=2**64 - 1)),
    ("drop_last: true", "drop_last", True),
    ("drop_last: False", "drop_last", False),
    ("accumulate: 4", "accumulate", 4),
    ("lr_schedule: none", "lr_schedule", None),
    (
        "lr_schedule: {kind: step, every: 5, factor: 0.1, per: epoch}",
        "lr_schedule",
        LrSchedule(kind="step", every=5, factor=0.1, per="epoch"),
    ),
    (
        "lr_schedule: {kind: exponential, factor: 2}",
        "lr_schedule",
        LrSchedule(kind="exponential", factor=2.0),
    ),
    (
        "lr_schedule: {kind: cosine, steps: 10}",
        "lr_schedule",
        LrSchedule(kind="cosine", steps=10),
    ),
    (
        "lr_schedule: {kind: cosine, steps: 10, floor: 1e-4}",
        "lr_schedule",
        LrSchedule(kind="cosine", steps=10, floor=1e-4),
    ),
    ("lr_schedule: {kind: warmup, steps: 3}", "lr_schedule", LrSchedule(kind="warmup", steps=3)),
    (
        "lr_schedule: {kind: list, values: [1, .5]}",
        "lr_schedule",
        LrSchedule(kind="list", values=[1.0, 0.5]),
    ),
    ("clip_norm: none", "clip_norm", None),
    ("clip_norm: 5", "clip_norm", 5.0),
    ("clip_value: none", "clip_value", None),
    ("clip_value: .5", "clip_value", 0.5),
    ("dtype: float64", "dtype", Dtype(scratch="float64", framework="float64")),
    ("dtype: float32", "dtype", Dtype(scratch="float32", framework="float32")),
    (
        "dtype: {scratch: float64, framework: float32}",
        "dtype",
        Dtype(scratch="float64", framework="float32"),
    ),
    ("compare: [loss]", "compare", ["loss"]),
    ("loss: bce_with_logits", "loss", "bce_with_logits"),
    ("loss: mse", "loss", "mse"),
    ("scratch: my.py:train", "scratch", "my.py:train"),
    ("scratch: ' my.py:train '", "scratch", "my.py:train"),
    ("scratch: ../my code/my.py:_train2", "scratch", "../my code/my.py:_train2"),
    ("scratch: C:\\my.py:train", "scratch", "C:\\my.py:train"),
    ("framework: my.py:build", "framework", "my.py:build"),
    ("framework: {lr: 1e-2}", "framework", TorchSettings(lr=0.01)),
    ("framework: {lr: 0}", "framework", TorchSettings(lr=0.0)),
    (
        "framework: {weight_decay: .5}",
        "framework",
        TorchSettings(weight_decay=WeightDecay(weight=0.5, bias=0.5)),
    ),
    (
        "framework: {weight_decay: {weight: 1, bias: 0}}",
        "framework",
        TorchSettings(weight_decay=WeightDecay(weight=1.0, bias=0.0)),
    ),
    (
        "framework: {lr: 0.2, optimizer: {name: sgd, momentum: 0.9}}",
        "framework",
        TorchSettings(lr=0.2, optimizer=Sgd(name="sgd", momentum=0.9)),
    ),
    ("framework: {optimizer: sgd}", "framework", TorchSettings(optimizer=Sgd(name="sgd"))),
]


@pytest.mark.parametrize(("line", "key", "meant"), FORMS, ids=[form[0] for form in FORMS])
def test_spec_form_of_a_key_is_read(tmp_path: Path, line: str, key: str, meant: object) -> None:
    assert getattr(read(tmp_path, f"{GOOD}{line}\n"), key) == meant


def test_spec_tolerance_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD + "tolerance: {rounding: 2}").tolerance.rounding == 2.0


@pytest.mark.parametrize("lr", ["1e-3", "1E-3", ".001", "0.001", "+1e-3", "1.e-3", "0001e-3"])
def test_spec_number_in_any_notation_is_a_number(tmp_path: Path, lr: str) -> None:
    assert read(tmp_path, GOOD.replace("0.1", lr)).lr == 0.001


@pytest.mark.parametrize("name", NAMED)
def test_spec_named_convention_is_that_convention(tmp_path: Path, name: str) -> None:
    spec = read(tmp_path, f"{GOOD}convention: {name}\n")
    assert spec.named_convention() == NAMED[name].convention


CONVENTIONS: dict[str, Convention] = {
    "{}": Convention(),
    "{divide_penalty_by: batch}": Convention(divide_penalty_by="batch"),
    "{penalty_factor: 2}": Convention(penalty_factor=2.0),
    "{penalize_bias: false}": Convention(penalize_bias=False),
    "{decay: after-momentum}": Convention(decay="after-momentum"),
    "{penalty_norm: unsquared}": Convention(penalty_norm="unsquared"),
    "{penalty_in_loss: true}": Convention(penalty_in_loss=True),
    "{loss_reduction: sum}": Convention(loss_reduction="sum"),
    "{loss_factor: .5}": Convention(loss_factor=0.5),
    "{momentum_form: lr-inside}": Convention(momentum_form="lr-inside"),
    "{update_order: bias-first}": Convention(update_order="bias-first"),
}


@pytest.mark.parametrize("text", CONVENTIONS)
def test_spec_convention_key_by_key_is_read(tmp_path: Path, text: str) -> None:
    spec = read(tmp_path, f"{GOOD}convention: {text}\n")
    assert spec.named_convention() == CONVENTIONS[text]


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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_read_spec_of_each_config_is_valid(path: Path) -> None:
    loaded = read_spec(path)
    assert loaded.name == str(path)
    assert loaded.folder == path.parent


def test_from_mapping_of_the_same_content_is_the_same_spec(tmp_path: Path) -> None:
    content = {"data": {"X": [[1.0], [2.0]], "y": [0, 1]}, "model": "logistic", "lr": 0.1}
    loaded = from_mapping(content)
    assert loaded.spec == read(tmp_path, GOOD)
    assert loaded.name == "spec"


def test_from_mapping_takes_the_records_of_a_spec() -> None:
    spec = from_mapping(
        {
            "data": InlineData(X=[[1.0]], y=[0.0]),
            "model": "linear",
            "lr": 0.1,
            "init": Init(constant=1.0),
            "optimizer": Sgd(name="sgd", momentum=0.5),
            "weight_decay": WeightDecay(weight=1.0, bias=0.0),
            "shuffle": Shuffle(seed=1),
            "dtype": Dtype(scratch="float32", framework="float64"),
            "lr_schedule": LrSchedule(kind="warmup", steps=2),
            "expect": Expect(step=1),
            "tolerance": Tolerances(weight=Tolerance(rtol=0.1)),
            "scratch": "my.py:train",
            "framework": TorchSettings(lr=0.2, optimizer=Sgd(name="sgd", momentum=0.9)),
        }
    ).spec
    assert from_mapping(dict(spec)).spec == spec


# --- your own code, and settings of torch's own ---------------------------------------------------


def test_spec_code_and_settings_of_torch_are_told_apart(tmp_path: Path) -> None:
    code = read(tmp_path, GOOD + "framework: my.py:build\n")
    assert (code.own_framework, code.torch_settings) == ("my.py:build", None)
    given = read(tmp_path, GOOD + "framework: {lr: 0.2}\n")
    assert (given.own_framework, given.torch_settings) == (None, TorchSettings(lr=0.2))
    assert (given.lr, given.scratch) == (0.1, None)
    neither = read(tmp_path, GOOD)
    assert (neither.own_framework, neither.torch_settings) == (None, None)


def test_spec_of_both_sides_own_code_needs_no_model(tmp_path: Path) -> None:
    bare = "data: {X: [[1.0], [2.0]], y: [0, 1]}\nlr: 0.1\n"
    spec = read(tmp_path, bare + "scratch: my.py:train\nframework: my.py:build\n")
    assert (spec.model, spec.loss) == (None, None)
    assert (spec.scratch, spec.own_framework) == ("my.py:train", "my.py:build")
    named = read(tmp_path, GOOD + "scratch: my.py:train\nframework: my.py:build\n")
    assert (named.model, named.loss) == ("logistic", "bce")
    assert from_mapping({**dict(spec), "shuffle": False, "expect": {"step": 1}}).spec.model is None


def test_from_mapping_takes_functions_in_the_place_of_code() -> None:
    def train(problem: object) -> None:
        """Stand for a user's code."""

    content = {"data": {"X": [[1.0], [2.0]], "y": [0, 1]}, "lr": 0.1}
    spec = from_mapping({**content, "scratch": train, "framework": train}).spec
    assert spec.scratch is train
    assert spec.own_framework is train
    of_a_class: object = from_mapping({**content, "model": "linear", "scratch": Spec}).spec.scratch
    assert of_a_class is Spec
    with pytest.raises(InputError, match="scratch: must be a Python file and a function in it"):
        from_mapping({**content, "model": "linear", "scratch": 3})


def test_read_spec_takes_what_python_gives_in_the_place_of_the_files(tmp_path: Path) -> None:
    def train(problem: object) -> None:
        """Stand for a user's code."""

    path = tmp_path / "spec.yaml"
    path.write_text(GOOD + "scratch: my.py:train\n")
    assert read_spec(path, {"scratch": train}).spec.scratch is train
    assert read_spec(path, {"framework": train}).spec.scratch == "my.py:train"
    assert read_spec(path, {}).spec.scratch == "my.py:train"


MODELLESS = "data: {X: [[1.0], [2.0]], y: [0, 1]}\nlr: 0.1\n"
MODELS = "one of linear, logistic"
FRAMEWORK = f"the built-in framework side is {MODELS}; or name a function for `framework` too"


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        ("", MODELS),
        ("framework: {lr: 0.2}\n", MODELS),
        ("scratch: my.py:train\n", FRAMEWORK),
        ("scratch: my.py:train\nframework: {lr: 0.2}\n", FRAMEWORK),
        (
            "framework: my.py:build\n",
            f"the built-in scratch side is {MODELS}; or give `scratch` too",
        ),
    ],
)
def test_spec_without_a_model_says_which_side_needs_one(
    tmp_path: Path, lines: str, needed: str
) -> None:
    assert complaints(tmp_path, MODELLESS + lines) == [
        f"spec.yaml:1:1: model: is required: {needed}"
    ]


def test_spec_without_a_model_tells_its_other_mistakes_too(tmp_path: Path) -> None:
    found = complaints(tmp_path, MODELLESS + "framework: my.py:build\nepochs: 0\nscrach: a.py:f\n")
    assert [one.split(" ")[1] for one in found] == ["model:", "epochs:", "scrach:"]


def test_spec_loss_without_a_model_is_refused(tmp_path: Path) -> None:
    text = MODELLESS + "loss: mse\nscratch: my.py:train\nframework: my.py:build\n"
    assert complaints(tmp_path, text) == [
        "spec.yaml:3:7: loss: goes with a model; leave it out where the framework side is your own"
    ]


@pytest.mark.parametrize("convention", ["doubled", "{loss_factor: 2}"])
def test_spec_convention_beside_scratch_code_is_refused(tmp_path: Path, convention: str) -> None:
    text = f"{GOOD}convention: {convention}\nscratch: my.py:train\n"
    (found,) = complaints(tmp_path, text)
    assert found.startswith("spec.yaml:5:10: scratch: your own code does what it does, and conv")
    assert found.endswith("leave convention out")
    assert read(tmp_path, text.replace(convention, "pytorch")).scratch == "my.py:train"
    # Beside settings of torch's own, it is what the built-in scratch side does.
    assert read(tmp_path, text.replace("scratch: my.py:train", "framework: {lr: 1}")).framework


@pytest.mark.parametrize(
    "framework",
    ["{lr: 1e39}", "{weight_decay: 1e39}", "{weight_decay: {weight: 1e39, bias: 1e39}}"],
)
def test_spec_settings_of_torch_must_fit_float32_too(tmp_path: Path, framework: str) -> None:
    found = complaints(tmp_path, f"{GOOD}framework: {framework}\ndtype: float32\n")
    assert "float32 holds numbers up to 3.4e38, got 1e+39; use float64" in found[0]
    assert found[0].startswith("spec.yaml:4:")
    assert len(found) == 1
    assert read(tmp_path, f"{GOOD}framework: {framework}\n").torch_settings is not None


def test_from_mapping_with_a_key_that_is_no_word_is_refused() -> None:
    with pytest.raises(InputError, match="a key must be a word, got 5"):
        from_mapping({"data": {"X": [[1.0]], "y": [0]}, "model": "linear", "lr": 1, 5: 1})  # type: ignore[dict-item]


def test_complaint_gives_the_nearest_place(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    loaded = read_spec(path)
    complaint = loaded.complaint(("data", "X", 1, 0), "is odd")
    assert complaint == (Place(str(path), 1, 20), "data.X[1][0]: is odd")
    assert loaded.complaint(("data", "positive"), "is odd").place == Place(str(path), 1, 7)


def test_complaints_about_a_null_are_one(tmp_path: Path) -> None:
    text = GOOD.replace("[0, 1]", "[0, null, 1]")
    expected = "spec.yaml:1:34: data.y[1]: has no value; give it one, or leave an optional key out"
    assert complaints(tmp_path, text) == [expected]


def test_complaints_about_a_key_given_three_times_are_two(tmp_path: Path) -> None:
    found = complaints(tmp_path, GOOD + "lr: 1\nlr: 2\n")
    assert [one.split(" ")[0] for one in found] == ["spec.yaml:4:1:", "spec.yaml:5:1:"]


def test_complaints_about_a_repeated_key_keep_those_about_the_first(tmp_path: Path) -> None:
    found = complaints(tmp_path, GOOD + "epochs: 0\nepochs: 1\n")
    assert [one.split(" ")[0] for one in found] == ["spec.yaml:4:9:", "spec.yaml:5:1:"]


def test_complaint_about_one_weight_decay_beyond_float32_is_one(tmp_path: Path) -> None:
    assert len(complaints(tmp_path, GOOD + "weight_decay: 1e39\ndtype: float32\n")) == 1


@pytest.mark.parametrize("number", ["3.4028234663852886e38", "-3.4028234663852886e38"])
def test_spec_largest_float32_is_allowed(tmp_path: Path, number: str) -> None:
    text = f"{GOOD}init: {{constant: {number}}}\ndtype: float32\n"
    assert read(tmp_path, text).init == Init(constant=float(number))


def test_suggest_ignores_case_and_gives_the_known_spelling() -> None:
    assert suggest("TRUE", ["True", "False"]) == "did you mean `True`?"


def test_suggest_lists_what_there_is_but_not_without_end() -> None:
    assert suggest("q", ["a", "b"]) == "known here: a, b"
    assert suggest("q", [f"x{i}" for i in range(25)]).endswith("x18, x19 and 5 more")


def test_shortened_keeps_short_words_and_cuts_long_ones() -> None:
    assert shortened("a" * 60) == "a" * 60
    assert shortened("a" * 61) == "a" * 58 + ".."


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
