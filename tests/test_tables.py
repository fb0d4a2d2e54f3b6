from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.errors import Complaint, InputError, Place
from regcheck.problem.files import (
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
from regcheck.problem.npz import open_npz, read_shape
from regcheck.spec import LoadedSpec, from_mapping


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, newline="")
    return path


def loaded(data: dict[str, Any]) -> LoadedSpec:
    return from_mapping({"data": data, "model": "linear", "lr": 0.1})


def test_read_rows_and_their_lines(tmp_path: Path) -> None:
    rows = list(read_rows(csv_file(tmp_path, "a, b\n1,2\n\n3,4\n")))
    assert rows == [(1, ["a", " b"]), (2, ["1", "2"]), (4, ["3", "4"])]


def test_read_rows_quoted_fields_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = list(read_rows(csv_file(tmp_path, '"a","b, ""c"""\n"1","x\ny"\n2,z\n')))
    assert rows == [(1, ["a", 'b, "c"']), (3, ["1", "x\ny"]), (4, ["2", "z"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_rows_any_line_ends_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    rows = read_rows(csv_file(tmp_path, f"\ufeffa,b{end}1,2{end}3,4"))
    assert list(rows) == [(1, ["a", "b"]), (2, ["1", "2"]), (3, ["3", "4"])]


def test_read_rows_tells_another_encoding_before_what_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,"2"x\n' + b"1,2\n" * 10_000 + b"\xff,1\n")
    with pytest.raises(InputError, match=r"rows\.csv:10003:1: not UTF-8 text"):
        list(read_rows(path))


def test_survey_names_every_ragged_row(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        survey(csv_file(tmp_path, "a,b\n1\n1,2\n1,2,3\n"))
    assert [one.place.line for one in caught.value.complaints] == [2, 4]


def test_survey_counts_the_ragged_rows_that_it_does_not_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.csv: and 20 more like these"):
        survey(csv_file(tmp_path, "a,b\n" + "1\n" * 30))


@pytest.mark.parametrize("cell", ["5", "-5", ".5", "5.", "1e-3", " 7 ", "+1E+2", "0005"])
def test_to_number_of_a_number(cell: str) -> None:
    assert to_number(cell) == float(cell)
    assert resembles_number(cell)


@pytest.mark.parametrize("cell", ["inf", "-inf", "nan", "1e400", "1_000", "1,5"])
def test_to_number_of_what_only_resembles_one_is_none(cell: str) -> None:
    assert to_number(cell) is None
    assert resembles_number(cell)


@pytest.mark.parametrize("cell", ["", "x", "0x10", "1 2", "1/2", "1:30", "1.2.3", "--1"])
def test_to_number_of_text_is_none(cell: str) -> None:
    assert to_number(cell) is None
    assert not resembles_number(cell)


@settings(derandomize=True, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_to_number_reads_what_python_writes(number: float) -> None:
    assert to_number(repr(number)) == number


@pytest.mark.parametrize("cell", ["", "  ", "NA", "n/a", "NaN", "NULL", "None", "?", "."])
def test_is_missing(cell: str) -> None:
    assert is_missing(cell)


@pytest.mark.parametrize("cell", ["0", "-", "no", "nano"])
def test_is_missing_is_false_of_values(cell: str) -> None:
    assert not is_missing(cell)


def test_raise_some_of_nothing_does_nothing() -> None:
    raise_some([])
    with pytest.raises(InputError):
        raise_some([Complaint(Place("a"), "b")])


@pytest.mark.parametrize(("left_out", "rest"), [(0, "2"), (5000, "5,002")])
def test_raise_some_counts_the_rest(left_out: int, rest: str) -> None:
    with pytest.raises(InputError) as caught:
        raise_some([Complaint(Place("a", line), "b") for line in range(12)], left_out)
    assert len(caught.value.complaints) == 11
    assert str(caught.value.complaints[-1]) == f"a: and {rest} more like these"


def test_data_file_is_relative_to_the_spec(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a,y\n1,2\n")
    spec = loaded({"csv": "rows.csv", "target": "y"})._replace(folder=tmp_path)
    assert data_file(spec, "csv", "rows.csv") == path
    assert data_file(spec, "csv", str(path)) == path


def test_data_file_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    spec = loaded({"csv": "rows.csv", "target": "y"})._replace(folder=tmp_path)
    with pytest.raises(InputError, match="is a folder or device, not a file"):
        data_file(spec, "csv", "rows.csv")


def test_data_file_of_a_mapping_is_relative_to_the_current_folder() -> None:
    spec = loaded({"csv": "no.csv", "target": "y"})
    with pytest.raises(InputError, match="no such file; paths are relative to the current"):
        data_file(spec, "csv", "no.csv")


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
        assert count_rows(loaded(data)._replace(folder=tmp_path)) == rows


def test_train_rows_leaves_the_test_rows_out() -> None:
    data = {"synthetic": {"rows": 1370, "features": 4}}
    assert train_rows(loaded(data)) == 1370
    assert train_rows(loaded(data | {"test": 0.2})) == 1096


@pytest.mark.parametrize(
    ("rows", "share", "expected"),
    [(1370, 0.2, 274), (10, 0.25, 3), (100, 0.07, 7), (2, 1e-12, 1), (1, 0.5, 1), (3, 0.99, 3)],
)
def test_held_out(rows: int, share: float, expected: int) -> None:
    assert held_out(rows, share) == expected


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "|b1", "|u1", "<i8", "<g"])
def test_read_shape_of_real_numbers(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, X=np.zeros((3, 2), dtype))
    with open_npz(path) as archive:
        assert read_shape(path, archive, "X") == (3, 2)


def test_read_shape_agrees_with_numpy_on_any_header_version(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    for version in ((1, 0), (2, 0), (3, 0)):
        with zipfile.ZipFile(path, "w") as archive, archive.open("X.npy", "w") as member:
            np.lib.format.write_array(member, np.ones((4, 1)), version=version)
        with open_npz(path) as archive:
            assert read_shape(path, archive, "X") == (4, 1)
