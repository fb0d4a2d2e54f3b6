from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.problem.batches import Batch, Schedule, schedule_of, training_of
from regcheck.rules.settings import Settings
from regcheck.spec import Spec, from_mapping

BASE: dict[str, Any] = {
    "data": {"X": [[1.0], [2.0]], "y": [1.0, 2.0]},
    "model": "linear",
    "lr": 0.4,
}


def spec_of(**keys: Any) -> Spec:
    return from_mapping(BASE | keys).spec


def schedule(rows: int = 10, **keys: Any) -> Schedule:
    return schedule_of(spec_of(**keys), rows)


def rows_of(batch: Batch, rows: int) -> list[list[int]]:
    """List the rows of each micro-batch."""
    return [np.arange(rows)[part].tolist() for part in batch.micro_batches]


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [[[0, 1, 2, 3, 4]]]),
        ({"batch_size": 99}, [[[0, 1, 2, 3, 4]]]),
        ({"batch_size": 2}, [[[0, 1]], [[2, 3]], [[4]]]),
        ({"batch_size": 2, "drop_last": True}, [[[0, 1]], [[2, 3]]]),
        ({"batch_size": 2, "accumulate": 2}, [[[0, 1], [2, 3]], [[4]]]),
        ({"batch_size": 2, "accumulate": 9}, [[[0, 1], [2, 3], [4]]]),
        ({"batch_size": 2, "accumulate": 2, "drop_last": True}, [[[0, 1], [2, 3]]]),
        ({"batch_size": 9, "drop_last": True}, []),
    ],
    ids=str,
)
def test_rows_of_an_epoch_by_hand(keys: dict[str, Any], expected: list[list[list[int]]]) -> None:
    found = schedule(rows=5, **keys)
    assert [rows_of(batch, 5) for batch in found.batches()] == expected
    assert found.steps == found.steps_per_epoch == len(expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    accumulate=st.integers(1, 5),
    drop_last=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 100)),
)
def test_every_row_is_seen_once_an_epoch(
    rows: int, batch_size: int, accumulate: int, drop_last: bool, seed: int | None
) -> None:
    found = schedule(
        rows,
        batch_size=batch_size,
        accumulate=accumulate,
        drop_last=drop_last,
        epochs=2,
        shuffle=False if seed is None else {"seed": seed},
    )
    batches = list(found.batches())
    assert [batch.step for batch in batches] == list(range(1, found.steps + 1))
    for epoch in (1, 2):
        own = [batch for batch in batches if batch.epoch == epoch]
        assert [batch.batch for batch in own] == list(range(1, found.steps_per_epoch + 1))
        micro = [part for batch in own for part in rows_of(batch, rows)]
        seen = [row for part in micro for row in part]
        assert (
            len(set(seen)) == len(seen) == (rows // batch_size * batch_size if drop_last else rows)
        )
        assert all(len(part) == batch_size for part in micro[:-1])
        assert all(len(batch.micro_batches) == accumulate for batch in own[:-1])
    for batch in batches:
        assert batch.size == sum(len(part) for part in rows_of(batch, rows))
    sizes = {batch.size for batch in batches} or {0}
    assert set(found.sizes()) == sizes
    micro_sizes = {len(part) for batch in batches for part in rows_of(batch, rows)} or {0}
    assert set(found.micro_sizes()) == micro_sizes
    if batches:
        assert found.sizes()[0] == batches[0].size
        assert found.micro_sizes()[0] == len(rows_of(batches[0], rows)[0])


def test_shuffle_is_another_order_each_epoch_and_the_same_each_run() -> None:
    keys = {"batch_size": 5, "shuffle": {"seed": 7}, "epochs": 3}
    once = [rows_of(batch, 20) for batch in schedule(20, **keys).batches()]
    again = [rows_of(batch, 20) for batch in schedule(20, **keys).batches()]
    other = [
        rows_of(batch, 20) for batch in schedule(20, **keys | {"shuffle": {"seed": 8}}).batches()
    ]
    assert once == again
    assert once != other
    assert once[:4] != once[4:8]
    assert once[:4] != [[list(range(at, at + 5))] for at in range(0, 20, 5)]


def test_rows_in_their_own_order_are_slices() -> None:
    # Slices cost no copy of the data.
    assert all(
        isinstance(part, slice)
        for batch in schedule(batch_size=3).batches()
        for part in batch.micro_batches
    )


# --- the numbers of a training --------------------------------------------------------------------


def test_training_holds_the_specs_numbers() -> None:
    spec = spec_of(
        optimizer={"name": "sgd", "momentum": 0.9, "dampening": 0.1},
        weight_decay={"weight": 0.3, "bias": 0.0},
        batch_size=4,
        clip_value=1.0,
        lr_schedule={"kind": "exponential", "factor": 0.5},
    )
    found = training_of(spec, 10)
    assert (found.settings.lr, found.lr_varies) == (0.4, True)
    assert found.settings == Settings(0.4, {"weight": 0.3, "bias": 0.0}).with_options(
        momentum=0.9, dampening=0.1
    )
    assert found.clipped
    assert (found.batch_rows, found.train_rows) == ((4, 2), 10)
    assert found.micro_rows == ()
    assert found.loss_rows == (4, 2)


def test_training_holds_the_micro_batches_where_gradients_are_accumulated() -> None:
    found = training_of(spec_of(batch_size=4, accumulate=2), 10)
    assert found.batch_rows == (8, 2)
    assert found.loss_rows == (4, 2)
    even = training_of(spec_of(batch_size=5, accumulate=2), 10)
    assert (even.batch_rows, even.loss_rows) == ((10,), (5,))
