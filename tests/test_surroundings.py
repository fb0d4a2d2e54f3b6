"""What a user's code changes around it stays its own, and what it prints is no report."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.ma  # else the first step loads it
import pytest
import torch

from regcheck.errors import UserCodeError
from regcheck.user_code.function import imported
from tests.conftest import ROOT
from tests.user_files import STEPS, begin, run_all, run_file, stepping, write


def state() -> dict[str, Any]:
    """Note all that must be as before between calls."""
    return {
        "path": list(sys.path),
        "modules": dict(sys.modules),
        "argv": list(sys.argv),
        "folder": Path.cwd(),
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
    }


def lasting_state() -> tuple[dict[str, str], set[str]]:
    """Note what must be as before once the code is done with."""
    importlib.invalidate_caches()  # it drops what is stale from the importers
    return dict(os.environ), set(sys.path_importer_cache)


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
    before, lasting = state(), lasting_state()
    with imported("mine.py:train", tmp_path) as function:
        assert state() == before
        steps = begin(function)
        done = steps.next()
        assert state() == before
        steps.close()
    assert done.parameters["weight"].tolist() == [[1.0, 2.0]]
    assert done.parameters["bias"].tolist() == [3.0]
    assert (state(), lasting_state()) == (before, lasting)
    assert not list(tmp_path.rglob("__pycache__"))


def test_everything_is_as_before_where_the_import_fails(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", MESSY + "\n1 / 0\n")
    write(tmp_path / "early.py", "ONE = 1")
    before = state(), lasting_state()
    with pytest.raises(UserCodeError, match="ZeroDivisionError"), imported("mine.py:f", tmp_path):
        raise AssertionError("imported")
    assert (state(), lasting_state()) == before


def test_code_finds_its_own_changes_again_at_its_next_call(tmp_path: Path) -> None:
    source = """
        import os, sys, warnings
        import numpy as np
        import torch
        os.chdir(os.path.dirname(__file__))
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("ignore")

        def train(problem):
            default = np.geterr()["over"]
            with np.errstate(all="raise"), torch.no_grad():
                for rows in problem.batches:
                    same = [
                        default == "warn",  # whatever regcheck's is
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
    with np.errstate(all="ignore"):
        assert [step.loss for step in run_file(tmp_path, source)] == [1.0] * STEPS


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
        both = [begin(one) for one in (first, second)]
        for _ in range(STEPS):
            for number, steps in enumerate(both, start=1):
                step = steps.next()
                assert step.parameters["weight"].tolist() == [[number, number]]
                assert step.parameters["bias"].tolist() == [number]
    for number in (2, 1):  # and one after the other
        with imported(f"{number}/mine.py:train", tmp_path) as function:
            assert run_all(function)[0].parameters["bias"].tolist() == [number]


def test_callers_module_of_the_same_name_makes_way_and_comes_back(
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


# --- in a process of its own: its standard output is file descriptor 1, and torch is not loaded ---

DRIVER = """
import sys
from pathlib import Path
from regcheck.user_code.function import imported
from tests.user_files import run_all

assert "torch" not in sys.modules
sys.modules.pop("statistics", None)
for name in sys.argv[2:]:
    sys.stdout.write(f"{name} ")
    with imported(f"{name}.py:train", Path(sys.argv[1])) as function:
        steps = run_all(function)
        sys.stdout.write(f"{len(steps)} {steps[-1].parameters['bias'][0]:g}\\n")
torch = sys.modules["torch"]
sys.stdout.write(f"{torch.get_default_dtype()} {torch.is_grad_enabled()}")
"""

PRINTING = """print("print")
        sys.__stdout__.write("dunder ")
        held.write("held ")
        sys.stdout.buffer.write(b"bytes ")
        os.write(1, b"descriptor ")
        subprocess.run(["echo", "child"], check=True)
        os.system("echo shell")
        ctypes.CDLL(None).printf(b"printf ")"""
WRAPPING = """import io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding="utf-8")
"""
FORKING = """child = os.fork() if k in (1, 2) else 1
        if k == 2 and not child:
            os._exit(3)
        status = os.waitpid(child, 0)[1] if child and k in (1, 2) else 0
        assert os.waitstatus_to_exitcode(status) == (3 if k == 2 else 0)"""
READING = """len(subprocess.run("cat", capture_output=True).stdout + sys.stdin.buffer.read())"""

LOUD = {
    "prints": stepping(
        PRINTING,
        "import ctypes, os, subprocess, sys\nprint('import')\nheld = sys.stdout",
        last="print('rest')",
    ),
    "closes": stepping(
        "print('café', flush=True)",
        WRAPPING,
        last="sys.stdout.close(); sys.__stdout__.close(); sys.stdin.close()",
    ),
    "reads": stepping(head="import subprocess, sys", bias=READING),
    "warns": stepping(head="import numpy as np", bias="np.array([1e308]) * 10"),
    "forks": stepping(FORKING, "import os"),
    "statistics": stepping("statistics.mean", "import fractions, statistics"),
    "loads_torch": stepping(
        "own = torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()",
        "import torch; torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)",
        bias="int(own)",
    ),
}
"""Files, each with a function that yields zeros, but for `warns` and `loads_torch`."""


def run_apart(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    for name, source in LOUD.items():
        write(folder / f"{name}.py", source)
    return subprocess.run(
        [*command, sys.executable, "-c", DRIVER, str(folder), *LOUD],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        input="typed\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


BIASES = dict.fromkeys(LOUD, "0") | {"warns": "inf", "loads_torch": "1"}
REPORT = "".join(f"{name} {STEPS} {bias}\n" for name, bias in BIASES.items()) + "torch.float32 True"


@pytest.mark.slow
def test_nothing_that_code_does_reaches_standard_output(tmp_path: Path) -> None:
    done = run_apart(tmp_path)
    assert done.stdout == REPORT, done.stderr
    words = ("print", "dunder", "held", "bytes", "descriptor", "child", "shell", "printf", "café")
    assert [done.stderr.split().count(word) for word in words] == [STEPS] * len(words)
    assert done.stderr.split().count("import") == done.stderr.split().count("rest") == 1
    assert done.stderr.count("RuntimeWarning: overflow") == 1
    assert "warns.py:5" in done.stderr


@pytest.mark.slow
def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    done = run_apart(tmp_path, "sh", "-c", 'exec "$@" 2>&-', "sh")
    assert (done.returncode, done.stdout) == (0, REPORT)
