"""`run --write-fixed FILE`: the spec with the fix, beside the spec that diverged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from regcheck import cli

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


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


class Folder:
    """A folder with a user's code and specs."""

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
        """Run a spec and have it fix."""
        fixed = self.path / to
        return self.run(self.write(*lines), "--write-fixed", fixed), fixed

    def files(self) -> set[str]:
        return {
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


FIXES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "a built-in convention": (
        ["convention: doubled\n"],
        {"convention": "pytorch"},
        "the built-in scratch side follows torch",
    ),
    "a convention that reports another loss": (
        ["convention: divided-by-batch\n"],
        {"convention": "pytorch"},
        "the built-in scratch side follows torch",
    ),
    "a convention by its keys": (
        ["convention:\n  penalize_bias: false\n  loss_factor: 0.5\n"],
        {"convention": "pytorch"},
        "the built-in scratch side follows torch",
    ),
    "settings that match own code": (
        ["scratch: mine.py:divided\n"],
        {"framework": {"weight_decay": 0.125}},
        "torch is given what matches your code",
    ),
    "own code that reports another loss": (
        ["scratch: mine.py:with_penalty\n"],
        {"compare": ["parameters"]},
        "the losses are left out, since your code reports another one",
    ),
    "both": (
        ["scratch: mine.py:both\n"],
        {"framework": {"weight_decay": 0.125}, "compare": ["parameters"]},
        "torch is given what matches your code; the losses are left out",
    ),
    "the order of the rows": (
        ["scratch: mine.py:in_order\n", SHUFFLED],
        {"shuffle": False},
        "the rows keep their order, as your code has it",
    ),
    "a start": (
        ["scratch: mine.py:elsewhere\n"],
        {"init": {"weight": [0.75, -0.05], "bias": [0.2]}},
        "both sides start where your code does",
    ),
    "a tolerance that rounding exceeds": (
        ["scratch: mine.py:right\n", "tolerance: exact\n"],
        {"tolerance": {"rounding": 8}},
        "the sides differ by rounding alone, which the tolerance now allows",
    ),
}


def near(found: Any, expected: Any) -> bool:
    """Compare the values of a spec; a start is found to rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[k], expected[k]) for k in found)
    if isinstance(expected, list) and isinstance(expected[0], float):
        return bool(found == pytest.approx(expected, abs=1e-13))
    return bool(found == expected)


@pytest.mark.parametrize("name", FIXES)
def test_spec_with_the_fix_is_equivalent(name: str, folder: Folder) -> None:
    lines, changes, text = FIXES[name]
    done, fixed = folder.fix(*lines)
    assert (done.code, done.err) == (1, "")
    assert f"{fixed}: the spec with the fix ({text}" in done.out
    assert "run again: EQUIVALENT over" in done.out
    before = yaml.safe_load((folder.path / "spec.yaml").read_text(encoding="utf-8"))
    after = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    assert after.keys() == before.keys() | changes.keys()
    for key, value in after.items():
        assert near(value, changes.get(key, before.get(key))), key
    again = folder.run(fixed)
    assert (again.code, again.err) == (0, "")
    assert "EQUIVALENT" in again.out


def test_settings_for_torch_alone_are_replaced(folder: Folder) -> None:
    done, fixed = folder.fix("scratch: mine.py:divided\n", "framework: {weight_decay: 0.3}\n")
    assert done.code == 1
    after = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    assert after["framework"] == {"weight_decay": pytest.approx(0.125, rel=1e-9)}
    assert folder.run(fixed).code == 0


def test_original_stays_and_comments_are_kept(folder: Folder) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided  # our loop\n")
    original = (folder.path / "spec.yaml").read_text(encoding="utf-8")
    assert original == SPEC + "scratch: mine.py:divided  # our loop\n"
    head, _, rest = fixed.read_text(encoding="utf-8").partition("\n")
    assert head.startswith("# Written by `regcheck run --write-fixed` from ")
    assert head.endswith("spec.yaml: torch is given what matches your code.")
    assert rest == original + "framework: {weight_decay: 0.125}\n"


def test_value_is_replaced_where_it_stands_and_its_comment_stays(folder: Folder) -> None:
    _, fixed = folder.fix("convention: doubled  # as in the course\n", "# The end.\n")
    rest = fixed.read_text(encoding="utf-8").partition("\n")[2]
    assert rest == SPEC + "convention: pytorch  # as in the course\n# The end.\n"


def test_expectation_becomes_that_the_sides_agree(folder: Folder) -> None:
    expect = "expect: {verdict: diverged, cause: penalty-divided-by-batch}\n"
    done, fixed = folder.fix("scratch: mine.py:divided\n", expect)
    assert done.code == 0  # diverged, as expected
    assert yaml.safe_load(fixed.read_text(encoding="utf-8"))["expect"] == {"verdict": "equivalent"}
    again = folder.run(fixed)
    assert again.code == 0
    assert "As expected" in again.out


NOT_WRITTEN: dict[str, tuple[list[str], int, str]] = {
    "an equivalent run": (["scratch: mine.py:right\n"], 0, "the sides agree"),
    "an equivalent built-in run": ([], 0, "the sides agree"),
    "code that no settings match": (
        ["scratch: mine.py:late\n", MOMENTUM],
        1,
        "decay-after-momentum: no settings of torch's match your code: change the code",
    ),
    "a penalty that torch cannot have": (
        ["scratch: mine.py:uphill\n"],
        1,
        "penalty-sign-flipped: no settings of torch's match your code: change the code",
    ),
    "rows that no spec takes": (
        ["scratch: mine.py:all_rows\n", SHUFFLED],
        1,
        "row-order: nothing in the spec fixes it: change the code",
    ),
    "a loss that is not explained": (
        ["scratch: mine.py:doubled_and_odd\n"],
        1,
        "penalty-doubled: the fix is in the scratch code; why the reported losses differ",
    ),
    "code that is not explained": (["scratch: mine.py:nonsense\n"], 1, "no cause was found"),
}


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_nothing_is_written_where_no_fix_is_known(name: str, folder: Folder) -> None:
    lines, code, text = NOT_WRITTEN[name]
    done, fixed = folder.fix(*lines)
    assert (done.code, done.err) == (code, "")
    assert f"{fixed}: not written: {text}" in done.out
    assert folder.files() == {"mine.py", "spec.yaml"}


@pytest.mark.parametrize("to", ["deep/er/fixed.yaml", "../beside/fixed.yaml"])
def test_paths_are_relative_to_the_new_file(to: str, folder: Folder) -> None:
    (folder.path / "deep" / "er").mkdir(parents=True)
    (folder.path / ".." / "beside").resolve().mkdir(exist_ok=True)
    rows = "x1,x2,y\n1,2,1\n3,-1,2\n-2,0.5,-1\n0.5,1.5,0.5\n"
    (folder.path / "rows.csv").write_text(rows, encoding="utf-8")
    spec = folder.path / "spec.yaml"
    spec.write_text(
        "data: {csv: rows.csv, target: y}\n"
        + SPEC.partition("y: [1.0, 2.0, -1.0, 0.5]\n")[2]
        + "scratch: mine.py:divided\n",
        encoding="utf-8",
    )
    fixed = folder.path / to
    assert folder.run(spec, "--write-fixed", fixed).code == 1
    content = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    for written, name in (
        (content["data"]["csv"], "rows.csv"),
        (content["scratch"].removesuffix(":divided"), "mine.py"),
    ):
        assert not Path(written).is_absolute()
        assert (fixed.parent / written).resolve() == (folder.path / name).resolve()
    assert content["data"]["target"] == "y"
    assert folder.run(fixed).code == 0


def test_absolute_paths_stay(folder: Folder) -> None:
    (folder.path / "deep").mkdir()
    code = f"{folder.path / 'mine.py'}:divided"
    _, fixed = folder.fix(f"scratch: {code}\n", to="deep/fixed.yaml")
    assert yaml.safe_load(fixed.read_text(encoding="utf-8"))["scratch"] == code
    assert folder.run(fixed).code == 0


def test_own_file_is_overwritten(folder: Folder) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided\n")
    first = fixed.read_text(encoding="utf-8")
    done, _ = folder.fix("convention: doubled\n")
    assert done.code == 1
    second = fixed.read_text(encoding="utf-8")
    assert first != second
    assert "convention: pytorch" in second
    assert folder.files() == {"mine.py", "spec.yaml", "fixed.yaml"}


@pytest.mark.parametrize("foreign", ["lr: 0.1\n", "# mine\n", "# Written by hand\n"])
def test_foreign_file_is_not_overwritten(foreign: str, folder: Folder) -> None:
    there = folder.path / "fixed.yaml"
    there.write_text(foreign, encoding="utf-8")
    done, _ = folder.fix("scratch: mine.py:divided\n")
    assert done.code == 2
    assert f"{there}: is there already; `--write-fixed` does not overwrite it" in done.err
    assert there.read_text(encoding="utf-8") == foreign


def test_spec_itself_is_not_overwritten(folder: Folder) -> None:
    done, spec = folder.fix("scratch: mine.py:divided\n", to="spec.yaml")
    assert done.code == 2
    assert spec.read_text(encoding="utf-8") == SPEC + "scratch: mine.py:divided\n"


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("nowhere/fixed.yaml", "cannot be written: No such file or directory"),
        ("mine.py/fixed.yaml", "cannot be written: Not a directory"),
        (".", "is no ordinary file"),
        ("pipe", "is no ordinary file"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_file_that_cannot_be_written_is_told_and_leaves_nothing(
    to: str, says: str, folder: Folder
) -> None:
    os.mkfifo(folder.path / "pipe")
    done, _ = folder.fix("scratch: mine.py:divided\n", to=to)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert folder.files() == {"mine.py", "spec.yaml"}


def test_failure_while_writing_leaves_nothing_half_written(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided\n")
    before = fixed.read_text(encoding="utf-8")

    def fail(path: Path, other: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", fail)
    done, _ = folder.fix("convention: doubled\n")
    assert done.code == 2
    assert f"{fixed}: cannot be written: Permission denied" in done.err
    assert fixed.read_text(encoding="utf-8") == before
    assert folder.files() == {"mine.py", "spec.yaml", "fixed.yaml"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_to_is_told(folder: Folder) -> None:
    closed = folder.path / "closed"
    closed.mkdir(mode=0o500)
    done, _ = folder.fix("scratch: mine.py:divided\n", to="closed/fixed.yaml")
    assert done.code == 2
    assert "cannot be written: Permission denied" in done.err
    assert not any(closed.iterdir())


def test_several_specs_are_refused(folder: Folder) -> None:
    one, two = folder.write(name="one.yaml"), folder.write(name="two.yaml")
    for specs, count in (([one, two], 2), ([folder.path], 2)):
        done = folder.run(*specs, "--write-fixed", folder.path / "fixed.yaml")
        assert (done.code, done.out) == (2, "")
        assert f"--write-fixed: takes one spec, got {count}" in done.err
    assert folder.files() == {"mine.py", "one.yaml", "two.yaml"}


def test_folder_of_one_spec_is_one_spec(folder: Folder) -> None:
    deep = folder.path / "deep"
    deep.mkdir()
    shutil.move(folder.write("convention: doubled\n"), deep)
    assert folder.run(deep, "--write-fixed", folder.path / "fixed.yaml").code == 1
    assert folder.run(folder.path / "fixed.yaml").code == 0


def test_spec_that_cannot_be_run_writes_nothing(folder: Folder) -> None:
    done, _ = folder.fix("scratch: mine.py:nobody\n")
    assert done.code == 2
    assert folder.files() == {"mine.py", "spec.yaml"}


@pytest.mark.parametrize("function", ["divided", "right", "nonsense"])
def test_standard_output_is_the_report_alone_with_json(function: str, folder: Folder) -> None:
    spec, fixed = folder.write(f"scratch: mine.py:{function}\n"), folder.path / "fixed.yaml"
    done = folder.run(spec, "--json", "--write-fixed", fixed)
    report = json.loads(done.out)
    assert done.code == (0 if function == "right" else 1)
    assert report["verdict"] == ("equivalent" if function == "right" else "diverged")
    assert fixed.exists() is (function == "divided")
    assert done.err.startswith(f"{fixed}: ")
    assert len(done.err.splitlines()) == 1
