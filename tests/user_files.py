"""What the tests of users' functions share. It does not import torch: a test wants it unloaded."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from regcheck import cli
from regcheck.problem.problem import build_problem
from regcheck.spec import from_mapping
from regcheck.user_code.function import TIMEOUT, UserFunction, imported
from regcheck.user_code.generator import ScratchSteps
from regcheck.user_code.problem_api import UserProblem, user_problem
from regcheck.user_code.updates import Yielded

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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def stepping(act: str = "pass", head: str = "", bias: str = "0", last: str = "") -> str:
    """Write a function that does something in each step, and yields zeros or another bias."""
    return f"""{head}
def train(problem):
    for k, rows in enumerate(problem.batches):
        {act}
        yield {{"weight": [0, 0], "bias": {bias}}}
    {last}
"""


def begin(function: UserFunction) -> ScratchSteps:
    return ScratchSteps(function, problem(), SHAPES, STEPS)


def run_all(function: UserFunction) -> list[Yielded]:
    steps = begin(function)
    done = [steps.next() for _ in range(STEPS)]
    steps.finish()
    return done


def run_file(folder: Path, source: str, timeout: float = TIMEOUT) -> list[Yielded]:
    write(folder / "mine.py", source)
    with imported("mine.py:train", folder, timeout) as function:
        return run_all(function)


# Through the command line

SPEC = """\
data: {X: [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5]], y: [1.0, 2.0, -1.0, 0.5]}
model: linear
init: {weight: [0.5, -0.3], bias: [0.1]}
lr: 0.1
weight_decay: 0.5
batch_size: 2
epochs: 3
scratch: mine.py:train
"""
"""Six steps."""

HEAD = "import os, sys, time\nimport numpy as np\n\n"
RIGHT = (
    "w = w - problem.lr * (2 * X.T @ r / len(y) + 0.5 * w); "
    "b = b - problem.lr * (2 * r.mean() + 0.5 * b)"
)
YIELD = "yield {'weight': w, 'bias': b, 'loss': loss}"


def loop(act: str = "", update: str = RIGHT, give: str = YIELD, first: str = "") -> str:
    """Write a function that trains as torch does, but for what it does in each step t."""
    return f"""{HEAD}def train(problem):
    w, b = problem.initial["weight"], problem.initial["bias"]
    {first}
    for t, rows in enumerate(problem.batches, start=1):
        X, y = problem.X[rows], problem.y[rows]
        r = X @ w + b - y
        loss = (r**2).mean()
        {act}
        {update}
        {give}
"""


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def write_spec(folder: Path, source: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(source, encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def run_here(folder: Path, source: str, capsys: pytest.CaptureFixture[str]) -> Done:
    """Run the spec by the command line, in this process."""
    path = write_spec(folder, source)
    code = cli.exit_code(["run", "--json", "--timeout", "0.5", str(path)])
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)
