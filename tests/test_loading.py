from __future__ import annotations

import math
from pathlib import Path

import pytest

from regcheck.errors import Complaint, InputError, Place
from regcheck.spec.rewriting import rewritten
from regcheck.spec.yaml_text import Document, dotted, parse, read_text


def content(text: str) -> object:
    document = parse(text, "spec.yaml")
    assert document.complaints == []
    return document.content


SCALARS: dict[str, object] = {
    "5": 5,
    "-5": -5,
    "+5": 5,
    "007": 7,
    ".5": 0.5,
    "5.": 5.0,
    "1e-3": 0.001,
    "1E3": 1000.0,
    "-1.5e+2": -150.0,
    "1e400": math.inf,
    ".inf": math.inf,
    "-.INF": -math.inf,
    ".NaN": math.nan,
    "true": True,
    "False": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "1_000": "1_000",
    "0x10": "0x10",
    "0o17": "0o17",
    "1:30": "1:30",
    "2020-01-01": "2020-01-01",
    "e5": "e5",
    ".": ".",
    "'5'": "5",
    '"true"': "true",
    "=": "=",
    "a b": "a b",
    "é": "é",
}


@pytest.mark.parametrize("text", SCALARS)
def test_parse_scalar_of_yaml_1_2(text: str) -> None:
    value = content(f"x: {text}\n")
    assert isinstance(value, dict)
    assert repr(value["x"]) == repr(SCALARS[text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  - 1\n  - {b: 2}\n", {"a": [1, {"b": 2}]}),
        ("{a: [1, {b: 2}]}", {"a": [1, {"b": 2}]}),
        ("3: 1\nnull: 2\ntrue: 3\n1e3: 4", {"3": 1, "null": 2, "true": 3, "1e3": 4}),
        ("a: " + "[" * 30 + "]" * 30, {"a": eval("[" * 30 + "]" * 30)}),
        ("# only a comment\n", None),
        ("", None),
        ("null", None),
    ],
)
def test_parse(text: str, expected: object) -> None:
    assert content(text) == expected


NO_VALUE = "x: has no value; give it one, or remove the key"
DIGITS = "x: must be a finite number, got 5,000 digits"
TWICE = "a.b: is given twice, first in line 1; keep one of them"


@pytest.mark.parametrize(
    ("text", "expected", "complaint", "unread"),
    [
        *((text, {"x": None}, f"1:4: {NO_VALUE}", {("x",)}) for text in ("x: null", "x: ~")),
        ("x:", {"x": None}, f"1:3: {NO_VALUE}", {("x",)}),
        ("x: " + "9" * 5000, {"x": None}, f"1:4: {DIGITS}", {("x",)}),
        ("a: {b: 1, b: 2}\n", {"a": {"b": 1}}, f"1:11: {TWICE}", set()),
    ],
)
def test_parse_complains(text: str, expected: object, complaint: str, unread: object) -> None:
    document = parse(text, "spec.yaml")
    assert [str(one) for one in document.complaints] == [f"spec.yaml:{complaint}"]
    assert (document.content, document.unread) == (expected, unread)


def test_place_of_values_keys_and_what_is_not_there() -> None:
    document = parse("data:\n  X:\n    - [1, 2]\n    - [3, 4]\n", "spec.yaml")
    assert document.place(("data", "X", 1, 1)) == Place("spec.yaml", 4, 11)
    assert document.place(("data", "X", 1)) == Place("spec.yaml", 4, 7)
    assert document.place(("data", "X"), of_key=True) == Place("spec.yaml", 2, 3)
    assert document.place(("data", "X")) == Place("spec.yaml", 3, 5)
    assert document.place(("data", "y"), of_key=True) == Place("spec.yaml", 2, 3)
    assert document.place(()) == Place("spec.yaml", 1, 1)


def test_place_in_a_mapping_without_marks_is_the_name() -> None:
    assert str(Document("spec", {}).place(("lr",))) == "spec"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_load_any_line_ends_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + f"a: 1{end}b: [2]{end}".encode())
    document = parse(read_text(path), str(path))
    assert document.content == {"a": 1, "b": [2]}
    assert document.place(("b", 0)) == Place(str(path), 2, 5)


def test_read_text_of_another_encoding_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes("a: 1\nb: é".encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path}:2:4: not UTF-8 text (byte 0xe9); save the file as UTF-8"


def test_read_text_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("lr",), "lr"),
        (("data", "X", 3, 1), "data.X[3][1]"),
        (("a b",), "'a b'"),
        (("data", "a\n"), "data.'a\\n'"),
        ((), ""),
    ],
)
def test_dotted_writes_a_path_as_a_person_would(path: tuple[str | int, ...], text: str) -> None:
    assert dotted(path) == text


def test_complaint_is_one_line_whatever_the_file_holds() -> None:
    complaint = Complaint(Place("a\nb.yaml", 1), "got \x1b[31m\r\n é — λ")
    assert str(complaint) == "a\\nb.yaml:1: got \\x1b[31m\\r\\n é — λ"


def test_rewritten_anew_keeps_what_only_yaml_1_1_reads_otherwise() -> None:
    text = "{data: {csv: a.csv, target: yes}, note: 1_000, lr: 1e-3}\n"
    found = rewritten(text, {"epochs": 2})
    target = {"csv": "a.csv", "target": "yes"}
    assert content(found) == {"data": target, "note": "1_000", "lr": 0.001, "epochs": 2}
