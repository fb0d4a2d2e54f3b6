"""Good specs and files to make bad ones of, and what a run says where it refuses one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.cli import exit_code

GOOD = """\
data:
  X: [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]
  y: [0, 1, 1]
model: logistic
lr: 0.1
"""
CSV_DATA = "data: {csv: rows.csv, target: y}\nmodel: logistic\nlr: 0.1\n"
NPZ_DATA = "data: {npz: rows.npz}\nmodel: logistic\nlr: 0.1\n"
GOOD_CSV = "a,b,y\n1,2,0\n3,4,1\n5,6,1\n"
X, Y = np.arange(6.0).reshape(3, 2), np.array([0.0, 1.0, 1.0])


def cases(table: str) -> dict[str, str]:
    """Read a table of lines and messages; ↵ is a line break, and an indented line goes on."""
    joined = table.strip().replace("\n    ", " => ")
    return dict(row.replace("↵", "\n").split(" => ") for row in joined.split("\n"))


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def short(value: object) -> str:
    return str(value)[:60]


class Refused:
    """Runs a spec that must be refused, and gives the message without the folder's name."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def message(self, **files: bytes) -> str:
        for name, content in files.items():
            (self.folder / name.replace("_", ".")).write_bytes(content)
        before = listing(self.folder)
        code = exit_code(["run", str(self.folder / "spec.yaml")])
        told = self.capsys.readouterr()
        lines = told.err.splitlines()
        assert code == 2, told.err
        assert told.out == ""
        assert "Traceback" not in told.err
        assert "internal error" not in told.err
        assert len(set(lines)) == len(lines), "a line is repeated"
        assert max(map(len, lines)) < 500
        assert listing(self.folder) == before
        return told.err.replace(f"{self.folder}/", "")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replaced(line: str) -> str:
    """Put a line in the place of the good spec's line of the same key, or of its last."""
    key = line.partition(":")[0]
    if key == "data":
        return line + GOOD[GOOD.index("\nmodel") :]
    old = next((one for one in GOOD.splitlines() if one.startswith(key)), "lr: 0.1")
    return GOOD.replace(old, line)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)
