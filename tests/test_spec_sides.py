"""Specs with a user's own code on a side, and with settings of torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from regcheck.errors import InputError
from regcheck.spec import from_mapping, read_spec
from regcheck.spec.schema import Spec
from regcheck.spec.sections.training import TorchSettings
from tests.test_spec import GOOD, complaints, read


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
MODELS = "one of linear, logistic, mlp, softmax"
FRAMEWORK = f"the built-in framework side needs {MODELS}; or name a function for `framework` too"


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        ("", MODELS),
        ("framework: {lr: 0.2}\n", MODELS),
        ("scratch: my.py:train\n", FRAMEWORK),
        ("scratch: my.py:train\nframework: {lr: 0.2}\n", FRAMEWORK),
        (
            "framework: my.py:build\n",
            f"the built-in scratch side needs {MODELS}; or give `scratch` too",
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
        "spec.yaml:3:7: loss: needs a `model`; leave it out where the framework side is your own"
    ]


@pytest.mark.parametrize("convention", ["doubled", "{loss_factor: 2}"])
def test_spec_convention_beside_scratch_code_is_refused(tmp_path: Path, convention: str) -> None:
    text = f"{GOOD}convention: {convention}\nscratch: my.py:train\n"
    (found,) = complaints(tmp_path, text)
    assert found.startswith("spec.yaml:5:10: scratch: convention is for the built-in scratch side")
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
