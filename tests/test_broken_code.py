"""Broken users' functions through the command line: what is reported, and that nothing hangs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from regcheck import cli
from regcheck.rules.words import all_of
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import ROOT, run_of, runs_of
from tests.user_files import SPEC, YIELD, Done, loop, run_here, write_spec

PACKAGE = str(Path(cli.__file__).parent)

ZEROS = "yield {'weight': [0, 0], 'bias': 0}"


def defined(*lines: str) -> str:
    return "def train(problem):\n    " + "\n    ".join(lines) + "\n"


AT_1 = "mine.py:train: step 1 of 6: "
AT_3 = "mine.py:train: step 3 of 6: "
TO_FIX = "Your own code raised it: fix it there."
SIX = "mine.py:train: must yield 6 times, but "
ENDED = "tried to end the program, with sys.exit(), quit() or the like"
TOO_LONG = "took longer than 0.5 seconds, and was stopped"

REFUSED: dict[str, tuple[str, ...]] = {
    # No generator, or one that yields too little, too much or something else
    "returns a dict": (
        defined("return {'weight': [0, 0], 'bias': 0}"),
        "mine.py:train: must be a generator, but returned a dict",
        'Put `yield {"weight": .., "bias": ..}` after each update',
    ),
    "is a class of no iterators": (
        "class train:\n    def __init__(self, problem): pass",
        "must be a generator, but returned a train",
    ),
    "async generator": ("async " + defined("yield {}"), "write `def` instead of `async def`"),
    "coroutine": ("async " + defined("pass"), "is an async function"),
    "no parameter": (
        "def train():\n    yield {}\n",
        "cannot be called with the problem alone: its parameters are ()",
        "def train(problem):",
    ),
    "two parameters": (
        "def train(X, y): yield {}",
        "its parameters are (X, y) (missing a required argument: 'y'); give the others defaults",
    ),
    "too few yields": (
        loop(give=f"if t > 4: return\n        {YIELD}"),
        SIX + "ended after 4 of them",
        "one step for each of problem.batches, over all 3 epochs",
        "once after each update",
    ),
    "no yield at all": (loop(give="if t == 0: yield"), SIX + "ended without a single `yield`"),
    "too many yields": (
        loop(first="yield {'weight': w, 'bias': b}"),
        SIX + "yields once more",
        "over all 3 epochs",
        "not before the first, and put no loop over epochs",
    ),
    "endless yields": (defined("while True:", "    " + ZEROS), SIX + "yields once more"),
    "wrong shape": (
        loop(give="yield {'weight': np.append(w, b), 'bias': b}"),
        AT_1 + "`weight` has shape (3,), 3 numbers; expected 2 numbers in shape (1, 2)",
    ),
    "yields in a finally, at its close": (
        defined("try:", "    yield {'weight': [0, 0]}", "finally:", "    " + ZEROS),
        AT_1 + "in what it yielded, `bias` is missing",
    ),
    # Exceptions
    "raises": (
        loop("if t == 3: {}['rate']"),
        AT_3 + "raised KeyError: 'rate'\n  " + TO_FIX,
        'mine.py", line 11, in train',
        "{}['rate']",
    ),
    "raises after the last step": (
        loop() + "    plot(w)\n",
        "mine.py:train: after its last step: raised NameError: name 'plot' is not defined",
        TO_FIX,
    ),
    "raises in NumPy": (
        loop("X @ np.ones(3)"),
        AT_1 + "raised ValueError: matmul",
        "torch's weight is (outputs, inputs): write `X @ W.T`",
        'mine.py", line 11, in train',
        "X @ np.ones(3)",
    ),
    "subtracts what is transposed": (
        loop("np.ones((2, 3)) - np.ones((3, 2))"),
        AT_1
        + "raised ValueError: operands could not be broadcast together with shapes (2,3) (3,2)",
        "transpose one with `.T`",
    ),
    "raises in what it yields": (
        "class Odd:\n    def __array__(self, *a, **k): raise LookupError('no array today')\n"
        + loop(give="yield {'weight': Odd(), 'bias': b}"),
        AT_1 + "raised LookupError: no array today",
        "in __array__",
    ),
    "raises while handling": (
        loop("try: {}['rate']\n        except KeyError as e: raise RuntimeError('no rate') from e"),
        AT_1 + "raised RuntimeError: no rate",
        "KeyError: 'rate'",
        "direct cause",
        "line 12, in train",
    ),
    "raises its own kind": (
        "class Stop(BaseException): pass\n" + loop("raise Stop('here')"),
        AT_1 + "raised mine.Stop: here",
        "raise Stop('here')",
    ),
    "raises with no text that can be had": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit\n" + loop("raise Mute"),
        AT_1 + "raised mine.Mute: <exception str() failed>",
        'mine.py", line 13, in train',
    ),
    "raises control characters": (
        loop("raise ValueError('a\\x1b[31mb')"),
        AT_1 + "raised ValueError: a\\x1b[31mb",
    ),
    "raises with notes and lines": (
        loop("e = ValueError('one\\ntwo'); e.add_note('noted'); raise e"),
        AT_1 + "raised ValueError: one\n",
        "two\nnoted",
    ),
    "raises from deep below": (
        "".join(f"def f{n}(): f{n + 1}()\n" for n in range(30)) + loop("f0()"),
        AT_1 + "raised NameError: name 'f30' is not defined",
        "in train",
        "in f0",
        "in f29",
    ),
    "raises a long text": (
        loop("raise ValueError('\\n'.join(map(str, range(10**4))) + 'x' * 10**5)"),
        AT_1 + "raised ValueError: 0\n",
        "lines left out",
        "xxxx..",
    ),
    "raises a group": (
        loop("raise ExceptionGroup('both', [ValueError('a'), KeyError('b')])"),
        AT_1 + "raised ExceptionGroup: both (2 sub-exceptions)",
        "ValueError: a",
        "KeyError: 'b'",
    ),
    "recursion": (
        "def deep(n): return deep(n + 1)\n" + loop("deep(0)"),
        AT_1 + "raised RecursionError",
        "Previous line repeated",
        "in deep",
        "in train",
    ),
    "more memory than there is": (
        loop("np.zeros(10**15)"),
        AT_1,
        "MemoryError",
        "np.zeros(10**15)",
    ),
    "waits for input": (loop("input('? ')"), AT_1 + "raised EOFError", "remove input()"),
    "ends a file": (
        loop("raise EOFError('mine')"),
        AT_1 + "raised EOFError: mine",
        "Your own code raised it",
    ),
    "changes the problem": (
        loop("problem.X = 2 * problem.X"),
        AT_1 + "raised dataclasses.FrozenInstanceError",
        "The problem's fields cannot be changed: use variables of your own",
    ),
    "asks for what the problem has not": (
        loop("problem.learning_rate"),
        AT_1 + "raised AttributeError: 'UserProblem' object has no attribute 'learning_rate'",
        f"The problem has {all_of([one.name for one in fields(UserProblem)])}.",
    ),
    "asks for another tensor": (
        loop("problem.initial['W1']"),
        AT_1 + "raised KeyError: 'W1; the start has weight and bias'",
        "`problem.initial` holds the start by torch's names",
    ),
    "deletes from the problem": (
        loop("del problem.y"),
        AT_1 + "raised dataclasses.FrozenInstanceError: cannot delete field 'y'",
        "cannot be deleted: remove that line",
    ),
    # Ending the program, or never ending
    "sys.exit(0)": (loop("sys.exit(0)"), AT_1 + ENDED, "remove it", "sys.exit(0)"),
    "never ends": (
        loop("while t == 3: pass"),
        AT_3 + TOO_LONG,
        "`--timeout SECONDS`",
        "It was at",
        "while t == 3",
    ),
    # At the import
    "a syntax error": (
        "def train(problem)\n    yield {}\n",
        "mine.py:1:19: expected ':'; fix it there",
    ),
}
"""A user's file, and what is reported on standard error."""


QUICK = """
from regcheck import cli
from regcheck.user_code import alarm
alarm.GRACE = 0.5
cli.main()
"""


def run_apart(folder: Path) -> Done:
    """Run all specs below a folder in a process of its own, as users do; 60 seconds are a hang."""
    done = subprocess.run(
        [sys.executable, "-c", QUICK, "run", "--json", "--timeout", "0.5", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def check_reported(done: Done, *expected: str) -> None:
    assert (done.code, [*run_of(done.out)]) == (2, ["regcheck", "spec", "error", "line"]), done.err
    for words in expected:
        assert words in done.err
    assert PACKAGE not in done.err  # no frame of regcheck's own
    assert "internal error" not in done.err
    assert len(done.err.splitlines()) < 70
    assert done.err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", REFUSED)
def test_broken_code_is_reported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *expected = REFUSED[name]
    check_reported(run_here(tmp_path, source, capsys), *expected)


def test_interruption_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_here(tmp_path, loop("raise KeyboardInterrupt"), capsys)
    assert (done.code, runs_of(done.out), done.err) == (130, [], "\ninterrupted\n")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_code_that_catches_everything_is_ended_with_regcheck(tmp_path: Path) -> None:
    catching = "try: time.sleep(0.01)\n            except BaseException: pass"
    write_spec(tmp_path, loop("while True:\n            " + catching))
    check_reported(
        run_apart(tmp_path),
        AT_1 + TOO_LONG,
        'mine.py", line ',
        "catches every exception, so regcheck has to exit with it",
    )


PRINTING = (
    "print('one'); sys.stdout.write('two'); os.write(1, b'three'); sys.__stdout__.write('four'); "
    "sys.__stdout__.flush(); os.system('echo five'); print('six', file=sys.stderr)"
)


@pytest.mark.whole
@pytest.mark.slow
def test_what_reaches_past_python_leaves_the_reports_whole(tmp_path: Path) -> None:
    acts = {
        "1 prints": PRINTING,
        "2 forks": "if t == 2: os.fork()",
        "3 exits": "os._exit(0)",
        "4 closes": "if t == 1: os.close(1); os.close(2)",
        "5 follows": "",
    }
    for name, act in acts.items():
        write_spec(tmp_path / name, loop(act))
    done = run_apart(tmp_path)
    reports = runs_of(done.out)
    error = reports.pop(2)["error"]
    assert AT_1 + ENDED in error
    assert "os._exit(0)" in error
    assert [report["verdict"] for report in reports] == ["equivalent"] * 4
    assert done.code == 2
    for word in ("one", "two", "three", "four", "five", "six"):
        assert done.err.count(word) == 6  # once a step


def test_other_specs_still_run_beside_a_broken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_spec(tmp_path, loop("sys.exit(0)"))
    right = tmp_path / "right.yaml"
    right.write_text(SPEC.replace("scratch: mine.py:train\n", ""), encoding="utf-8")
    assert cli.exit_code(["run", "--json", "--jobs", "1", str(broken), str(right)]) == 2
    first, second = runs_of(capsys.readouterr().out)
    assert AT_1 + ENDED in first["error"]
    assert second["verdict"] == "equivalent"
