"""Recordings of torch's steps: made on request alone, compared step by step, refused when stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from regcheck import check, cli
from regcheck.errors import InputError
from regcheck.golden import read_golden
from tests.conftest import SMALL, Spec

ADAMW: Spec = SMALL | {"optimizer": "adamw", "lr": 0.05, "golden": "steps.npz"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(**changes: Any) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(ADAMW | changes), encoding="utf-8")
        return path

    return written


def record(path: Path) -> Path:
    golden = path.with_name("steps.npz")
    assert cli.exit_code(["run", "--quiet", str(path), "--record", str(golden)]) in (0, 1)
    return golden


def test_recorded_steps_are_those_of_the_same_training(write: Write) -> None:
    path = write()
    golden = read_golden(record(path))
    report = check(path)

    assert golden.parameters["weight"].shape == (3, 1, 2)
    end = report.comparison.final["framework"]
    assert np.array_equal(golden.parameters["weight"][-1], end.parameters["weight"])
    assert golden.losses[-1] == end.loss
    assert report.verdict == "equivalent"
    assert report.golden.startswith("steps.npz, recorded with torch ")
    assert report.to_dict()["golden"] == report.golden


@pytest.mark.parametrize("key", ["betas", "eps"])
def test_another_torch_shows_and_what_changed_is_said(
    key: str, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    record(path)
    real, other = torch.optim.AdamW.__init__, {"betas": (0.9, 0.99), "eps": 1e-2}[key]

    def upgraded(self: Any, params: Any, **options: Any) -> None:
        real(self, params, **(options | {key: other}))

    monkeypatch.setattr(torch.optim.AdamW, "__init__", upgraded)
    capsys.readouterr()
    assert cli.exit_code(["run", str(path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "DIVERGED at step" in printed
    assert "steps.npz, recorded with torch" in printed
    assert "recording" in printed


def test_expected_divergence_is_kept_beside_a_recording(write: Write) -> None:
    path = write(convention="bias-free", expect={"verdict": "diverged"})
    record(path)
    report = check(path)
    assert (report.verdict, report.expected) == ("diverged", True)
    assert report.golden


def test_scratch_side_may_change(write: Write) -> None:
    record(write())
    report = check(write(convention="bias-free"))
    assert (report.verdict, bool(report.golden)) == ("diverged", True)


def test_missing_recording_says_how_to_make_it_and_writes_nothing(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    assert cli.exit_code(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert "golden: " in error
    assert "no such file" in error
    assert f"`regcheck run {path} --record {tmp_path / 'steps.npz'}`" in error
    assert [one.name for one in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.06}, "lr was 0.05, and is 0.06"),
        ({"optimizer": "adam"}, "optimizer was"),
        ({"epochs": 4}, "epochs was 3, and is 4"),
        ({"data": SMALL["data"] | {"y": [1.0, 2.0, -1.0, 0.6]}}, "the data, the order of"),
    ],
)
def test_stale_recording_is_refused_and_says_how_to_renew_it(
    changes: Spec, says: str, write: Write
) -> None:
    golden = record(write())
    before = golden.read_bytes()
    with pytest.raises(InputError) as caught:
        check(write(**changes))
    assert says in str(caught.value)
    assert "--record" in str(caught.value)
    assert golden.read_bytes() == before


def test_recording_replaces_a_recording_and_nothing_else(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = record(write())
    before = golden.read_bytes()
    record(write(lr=0.06))
    assert golden.read_bytes() != before

    other = tmp_path / "mine.npz"
    np.savez(other, X=np.ones(3))
    text = other.read_bytes()
    assert cli.exit_code(["run", str(write()), "--record", str(other)]) == 2
    assert "is there already and is no recording" in capsys.readouterr().err
    assert other.read_bytes() == text


def test_recording_has_its_suffix(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "steps.txt"
    assert cli.exit_code(["run", str(write()), "--record", str(other)]) == 2
    assert f"--record {other}: no format has this suffix; take .npz" in capsys.readouterr().err
    assert not other.exists()
    with pytest.raises(InputError, match=r"golden: must be a recording, a \.npz file, got 'steps"):
        check(write(golden="steps.txt"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", None])
def test_what_is_no_recording_is_refused(
    content: bytes | None, write: Write, tmp_path: Path
) -> None:
    if content is None:  # of objects, which would have to be unpickled
        np.savez(tmp_path / "steps.npz", about=np.array([{}], dtype=object))
    else:
        (tmp_path / "steps.npz").write_bytes(content)
    with pytest.raises(InputError, match="is no recording of this version of regcheck"):
        check(write())


def test_run_that_ends_early_is_not_recorded(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(optimizer="sgd", lr=1e200, epochs=20)
    assert cli.exit_code(["run", str(path), "--record", str(tmp_path / "steps.npz")]) == 2
    assert "nothing was recorded, as the run ends early" in capsys.readouterr().err
    assert not (tmp_path / "steps.npz").exists()


def test_own_model_is_recorded_from_its_own_start(write: Write, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def build(problem):\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), "
        "torch.nn.Linear(3, 1)).double()\n"
        "    loss = lambda z, y: ((z[:, 0] - y) ** 2).mean()\n"
        "    optimizer = torch.optim.AdamW(model.parameters(), lr=problem.lr, weight_decay=0)\n"
        "    return model, loss, optimizer\n",
        encoding="utf-8",
    )
    keys = {"framework": "own.py:build", "scratch": "adamw", "optimizer": "adamw"}
    spec = {key: ADAMW[key] for key in ("data", "lr", "golden")} | keys
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(spec | {"epochs": 3, "compare": ["parameters"]}))
    record(path)
    report = check(path)
    assert (report.verdict, bool(report.golden)) == ("equivalent", True)
