from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.errors import InputError
from regcheck.problem.data import csv_columns as columns
from regcheck.problem.data.csv_columns import MISSING, OTHER, POSITIVE, plain_rows, read_columns
from regcheck.problem.data.files import is_missing, read_rows, to_number


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(text.encode())
    return path


def same_bits(found: object, expected: object) -> bool:
    """NaN and the sign of 0 included."""
    return np.asarray(found).tobytes() == np.array(expected, np.float64).tobytes()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b,c\n1,x,2\n3,y,4\n", [0, 2]),
        ("a,b\n1,NA\nNA,2\n", [0, 1]),
        ("a,b\nx,1\n2,1\n", [0, 1]),  # a number in it: the bad cell is to be told
        ("a,b\nx,1\n1_0,1\n", [0, 1]),  # or what was meant to be one
        ("a,b\n,1\nNA,1\n", [0, 1]),  # empty throughout: to be told, not left out
        ("a,b\nNA,1\nx,1\n", [1]),
        (",b\nx,1\n", [1]),  # no name is needed where no name is used
    ],
)
@pytest.mark.parametrize("block", [1, 2**17])
def test_numeric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: list[int], block: int
) -> None:
    monkeypatch.setattr(columns, "BLOCK", block)
    assert read_columns(csv_file(tmp_path, text)).numeric() == found


def test_numeric_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 1 has no name"):
        read_columns(csv_file(tmp_path, ",b\n0,1\n1,2\n")).numeric()


def test_read_columns_says_what_stands_for_cells_that_are_no_numbers(tmp_path: Path) -> None:
    found = read_columns(csv_file(tmp_path, "a\n1\nNA\n dog \ncat\ninf\n"), positive="dog")
    assert same_bits(found.values[:, 0], [1, MISSING, POSITIVE, OTHER, OTHER])
    assert found.resembling == {0}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [1, 7, 2**17])
def test_read_columns_any_line_ends_and_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block: int
) -> None:
    monkeypatch.setattr(columns, "BLOCK", block)
    text = f'\ufeffa, b{end}1,2{end}{end}3, 4{end}"5",x{end}"6","7,{end}8"{end}9,10'
    found = read_columns(csv_file(tmp_path, text))
    assert found.header == ["a", "b"]
    assert same_bits(found.values, [[1, 2], [3, 4], [5, OTHER], [6, OTHER], [9, 10]])


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3\n4,5,6\n",  # as many cells as there should be, in unequal rows
        "1,\r2\n",
        "1,2\n\n3,x\n",
        "1,null\n",
        "true,2\n",
        '"1",2\n',
        "[1,2]\n",
        "[1],2\n",
        "1,2\n3,1e400\n",
        f"1,{9 * 10**400}\n",
        "1,-0\n",
        "1,-0 \r\n",
    ],
)
def test_plain_rows_of_anything_else_is_none(text: str) -> None:
    assert plain_rows(text.encode(), 2) is None


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_plain_rows(end: str) -> None:
    found = plain_rows(f"1, 2e-3\n-0.0,-4e-05{end}".encode(), 2)
    assert same_bits(found, [1, 0.002, -0.0, -4e-05])


ODD = "-0 -0.0 +1 .5 5. 007 1e400 1e-400 1_0 1,5 inf NA x true null [1] \N{ARABIC-INDIC DIGIT FIVE}"
ODD_CELLS = st.sampled_from([*ODD.split(), " 7 ", "", '"', "\f3", "a\nb", "1\n2", "1,2\n3"])
CELLS = st.one_of(st.floats().map(repr), st.integers().map(str), ODD_CELLS)


@pytest.mark.slow
@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12), st.sampled_from([1, 30, 2**17]))
def test_read_columns_reads_each_cell_as_float_does(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], block: int
) -> None:
    def quoted(cell: str) -> str:
        plain = not set(cell) & set(',"\n')
        return cell if plain else '"' + cell.replace('"', '""') + '"'

    text = "a,b\n" + "".join(f"{quoted(a)},{quoted(b)}\n" for a, b in rows)
    path = csv_file(tmp_path_factory.mktemp("csv"), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK", block)
        found = read_columns(path, positive="x")

    def code(cell: str) -> float:
        number = to_number(cell)
        if number is not None:
            return number
        return MISSING if is_missing(cell) else POSITIVE if cell == "x" else OTHER

    assert same_bits(
        found.values, [[code(cell) for cell in cells] for _, cells in list(read_rows(path))[1:]]
    )


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 30))
def test_plain_rows_round_decimal_numbers_as_float_does(bits: int, zeros: int) -> None:
    (number,) = struct.unpack("d", struct.pack("Q", bits))
    if not np.isfinite(number):
        return
    between = (np.longdouble(number) + np.longdouble(np.nextafter(number, np.inf))) / 2
    cells = [repr(number), f"{number:.30e}", f"{between:.40e}", str(bits * 10**zeros)]
    assert same_bits(plain_rows(",".join(cells).encode(), 4), [float(cell) for cell in cells])


def test_read_columns_of_a_file_that_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "survey", lambda path: None)
    with pytest.raises(InputError, match="changed while it was read; run again"):
        read_columns(csv_file(tmp_path, "a,b\n1\n"))


@pytest.mark.slow
def test_read_columns_holds_little_more_than_the_numbers(tmp_path: Path) -> None:
    rows = 40_000
    path = csv_file(tmp_path, "word,a,b\n" + f"word,{1 / 3!r},{2 / 3!r}\n" * rows)
    read_columns(path)
    tracemalloc.start()
    read_columns(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The cells alone, as Python's strings, would take 67 bytes each.
    assert peak < 1.5 * rows * 3 * 8 + 2**22
