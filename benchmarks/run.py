"""Measure regcheck against peers: `python benchmarks/run.py [NAME...]`.

Each figure is a ratio of two things timed in turn in one run, A B A B .., so that it holds on a
machine whose speed drifts; the table gives the median of the ratios, and their range. (`growth` is
the one difference, in MiB.) Run it on a machine that does nothing else. `csv` and `csv-memory` need
pandas: `pip install -e '.[benchmarks]'`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
REGCHECK = [str(Path(sys.executable).parent / "regcheck")]
QUESTION = str(ROOT / "configs" / "stackoverflow.yaml")
FIXED = str(ROOT / "configs" / "stackoverflow-fixed.yaml")


class Benchmark(NamedTuple):
    """A ratio: what is measured against what, the bound it must keep, and how to take it once."""

    title: str
    bound: str
    keeps: Callable[[float], bool]
    ratio: Callable[[], float]
    rounds: int


def process(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; gives its seconds and its peak memory in KiB."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: diverged, as the question does
        raise RuntimeError(f"{command} failed")
    return time.perf_counter() - started, usage.ru_maxrss


def seconds(work: Callable[[], object]) -> float:
    """Time a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def whole_command(spec: str) -> float:
    ours, _ = process([*REGCHECK, "run", spec])
    theirs, _ = process([sys.executable, str(ROOT / "benchmarks" / "bare_torch.py")])
    return ours / theirs


def explain() -> float:
    ours, _ = process([*REGCHECK, "explain"])
    theirs, _ = process([sys.executable, "-c", "import click, rich"])
    return ours / theirs


def numpy_trainer() -> float:
    from regcheck.problem.problem import build_problem
    from regcheck.spec import read_spec
    from regcheck.trainers.numpy_trainer import NumpyTrainer

    problem = build_problem(read_spec(Path(QUESTION)))
    trainer = NumpyTrainer(problem)
    batches = list(problem.schedule.batches())

    def vectorised() -> None:
        state = trainer.start()
        for batch in batches:
            state = trainer.step(state, batch).state

    loop_steps = 5
    each = seconds(lambda: per_sample_loop(problem.X, problem.y, loop_steps)) / loop_steps
    return each / (seconds(vectorised) / len(batches))


def per_sample_loop(X: np.ndarray, y: np.ndarray, steps: int) -> np.ndarray:
    """Train as the question's code does, row by row, three loops a step.

    It predicts each row for the accuracy, then adds up the cost, then the gradient, and works each
    probability out anew wherever it needs one: five times a row.
    """
    lr, decay, rows = 0.05, 0.1, len(y)
    beta = np.zeros(X.shape[1] + 1)

    def probability(row: np.ndarray) -> np.floating:
        return 1 / (1 + np.exp(-(beta[0] + np.dot(row, beta[1:]))))

    for _ in range(steps):
        right = 0
        for i in range(rows):
            right += (probability(X[i]) > 0.5) == y[i]
        cost = 0.0
        for i in range(rows):
            cost -= y[i] * np.log(probability(X[i])) + (1 - y[i]) * np.log(1 - probability(X[i]))
        cost = (cost + decay / 2 * sum(part**2 for part in beta)) / rows
        gradient = np.zeros_like(beta)
        for i in range(rows):
            gradient[0] += probability(X[i]) - y[i]
            gradient[1:] += (probability(X[i]) - y[i]) * X[i]
        beta = beta - lr * (gradient + decay * beta) / rows
    return beta


LARGE = {
    "data": {"synthetic": {"rows": 100_000, "features": 50}},
    "model": "logistic",
    "lr": 0.1,
    "weight_decay": 0.01,
    "epochs": 50,
}


def judging() -> float:
    from regcheck.compare.drift import DriftMeter
    from regcheck.compare.steps import compare_step, injected
    from regcheck.numerics.bounds.rounding import RoundingModel, RoundingState
    from regcheck.problem.problem import build_problem
    from regcheck.spec import from_mapping
    from regcheck.trainers.framework.determinism import torch_settings
    from regcheck.trainers.framework.torch_trainer import TorchTrainer
    from regcheck.trainers.numpy_trainer import NumpyTrainer
    from regcheck.trainers.sides import Steps

    spec = from_mapping(LARGE).spec
    problem = build_problem(from_mapping(LARGE))
    with torch_settings(problem.X.size):
        torch, scratch = TorchTrainer(problem), NumpyTrainer(problem)
        started = time.perf_counter()
        rounding, carried = RoundingModel(problem), RoundingState()
        judged, trained = time.perf_counter() - started, 0.0
        drift, state = DriftMeter(spec.tolerance), scratch.start()
        for batch in problem.schedule.batches():
            started = time.perf_counter()
            theirs = torch.step(batch)
            trained += time.perf_counter() - started
            update = scratch.step(state._replace(parameters=theirs.before), batch)
            state, ours = update.state, update.step
            started = time.perf_counter()
            bounds, carried = rounding.bounds(carried, batch, theirs, update.dloss_dz)
            steps = Steps(ours, theirs, ours, theirs, update.forward_backward)
            row = compare_step(batch, steps, bounds, spec.tolerance)
            drift.measure(row, injected(ours, theirs))
            drift.need_step(row, ours, theirs)
            judged += time.perf_counter() - started
    return judged / trained


def diagnosis() -> float:
    from regcheck import check, checking

    taken = []

    plain = checking.diagnose

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = plain(*arguments)
        taken.append(time.perf_counter() - started)
        return found

    checking.diagnose = timed
    try:
        whole = seconds(lambda: check(QUESTION))
    finally:
        checking.diagnose = plain
    return taken[0] / (whole - taken[0])


def large_comparison() -> float:
    from regcheck.checking import check_problem, no_progress
    from regcheck.problem.problem import build_problem
    from regcheck.spec import from_mapping
    from regcheck.trainers.framework.determinism import torch_settings
    from regcheck.trainers.framework.torch_trainer import TorchTrainer

    loaded = from_mapping(LARGE)
    problem = build_problem(loaded)

    def torch_alone() -> None:
        with torch_settings(problem.X.size):
            trainer = TorchTrainer(problem)
            for batch in problem.schedule.batches():
                trainer.step(batch)

    ours = seconds(lambda: check_problem(loaded, problem, no_progress))
    return ours / seconds(torch_alone)


def memory() -> float:
    text = Path(QUESTION).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "long.yaml"
        long.write_text(text.replace("epochs: 1000", "epochs: 20000"), encoding="utf-8")
        _, many = process([*REGCHECK, "run", str(long)])
        _, few = process([*REGCHECK, "run", QUESTION])
    return many / few


def growth() -> float:
    """Give MiB, what is kept for the diagnosis included: of these steps, 14 MiB."""
    spec = {
        "data": {"synthetic": {"rows": 8, "features": 2}},
        "model": "linear",
        "lr": 1e-3,
        "weight_decay": 1e-3,
    }
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (2_000, 100_000):
            path = Path(folder) / f"{steps}.yaml"
            path.write_text(json.dumps(spec | {"epochs": steps}), encoding="utf-8")
            peaks.append(process([*REGCHECK, "run", str(path)])[1])
    return (peaks[1] - peaks[0]) / 1024


CSV_OURS = """
from regcheck.problem.data.load import load_rows
from regcheck.spec import from_mapping
data = {{"csv": {path!r}, "target": "y"}}
loaded = from_mapping({{"data": data, "model": "linear", "lr": 0.1}})
read = lambda: load_rows(loaded)
"""
CSV_THEIRS = """
import pandas
read = lambda: pandas.read_csv({path!r})
"""
MEASURED = """
import resource, time
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
kept = read()
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@functools.cache
def large_csv() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """Write 1,000,000 x 21 numbers with all their digits: 400 MB, gone with the process."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "large.csv"
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join([*(f"x{column}" for column in range(20)), "y"]) + "\n")
        for _ in range(100):
            rows = random.normal(size=(10_000, 21)).tolist()
            file.writelines(",".join(map(repr, row)) + "\n" for row in rows)
    return folder, str(path)


def csv_in_turn() -> tuple[float, float]:
    """Read a large CSV file, and let pandas read it: the ratios of seconds, and of memory."""
    if importlib.util.find_spec("pandas") is None:
        sys.exit("csv, csv-memory: pandas is missing; pip install -e '.[benchmarks]'")
    ours, theirs = (
        [float(figure) for figure in output_of(code.format(path=large_csv()[1]) + MEASURED)]
        for code in (CSV_OURS, CSV_THEIRS)
    )
    return ours[0] / theirs[0], ours[1] / theirs[1]


def output_of(code: str) -> list[str]:
    """Run Python code in a process of its own; gives the words that it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.split()


def own_model(sizes: tuple[int, ...], rows: int, batch: int, epochs: int) -> float:
    """Compare a model of one's own, and train it in torch alone: the ratio of the two.

    The NumPy code that it is compared with is part of the comparison.
    """
    from own_model import OwnModel

    from regcheck.checking import check_problem, no_progress
    from regcheck.problem.problem import build_problem
    from regcheck.spec import from_mapping
    from regcheck.trainers.framework.determinism import torch_settings
    from regcheck.user_code.problem_api import user_problem

    own = OwnModel(sizes, rows, batch, epochs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(path, X=own.X, y=own.y)
        code = {"scratch": own.train, "framework": own.build}
        loaded = from_mapping({"data": {"npz": str(path)}, **own.spec, **code})
        problem = build_problem(loaded)
    given = user_problem(problem, loaded.spec, framework=True)
    ours = seconds(lambda: check_problem(loaded, problem, no_progress))
    with torch_settings(batch * sizes[0]):
        theirs = seconds(lambda: own.torch_alone(given))
    return ours / theirs


SHORT = {
    "data": {"synthetic": {"rows": 100, "features": 4}},
    "model": "logistic",
    "lr": 0.1,
    "weight_decay": 0.01,
}


def comparison(epochs: int) -> float:
    """Return the seconds that comparing so many full-batch steps of 100 x 4 takes."""
    from regcheck import check

    return seconds(lambda: check(SHORT | {"epochs": epochs}))


def built_in() -> float:
    from regcheck.problem.problem import build_problem
    from regcheck.spec import from_mapping
    from regcheck.trainers.framework.determinism import torch_settings
    from regcheck.trainers.framework.torch_trainer import TorchTrainer

    problem = build_problem(from_mapping(SHORT | {"epochs": 10_000}))

    def torch_alone() -> None:
        with torch_settings(problem.X.size):
            trainer = TorchTrainer(problem)
            for batch in problem.schedule.batches():
                trainer.step(batch)

    return comparison(10_000) / seconds(torch_alone)


MLP = {
    "data": {"synthetic": {"rows": 320, "features": 4}},
    "model": {"mlp": {"hidden": [64, 64], "head": "softmax"}},
    "init": {"normal": {"std": 0.3}},
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "batch_size": 32,
    "epochs": 100,
}


def mlp() -> float:
    """Compare a built-in mlp, and train its torch side in a plain loop: the ratio of the two."""
    import torch

    from regcheck.checking import check_problem, no_progress
    from regcheck.problem.problem import build_problem
    from regcheck.spec import from_mapping
    from regcheck.trainers.framework.built_in import built_in as torch_side
    from regcheck.trainers.framework.determinism import torch_settings

    loaded = from_mapping(MLP)
    problem = build_problem(loaded)
    X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)

    def torch_alone() -> None:
        module = torch_side(problem)
        for batch in problem.schedule.batches():
            rows = batch.micro_batches[0]
            module.optimizer.zero_grad()
            loss = module.loss(module.model(X[rows]), y[rows])
            loss.backward()
            module.optimizer.step()
            float(loss.detach())

    ours = seconds(lambda: check_problem(loaded, problem, no_progress))
    with torch_settings(32 * 64 * 64):
        return ours / seconds(torch_alone)


BENCHMARKS = {
    "built-in": Benchmark(
        "comparison of 100 x 4, 10,000 steps / the torch trainer alone",
        "at most 3",
        lambda ratio: ratio <= 3,
        built_in,
        3,
    ),
    "long": Benchmark(
        "time a step of 100,000 steps of 100 x 4 / of 1,000",
        "at most 1.1",
        lambda ratio: ratio <= 1.1,
        lambda: comparison(100_000) / 100 / comparison(1000),
        1,
    ),
    "own": Benchmark(
        "comparison of an own MLP 4-64-64-3, 1,000 steps of 32 / torch alone",
        "at most 4",
        lambda ratio: ratio <= 4,
        lambda: own_model((4, 64, 64, 3), 320, 32, 100),
        5,
    ),
    "own-large": Benchmark(
        "the same of 10^6 parameters, 100 steps of 32 / torch alone",
        "at most 2.5",
        lambda ratio: ratio <= 2.5,
        lambda: own_model((784, 1000, 200, 10), 640, 32, 5),
        3,
    ),
    "own-many": Benchmark(
        "the same of 122 tensors, 1,000 steps of 32 / torch alone",
        "at most 4",
        lambda ratio: ratio <= 4,
        lambda: own_model((4, *(16,) * 60, 3), 320, 32, 100),
        3,
    ),
    "command": Benchmark(
        "run stackoverflow.yaml / a bare torch script of 1,000 steps",
        "at most 0.95",
        lambda ratio: ratio <= 0.95,
        lambda: whole_command(QUESTION),
        7,
    ),
    "command-fixed": Benchmark(
        "run stackoverflow-fixed.yaml / a bare torch script of 1,000 steps",
        "at most 0.85",
        lambda ratio: ratio <= 0.85,
        lambda: whole_command(FIXED),
        7,
    ),
    "csv": Benchmark(
        "a CSV of 1,000,000 x 21 numbers / pandas.read_csv",
        "at most 3",
        lambda ratio: ratio <= 3,
        lambda: csv_in_turn()[0],
        5,
    ),
    "csv-memory": Benchmark(
        "its peak memory above the imports / that of pandas.read_csv",
        "at most 2",
        lambda ratio: ratio <= 2,
        lambda: csv_in_turn()[1],
        1,
    ),
    "diagnosis": Benchmark(
        "the diagnosis of stackoverflow.yaml / its run without it",
        "at most 1.0",
        lambda ratio: ratio <= 1.0,
        diagnosis,
        7,
    ),
    "explain": Benchmark(
        "explain / python that imports click and rich",
        "at most 1.5",
        lambda ratio: ratio <= 1.5,
        explain,
        15,
    ),
    "growth": Benchmark(
        "peak memory of 100,000 steps - of 2,000, in MiB",
        "at most 70",
        lambda growth: growth <= 70,
        growth,
        1,
    ),
    "judging": Benchmark(
        "bound and comparison of 100,000 x 50, 50 steps / the torch trainer",
        "at most 0.25",
        lambda ratio: ratio <= 0.25,
        judging,
        5,
    ),
    "large": Benchmark(
        "comparison of 100,000 x 50, 50 steps / its torch side alone",
        "at most 3.5",
        lambda ratio: ratio <= 3.5,
        large_comparison,
        5,
    ),
    "memory": Benchmark(
        "peak memory of 20,000 steps / of 1,000",
        "at most 1.05",
        lambda ratio: ratio <= 1.05,
        memory,
        3,
    ),
    "mlp": Benchmark(
        "comparison of an mlp 4-64-64-3 by AdamW, 1,000 steps of 32 / torch alone",
        "at most 3",
        lambda ratio: ratio <= 3,
        mlp,
        3,
    ),
    "numpy": Benchmark(
        "the question's per-sample loop / the NumPy trainer, a step",
        "at least 250",
        lambda ratio: ratio >= 250,
        numpy_trainer,
        5,
    ),
}


def main() -> int:
    # A process's peak counts what its parent held when it was begun: memory is measured first.
    names = sorted(sys.argv[1:] or BENCHMARKS, key=lambda name: name not in ("growth", "memory"))
    kept = True
    print(f"{'ratio':<67}{'median':>8}  {'range':>17}  bound")
    for name in names:
        benchmark = BENCHMARKS[name]
        benchmark.ratio()  # warm: files cached, code compiled
        ratios = [benchmark.ratio() for _ in range(benchmark.rounds)]
        median = statistics.median(ratios)
        kept &= benchmark.keeps(median)
        places = max(0, 2 - int(math.log10(median)))
        span = f"{min(ratios):.{places}f} .. {max(ratios):.{places}f}"
        verdict = "" if benchmark.keeps(median) else "  NOT KEPT"
        print(f"{benchmark.title:<67}{median:>8.{places}f}  {span:>17}  {benchmark.bound}{verdict}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
