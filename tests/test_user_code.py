from __future__ import annotations

import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.errors import RegcheckError, UserCodeError
from regcheck.problem.problem import build_problem
from regcheck.spec import from_mapping
from regcheck.user_code.alarm import Alarm, TimedOut
from regcheck.user_code.function import TIMEOUT, UserFunction, imported
from regcheck.user_code.generator import ScratchSteps
from regcheck.user_code.problem_api import UserProblem, user_problem
from regcheck.user_code.updates import Yielded
from tests.conftest import ROOT

STEPS = 4
SHAPES = {"weight": (1, 2), "bias": (1,)}

TRAIN = """
def train(problem):
    w, b = problem.initial["weight"], problem.initial["bias"]
    for rows in problem.batches:
        X, y = problem.X[rows], problem.y[rows]
        r = X @ w + b - y
        w -= problem.lr * X.T @ r / len(r)
        b -= problem.lr * r.mean()
        yield {"weight": w, "bias": b, "loss": (r**2).mean()}
"""


def problem() -> UserProblem:
    """Make a training of four steps: four rows of two features, in batches of 2, twice."""
    loaded = from_mapping(
        {
            "data": {"X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5]], "y": [1, 2, -1, 0.5]},
            "model": "linear",
            "lr": 0.1,
            "batch_size": 2,
            "epochs": 2,
        }
    )
    return user_problem(build_problem(loaded), loaded.spec, framework=False)


def write(path: Path, source: str) -> Path:
    """Write Python source to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def run_all(function: UserFunction, shapes: Any = None) -> list[Yielded]:
    """Take all steps of a function."""
    steps = ScratchSteps(function, problem(), shapes or SHAPES, STEPS)
    done = [steps.next() for _ in range(STEPS)]
    steps.finish()
    return done


def run_file(
    folder: Path, source: str, timeout: float = TIMEOUT, shapes: Any = None
) -> list[Yielded]:
    """Take all steps of a file's function."""
    write(folder / "mine.py", source)
    with imported("mine.py:train", folder, timeout) as function:
        return run_all(function, shapes)


def yielding(value: Any) -> list[Yielded]:
    """Take all steps of a function that always yields the same."""

    def train(problem: UserProblem) -> Iterator[Any]:
        for _ in problem.batches:
            yield value

    return run_all(UserFunction(train, "mine.py:train"))


# --- what works -----------------------------------------------------------------------------------


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


def test_function_from_python_is_driven_likewise() -> None:
    done = yielding({"weight": [1, 2], "bias": 3})
    assert len(done) == STEPS
    assert done[0].parameters["weight"].tolist() == [[1.0, 2.0]]
    assert done[0].parameters["bias"].tolist() == [3.0]
    assert (done[0].loss, done[0].gradient) == (None, None)


def test_call_hands_arguments_in_and_the_result_out() -> None:
    assert UserFunction(lambda a, b=2: [a, b], "f").call(1) == [1, 2]
    assert UserFunction(int, "int").call(1.5) == 1


@pytest.mark.parametrize(
    "weight",
    [
        [0.5, -2.0],
        (0.5, -2.0),
        [[0.5], [-2.0]],
        np.array([[0.5, -2.0]]),
        np.array([[0.5], [-2.0]], np.float32),
        np.array([0.5, -2.0], np.float16),
        np.array([0.5, -2.0], np.longdouble),
        np.ma.array([0.5, -2.0]),
        torch.tensor([[0.5, -2.0]]),
        torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True),
        torch.nn.Parameter(torch.tensor([[0.5], [-2.0]])),
    ],
    ids=repr,
)
def test_whatever_numpy_makes_numbers_of_is_taken(weight: Any) -> None:
    step = yielding({"weight": weight, "bias": np.float32(1)})[0]
    assert step.parameters["weight"].tolist() == [[0.5, -2.0]]
    assert step.parameters["bias"].tolist() == [1.0]
    assert {array.dtype for array in step.parameters.values()} == {np.dtype("float64")}
    assert step.fits_float32


@pytest.mark.parametrize("bias", [3, 3.0, [3], [[3.0]], np.array(3), torch.tensor(3.0)], ids=repr)
def test_bias_may_be_a_number(bias: Any) -> None:
    assert yielding({"weight": [0, 0], "bias": bias})[0].parameters["bias"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("loss", "read"),
    [(2, 2.0), (np.float32(0.5), 0.5), (np.array([[0.25]]), 0.25), (torch.tensor(1.5), 1.5)],
    ids=repr,
)
def test_loss_is_one_number_however_it_is_held(loss: Any, read: float) -> None:
    assert yielding({"weight": [0, 0], "bias": 0, "loss": loss})[0].loss == read


def test_loss_and_gradient_may_be_none() -> None:
    step = yielding({"weight": [0, 0], "bias": 0, "loss": None, "grad": None})[0]
    assert (step.loss, step.gradient) == (None, None)


def test_gradient_is_read_like_the_parameters() -> None:
    grad = {"weight": np.array([[1.0], [2.0]]), "bias": torch.tensor(3.0)}
    step = yielding({"weight": [0, 0], "bias": 0, "grad": grad})[0]
    assert step.gradient is not None
    assert step.gradient["weight"].tolist() == [[1.0, 2.0]]
    assert step.gradient["bias"].tolist() == [3.0]


def test_nan_and_infinity_are_outcomes() -> None:
    step = yielding({"weight": [np.nan, np.inf], "bias": -np.inf, "loss": np.nan})[0]
    assert np.isnan(step.parameters["weight"][0, 0])
    assert step.parameters["weight"][0, 1] == np.inf
    assert step.fits_float32
    assert step.loss != step.loss


@pytest.mark.parametrize(
    ("weight", "bias", "single"),
    [
        ([0.5, np.float32(0.1)], 0, True),
        ([0.5, 0.1], 0, False),
        ([0.5, 0.5], 0.1, False),
        ([1e300, 0.5], 0, False),
        ([np.nan, 0.1], 0, False),
        (np.array([2**24 + 1, 0]), 0, False),
        (np.array([2**24, 0]), 0, True),
    ],
)
def test_float32_is_recognised_by_its_numbers(weight: Any, bias: Any, single: bool) -> None:
    assert yielding({"weight": weight, "bias": bias})[0].fits_float32 is single


def test_one_array_used_again_and_again_does_no_harm() -> None:
    def train(problem: UserProblem) -> Iterator[Any]:
        state: dict[str, Any] = {"weight": np.zeros(2), "bias": np.zeros(1)}
        state["grad"] = {"weight": state["weight"], "bias": state["bias"]}
        for _ in problem.batches:
            state["weight"] += 1
            yield state

    done = run_all(UserFunction(train, "train"))
    for number, step in enumerate(done, start=1):
        assert step.parameters["weight"].tolist() == [[number, number]]
        assert step.gradient is not None
        assert step.gradient["weight"].tolist() == [[number, number]]


def test_matrices_are_taken_in_their_own_shape_or_flat() -> None:
    shapes = {"0.weight": (2, 3), "1.weight": (1, 2)}
    W = np.arange(6.0).reshape(2, 3)

    def steps_of(first: Any) -> Yielded:
        def train(problem: UserProblem) -> Iterator[Any]:
            for _ in problem.batches:
                yield {"0.weight": first, "1.weight": [1, 2]}

        return run_all(UserFunction(train, "train"), shapes)[0]

    assert np.array_equal(steps_of(W).parameters["0.weight"], W)
    assert np.array_equal(steps_of(W[None]).parameters["0.weight"], W)
    with pytest.raises(UserCodeError, match=r"shape \(3, 2\).*expected 6 numbers in shape \(2, 3"):
        steps_of(W.T)
    with pytest.raises(UserCodeError, match=r"Transpose it: yield `W\.T`"):
        steps_of(W.T)
    assert np.array_equal(steps_of(W.ravel()).parameters["0.weight"], W)  # row by row


# --- what is refused: where, what was found, what was expected, what to do ------------------------

LOOP = "def train(problem):\n    for rows in problem.batches:\n        "

BROKEN: dict[str, tuple[str, list[str]]] = {
    "raises": (
        LOOP + "yield {'weight': [0, 0], 'bias': 1 / 0}",
        [
            "mine.py:train: step 1 of 4: raised ZeroDivisionError: division by zero",
            "fix it there",
            'mine.py", line 3, in train',
            "1 / 0",
        ],
    ),
    "raises later": (
        (
            "def train(problem):\n    for k, rows in enumerate(problem.batches):\n"
            "        yield {'weight': [0, 0], 'bias': 1 / (2 - k)}"
        ),
        ["step 3 of 4: raised ZeroDivisionError"],
    ),
    "raises in numpy": (
        "import numpy as np\n" + LOOP + "np.ones(2) @ np.ones(3)\n        yield",
        ["raised ValueError: matmul", 'mine.py", line 4, in train', "np.ones(2) @ np.ones(3)"],
    ),
    "raises while handling": (
        LOOP + "try:\n            {}['rate']\n        except KeyError as e:\n"
        "            raise RuntimeError('no rate') from e\n        yield",
        ["raised RuntimeError: no rate", "KeyError: 'rate'", "direct cause", "line 4, in train"],
    ),
    "raises its own kind": (
        "class Stop(BaseException): pass\n" + LOOP + "raise Stop('here')\n        yield",
        ["step 1 of 4: raised mine.Stop: here", "raise Stop('here')"],
    ),
    "raises with no text that can be had": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit\n"
        + LOOP
        + "raise Mute\n        yield",
        ["raised mine.Mute: <exception str() failed>", 'mine.py", line 5, in train'],
    ),
    "raises control characters": (
        LOOP + "raise ValueError('a\\x1b[31mb')\n        yield",
        ["raised ValueError: a\\x1b[31mb"],
    ),
    "recursion": (
        "def deep(n): return deep(n + 1)\n" + LOOP + "deep(0)\n        yield",
        ["raised RecursionError", "Previous line repeated", "in deep", "in train"],
    ),
    "raises with notes and lines": (
        LOOP + "e = ValueError('one\\ntwo'); e.add_note('noted'); raise e\n        yield",
        ["mine.py:train: step 1 of 4: raised ValueError: one\n", "two\nnoted"],
    ),
    "raises from deep below": (
        "".join(f"def f{n}(): f{n + 1}()\n" for n in range(30)) + LOOP + "f0()\n        yield",
        ["raised NameError: name 'f30' is not defined", "in train", "in f0", "in f29"],
    ),
    "raises a long text": (
        LOOP + "raise ValueError('\\n'.join(map(str, range(10**5))) + 'x' * 10**6)\n        yield",
        ["raised ValueError: 0\n", "lines left out", "xxxx.."],
    ),
    "raises a group": (
        LOOP + "raise ExceptionGroup('both', [ValueError('a'), KeyError('b')])\n        yield",
        ["raised ExceptionGroup: both (2 sub-exceptions)", "ValueError: a", "KeyError: 'b'"],
    ),
    "memory": (LOOP + "raise MemoryError\n        yield", ["raised MemoryError"]),
    "GeneratorExit": (LOOP + "raise GeneratorExit\n        yield", ["raised GeneratorExit"]),
    "StopIteration": (
        LOOP + "raise StopIteration\n        yield",
        ["raised RuntimeError: generator raised StopIteration", "raise StopIteration"],
    ),
    "sys.exit": (
        "import sys\n" + LOOP + "sys.exit(0)\n        yield",
        ["step 1 of 4: tried to end the program", "leave it out", "sys.exit(0)"],
    ),
    "quit": (LOOP + "raise SystemExit\n        yield", ["tried to end the program"]),
    "os._exit": (
        "import os\n" + LOOP + "os._exit(0)\n        yield",
        ["step 1 of 4: tried to end the program", "line 4, in train", "SystemExit: os._exit(0)"],
    ),
    "input": (
        LOOP + "input('? ')\n        yield",
        ["raised EOFError", "leave out input()", "input('? ')"],
    ),
    "returns nothing": (
        "def train(problem): pass",
        ["mine.py:train: must be a generator, and returned None", "Put `yield {", "each update"],
    ),
    "returns a dict": (
        "def train(problem): return {'weight': 1}",
        ["must be a generator, and returned a dict", 'yield {"weight": .., "bias": ..}'],
    ),
    "returns a list": ("def train(problem): return []", ["generator, and returned a list"]),
    "is a class": (
        "class train:\n    def __init__(self, problem): pass",
        ["must be a generator, and returned a train"],
    ),
    "async generator": (
        "async def train(problem):\n    yield {}",
        ["is an async function", "write `def` for `async def`"],
    ),
    "coroutine": ("async def train(problem): pass", ["is an async function"]),
    "no parameter": (
        "def train(): yield {}",
        ["cannot be called with the problem alone: its parameters are ()", "def train(problem):"],
    ),
    "two parameters": (
        "def train(X, y): yield {}",
        ["its parameters are (X, y)", "missing a required argument: 'y'", "give further"],
    ),
    "yields a tuple": (
        LOOP + "yield [0, 0], 0",
        ["step 1 of 4: yielded a tuple, not a mapping", 'Write `yield {"weight": .., "bias": ..}`'],
    ),
    "yields nothing": (LOOP + "yield", ["step 1 of 4: yielded None, not a mapping"]),
    "yields an array": (
        "import numpy\n" + LOOP + "yield numpy.zeros(3)",
        ["yielded a ndarray, not a mapping"],
    ),
    "too few": (
        (
            "def train(problem):\n    for rows in problem.batches[:3]:\n"
            "        yield {'weight': [0, 0], 'bias': 0}"
        ),
        [
            "must yield 4 times, and ended after 3 of them",
            "one step for each of problem.batches, over all 2 epochs",
            "once after each update",
        ],
    ),
    "none at all": (
        "def train(problem):\n    if False: yield",
        ["must yield 4 times, and ended without a single `yield`"],
    ),
    "too many": (
        (
            "def train(problem):\n    for epoch in range(problem.epochs):\n"
            "        for rows in problem.batches:\n            yield {'weight': [0, 0], 'bias': 0}"
        ),
        [
            "must yield 4 times, and yields once more",
            "over all 2 epochs",
            "not before the first",
            "no loop over epochs",
        ],
    ),
    "raises after the last": (
        (
            "def train(problem):\n    for rows in problem.batches:\n"
            "        yield {'weight': [0, 0], 'bias': 0}\n    plot()"
        ),
        ["after its last step: raised NameError: name 'plot' is not defined", "line 4, in train"],
    ),
    "name missing": (
        LOOP + "yield {'weight': [0, 0]}",
        ["`bias` is missing", "It must hold `weight`, `bias`, besides `loss` and `grad`"],
    ),
    "name unknown": (
        LOOP + "yield {'wieght': [0, 0], 'bias': 0}",
        ["`weight` is missing", "there is no 'wieght' here (did you mean `weight`?)"],
    ),
    "name too much": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 'accuracy': 1}",
        ["there is no 'accuracy' here", "and nothing else"],
    ),
    "name is a number": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 1: 2}",
        ["there is no 1 here (a name is a string)"],
    ),
    "grad lacks a name": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 'grad': {'weight': [0, 0]}}",
        ["as `grad`, `bias` is missing", "It must hold `weight`, `bias`, and nothing else"],
    ),
    "grad is no mapping": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 'grad': [1, 2]}",
        ["`grad` is a list, not a mapping", '"grad": {"weight": .., "bias": ..}'],
    ),
    "grad has a wrong size": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 'grad': {'weight': 0, 'bias': 0}}",
        ["`grad of weight` has shape (), 1 numbers; expected 2 numbers"],
    ),
    "loss of each row": (
        LOOP + "yield {'weight': [0, 0], 'bias': 0, 'loss': [1, 2]}",
        ["`loss` has shape (2,), 2 numbers; expected one number", "Yield the mean"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_function_is_told(tmp_path: Path, name: str) -> None:
    source, expected = BROKEN[name]
    with pytest.raises(UserCodeError) as told:
        run_file(tmp_path, source)
    text = str(told.value)
    assert text.startswith("mine.py:train: ")
    for words in expected:
        assert words in text
    assert str(ROOT / "regcheck") not in text  # none of regcheck's own frames
    assert len(text.splitlines()) < 70
    assert text.isprintable() or set(text) - set("\n") <= {c for c in text if c.isprintable()}


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1, 2, 3], r"`weight` has shape \(3,\), 3 numbers; expected 2 numbers in shape \(1, 2\)"),
        (np.zeros((2, 2)), r"shape \(2, 2\), 4 numbers; .*\(2,\) and \(2, 1\) will do too"),
        (np.array([1j, 0]), "it holds complex numbers\n  Yield an array of real numbers"),
        (["a", "b"], "`weight` is a list, and it holds text, not numbers"),
        ([True, False], "it holds true and false, not numbers"),
        ([None, 1], "it holds objects, not numbers"),
        ({"a": 1}, "`weight` is a dict, and it holds objects"),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), "of dtype datetime64"),
        ([[1, 2], [3]], "is a list, of which NumPy makes no numbers"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "`weight` has masked entries\n  Fill them"),
        (torch.zeros(2, dtype=torch.bfloat16), "of which NumPy makes no numbers: .*BFloat16"),
    ],
    ids=str,
)
def test_value_that_is_no_tensor_is_refused(weight: Any, words: str) -> None:
    with pytest.raises(UserCodeError, match=words) as told:
        yielding({"weight": weight, "bias": 0})
    assert str(told.value).startswith("mine.py:train: step 1 of 4: ")


def test_what_python_runs_to_read_a_value_is_guarded_too() -> None:
    class Odd:
        def __array__(self, *args: object, **keys: object) -> Any:
            raise LookupError("no array today")

    with pytest.raises(UserCodeError, match="raised LookupError: no array today") as told:
        yielding({"weight": Odd(), "bias": 0})
    assert "in __array__" in str(told.value)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mine.py", "must be a Python file and a function in it, like my_train.py:train"),
        ("mine.py:", "must be a Python file and a function in it"),
        ("mine.py:a b", "must be a Python file and a function in it"),
        ("mien.py:train", r"there is no file .*mien\.py\n  .*did you mean `mine\.py`"),
        ("nowhere/mine.py:train", "There is no folder .*nowhere; .*relative to the spec"),
        ("empty/mine.py:train", "holds no Python file"),
        ("empty:train", "empty is a folder; name the Python file in it"),
        ("notes.txt:train", r"notes\.txt is no Python file; its name must end in \.py"),
        ("mine.py:trian", "has no function `trian`; did you mean `train`"),
        ("mine.py:RATE", "`RATE` is no function but a float"),
        ("mine.py:NOTHING", "`NOTHING` is no function but None"),
        ("mine.py:hidden", "has no function `hidden`;(.|\n)*`if __name__ == .__main__.:` is not"),
        ("none.py:train", "has no function `train`; it defines no function"),
        ("syntax.py:train", r"syntax\.py:2:\d+: .*fix it there\n    def train\(:"),
        ("zero.py:train", r"zero\.py.*null bytes"),
        ("latin.py:train", r"latin\.py.*utf-8"),
        ("fails.py:train", r"at its import: raised NameError(.|\n)*fails\.py., line 2"),
        ("relative.py:train", "relative import(.|\n)*write `from helper import f`"),
        ("lacks.py:train", "No module named 'no_such_thing'(.|\n)*beside your file"),
        ("chain.py:train", r"at its import: raised SyntaxError(.|\n)*broken\.py., line 1"),
        ("leaves.py:train", "at its import: tried to end the program(.|\n)*__main__"),
    ],
)
def test_reference_that_leads_nowhere_is_told(tmp_path: Path, reference: str, words: str) -> None:
    hidden = 'if __name__ == "__main__":\n    def hidden(problem): pass\n'
    write(tmp_path / "mine.py", "RATE = 0.5\nNOTHING = None\n" + hidden + TRAIN)
    write(tmp_path / "notes.txt", TRAIN)
    write(tmp_path / "none.py", "import math\n")
    write(tmp_path / "syntax.py", "import math\ndef train(:\n")
    (tmp_path / "zero.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    write(tmp_path / "fails.py", "import math\nmaht.sqrt(2)\n")
    write(tmp_path / "relative.py", "from .mine import train\n")
    write(tmp_path / "lacks.py", "import no_such_thing\n")
    write(tmp_path / "broken.py", "def f(:\n")
    write(tmp_path / "chain.py", "import broken\n")
    write(tmp_path / "leaves.py", "quit()\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserCodeError, match=words) as told, imported(reference, tmp_path):
        raise AssertionError("imported")
    assert str(told.value).startswith(f"{reference}: ")
    assert str(ROOT / "regcheck") not in str(told.value)


def test_error_is_one_that_the_command_line_tells() -> None:
    assert issubclass(UserCodeError, RegcheckError)


def test_call_with_arguments_that_do_not_fit_is_told() -> None:
    with pytest.raises(UserCodeError) as told:
        UserFunction(lambda: 0, "loss").call(1)
    expected = "loss: cannot be called with the problem alone: its parameters are () (too many"
    assert str(told.value).startswith(expected)


def test_library_code_without_a_frame_of_the_users_is_told_in_its_own_lines() -> None:
    with pytest.raises(UserCodeError, match=r"raised statistics\.StatisticsError") as told:
        UserFunction(statistics.mean, "mean").call([])
    assert "statistics.py" in str(told.value)


def test_interruption_by_the_user_is_no_error_of_the_code() -> None:
    def train(problem: UserProblem) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run_all(UserFunction(train, "train"))


# --- ending early ---------------------------------------------------------------------------------


def test_close_runs_what_the_function_cleans_up_once() -> None:
    done = []

    def train(problem: UserProblem) -> Iterator[Any]:
        try:
            for _ in problem.batches:
                yield {"weight": [0, 0], "bias": 0}
        finally:
            done.append("closed")

    steps = ScratchSteps(UserFunction(train, "train"), problem(), SHAPES, STEPS)
    steps.next()
    steps.close()
    steps.close()
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
    with imported("mine.py:train", tmp_path, 0.3) as function:
        steps = ScratchSteps(function, problem(), SHAPES, STEPS)
        steps.next()
        steps.close()


def test_refused_function_is_closed_at_once() -> None:
    done = []

    def train(problem: UserProblem) -> Iterator[Any]:
        try:
            yield 1
        finally:
            done.append("closed")

    steps = ScratchSteps(UserFunction(train, "train"), problem(), SHAPES, STEPS)
    with pytest.raises(UserCodeError, match="yielded an int"):
        steps.next()
    assert done == ["closed"]


# --- leaving no traces ----------------------------------------------------------------------------


def state() -> dict[str, Any]:
    """Note all that must be as before."""
    importlib.invalidate_caches()  # it drops what is stale from the importers
    return {
        "path": list(sys.path),
        "modules": dict(sys.modules),
        "argv": list(sys.argv),
        "folder": Path.cwd(),
        "environ": dict(os.environ),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "errstate": np.geterr(),
        "printing": np.get_printoptions(),
        "bytecode": sys.dont_write_bytecode,
        "streams": (sys.stdout, sys.stderr, sys.stdin, sys.__stdout__),
        "exit": os._exit,
        "alarm": signal.getsignal(signal.SIGALRM),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "importers": set(sys.path_importer_cache),
    }


MESSY = """
import os, signal, sys, warnings
import numpy as np
import torch
import early

def mess(mark):
    os.environ["REGCHECK_TEST"] = mark
    os.environ.pop("REGCHECK_KEPT", None)
    os.chdir(os.path.dirname(__file__))
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "more"))
    sys.argv.append(mark)
    warnings.simplefilter("ignore")
    warnings.showwarning = print
    np.seterr(all="raise")
    np.set_printoptions(precision=2)
    sys.stdout = sys.stderr = sys.stdin = None
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)

mess("import")

def train(problem):
    mess("step")
    import late
    import further.deep
    for rows in problem.batches:
        yield {"weight": [early.ONE, late.TWO], "bias": further.deep.THREE}
"""


def test_everything_is_as_before_between_calls_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGCHECK_KEPT", "kept")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(tmp_path / "mine.py", MESSY)
    write(tmp_path / "early.py", "ONE = 1")
    write(tmp_path / "late.py", "TWO = 2")
    write(tmp_path / "more" / "further" / "deep.py", "THREE = 3")
    before = state()
    between = {"environ", "importers"}  # these once the code is done with
    with imported("mine.py:train", tmp_path) as function:
        assert no(state(), between) == no(before, between)
        steps = ScratchSteps(function, problem(), SHAPES, STEPS)
        done = steps.next()
        assert no(state(), between) == no(before, between)
        steps.close()
    assert done.parameters["weight"].tolist() == [[1.0, 2.0]]
    assert done.parameters["bias"].tolist() == [3.0]
    assert state() == before
    assert not list(tmp_path.rglob("__pycache__"))


def no(noted: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Leave some of what was noted out."""
    return {name: value for name, value in noted.items() if name not in names}


def test_everything_is_as_before_where_the_import_fails(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", MESSY + "\n1 / 0\n")
    write(tmp_path / "early.py", "ONE = 1")
    before = state()
    with pytest.raises(UserCodeError, match="ZeroDivisionError"), imported("mine.py:f", tmp_path):
        raise AssertionError("imported")
    assert state() == before


def test_code_finds_its_own_changes_again_at_its_next_call(tmp_path: Path) -> None:
    source = """
        import os, sys, warnings
        import numpy as np
        import torch
        os.chdir(os.path.dirname(__file__))
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("ignore")

        def train(problem):
            with np.errstate(all="raise"), torch.no_grad():
                for rows in problem.batches:
                    same = [
                        os.getcwd() == os.path.dirname(__file__),
                        torch.get_default_dtype() == torch.float64,
                        not torch.is_grad_enabled(),
                        np.geterr()["over"] == "raise",
                        warnings.filters[0][0] == "ignore",
                        sys.argv == [__file__],
                        __name__ == "mine",
                        sys.modules["mine"].__dict__ is globals(),
                    ]
                    yield {"weight": [0, 0], "bias": 0, "loss": sum(same) / len(same)}
    """
    assert [step.loss for step in run_file(tmp_path, source)] == [1.0] * STEPS


def test_code_runs_with_numpys_own_settings_whatever_regchecks_are(tmp_path: Path) -> None:
    source = """
        import numpy as np
        def train(problem):
            for rows in problem.batches:
                yield {"weight": [0, 0], "bias": 0, "loss": np.geterr()["over"] == "warn" and 1}
    """
    with np.errstate(all="ignore"):
        assert run_file(tmp_path, source)[0].loss == 1.0


def test_two_folders_modules_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    source = """
        import helper
        def train(problem):
            import later
            for rows in problem.batches:
                import latest
                yield {"weight": [helper.HERE, later.HERE], "bias": latest.HERE}
    """
    for number in (1, 2):
        folder = tmp_path / str(number)
        write(folder / "mine.py", source)
        for name in ("helper", "later", "latest"):
            write(folder / f"{name}.py", f"HERE = {number}")
    with (
        imported("1/mine.py:train", tmp_path) as first,
        imported("2/mine.py:train", tmp_path) as second,
    ):
        both = [ScratchSteps(one, problem(), SHAPES, STEPS) for one in (first, second)]
        for _ in range(STEPS):
            for number, steps in enumerate(both, start=1):
                step = steps.next()
                assert step.parameters["weight"].tolist() == [[number, number]]
                assert step.parameters["bias"].tolist() == [number]
    for number in (2, 1):  # and one after the other
        with imported(f"{number}/mine.py:train", tmp_path) as function:
            assert run_all(function)[0].parameters["bias"].tolist() == [number]


def test_callers_module_of_the_same_name_makes_room_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "host" / "helper.py", "HERE = 'host'")
    write(tmp_path / "spec" / "helper.py", "HERE = 7")
    source = """
        def train(problem):
            import helper
            for rows in problem.batches:
                yield {"weight": [0, 0], "bias": helper.HERE}
    """
    monkeypatch.syspath_prepend(str(tmp_path / "host"))
    helper = __import__("helper")
    try:
        done = run_file(tmp_path / "spec", source)
        assert done[0].parameters["bias"].tolist() == [7.0]
        assert sys.modules["helper"] is helper
    finally:
        del sys.modules["helper"]


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


def test_file_is_read_anew_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        write(
            tmp_path / "mine.py",
            f"import helper\ndef train(problem): return helper.HERE + {number}",
        )
        write(tmp_path / "helper.py", f"HERE = {number}")
        with imported("mine.py:train", tmp_path) as function:
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


def test_reference_may_be_absolute(tmp_path: Path) -> None:
    write(tmp_path / "a" / "mine.py", TRAIN)
    with imported(f"{tmp_path}/a/mine.py:train", tmp_path / "b") as function:
        assert len(run_all(function)) == STEPS


# --- printing, in a process of its own: its standard output is file descriptor 1 ------------------

DRIVER = """
import json, sys
from pathlib import Path
from regcheck.errors import UserCodeError
from regcheck.user_code.function import imported
from regcheck.user_code.generator import ScratchSteps
from tests.test_user_code import SHAPES, STEPS, problem

sys.stdout.write("begin,")
try:
    with imported("mine.py:train", Path(sys.argv[1]), float(sys.argv[2])) as function:
        steps = ScratchSteps(function, problem(), SHAPES, STEPS)
        for _ in range(STEPS):
            steps.next()
            sys.stdout.write("step,")
        steps.finish()
except UserCodeError as error:
    sys.stderr.write(str(error))
    sys.exit(2)
sys.stdout.write("end")
"""


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run_apart(
    folder: Path, source: str, timeout: float = TIMEOUT, stdin: str = "typed\n"
) -> subprocess.CompletedProcess[str]:
    """Take all steps of a file's function in a process of its own."""
    write(folder / "mine.py", source)
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), str(timeout)],
        cwd=ROOT,
        env=BUFFERED,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_printing_in_every_way_goes_to_standard_error(tmp_path: Path) -> None:
    source = """
        import ctypes, os, subprocess, sys
        print("import")
        held = sys.stdout

        def train(problem):
            for rows in problem.batches:
                print("print")
                sys.__stdout__.write("dunder ")
                held.write("held ")
                sys.stdout.buffer.write(b"bytes ")
                os.write(1, b"descriptor ")
                subprocess.run(["echo", "child"], check=True)
                os.system("echo shell")
                ctypes.CDLL(None).printf(b"printf ")
                yield {"weight": [0, 0], "bias": 0}
            print("rest")
    """
    done = run_apart(tmp_path, source)
    assert done.stdout == "begin,step,step,step,step,end", done.stderr
    words = ("print", "dunder", "held", "bytes", "descriptor", "child", "shell", "printf")
    assert [done.stderr.split().count(word) for word in words] == [STEPS] * len(words)
    assert done.stderr.split().count("import") == done.stderr.split().count("rest") == 1


def test_streams_that_the_code_wraps_and_closes_stay_open(tmp_path: Path) -> None:
    source = """
        import io, sys
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding="utf-8")

        def train(problem):
            for rows in problem.batches:
                print("caf\u00e9", flush=True)
                yield {"weight": [0, 0], "bias": 0}
            sys.stdout.close()
            sys.__stdout__.close()
            sys.stdin.close()
    """
    done = run_apart(tmp_path, source)
    assert done.stdout == "begin,step,step,step,step,end", done.stderr
    assert done.stderr.count("café") == STEPS


def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    source = """
        import os
        print("import")
        def train(problem):
            for rows in problem.batches:
                print("step")
                os.write(1, b"descriptor")
                yield {"weight": [0, 0], "bias": 0}
    """
    write(tmp_path / "mine.py", source)
    command = [sys.executable, "-c", DRIVER, str(tmp_path), "20"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        cwd=ROOT,
        env=BUFFERED,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "begin,step,step,step,step,end")


def test_file_named_like_a_module_not_yet_loaded_is_no_problem(tmp_path: Path) -> None:
    write(tmp_path / "statistics.py", "import fractions, statistics\nstatistics.mean\n" + TRAIN)
    unload = "sys.modules.pop('statistics')\nsys.stdout.write(\"begin"
    script = DRIVER.replace("mine.py", "statistics.py").replace('sys.stdout.write("begin', unload)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "20"],
        cwd=ROOT,
        env=BUFFERED,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "begin,step,step,step,step,end", done.stderr


def test_nothing_can_be_read(tmp_path: Path) -> None:
    source = """
        import subprocess, sys
        def train(problem):
            read = subprocess.run("cat", capture_output=True).stdout + sys.stdin.buffer.read()
            for rows in problem.batches:
                yield {"weight": [0, 0], "bias": len(read), "loss": 1 / (not read)}
    """
    done = run_apart(tmp_path, source)
    assert (done.returncode, done.stdout[-3:]) == (0, "end"), done.stderr


def test_warning_is_printed_once(tmp_path: Path) -> None:
    source = """
        import numpy as np
        def train(problem):
            for rows in problem.batches:
                big = np.array([1e308]) * 10
                yield {"weight": [0, 0], "bias": big}
    """
    done = run_apart(tmp_path, source)
    assert done.stdout.endswith("end")
    assert done.stderr.count("RuntimeWarning: overflow") == 1
    assert "mine.py:5" in done.stderr


def test_torch_first_loaded_by_the_code_keeps_its_own_modes_outside(tmp_path: Path) -> None:
    source = """
        import sys
        assert "torch" not in sys.modules
        import torch
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        def train(problem): return torch.get_default_dtype(), torch.is_grad_enabled()
    """
    write(tmp_path / "mine.py", source)
    script = (
        "import sys; from pathlib import Path; from regcheck.user_code.function import imported\n"
        "with imported('mine.py:train', Path(sys.argv[1])) as function:\n"
        "    torch = sys.modules['torch']\n"
        "    print(torch.get_default_dtype(), torch.is_grad_enabled(), *function.call(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=BUFFERED,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["torch.float32", "True", "torch.float64", "False"], done.stderr


def test_forked_process_ends_and_never_reports(tmp_path: Path) -> None:
    source = """
        import os
        def train(problem):
            for k, rows in enumerate(problem.batches):
                if k == 1:
                    child = os.fork()
                    if child:
                        os.waitpid(child, 0)
                if k == 2:
                    child = os.fork()
                    if not child:
                        os._exit(3)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
                yield {"weight": [0, 0], "bias": 0}
    """
    done = run_apart(tmp_path, source)
    assert done.stdout == "begin,step,step,step,step,end", done.stderr


# --- taking too long ------------------------------------------------------------------------------

ENDLESS = {
    "busy": "while True:\n            pass",
    "sleep": "time.sleep(1e6)",
    "swallowing Exception": "while True:\n            try: time.sleep(9)\n"
    "            except Exception: pass",
    "swallowing once": "try: time.sleep(9)\n        except BaseException: pass\n"
    "        while True: pass",
    "going on": "try: time.sleep(9)\n        except BaseException: pass",
    "going on rightly": "try: time.sleep(9)\n        except BaseException: pass\n"
    "        yield {'weight': [0, 0], 'bias': 0}",
    "raising something else": "try: time.sleep(9)\n        except BaseException: raise ValueError",
    "waiting for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waiting for a child": "import subprocess; subprocess.run(['sleep', '99'])",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_step_is_ended(tmp_path: Path, name: str) -> None:
    source = "import threading, time\n" + LOOP + ENDLESS[name] + "\n        yield"
    before = time.monotonic()
    with pytest.raises(UserCodeError) as told:
        run_file(tmp_path, source, timeout=0.3)
    assert 0.3 <= time.monotonic() - before < 3
    text = str(told.value)
    assert text.startswith("mine.py:train: step 1 of 4: took longer than 0.3 seconds")
    assert "--timeout SECONDS" in text
    assert "timeout=" in text
    assert f'{tmp_path}/mine.py", line ' in text
    assert "in train" in text
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_endless_import_is_ended(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "import math\n\nwhile True:\n    math.sqrt(2)\n")
    with (
        pytest.raises(UserCodeError, match=r"at its import: took longer than 0\.3 sec") as told,
        imported("mine.py:train", tmp_path, 0.3),
    ):
        raise AssertionError("imported")
    assert 'mine.py", line ' in str(told.value)


def test_each_step_has_its_own_time(tmp_path: Path) -> None:
    source = "import time\n" + LOOP + "time.sleep(0.2)\n        yield {'weight': [0, 0], 'bias': 0}"
    assert len(run_file(tmp_path, source, timeout=0.5)) == STEPS


def test_code_that_catches_everything_is_ended_with_regcheck(tmp_path: Path) -> None:
    source = """
        def train(problem):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
            yield
    """
    done = run_apart(tmp_path, source, timeout=0.3)
    assert done.returncode == 2
    assert done.stdout == "begin,"
    assert "mine.py:train: step 1 of 4: took longer than 0.3 seconds" in done.stderr
    assert 'mine.py", line ' in done.stderr
    assert "It catches every exception" in done.stderr


def test_thread_that_nothing_interrupts_is_ended_with_regcheck() -> None:
    script = (
        "import threading, time; from regcheck.user_code.function import UserFunction\n"
        "function = UserFunction(time.sleep, 'mine.py:train', 0.3)\n"
        "threading.Thread(target=function.call, args=[1e6]).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mine.py:train: took longer than 0.3 seconds")


def test_callers_timer_and_handler_come_back() -> None:
    rung: list[int] = []

    def ring(number: int, frame: object) -> None:
        rung.append(number)

    former = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert UserFunction(time.sleep, "sleep").call(0.1) is None
        delay, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < delay <= 0.21
        assert signal.getsignal(signal.SIGALRM) is ring
        assert UserFunction(time.sleep, "sleep").call(0.3) is None
        time.sleep(0.05)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_alarm_that_rings_after_the_call_raises_nothing() -> None:
    alarm = Alarm(1.0, lambda: None)
    alarm.running = True
    with pytest.raises(TimedOut):
        alarm.ring(signal.SIGALRM, sys._getframe())
    alarm.running, alarm.expired = False, None
    alarm.ring(signal.SIGALRM, sys._getframe())
    assert alarm.expired is None


def in_thread(work: Callable[[], Any]) -> Any:
    """Run work in a second thread, and give its result or what it raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return results[0]


def test_endless_step_is_ended_in_another_thread(tmp_path: Path) -> None:
    source = LOOP + "while True:\n            pass\n        yield"
    error = in_thread(lambda: run_file(tmp_path, source, timeout=0.3))
    assert isinstance(error, UserCodeError)
    assert "step 1 of 4: took longer than 0.3 seconds" in str(error)
    assert 'mine.py", line ' in str(error)


def test_training_works_in_another_thread(tmp_path: Path) -> None:
    assert len(in_thread(lambda: run_file(tmp_path, TRAIN))) == STEPS


def test_function_may_move_between_threads() -> None:
    function = UserFunction(lambda problem: threading.get_ident(), "ident", 0.5)
    idents = [function.call(0), in_thread(lambda: function.call(0)), function.call(0)]
    assert idents[0] == idents[2] == threading.get_ident() != idents[1]


def test_step_is_cheap_to_guard() -> None:
    function = UserFunction(int, "int")
    rounds = []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(100):
            function.guard.run("", int)
        rounds.append((time.perf_counter() - begin) / 100)
    assert min(rounds) < 1e-4  # 15 µs where nothing else runs
