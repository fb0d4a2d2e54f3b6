"""Any text, mapping or change of a good file: a run ends in a verdict or a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regcheck.cli import exit_code
from regcheck.errors import InputError
from regcheck.spec import from_mapping
from tests.refusals import CSV_DATA, GOOD, GOOD_CSV, NPZ_DATA, X, Y, npz

QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def words(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from(text.split())


KEYS = words(
    """
    data model loss init optimizer lr weight_decay epochs batch_size shuffle drop_last
    accumulate lr_schedule clip_norm clip_value dtype convention compare tolerance scratch
    expect csv npz X y synthetic rows features seed test share name momentum nesterov weight
    bias kind
    """
)
WORDS = words(
    """
    none full zeros sgd adam step mse bce linear logistic float32 exact pytorch loss
    """
)
VALUES_OF_ANY_KIND = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
GOOD_MAPPING: dict[str, Any] = {
    "data": {"X": [[1.0], [2.0]], "y": [0, 1]},
    "model": "logistic",
    "lr": 0.1,
}


@pytest.mark.exhaustive
@pytest.mark.slow
@QUICK
@given(st.dictionaries(KEYS, VALUES_OF_ANY_KIND, max_size=5))
def test_from_mapping_of_anything_is_a_spec_or_refused(changes: dict[str, Any]) -> None:
    content = GOOD_MAPPING | changes
    try:
        loaded = from_mapping(content)
    except InputError as error:
        told = str(error).splitlines()
        assert told
        assert all(line.startswith("spec: ") for line in told)
    else:
        assert loaded.spec.lr >= 0


def code_of(text: str, folder: Path) -> int:
    spec = folder / "spec.yaml"
    spec.write_text(text, encoding="utf-8", newline="")
    return exit_code(["run", "--quiet", str(spec)])


@pytest.mark.slow
@QUICK
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_run_any_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert code_of(text, tmp_path) == 2
    assert capsys.readouterr().err.startswith(str(tmp_path))


@pytest.mark.slow
@QUICK
@given(
    place=st.integers(0, len(GOOD)),
    length=st.integers(0, 6),
    text=st.text("0159.-+eE:,[]{}#'\"&*!|>%@ \n\taxyX", max_size=4),
)
def test_run_any_change_of_a_good_spec_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, length: int, text: str
) -> None:
    changed = GOOD[:place] + text + GOOD[place + length :]
    assert code_of(changed, tmp_path) in (0, 1, 2, 4), changed
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.slow
@QUICK
@given(
    place=st.integers(0, len(GOOD_CSV)),
    length=st.integers(0, 4),
    text=st.text("0159.-+einfaNA_:,;'\" \n\r\t\0", max_size=4),
)
def test_run_any_change_of_a_good_csv_file_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, length: int, text: str
) -> None:
    changed = GOOD_CSV[:place] + text + GOOD_CSV[place + length :]
    (tmp_path / "rows.csv").write_text(changed, newline="")
    assert code_of(CSV_DATA, tmp_path) in (0, 1, 2, 4), changed
    assert "internal error" not in capsys.readouterr().err


@pytest.mark.slow
@QUICK
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_run_any_change_of_a_good_npz_file_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(npz(X=X, y=Y))
    for place, byte in changes:
        content[place % len(content)] = byte
    (tmp_path / "rows.npz").write_bytes(content)
    assert code_of(NPZ_DATA, tmp_path) in (0, 1, 2, 4), changes
    assert "internal error" not in capsys.readouterr().err
