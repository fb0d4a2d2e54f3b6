"""A folder with a user's code and specs, of which `run --write-fixed` writes others."""

from __future__ import annotations

from pathlib import Path

import pytest

from regcheck import cli
from tests.user_files import Done

SPEC = """\
# An experiment of ours.
data:  # four rows
  X: [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5]]
  y: [1.0, 2.0, -1.0, 0.5]
model: linear
init: {weight: [0.5, -0.3], bias: [0.1]}  # from the paper

# The rule.
lr: 0.1  # not 0.01
weight_decay: 0.5
epochs: 3
"""

CODE = """\
import numpy as np

def trained(problem, strength=lambda rows: 0.5, start=None, whole=False, in_order=False):
    w, b = problem.initial["weight"], problem.initial["bias"]
    if start:
        w, b = np.array(start[:2]), start[2]
    n = len(problem.y)
    for t, rows in enumerate(problem.batches):
        if whole:
            rows = np.arange(n)
        if in_order:
            rows = np.arange(n)[t % 2 * 2:][:2]
        X, y = problem.X[rows], problem.y[rows]
        r = X @ w + b - y
        before = w, b
        w = w - problem.lr * (2 * X.T @ r / len(y) + strength(len(y)) * w)
        b = b - problem.lr * (2 * r.mean() + strength(len(y)) * b)
        yield before, {"weight": w, "bias": b}, (r**2).mean()

def right(problem):
    for _, step, loss in trained(problem):
        yield {**step, "loss": loss}

def divided(problem):
    for _, step, loss in trained(problem, lambda rows: 0.5 / rows):
        yield {**step, "loss": loss}

def with_penalty(problem, strength=0.5):
    for (w, b), step, loss in trained(problem, lambda rows: strength):
        yield {**step, "loss": loss + strength / 2 * ((w**2).sum() + (b**2).sum())}

def both(problem):
    yield from with_penalty(problem, 0.125)

def elsewhere(problem):
    for _, step, _ in trained(problem, start=[0.75, -0.05, 0.2]):
        yield step

def in_order(problem):
    for _, step, _ in trained(problem, in_order=True):
        yield step

def all_rows(problem):
    for _, step, _ in trained(problem, whole=True):
        yield step

def uphill(problem):
    for _, step, _ in trained(problem, lambda rows: -0.5):
        yield step

def nonsense(problem):
    for k, (_, step, _) in enumerate(trained(problem)):
        yield {"weight": step["weight"] + 0.01 * k, "bias": step["bias"]}

def doubled_and_odd(problem):
    for k, (_, step, loss) in enumerate(trained(problem, lambda rows: 1.0)):
        yield {**step, "loss": loss + 0.01 * k * k}

def late(problem):
    w, b, v, c = problem.initial["weight"], problem.initial["bias"], 0, 0
    for rows in problem.batches:
        X, y = problem.X[rows], problem.y[rows]
        r = X @ w + b - y
        v, c = 0.9 * v + 2 * X.T @ r / len(y), 0.9 * c + 2 * r.mean()
        w, b = w - problem.lr * (v + 0.5 * w), b - problem.lr * (c + 0.5 * b)
        yield {"weight": w, "bias": b}
"""

SHUFFLED = "batch_size: 2\nshuffle: {seed: 3}\n"
MOMENTUM = "optimizer: {name: sgd, momentum: 0.9}\n"


class Folder:
    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys = path, capsys
        (path / "mine.py").write_text(CODE, encoding="utf-8")

    def write(self, *lines: str, name: str = "spec.yaml") -> Path:
        path = self.path / name
        path.write_text(SPEC + "".join(lines), encoding="utf-8")
        return path

    def run(self, *arguments: object) -> Done:
        code = cli.exit_code(["run", "--quiet", *map(str, arguments)])
        captured = self.capsys.readouterr()
        return Done(code, captured.out, captured.err)

    def fix(self, *lines: str, to: str = "fixed.yaml") -> tuple[Done, Path]:
        fixed = self.path / to
        return self.run(self.write(*lines), "--write-fixed", fixed), fixed

    def files(self) -> set[str]:
        return {
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.is_file()
        }
