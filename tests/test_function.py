"""A user's function: how it is named and imported, called, stepped and closed."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regcheck.errors import UserCodeError
from regcheck.user_code.function import UserFunction, imported
from regcheck.user_code.generator import ScratchSteps
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import ROOT
from tests.user_files import SHAPES, STEPS, TRAIN, begin, problem, run_all, run_file, write


def test_file_trains_as_the_same_lines_do_on_their_own(tmp_path: Path) -> None:
    lines: dict[str, Any] = {}
    exec(TRAIN, lines)
    expected = [
        (step["weight"].tolist(), step["bias"].tolist(), float(step["loss"]))
        for step in lines["train"](problem())
    ]
    found = [
        (step.parameters["weight"][0].tolist(), step.parameters["bias"].tolist(), step.loss)
        for step in run_file(tmp_path, TRAIN)
    ]
    assert found == expected
    assert found[0] != found[1]  # TRAIN changes its arrays in place


def test_call_hands_the_problem_in_and_the_result_out() -> None:
    assert UserFunction(lambda a, b=2: [a, b], "f").call(1) == [1, 2]
    assert UserFunction(int, "int").call(1.5) == 1


def test_reference_may_be_absolute(tmp_path: Path) -> None:
    write(tmp_path / "a" / "mine.py", TRAIN)
    with imported(f"{tmp_path}/a/mine.py:train", tmp_path / "b") as function:
        assert len(run_all(function)) == STEPS


FILES = {
    "mine.py": (
        "RATE = 0.5\nNOTHING = None\n"
        'if __name__ == "__main__":\n    def hidden(problem): pass\n' + TRAIN
    ),
    "notes.txt": TRAIN,
    "none.py": "import math\n",
    "syntax.py": "import math\ndef train(:\n",
    "fails.py": "import math\nmaht.sqrt(2)\n",
    "relative.py": "from .mine import train\n",
    "lacks.py": "import no_such_thing\n",
    "broken.py": "def f(:\n",
    "chain.py": "import broken\n",
    "leaves.py": "quit()\n",
    "zero.py": "x = 1\0\n",
}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mine.py", "must be a Python file and a function in it, like my_train.py:train"),
        ("mine.py:", "must be a Python file and a function in it"),
        ("mine.py:a b", "must be a Python file and a function in it"),
        ("mien.py:train", r"there is no file .*mien\.py\n  .*did you mean `mine\.py`"),
        ("nowhere/mine.py:train", "There is no folder .*nowhere; .*relative to the spec"),
        ("empty/mine.py:train", "has no Python file"),
        ("empty:train", "empty is a folder; name the Python file in it"),
        ("notes.txt:train", r"notes\.txt is not a Python file; its name must end in \.py"),
        ("mine.py:trian", "has no function `trian`; did you mean `train`"),
        ("mine.py:RATE", "`RATE` is not a function but a float"),
        ("mine.py:NOTHING", "`NOTHING` is not a function but None"),
        ("mine.py:hidden", "has no function `hidden`;(.|\n)*`if __name__ == .__main__.:` is not"),
        ("none.py:train", "has no function `train`; it defines no function"),
        ("syntax.py:train", r"syntax\.py:2:\d+: .*fix it there\n    def train\(:"),
        ("zero.py:train", r"zero\.py.*null bytes"),
        ("latin.py:train", r"latin\.py.*utf-8"),
        ("fails.py:train", r"at its import: raised NameError(.|\n)*fails\.py., line 2"),
        ("relative.py:train", "relative import(.|\n)*write `from helper import f`"),
        ("lacks.py:train", "No module named 'no_such_thing'(.|\n)*your file's folder"),
        ("chain.py:train", r"at its import: raised SyntaxError(.|\n)*broken\.py., line 1"),
        ("leaves.py:train", "at its import: tried to end the program(.|\n)*__main__"),
    ],
)
def test_reference_that_leads_nowhere_is_reported(
    tmp_path: Path, reference: str, words: str
) -> None:
    for name, source in FILES.items():
        write(tmp_path / name, source)
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserCodeError, match=words) as raised, imported(reference, tmp_path):
        raise AssertionError("imported")
    assert str(raised.value).startswith(f"{reference}: ")
    assert str(ROOT / "regcheck") not in str(raised.value)


def test_file_is_read_anew_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / "mine.py", f"import helper\ndef f(problem): return helper.HERE + {number}")
        write(tmp_path / "helper.py", f"HERE = {number}")
        with imported("mine.py:f", tmp_path) as function:
            assert function.call(None) == 2 * number


def test_file_written_a_moment_ago_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine.py", "import written_later\ndef train(problem): return 5")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("written_later") is None  # Python remembers the folder
    time_before = tmp_path.stat().st_mtime_ns
    write(tmp_path / "written_later.py", "")
    os.utime(tmp_path, ns=(time_before, time_before))
    with imported("mine.py:train", tmp_path) as function:
        assert function.call(None) == 5


@pytest.mark.parametrize(
    "name", ["random", "train", "numpy_train", "numpy", "torch", "profile", "this", "my-train"]
)
def test_file_may_be_named_like_a_module(tmp_path: Path, name: str) -> None:
    former = sys.modules.get(name)
    lines = "import random, cProfile\nimport numpy as np\nnp.random.default_rng(0).normal()\n"
    write(tmp_path / f"{name}.py", lines + "cProfile.Profile, random.random()\n" + TRAIN)
    with imported(f"{name}.py:train", tmp_path) as function:
        assert len(run_all(function)) == STEPS
    if name != "profile":  # the standard library's own, which cProfile needs
        assert sys.modules.get(name) is former
    assert not any(
        str(tmp_path) in str(getattr(module, "__file__", "")) for module in sys.modules.values()
    )


def test_library_code_without_a_frame_of_the_users_is_reported_in_its_own_lines() -> None:
    with pytest.raises(UserCodeError, match=r"raised statistics\.StatisticsError") as raised:
        UserFunction(statistics.mean, "mean").call([])
    assert "statistics.py" in str(raised.value)


@pytest.mark.parametrize(("epochs", "words"), [(1, "those of the one epoch"), (2, "over all 2 ep")])
def test_missing_steps_are_reported_with_their_epochs(epochs: int, words: str) -> None:
    given = replace(problem(), epochs=epochs)
    steps = ScratchSteps(UserFunction(lambda problem: iter(()), "f"), given, SHAPES, STEPS)
    with pytest.raises(UserCodeError, match=f"f: must yield 4 times, but (.|\n)*{words}"):
        steps.next()


def cleaning(yielded: object, done: list[str]) -> UserFunction:
    """Make a function that notes when it is closed."""

    def train(problem: UserProblem) -> Iterator[Any]:
        try:
            for _ in problem.batches:
                yield yielded
        finally:
            done.append("closed")

    return UserFunction(train, "train")


def test_close_runs_what_the_function_cleans_up_once() -> None:
    done: list[str] = []
    steps = begin(cleaning({"weight": [0, 0], "bias": 0}, done))
    steps.next()
    steps.close()
    steps.close()
    assert done == ["closed"]


def test_refused_function_is_closed_at_once() -> None:
    done: list[str] = []
    steps = begin(cleaning(1, done))
    with pytest.raises(UserCodeError, match="train: step 1 of 4: yielded an int"):
        steps.next()
    assert done == ["closed"]


@pytest.mark.parametrize("last", ["raise ValueError", "yield", "raise SystemExit", "while True: 0"])
def test_close_never_raises(tmp_path: Path, last: str) -> None:
    source = f"""
        def train(problem):
            try:
                yield {{"weight": [0, 0], "bias": 0}}
            finally:
                {last}
    """
    write(tmp_path / "mine.py", source)
    with imported("mine.py:train", tmp_path, 0.1) as function:
        steps = begin(function)
        steps.next()
        steps.close()
