"""Data of any shape and dtype, from an .npz file to a user's own model and scratch function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import regcheck
from regcheck import cli
from regcheck.cli.exit_codes import DIVERGED, EQUIVALENT, INCONCLUSIVE
from regcheck.errors import InputError
from regcheck.problem.data.load import Rows, load_rows
from regcheck.problem.problem import build_problem
from regcheck.spec import LoadedSpec, from_mapping
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.user_code.problem_api import UserProblem, user_problem

OWN: dict[str, Any] = {"scratch": "a.py:train", "framework": "a.py:build", "lr": 0.1}
IMAGES = np.arange(24.0).reshape(3, 1, 2, 4)


def loaded(folder: Path, X: Any, y: Any, keys: dict[str, Any] | None = None) -> LoadedSpec:
    np.savez(folder / "rows.npz", X=X, y=y)
    spec = {"data": {"npz": "rows.npz"}} | (OWN if keys is None else keys)
    return from_mapping(spec)._replace(folder=folder)


def rows_of(folder: Path, X: Any, y: Any) -> Rows:
    return load_rows(loaded(folder, X, y))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2), (3, 1, 2, 4)])
@pytest.mark.parametrize("targets", [(3,), (3, 1)])
def test_arrays_keep_their_shapes(
    tmp_path: Path, shape: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    rows = rows_of(tmp_path, np.ones(shape), np.ones(targets))
    assert (rows.X.shape, rows.y.shape) == (shape, targets)
    assert rows.features == (("x1", "x2") if len(shape) == 2 else ())


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        *((name, "int64") for name in ("?", "i1", "u1", "<i4", ">i8", "u8")),
        *((name, "float64") for name in ("f2", "f4", "f8", ">f8", "<g")),
    ],
)
def test_integers_are_int64_and_all_else_float64(tmp_path: Path, dtype: str, kept: str) -> None:
    rows = rows_of(tmp_path, np.array([[0, 1], [1, 1]], dtype), np.array([1, 0], dtype))
    assert (rows.X.dtype.name, rows.y.dtype.name) == (kept, kept)
    assert (rows.X.tolist(), rows.y.tolist()) == ([[0, 1], [1, 1]], [1, 0])


def test_integers_beyond_int64_are_float64(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, np.ones((1, 1)), np.array([2**63], np.uint64))
    assert (rows.y.dtype.name, rows.y.tolist()) == ("float64", [2.0**63])


def test_integers_are_float64_for_a_built_in_model_and_from_other_sources(tmp_path: Path) -> None:
    built_in = {"model": "linear", "lr": 0.1}
    rows = load_rows(loaded(tmp_path, np.eye(2, dtype=int), np.arange(2)[:, None], built_in))
    assert (rows.X.dtype.name, rows.y.dtype.name, rows.y.shape) == ("float64", "float64", (2,))
    inline = load_rows(from_mapping({"data": {"X": [[1], [2]], "y": [0, 1]}} | OWN))
    assert (inline.X.dtype.name, inline.y.dtype.name) == ("float64", "float64")


@pytest.mark.parametrize(
    ("X", "y", "text"),
    [
        (np.ones((2, 3)), np.ones(3), "must have one entry for each sample, .*got .2, 3. and .3,."),
        (np.float64(1), np.ones(1), r"must have one entry for each sample, .*got \(\) and \(1,\)"),
        (np.ones((2, 0, 3)), np.ones(2), r"`X` holds no numbers: its shape is \(2, 0, 3\)"),
        (np.where(IMAGES == 21, np.nan, IMAGES), np.ones(3), r"`X`\[2, 0, 1, 1\]: missing or inf"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, X: Any, y: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        rows_of(tmp_path, X, y)


def test_standardize_of_more_than_columns_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", X=IMAGES, y=np.ones(3))
    spec = from_mapping({"data": {"npz": "rows.npz", "standardize": True}} | OWN)
    with pytest.raises(InputError, match=r"data.standardize: .*X is \(3, 1, 2, 4\); do it before"):
        build_problem(spec._replace(folder=tmp_path))


def test_both_sides_are_handed_the_arrays_as_they_are(tmp_path: Path) -> None:
    float32 = OWN | {"dtype": "float32"}
    spec = loaded(tmp_path, IMAGES, np.array([0, 2, 1]), float32)
    problem = build_problem(spec)
    for framework in (False, True):
        given = user_problem(problem, spec.spec, framework=framework)
        assert (given.X.shape, given.X.dtype.name) == ((3, 1, 2, 4), "float32")
        assert (given.y.tolist(), given.y.dtype.name) == ([0, 2, 1], "int64")
        given.y[:] = 0
    assert problem.y.tolist() == [0, 2, 1]  # they are copies


def net(problem: UserProblem) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)).double()


def words(problem: UserProblem) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).double()


Make = Callable[[UserProblem], nn.Module]


def build_of(make: Make) -> Callable[[UserProblem], Any]:
    def build(problem: UserProblem) -> Any:
        model = make(problem)
        return model, nn.functional.cross_entropy, sgd(model, problem.lr)

    return build


def sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.01)


def train_of(make: Make, factor: float = 1.0) -> Callable[[UserProblem], Iterator[Any]]:
    def train(problem: UserProblem) -> Iterator[Any]:
        model = make(problem)
        optimizer = sgd(model, factor * problem.lr)
        X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
        for rows in problem.batches:
            loss = nn.functional.cross_entropy(model(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield {name: w.detach().numpy().copy() for name, w in model.named_parameters()}

    return train


def cases() -> dict[Make, Any]:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 24)
    return {
        net: (random.normal(size=(24, 1, 8, 8)), y),
        words: (random.integers(0, 5, (24, 2)), y),
    }


@pytest.mark.parametrize("make", [net, words])
def test_own_module_with_labels_trains_on_both_sides(tmp_path: Path, make: Make) -> None:
    X, y = cases()[make]
    np.savez(tmp_path / "rows.npz", X=X, y=y)
    spec = {
        "data": {"npz": str(tmp_path / "rows.npz")},
        "lr": 0.1,
        "weight_decay": 0.01,
        "epochs": 3,
        "batch_size": 10,
    }
    report = regcheck.check(spec, scratch=train_of(make), framework=build_of(make))
    # The same operations of torch on both sides: to the last bit.
    assert (report.comparison.compared, report.comparison.drift.largest) == (9, 0.0)
    assert report.verdict in ("equivalent", "inconclusive")  # by what rounding may do here
    json.dumps(report.to_dict())


def test_trainer_keeps_labels_and_indices_as_integers(tmp_path: Path) -> None:
    X, y = cases()[words]
    problem = build_problem(loaded(tmp_path, X, y))
    spec = loaded(tmp_path, X, y).spec
    given = user_problem(problem, spec, framework=True)
    from regcheck.trainers.framework.torch_model import plainly
    from regcheck.trainers.framework.user_module import wrap_user_module

    trainer = TorchTrainer(problem, wrap_user_module(build_of(words)(given), "a", plainly, problem))
    assert (trainer.X.dtype, trainer.y.dtype) == (torch.int64, torch.int64)


def test_command_tells_what_a_row_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = cases()[net]
    np.savez(tmp_path / "rows.npz", X=X, y=y)
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    (tmp_path / "own.py").write_text(
        "from tests.test_own_data import build_of, net, train_of\n"
        "def build(problem):\n    return build_of(net)(problem)\n"
        "def train(problem):\n    return train_of(net)(problem)\n"
    )
    keys = {"framework": "own.py:build", "scratch": "own.py:train", "lr": 0.1, "epochs": 2}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"data": {"npz": "rows.npz"}} | keys))
    code = cli.exit_code(["run", "--details", str(path)])
    assert code in (EQUIVALENT, INCONCLUSIVE, DIVERGED)
    assert "24 training samples of 1 x 8 x 8 numbers, 2 epochs" in capsys.readouterr().out
