from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.errors import InputError
from regcheck.problem.data.load import Rows, load_rows
from regcheck.spec import LoadedSpec, from_mapping

PENGUINS = Path(__file__).parent.parent / "data" / "penguins.csv"


def loaded(data: dict[str, Any], folder: Path = Path(), model: str = "linear") -> LoadedSpec:
    return from_mapping({"data": data, "model": model, "lr": 0.1})._replace(folder=folder)


def from_csv(folder: Path, text: str, model: str = "linear", **keys: Any) -> Rows:
    (folder / "rows.csv").write_text(text, newline="")
    return load_rows(loaded({"csv": "rows.csv", "target": "y"} | keys, folder, model))


def from_npz(folder: Path, X: Any, y: Any) -> Rows:
    np.savez(folder / "rows.npz", X=X, y=y)
    return load_rows(loaded({"npz": "rows.npz"}, folder))


def test_load_rows_inline() -> None:
    rows = load_rows(loaded({"X": [[1, 2], [3, 4]], "y": [-5, 6]}))
    assert (rows.X.tolist(), rows.y.tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [-5.0, 6.0])
    assert rows.X.dtype == rows.y.dtype == np.float64
    assert rows.features == ("x1", "x2")


@pytest.mark.parametrize(
    ("text", "named", "features", "X", "y"),
    [
        ("a,word,y,b\n1,u,2,.5\n3,v,4,1e-3\n", None, ("a", "b"), [[1, 0.5], [3, 0.001]], [2, 4]),
        ("a,b,c,y\n1,2,inf,3\n4,5,NA,6\n", ["b", "a"], ("b", "a"), [[2, 1], [5, 4]], [3, 6]),
        ('2020,"a, b",y\n1,2,3\n', [2020, "a, b"], ("2020", "a, b"), [[1, 2]], [3]),
    ],
    ids=["all that are numeric", "in their order", "a number and a quoted name"],
)
def test_load_rows_csv_features(
    tmp_path: Path, text: str, named: Any, features: tuple[str, ...], X: Any, y: Any
) -> None:
    rows = from_csv(tmp_path, text, **({} if named is None else {"features": named}))
    assert (rows.X.tolist(), rows.y.tolist(), rows.features) == (X, y, features)
    assert rows.X.flags.c_contiguous


@pytest.mark.parametrize(
    ("positive", "labels", "expected"),
    [
        ("dog", ["cat", "dog", " dog "], [0, 1, 1]),
        ("no", ["yes", "no", "no"], [0, 1, 1]),
        (2, ["1", "2", "2.0"], [0, 1, 1]),
        ("True", ["True", "False", "True"], [1, 0, 1]),
        (0, ["0", "1", "2"], [1, 0, 0]),
    ],
)
def test_load_rows_csv_positive_label(
    tmp_path: Path, positive: object, labels: list[str], expected: list[int]
) -> None:
    text = "a,y\n" + "".join(f"1,{label}\n" for label in labels)
    rows = from_csv(tmp_path, text, "logistic", positive=positive)
    np.testing.assert_array_equal(rows.y, expected)


def test_load_rows_csv_probabilities_are_labels_too(tmp_path: Path) -> None:
    np.testing.assert_array_equal(from_csv(tmp_path, "a,y\n1,.25\n2,1\n", "logistic").y, [0.25, 1])


def test_load_rows_csv_missing_label_is_told_though_positive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.csv:3: row 2, column `y`: missing value \('NA'\)"):
        from_csv(tmp_path, "a,y\n1,cat\n2,NA\n", "logistic", positive="cat")


def test_load_rows_csv_bad_cells_of_all_columns_are_told_in_the_files_order(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as caught:
        from_csv(tmp_path, "a,b,y\n1,NA,2\n1,2,x\ninf,2,3\n")
    assert [one.place.line for one in caught.value.complaints] == [2, 3, 4]


def test_load_rows_csv_penguins() -> None:
    features = ["bill_length_mm", "body_mass_g"]
    data = {"csv": PENGUINS.name, "target": "species", "positive": "Gentoo", "features": features}
    rows = load_rows(loaded(data, PENGUINS.parent, "logistic"))
    # https://allisonhorst.github.io/palmerpenguins: 342 measured, 123 of them Gentoo.
    assert (len(rows.y), rows.y.sum()) == (342, 123)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u1", "?", ">f8", "<g"])
def test_load_rows_npz_of_any_real_type(tmp_path: Path, dtype: str) -> None:
    X = np.asfortranarray(np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype))
    rows = from_npz(tmp_path, X, np.array([1, 0, 1]).astype(dtype))
    np.testing.assert_array_equal(rows.X, [[0, 1], [1, 1], [1, 0]])
    np.testing.assert_array_equal(rows.y, [1, 0, 1])
    assert rows.X.dtype == rows.y.dtype == np.float64


def test_load_rows_npz_of_one_feature_and_of_a_column_of_targets(tmp_path: Path) -> None:
    rows = from_npz(tmp_path, np.arange(3.0), np.arange(3.0)[:, None])
    assert (rows.X.shape, rows.y.shape, rows.features) == ((3, 1), (3,), ("x1",))


def test_load_rows_npz_of_named_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", features=np.ones((2, 1)), labels=np.ones(2))
    data = {"npz": "a.npz", "X": "features", "y": "labels"}
    assert load_rows(loaded(data, tmp_path)).X.shape == (2, 1)


@pytest.mark.parametrize("model", ["linear", "logistic"])
def test_load_rows_synthetic_is_the_same_each_time_and_follows_the_seed(model: str) -> None:
    data = {"synthetic": {"rows": 50, "features": 3, "seed": 1}}
    first, again = load_rows(loaded(data, model=model)), load_rows(loaded(data, model=model))
    np.testing.assert_array_equal(first.X, again.X)
    np.testing.assert_array_equal(first.y, again.y)
    assert first.X.shape == (50, 3)
    other = load_rows(loaded({"synthetic": {"rows": 50, "features": 3}}, model=model))
    assert not np.array_equal(first.X, other.X)


def test_load_rows_synthetic_targets_follow_the_model() -> None:
    data = {"synthetic": {"rows": 200, "features": 2}}
    labels = load_rows(loaded(data, model="logistic")).y
    assert set(labels) == {0.0, 1.0}
    linear = load_rows(loaded(data))
    design = np.column_stack([linear.X, np.ones(200)])
    _, residual, *_ = np.linalg.lstsq(design, linear.y, rcond=None)
    # The noise has a standard deviation of 0.1; 200 rows estimate it to within a fifth.
    assert np.sqrt(residual[0] / 197) == pytest.approx(0.1, rel=0.2)


def test_target_of_words_is_refused_once_where_numbers_are_needed(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds labels \(cat, dog\); number them in the file"
    ) as it:
        from_csv(tmp_path, "a,y\n1,cat\n2,dog\n")
    assert len(str(it.value).splitlines()) == 1
