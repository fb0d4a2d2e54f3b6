"""Broken user functions through the command line: told where, what and what to do; never a hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from regcheck import cli
from tests.conftest import ROOT

PACKAGE = str(Path(cli.__file__).parent)

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


class Broken(NamedTuple):
    """A user's file, the exit code it leads to, and what is told on standard error."""

    source: str
    code: int
    told: list[str]


AT_1 = "mine.py:train: step 1 of 6: "
PATTERN = 'Write `yield {"weight": .., "bias": ..}`'
MEND = "Your own code raised it: fix it there."
SIX = "must yield 6 times"
ENDED = "tried to end the program, with sys.exit(), quit() or the like"
TOO_LONG = "took longer than 0.5 seconds, and was ended"
LONGER = "`--timeout SECONDS`"

REFUSED: dict[str, Broken] = {
    "no generator": Broken(
        HEAD + "def train(problem):\n    return {'weight': [0, 0], 'bias': 0}\n",
        2,
        ["mine.py:train: must be a generator, and returned a dict", "after each update"],
    ),
    "returns nothing": Broken(
        HEAD + "def train(problem):\n    w = problem.initial['weight']\n",
        2,
        ["must be a generator, and returned None", 'Put `yield {"weight": .., "bias": ..}`'],
    ),
    "too few yields": Broken(
        loop(give=f"if t > 4: return\n        {YIELD}"),
        2,
        [SIX, "ended after 4 of them", "once after each update"],
    ),
    "no yield at all": Broken(
        loop(give="if t == 0: yield"), 2, [SIX, "ended without a single `yield`"]
    ),
    "too many yields": Broken(
        loop(first="yield {'weight': w, 'bias': b}"),
        2,
        [SIX, "yields once more", "not before the first"],
    ),
    "a loop over epochs": Broken(
        HEAD
        + "def train(problem):\n    for epoch in range(problem.epochs):\n"
        + "        for rows in problem.batches:\n            yield {'weight': [0, 0], 'bias': 0}\n",
        2,
        [SIX, "over all 3 epochs", "no loop over epochs"],
    ),
    "endless yields": Broken(
        HEAD
        + "def train(problem):\n    while True:\n        yield {'weight': [0, 0], 'bias': 0}\n",
        2,
        [SIX, "yields once more"],
    ),
    "a wrong shape": Broken(
        loop(give="yield {'weight': np.append(w, b), 'bias': b}"),
        2,
        [AT_1 + "`weight` has shape (3,), 3 numbers; expected 2 numbers in shape (1, 2)"],
    ),
    "a matrix": Broken(
        loop(give="yield {'weight': np.outer(w, w), 'bias': b}"),
        2,
        [AT_1 + "`weight` has shape (2, 2), 4 numbers"],
    ),
    "wrong names": Broken(
        loop(give="yield {'w': w, 'b': b}"),
        2,
        [AT_1, "`weight` is missing", "`bias` is missing", "there is no 'w' here"],
    ),
    "a missing name": Broken(
        loop(give="yield {'weight': w}"), 2, [AT_1, "`bias` is missing", "It must hold `weight`"]
    ),
    "one name too many": Broken(
        loop(give="yield {'weight': w, 'bias': b, 'accuracy': 1.0}"),
        2,
        [AT_1, "there is no 'accuracy' here", "and nothing else"],
    ),
    "nothing yielded": Broken(
        loop(give="yield"), 2, [AT_1 + "yielded None, not a mapping", PATTERN]
    ),
    "a tuple": Broken(
        loop(give="yield w, b"), 2, [AT_1 + "yielded a tuple, not a mapping", PATTERN]
    ),
    "a string": Broken(
        loop(give="yield 'done'"), 2, [AT_1 + "yielded a str, not a mapping", PATTERN]
    ),
    "strings in it": Broken(
        loop(give="yield {'weight': ['0.1', '0.2'], 'bias': '0'}"),
        2,
        [AT_1 + "`weight` is a list, and it holds text, not numbers", "array of real numbers"],
    ),
    "nothing in it": Broken(
        loop(give="yield {'weight': None, 'bias': b}"), 2, [AT_1 + "`weight` is", "real numbers"]
    ),
    "ragged rows": Broken(
        loop(give="yield {'weight': [[1], [2, 3]], 'bias': b}"),
        2,
        [AT_1 + "`weight` is a list, of which NumPy makes no numbers"],
    ),
    "complex numbers": Broken(
        loop(give="yield {'weight': w + 0j, 'bias': b}"), 2, ["it holds complex numbers"]
    ),
    "a loss of each row": Broken(
        loop(give="yield {'weight': w, 'bias': b, 'loss': r**2}"),
        2,
        [AT_1 + "`loss` has shape (2,), 2 numbers; expected one number", "Yield the mean"],
    ),
    "raises": Broken(
        loop("if t == 3: {}['rate']"),
        2,
        ["mine.py:train: step 3 of 6: raised KeyError: 'rate'", MEND, "in train", "{}['rate']"],
    ),
    "raises after the last step": Broken(
        loop() + "    plot(w)\n",
        2,
        ["mine.py:train: after its last step: raised NameError: name 'plot' is not defined", MEND],
    ),
    "raises in NumPy": Broken(
        loop("X @ np.ones(3)"), 2, [AT_1 + "raised ValueError: matmul", "X @ np.ones(3)"]
    ),
    "raises in what it yields": Broken(
        "class Late(dict):\n    def __getitem__(self, key): raise OSError('gone')\n"
        + loop(give="yield Late(weight=w, bias=b)"),
        2,
        [AT_1 + "raised OSError: gone", "in __getitem__"],
    ),
    "raises at import": Broken(
        "import nothing_of_the_kind\n" + loop(),
        2,
        [
            "mine.py:train: at its import: raised ModuleNotFoundError",
            "Modules beside your file can be imported",
            'mine.py", line 1',
        ],
    ),
    "a syntax error": Broken(
        "def train(problem)\n    yield {}\n", 2, ["mine.py:1:19: expected ':'; fix it there"]
    ),
    "another name": Broken(
        loop().replace("def train", "def trian"),
        2,
        ["the file has no function `train`", "did you mean `trian`?"],
    ),
    "no parameter": Broken(
        "def train():\n    yield {}\n", 2, ["its parameters are ()", "def train(problem):"]
    ),
    "an async function": Broken(
        "async def train(problem):\n    yield {}\n", 2, ["write `def` for `async def`"]
    ),
    "sys.exit(0)": Broken(loop("sys.exit(0)"), 2, [AT_1 + ENDED, "leave it out", "in train"]),
    "sys.exit at import": Broken(
        loop() + "\nsys.exit(0)\n", 2, ["mine.py:train: at its import: " + ENDED, "__main__"]
    ),
    "recursion": Broken(
        "def deep(n): return deep(n + 1)\n" + loop("deep(0)"),
        2,
        [AT_1 + "raised RecursionError", "Previous line repeated", "in deep"],
    ),
    "more memory than there is": Broken(
        loop("np.zeros(10**15)"), 2, [AT_1, "MemoryError", "np.zeros(10**15)"]
    ),
    "waits for input": Broken(
        loop("input('? ')"), 2, [AT_1 + "raised EOFError", "leave out input()"]
    ),
    "changes the problem": Broken(
        loop("problem.X = 2 * problem.X"),
        2,
        [AT_1 + "raised dataclasses.FrozenInstanceError", "The problem's fields stay as they are"],
    ),
    "deletes from the problem": Broken(
        loop("del problem.y"),
        2,
        [AT_1, "cannot delete field 'y'", "stay as they are: leave that out"],
    ),
    "a batch too far": Broken(
        loop("problem.batches[6]"), 2, [AT_1, "there is no batch 6: there are 6, one for each step"]
    ),
    "yields in a finally, at its close": Broken(
        HEAD
        + "def train(problem):\n    try:\n        yield {'weight': [0, 0]}\n    finally:\n"
        + "        yield {'weight': [0, 0], 'bias': 0}\n",
        2,
        [AT_1, "`bias` is missing"],
    ),
    "yields in a finally, at its end": Broken(
        HEAD
        + "def train(problem):\n    try:\n        for rows in problem.batches:\n"
        + "            yield {'weight': [0, 0], 'bias': 0}\n    finally:\n"
        + "        yield {'weight': [0, 0], 'bias': 0}\n",
        2,
        [SIX, "yields once more"],
    ),
    "never ends": Broken(
        loop("while t == 3: pass"),
        2,
        ["mine.py:train: step 3 of 6: " + TOO_LONG, LONGER, "It was at", "while t == 3"],
    ),
    "sleeps": Broken(loop("time.sleep(1000)"), 2, [AT_1 + TOO_LONG, LONGER, "time.sleep(1000)"]),
    "never ends at import": Broken(
        loop() + "\nwhile True: pass\n", 2, ["mine.py:train: at its import: " + TOO_LONG, LONGER]
    ),
    "never ends after the last step": Broken(
        loop() + "    while True: pass\n", 2, ["after its last step: " + TOO_LONG, LONGER]
    ),
    "is interrupted": Broken(loop("raise KeyboardInterrupt"), 130, ["interrupted"]),
}


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def write(folder: Path, source: str) -> Path:
    (folder / "mine.py").write_text(source, encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def run_here(folder: Path, source: str, capsys: pytest.CaptureFixture[str]) -> Done:
    path = write(folder, source)
    code = cli.exit_code(["run", "--json", "--timeout", "0.5", str(path)])
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def run_apart(folder: Path, source: str) -> Done:
    """Run in a process of its own, as users do; 60 seconds are a hang."""
    path = write(folder, source)
    done = subprocess.run(
        [sys.executable, "-m", "regcheck", "run", "--json", "--timeout", "0.5", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def check_told(done: Done, broken: Broken) -> None:
    assert done.code == broken.code, done.err
    for words in broken.told:
        assert words in done.err
    assert done.out.strip() == ""
    assert PACKAGE not in done.err  # no frame of regcheck's own
    assert "internal error" not in done.err
    assert len(done.err.splitlines()) < 40


@pytest.mark.parametrize("name", REFUSED)
def test_broken_code_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_told(run_here(tmp_path, REFUSED[name].source, capsys), REFUSED[name])


APART: dict[str, Broken] = {
    "os._exit(0)": Broken(loop("os._exit(0)"), 2, [AT_1 + ENDED, "os._exit(0)"]),
    "never ends, whatever is raised": Broken(
        loop(
            "while True:\n            try: time.sleep(0.01)\n            except BaseException: pass"
        ),
        2,
        [AT_1 + TOO_LONG, "catches every exception, so regcheck has to end itself with it"],
    ),
    "is interrupted": REFUSED["is interrupted"],
    "never ends": REFUSED["never ends"],
}


@pytest.mark.parametrize("name", APART)
def test_broken_code_is_told_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    check_told(run_apart(tmp_path, APART[name].source), APART[name])


# --- what is no error: an honest verdict ----------------------------------------------------------

IN_PLACE = (
    "w -= problem.lr * (2 * X.T @ r / len(y) + 0.5 * w); b -= problem.lr * (2 * r.mean() + 0.5 * b)"
)

HARMLESS: dict[str, str] = {
    "copies": loop(),
    "one array in place": loop(update=IN_PLACE),
    "one mapping again and again": loop(
        first="state = {}", give="state['weight'], state['bias'] = w, b; yield state"
    ),
    "arrays in place in one mapping": loop(
        first="state = {'weight': w, 'bias': b}", update=IN_PLACE, give="yield state"
    ),
    "what was yielded is spoilt later": loop(
        give="mine = w.copy(); yield {'weight': mine, 'bias': b}; mine[:] = np.nan"
    ),
    "X and y spoilt after use": loop(give=f"X[:] = 0; y[:] = 0; rows[:] = 0; {YIELD}"),
    "prints": loop("print('hello'); sys.stdout.flush()"),
    "warns": loop("np.log(np.zeros(1)); import warnings; warnings.warn('careful')"),
    "settings": loop(
        "np.seterr(all='raise'); os.chdir('/'); sys.path.insert(0, '/nowhere'); "
        "os.environ['OMP_NUM_THREADS'] = '7'; np.random.seed(0); import torch; "
        "torch.set_default_dtype(torch.float16); torch.set_grad_enabled(False)"
    ),
    "tensors": loop(
        give="import torch; yield {'weight': torch.tensor(w), 'bias': torch.tensor(b)}"
    ),
    "a column": loop(give="yield {'weight': w[:, None], 'bias': float(b[0])}"),
    "a thread that fails": loop(
        "import threading; threading.excepthook = lambda *a: None; "
        "one = threading.Thread(target=lambda: 1 / 0); one.start(); one.join()"
    ),
}


@pytest.mark.filterwarnings("ignore:careful")
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", HARMLESS)
def test_odd_code_that_trains_as_torch_does_is_equivalent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before: Any = (np.geterr(), Path.cwd(), list(sys.path), dict(os.environ))
    done = run_here(tmp_path, HARMLESS[name], capsys)
    report = json.loads(done.out)
    assert (done.code, report["verdict"], report["compared"]) == (0, "equivalent", 6)
    assert (np.geterr(), Path.cwd(), list(sys.path), dict(os.environ)) == before
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "source",
    [
        loop(update=RIGHT.replace("0.5", "1.0")),
        loop(update=IN_PLACE.replace("0.5", "1.0")),
        loop(
            update=IN_PLACE.replace("0.5", "1.0"),
            first="state = {'weight': w, 'bias': b}",
            give="state['loss'] = loss; yield state",
        ),
    ],
    ids=["copies", "in place", "in one mapping"],
)
def test_in_place_updates_are_judged_as_copies_are(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, source, capsys)
    report = json.loads(done.out)
    first = report["first_divergence"]
    assert (done.code, first["step"], first["stage"]) == (1, 1, "penalty")
    causes = [cause["id"] for cause in report["diagnosis"]["causes"]]
    assert causes == ["penalty-doubled"]


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, as the code meets what is none
@pytest.mark.parametrize(
    ("act", "step", "compared"),
    [
        ("w = w * np.nan if t >= 4 else w", 4, 4),
        ("b = b * np.nan", 1, 1),
        ("w = w + (np.inf if t >= 3 else 0)", 3, 3),
    ],
    ids=["nan from step 4 on", "nan at once", "infinite from step 3 on"],
)
def test_numbers_that_are_none_diverge_at_the_step_where_they_come(
    act: str, step: int, compared: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, loop(give=f"{act}; {YIELD}"), capsys)
    report = json.loads(done.out)
    assert (done.code, report["verdict"]) == (1, "diverged")
    assert report["first_divergence"]["step"] == step
    assert report["first_divergence"]["scratch"] in ("nan", "inf")
    assert report["compared"] == compared
    found = report["diagnosis"]
    assert (found["explained"], found["causes"]) == (False, [])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_loss_that_is_no_number_diverges_in_the_loss_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, loop("loss = np.log(-1.0) if t >= 3 else loss"), capsys)
    report = json.loads(done.out)
    assert (done.code, report["verdict"], report["first_divergence"]) == (1, "diverged", None)
    assert report["first_loss_divergence"]["step"] == 3
    assert report["first_loss_divergence"]["scratch"] == "nan"


def test_rows_changed_in_place_are_the_codes_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The code spoils its own X from step 3 on; torch's side keeps the rows as they are.
    done = run_here(tmp_path, loop("if t == 2: problem.X[:] *= 1.5"), capsys)
    report = json.loads(done.out)
    assert (done.code, report["verdict"]) == (1, "diverged")
    assert report["first_divergence"]["step"] == 3
    right = json.loads(run_here(tmp_path, loop(), capsys).out)
    assert report["final"]["framework"] == right["final"]["framework"]


PRINTING = (
    "print('one'); sys.stdout.write('two'); os.write(1, b'three'); sys.__stdout__.write('four'); "
    "sys.__stdout__.flush(); os.system('echo five'); print('six', file=sys.stderr)"
)


def test_printing_in_every_way_leaves_standard_output_to_the_report(tmp_path: Path) -> None:
    done = run_apart(tmp_path, loop(PRINTING))
    assert done.code == 0
    assert json.loads(done.out)["verdict"] == "equivalent"
    for word in ("one", "two", "three", "four", "five", "six"):
        assert done.err.count(word) == 6  # once a step


def test_closed_standard_streams_leave_the_report_whole(tmp_path: Path) -> None:
    done = run_apart(tmp_path, loop("if t == 1: os.close(1); os.close(2)"))
    assert done.code == 0
    assert json.loads(done.out)["verdict"] == "equivalent"


def test_forked_process_that_goes_on_reports_nothing(tmp_path: Path) -> None:
    done = run_apart(tmp_path, loop("if t == 2: os.fork()"))
    assert done.code == 0
    assert json.loads(done.out)["verdict"] == "equivalent"


def test_other_specs_still_run_beside_a_broken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write(tmp_path, loop("sys.exit(0)"))
    right = tmp_path / "right.yaml"
    right.write_text(SPEC.replace("scratch: mine.py:train\n", ""), encoding="utf-8")
    assert cli.exit_code(["run", "--json", str(broken), str(right)]) == 2
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert AT_1 + ENDED in first["error"]
    assert second["verdict"] == "equivalent"
