"""What is read without NumPy, or before it: rows of a CSV file, single cells, and how many rows."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.errors import Complaint, InputError, Place
from regcheck.problem.data.files import (
    count_rows,
    data_file,
    held_out,
    is_missing,
    raise_some,
    read_rows,
    resembles_number,
    survey,
    to_number,
    train_rows,
)
from regcheck.problem.data.npz import open_npz, read_shape
from regcheck.spec import LoadedSpec, from_mapping


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, newline="")
    return path


def loaded(data: dict[str, Any], folder: Path = Path()) -> LoadedSpec:
    return from_mapping({"data": data, "model": "linear", "lr": 0.1})._replace(folder=folder)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a, b\n1,2\n\n3,4\n", [(1, ["a", " b"]), (2, ["1", "2"]), (4, ["3", "4"])]),
        ('"a","b, ""c"""\n"1","x\ny"\n', [(1, ["a", 'b, "c"']), (3, ["1", "x\ny"])]),
        *((f"\ufeffa,b{end}1,2", [(1, ["a", "b"]), (2, ["1", "2"])]) for end in ("\r\n", "\r")),
    ],
)
def test_read_rows_and_their_lines(tmp_path: Path, text: str, rows: list[Any]) -> None:
    assert list(read_rows(csv_file(tmp_path, text))) == rows


def test_read_rows_reports_another_encoding_before_what_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,"2"x\n' + b"1,2\n" * 10_000 + b"\xff,1\n")
    with pytest.raises(InputError, match=r"rows\.csv:10003:1: not UTF-8 text"):
        list(read_rows(path))


def test_survey_names_the_first_ragged_rows_and_counts_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.csv: and 19 more like these") as caught:
        survey(csv_file(tmp_path, "a,b\n1\n1,2\n1,2,3\n" + "1\n" * 27))
    assert [one.place.line for one in caught.value.complaints][:3] == [2, 4, 5]


@pytest.mark.parametrize(
    ("cells", "number", "resembles"),
    [
        (["5", "-5", ".5", "5.", "1e-3", " 7 ", "+1E+2", "0005"], True, True),
        (["inf", "-inf", "nan", "1e400", "1_000", "1,5"], False, True),
        (["", "x", "0x10", "1 2", "1/2", "1:30", "1.2.3", "--1"], False, False),
    ],
)
def test_cells_that_are_or_resemble_numbers(
    cells: list[str], number: bool, resembles: bool
) -> None:
    for cell in cells:
        assert to_number(cell) == (float(cell) if number else None)
        assert resembles_number(cell) == resembles


def test_is_missing() -> None:
    missing = ["", "  ", "NA", "n/a", "NaN", "NULL", "None", "?", "."]
    assert all(map(is_missing, missing))
    assert not any(map(is_missing, ["0", "-", "no", "nano"]))


@pytest.mark.parametrize(("left_out", "rest"), [(0, "2"), (5000, "5,002")])
def test_raise_some_counts_the_rest(left_out: int, rest: str) -> None:
    raise_some([])
    with pytest.raises(InputError) as caught:
        raise_some([Complaint(Place("a", line), "b") for line in range(12)], left_out)
    assert len(caught.value.complaints) == 11
    assert str(caught.value.complaints[-1]) == f"a: and {rest} more like these"


def test_data_file_is_relative_to_the_spec(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a,y\n1,2\n")
    spec = loaded({"csv": "rows.csv", "target": "y"}, tmp_path)
    assert data_file(spec, "csv", "rows.csv") == data_file(spec, "csv", str(path)) == path
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="is a folder or device, not a file"):
        data_file(spec, "csv", "pipe.csv")
    with pytest.raises(InputError, match="no such file; paths are relative to the current"):
        data_file(spec, "csv", "no.csv")  # the spec is a mapping


def test_count_rows_of_each_source(tmp_path: Path) -> None:
    csv_file(tmp_path, "a,y\n1,2\n3,4\n")
    np.savez(tmp_path / "rows.npz", X=np.zeros((7, 2)), y=np.zeros(7), one=np.float64(3))
    sources: list[tuple[dict[str, Any], int]] = [
        ({"csv": "rows.csv", "target": "y"}, 2),
        ({"npz": "rows.npz"}, 7),
        ({"npz": "rows.npz", "X": "one"}, 1),
        ({"synthetic": {"rows": 9, "features": 2}}, 9),
        ({"X": [[1.0], [2.0], [3.0]], "y": [1, 2, 3]}, 3),
    ]
    for data, rows in sources:
        assert count_rows(loaded(data, tmp_path)) == rows


def test_train_rows_leaves_the_test_rows_out() -> None:
    data = {"synthetic": {"rows": 1370, "features": 4}}
    assert train_rows(loaded(data)) == 1370
    assert train_rows(loaded(data | {"test": 0.2})) == 1096
    assert [held_out(2, 1e-12), held_out(1, 0.5), held_out(3, 0.99)] == [1, 1, 3]


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "|b1", "|u1", "<i8", "<g"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_read_shape_of_real_numbers(tmp_path: Path, dtype: str, version: tuple[int, int]) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("X.npy", "w") as member:
        np.lib.format.write_array(member, np.zeros((3, 2), dtype), version=version)
    with open_npz(path) as archive:
        assert read_shape(path, archive, "X") == (3, 2)


def test_read_shape_of_an_array_of_python_2_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2L), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(48)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", content)
    with open_npz(path) as archive:
        assert read_shape(path, archive, "X") == (3, 2)
