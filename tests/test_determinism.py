"""Two runs of one spec: the same bytes; with other numbers of threads, the same findings."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from regcheck.checking import check
from tests.conftest import ROOT, SMALL, Spec, runs_of

Write = Callable[..., Path]

MANY: Spec = {
    # A million numbers: a pass over them is far above the size from which threads are used.
    "data": {"synthetic": {"rows": 20_000, "features": 50, "seed": 4}},
    "model": "logistic",
    "lr": 0.5,
    "weight_decay": 1e-3,
    "epochs": 6,
}
PROGRAM = """
import sys, threading, os
from regcheck import cli
code = cli.exit_code(["run", "--json", *sys.argv[1:]])
sys.stderr.write(str(len(os.listdir("/proc/self/task"))) if os.path.exists("/proc/self") else "0")
sys.exit(code)
"""


def run(*paths: Path, **environment: str) -> tuple[bytes, int]:
    """Run specs in a process of their own; gives the JSON and the number of threads at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode in (0, 1, 4), done.stderr.decode()
    return done.stdout, int(done.stderr)


def written(specs: list[Spec], folder: Path) -> list[Path]:
    paths = [folder / f"{number}.yaml" for number in range(len(specs))]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return paths


def threads(number: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(number))


@pytest.mark.whole
@pytest.mark.slow
def test_reports_of_two_processes_are_the_same_to_the_byte(tmp_path: Path) -> None:
    specs: list[Spec] = [
        SMALL | {"convention": "divided-by-batch", "batch_size": 3, "shuffle": {"seed": 7}},
        SMALL | {"init": {"normal": {"std": 1.0, "seed": 2}}, "dtype": "float32", "epochs": 20},
        SMALL | {"lr": 1e6, "epochs": 60},
        SMALL | {"init": "zeros", "epochs": 1, "tolerance": {"rtol": 1e-5, "atol": 1e-8}},
        # Large enough for threads, if only for one step.
        MANY | {"epochs": 1, "expect": {"verdict": "equivalent"}},
    ]
    paths = written(specs, tmp_path)
    first, _ = run(*paths, PYTHONHASHSEED="0")
    second, _ = run(*paths, PYTHONHASHSEED="12345")
    assert first == second
    verdicts = [report["verdict"] for report in runs_of(first.decode())]
    assert verdicts == ["diverged", "equivalent", "inconclusive", "equivalent", "equivalent"]


def found(report: Spec) -> Spec:
    """Take what must not depend on threads out of a JSON report: no number of the training."""
    first = report["first_divergence"]
    return {
        "verdict": report["verdict"],
        "reason": report["reason"],
        "compared": report["compared"],
        "first_by_stage": report["first_by_stage"],
        "not_distinguished": report["not_distinguished"],
        "first": first and {key: first[key] for key in ("step", "stage", "tensor")},
        "loss": report["first_loss_divergence"] and report["first_loss_divergence"]["step"],
    }


@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_and_two_threads_find_the_same(tmp_path: Path) -> None:
    specs: list[Spec] = [
        MANY,
        MANY | {"dtype": "float32"},
        MANY | {"convention": "divided-by-batch"},
        MANY | {"convention": {"penalty_in_loss": True}},
        MANY
        | {"convention": {"decay": "after-momentum"}, "epochs": 3}
        | {"optimizer": {"name": "sgd", "momentum": 0.9}},
    ]
    paths = written(specs, tmp_path)
    one, single = run(*paths, **threads(1))
    two, several = run(*paths, **threads(2))
    reports = [runs_of(text.decode()) for text in (one, two)]
    assert [report["environment"]["threads"] for report in reports[0]] == [1] * 5
    assert [report["environment"]["threads"] for report in reports[1]] == [2] * 5
    if Path("/proc/self").exists():
        assert several > single  # torch has really handed work to another thread
    assert [found(report) for report in reports[0]] == [found(report) for report in reports[1]]
    verdicts = [report["verdict"] for report in reports[0]]
    assert verdicts == ["equivalent", "equivalent", "diverged", "diverged", "diverged"]
    steps = [found(report)["first"] for report in reports[0]]
    assert (steps[2]["step"], steps[4]["step"]) == (2, 3)
    assert found(reports[0][3])["loss"] == 2


@pytest.fixture
def unusual_settings() -> Any:
    """Set what a caller may have set, and put it back."""
    before = (torch.get_default_dtype(), torch.get_num_threads())
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    yield
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.usefixtures("unusual_settings")
@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        SMALL | {"convention": "doubled", "shuffle": {"seed": 1}, "batch_size": 2},
        SMALL | {"init": {"normal": {"std": 1.0, "seed": 3}}, "dtype": "float32"},
        SMALL | {"lr": 1e6, "epochs": 60},
        MANY | {"epochs": 1},
    ],
    ids=["plain", "shuffled", "drawn", "blow-up", "many"],
)
def test_check_leaves_no_global_state_behind(spec: Spec) -> None:
    before = global_state()
    check(spec)
    assert global_state() == before


def global_state() -> Spec:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": [kind, np.asarray(keys).tolist(), *rest],
        "Python's random state": random.getstate(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": torch.is_grad_enabled(),
        "NumPy's errors": np.geterr(),
        "folder": Path.cwd(),
        "environment": dict(os.environ) | {"PYTEST_CURRENT_TEST": ""},
    }


def test_check_leaves_no_global_state_behind_where_it_fails() -> None:
    before = global_state()

    def stop(step: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(SMALL, progress=stop)
    assert global_state() == before


def test_check_does_not_depend_on_random_states_or_on_runs_before(small: Spec) -> None:
    spec = small | {"shuffle": {"seed": 1}, "batch_size": 3, "init": {"normal": {"std": 1.0}}}
    first = check(spec).to_dict()
    np.random.seed(99)
    torch.manual_seed(99)
    check(small | {"lr": 1e6, "epochs": 60})
    assert check(spec).to_dict() == first
