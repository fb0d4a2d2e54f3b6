"""What may stand for a side in Python and in a file, and what is said where something else does."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.errors import InputError, UserCodeError
from regcheck.report.terminal.details import report_text
from regcheck.user_code.problem_api import UserProblem
from regcheck.user_code.updates import EXAMPLES
from tests.conftest import Spec

RANDOM = np.random.default_rng(4)
BASE: Spec = {
    "data": {"X": RANDOM.normal(size=(9, 3)).tolist(), "y": RANDOM.normal(size=9).tolist()},
    "model": "linear",
    "init": {"constant": 0.5},
    "lr": 0.05,
    "epochs": 3,
    "batch_size": 4,
}
FUNCTIONS = {"framework": "build", "scratch": "train"}


def example(side: str) -> Any:
    """Make the function that messages show."""
    names: dict[str, Any] = {"torch": torch}
    exec(textwrap.dedent(EXAMPLES[side]), names)
    return names[FUNCTIONS[side]]


class Builder:
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, problem: UserProblem) -> Any:
        model, loss, optimizer = example("framework")(problem)
        for group in optimizer.param_groups:
            group["lr"] *= self.factor
        return model, loss, optimizer


class Trainer:
    def __call__(self, problem: UserProblem) -> Iterator[Spec]:
        yield from example("scratch")(problem)


class Iterates:
    """An iterator over the example's steps, made of the problem itself."""

    def __init__(self, problem: UserProblem) -> None:
        self.steps = example("scratch")(problem)

    def __iter__(self) -> Iterates:
        return self

    def __next__(self) -> Spec:
        step: Spec = next(self.steps)
        return step


class Needs(Builder):
    def __init__(self, factor: float) -> None:
        super().__init__(factor)


class Nothing:
    """Has nothing that can be called."""


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", EXAMPLES)
def test_function_that_messages_show_is_right(side: str) -> None:
    assert check(BASE, **{side: example(side)}).verdict == "equivalent"
    assert 3 <= len(EXAMPLES[side].strip().splitlines()) <= 8


def test_both_functions_agree_without_a_model_of_the_specs() -> None:
    spec = {key: value for key, value in BASE.items() if key not in ("model", "init")}
    sides = {side: example(side) for side in EXAMPLES}
    report = check(spec, **sides)
    assert report.verdict == "equivalent"


@pytest.mark.parametrize("code", [Builder, Builder(), Needs(1.0), Builder().__call__])
def test_class_or_object_that_is_called_stands_for_the_framework(code: Any) -> None:
    report = check(BASE, framework=code)
    assert report.verdict == "equivalent"
    assert type(code).__qualname__ in report_text(report) or "Builder" in report_text(report)
    assert check(BASE | {"framework": code}).verdict == "equivalent"


def test_objects_own_settings_count() -> None:
    assert check(BASE, framework=Builder(2.0)).verdict == "diverged"


@pytest.mark.parametrize("code", [Trainer, Trainer(), Iterates])
def test_class_or_object_that_is_called_stands_for_the_scratch_side(code: Any) -> None:
    assert check(BASE, scratch=code).verdict == "equivalent"


@pytest.mark.parametrize("name", ["Builder", "builder"])
def test_class_or_object_in_a_file_is_called(name: str, tmp_path: Path) -> None:
    code = (
        "import torch\n"
        f"{textwrap.dedent(EXAMPLES['framework'])}\n"
        "class Builder:\n"
        "    def __call__(self, problem):\n"
        "        return build(problem)\n"
        "builder = Builder()\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    assert check(BASE, framework=f"{tmp_path}/mine.py:{name}").verdict == "equivalent"  # type: ignore[arg-type]


# --- what does not --------------------------------------------------------------------------------

MODEL = nn.Linear(3, 1)

REFUSED: dict[str, tuple[Any, str]] = {
    "a class of models": (nn.Linear, "is a class of models (torch.nn.Module); it must be"),
    "a model": (MODEL, "is a model (torch.nn.Module); it must be a function"),
    "the three": ((MODEL, nn.MSELoss(), None), "got a tuple; it must be a function"),
    "a list": ([MODEL], "got a list; it must be a function"),
    "a number": (3, "got an int; it must be a function"),
    "a class that needs arguments": (
        Needs,
        "cannot be instantiated without arguments: its parameters are (",
    ),
    "a class of nothing": (Nothing, "cannot be called with the problem alone"),
    "other arguments": (lambda model, X: None, "its parameters are (model, X) (missing"),
}


@pytest.mark.parametrize("side", EXAMPLES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_called_is_told_with_a_function_to_copy(name: str, side: str) -> None:
    code, words = REFUSED[name]
    with pytest.raises(UserCodeError) as refused:
        check(BASE, **{side: code})
    text = str(refused.value)
    assert text.startswith(side)
    assert words in text
    assert EXAMPLES[side] in text or name == "a class that needs arguments"


@pytest.mark.parametrize("made", [MODEL, None, (MODEL, nn.MSELoss()), (MODEL, nn.MSELoss(), 0.1)])
def test_function_that_returns_something_else_is_shown_one_that_does(made: Any) -> None:
    with pytest.raises(UserCodeError) as refused:
        check(BASE, framework=lambda problem: made)
    text = str(refused.value)
    assert "it must return (model, loss_function, optimizer), like" in text
    assert EXAMPLES["framework"] in text


@pytest.mark.parametrize("side", EXAMPLES)
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("mymodule.build", "write mymodule.py:build"),
        ("pack.mymodule:build", "write pack/mymodule.py:build"),
    ],
)
def test_name_in_a_module_is_told_as_the_name_in_a_file(side: str, name: str, written: str) -> None:
    with pytest.raises(InputError) as refused:
        check(BASE | {side: name})
    assert f"; for the function build of a module, {written}" in str(refused.value)


@pytest.mark.parametrize("name", ["my.py", "train", "my.py:3f"])
def test_other_words_are_no_name_in_a_module(name: str) -> None:
    with pytest.raises(InputError) as refused:
        check(BASE | {"scratch": name})
    assert "of a module" not in str(refused.value)
