"""Specs of several processes, and whether any is left."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from regcheck.trainers.framework.distributed.processes import Processes
from tests.conftest import Spec

X = np.random.default_rng(3).normal(size=(20, 3))
TARGETS = {
    "linear": (X @ [1.0, -2.0, 0.5] + 1).tolist(),
    "logistic": [0.0, 1.0, 1.0, 0.0, 1.0] * 4,
    "softmax": [0, 1, 2, 1, 0] * 4,
}
MLP: Spec = {"model": {"mlp": {"hidden": [4], "activation": "tanh"}}, "loss": "cross_entropy"}
MODELS: dict[str, Spec] = {
    "linear": {"model": "linear"},
    "logistic": {"model": "logistic"},
    "softmax": {"model": "softmax"},
    "mlp": MLP,
}


def spec_of(model: str, count: int, **keys: Any) -> Spec:
    """Make a spec of 20 rows, in batches of 11 and 9."""
    target = "softmax" if model == "mlp" else model
    return {
        "data": {"X": X.tolist(), "y": TARGETS[target]},
        **MODELS[model],
        "init": {"normal": {"std": 0.5, "seed": 0}},
        "lr": 0.05,
        "weight_decay": 0.1,
        "epochs": 2,
        "batch_size": 11,
        "framework": {"processes": count},
        **keys,
    }


def is_gone(pid: int) -> bool:
    """Whether a process has ended, some seconds from now at the latest."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # it waits for somebody to ask how it ended, which is not our affair
        time.sleep(0.1)
    return False


def left(started: list[Processes]) -> list[int]:
    """Return the processes that are still there, and see that there were some."""
    pids = [pid for one in started for pid in one.pids.values()]
    pids += [one.launcher.process.pid for one in started if one.launcher is not None]
    assert pids
    assert not any(one.folder.exists() for one in started)
    return [pid for pid in pids if not is_gone(pid)]
