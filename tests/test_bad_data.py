"""Bad CSV and .npz files: each is refused with one clear message, and nothing else happens."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from tests.refusals import CSV_DATA, GOOD_CSV, NPZ_DATA, Refused, X, Y, cases, npz, refused, short

__all__ = ["refused"]  # a fixture

CSV_FILES = cases("""
↵↵ => rows.csv: empty; a header and at least one row are needed
a,b,y↵ => rows.csv: has a header but no rows
a,b,y↵1,2,0↵3,4,1↵5,6,1↵1,2↵ => rows.csv:5: row 4 has 2 cells, and the header 3
a,b,y↵1,2,0↵3,4,1↵5,6,1↵1,2,3,4↵ => rows.csv:5: row 4 has 4 cells, and the header 3
a,a,y↵1,2,0↵ => rows.csv:1: the column name `a` occurs twice
,b,y↵1,2,0↵ => rows.csv:1: column 1 has no name; name it, or list the
a;b;y↵1;2;0↵3;4;1↵5;6;1↵ => rows.csv:1: the header has one column only; separ
a,b,y↵"1,5",2,0↵3,4,1↵
    rows.csv:2: row 1, column `a`: must be a finite number, got '1,5'; write a decimal point
a,b,y↵1,"2,0↵ => rows.csv:2: not valid CSV: unexpected end of data
a,b,y↵1,"2"x,0↵ => rows.csv:2: not valid CSV: ',' expected after
a,b,y↵1,2,0↵1,NA,0↵ => rows.csv:3: row 2, column `b`: missing value ('NA')
a,b,y↵,2,0↵1,2,0↵ => rows.csv:2: row 1, column `a`: missing value ('')
a,b,y↵,2,0↵,2,0↵ => rows.csv:2: row 1, column `a`: missing value ('')
a,b,y↵1,2,↵3,4,↵ => rows.csv:2: row 1, column `y`: missing value ('')
a,b,y↵1,inf,0↵ => rows.csv:2: row 1, column `b`: must be a finite number
a,b,y↵1e400,2,0↵ => rows.csv:2: row 1, column `a`: must be a finite
a,b,y↵1_000,2,0↵ => rows.csv:2: row 1, column `a`: must be a finite
a,b,y↵x,u,0↵z,v,1↵ => rows.csv:1: no column but the target is nume
a,b,y↵1,2,cat↵3,4,dog↵
    spec.yaml:1:31: data.target: holds labels (cat, dog); name the one that is 1 with
a,b,y↵1,2,0↵3,4,no↵ => rows.csv:3: row 2, column `y`: must be a finite
a,b,y↵1,2,-1↵3,4,1↵ => spec.yaml:1:31: data.target: the model logist
a,b,y↵1,2,1↵3,4,2↵ => spec.yaml:1:31: data.target: the model logistic
a,b,yy↵1,2,0↵ => spec.yaml:1:31: data.target: no column `y` in rows.csv; did you mean `yy`?
1,2,0↵3,4,1↵ => spec.yaml:1:31: data.target: no column `y` in rows.csv; known
""") | {
    "": "rows.csv: empty; a header and at least one row are needed",
    GOOD_CSV.replace(",", "\t"): "rows.csv:1: the header has one column only; separate",
    f"a,b,y\n{'9' * 200_000},2,0\n": "rows.csv:2: not valid CSV: field larger",
    "a,b,y\n" + ",2,1\n" * 30: "rows.csv: and 20 more like these",
    "a,b,y\n1,\0,0\n1,2,0\n": "rows.csv:2: row 1, column `b`: must be a finite numbe",
    "a,b,y\n1,\x1b,0\n1,2,0\n": "rows.csv:2: row 1, column `b`: must be a finite",
    'a,b,y\n1,2,0\n3,"x\ny",1\n': "rows.csv:4: row 2, column `b`: must be a finite number, got 'x",
}

CSV_SPECS = cases("""
{csv: rows.csv, target: y, features: [a, bb]}
    spec.yaml:1:48: data.features[1]: no column `bb` in rows.csv; did you mean `b`?
{csv: rows.csv, target: y, features: [a, word]}
    rows.csv:2: row 1, column `word`: must be a finite number, got 'u'; fix it, or leave
{csv: rows.csv, target: word, positive: w}
    spec.yaml:1:47: data.positive: no row of rows.csv has the label `w`; known here: u, v
""")


def with_member(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", content)
        archive.writestr("y.npy", content)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption in each entry of an archive's directory."""
    changed = bytearray(content)
    place = changed.find(b"PK\x01\x02")
    while place >= 0:
        changed[place + 8] |= 1
        place = changed.find(b"PK\x01\x02", place + 4)
    return bytes(changed)


class Trap:
    """An object whose unpickling would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


BROKEN = "rows.npz: cannot be read as an .npz archive; write it with numpy.savez"
NPZ_FILES = {
    "empty": (b"", BROKEN),
    "text": (b"a,b\n1,2\n", BROKEN),
    "pickle": (pickle.dumps(Trap()), BROKEN),
    "objects": (npz(X=np.array([[Trap()]]), y=Y), "rows.npz: `X` holds Python objects, which are"),
    "objects-in-y": (npz(X=X, y=np.array([Trap()])), "rows.npz: `y` holds Python objects, which"),
    "truncated": (npz(X=X, y=Y)[:200], BROKEN),
    "bad-checksum": (npz(X=X, y=Y).replace(X[2].tobytes(), X[1].tobytes()), BROKEN),
    "encrypted": (encrypted(npz(X=X, y=Y)), BROKEN),
    "not-an-array": (with_member(b"hello"), BROKEN),
    "no-header": (with_member(b""), BROKEN),
    "header-of-code": (with_member(header("__import__('os')")), BROKEN),
    "header-without-type": (with_member(header("{'shape': (3, 2)}")), BROKEN),
    "header-of-other-shape": (
        with_member(header("{'descr': '<f8', 'fortran_order': False, 'shape': 3}")),
        BROKEN,
    ),
    "header-of-terabytes": (
        with_member(header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**13}, 9)}}")),
        BROKEN,
    ),
    "header-nested": (with_member(header("(" * 9000)), BROKEN),
    "no-x": (npz(x=X, y=Y), "rows.npz: no array `X`; did you mean `x`?"),
    "no-y": (npz(X=X, target=Y), "rows.npz: no array `y`; known here: X, target"),
    "three-axes": (npz(X=X[None], y=Y), "rows.npz: `X` must be (n, d) and `y` (n,), got (1, 3, 2)"),
    "other-length": (npz(X=X, y=Y[:2]), "rows.npz: `X` must be (n, d) and `y` (n,), got (3, 2) an"),
    "two-targets": (npz(X=X, y=X), "rows.npz: `X` must be (n, d) and `y` (n,), got (3, 2) and (3,"),
    "scalar": (npz(X=1.0, y=Y), "rows.npz: `X` must be (n, d) and `y` (n,), got () and (3,)"),
    "no-rows": (npz(X=X[:0], y=Y[:0]), "rows.npz: `X` holds no numbers: its shape is (0, 2)"),
    "no-columns": (npz(X=X[:, :0], y=Y), "rows.npz: `X` holds no numbers: its shape is (3, 0)"),
    "complex": (npz(X=X + 1j, y=Y), "rows.npz: `X` must hold real numbers, got NumPy's type <c16"),
    "strings": (npz(X=X.astype(str), y=Y), "rows.npz: `X` must hold real numbers, got NumPy's"),
    "dates": (npz(X=X.astype("M8[s]"), y=Y), "rows.npz: `X` must hold real numbers, got NumPy's"),
    "records": (npz(X=np.zeros(3, [("a", "f8")]), y=Y), "rows.npz: `X` must hold real numbers, go"),
    "nan": (
        npz(X=np.where(X == 5, np.nan, X), y=Y),
        "rows.npz: `X`, row 3, column 2: missing or infinite value (nan)",
    ),
    "nan-many": (npz(X=np.full((20, 2), np.nan), y=Y), "rows.npz: and 30 more like these"),
    "infinite-y": (
        npz(X=X, y=Y + np.inf),
        "rows.npz: `y`, row 1: missing or",
    ),
    "labels": (npz(X=X, y=2 * Y - 1), "spec.yaml:1:7: data.y: the model logistic needs targets"),
}


@pytest.mark.parametrize(("content", "expected"), CSV_FILES.items(), ids=short)
def test_run_bad_csv_file(content: str, expected: str, refused: Refused) -> None:
    assert expected in refused.message(spec_yaml=CSV_DATA.encode(), rows_csv=content.encode())


@pytest.mark.parametrize(("data", "expected"), CSV_SPECS.items())
def test_run_bad_spec_for_a_csv_file(data: str, expected: str, refused: Refused) -> None:
    spec = f"data: {data}\nmodel: logistic\nlr: 0.1\n".encode()
    message = refused.message(spec_yaml=spec, rows_csv=b"a,b,word,y\n1,2,u,0\n3,4,v,1\n")
    assert message.startswith(expected)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_run_csv_in_another_encoding(encoding: str, refused: Refused) -> None:
    content = "a,é,y\n1,2,0\n3,4,1\n".encode(encoding)
    message = refused.message(spec_yaml=CSV_DATA.encode(), rows_csv=content)
    assert message.startswith("rows.csv:1:")
    assert "not UTF-8 text" in message


@pytest.mark.parametrize("case", NPZ_FILES)
def test_run_bad_npz_file(case: str, refused: Refused) -> None:
    content, expected = NPZ_FILES[case]
    assert expected in refused.message(spec_yaml=NPZ_DATA.encode(), rows_npz=content)


def test_run_positive_without_labels(refused: Refused) -> None:
    spec = CSV_DATA.replace("y}", "y, positive: 1}").replace("logistic", "linear")
    message = refused.message(spec_yaml=spec.encode(), rows_csv=GOOD_CSV.encode())
    assert message.startswith("spec.yaml:1:44: data.positive: only the model logistic has a")
