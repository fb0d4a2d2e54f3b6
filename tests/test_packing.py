"""Many tensors in one vector give what each tensor gives by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from regcheck.compare.differences import drift, drifts, each, worst
from regcheck.compare.drift import DriftMeter, Needed, last_digit, needed
from regcheck.compare.steps import Row
from regcheck.numerics import packing
from regcheck.numerics.packing import Layout, Packed, common_layout, flat, layout_of
from regcheck.problem.problem import Step
from regcheck.spec.sections.tolerance import Tolerances

Array = NDArray[np.floating]
SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=3, max_size=7).map(
    lambda shapes: {f"t{place}": shape for place, shape in enumerate(shapes)}
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors span several blocks, and blocks several tensors."""
    monkeypatch.setattr(packing, "BLOCK", 7)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {name: np.round(draw.normal(size=shape), 1) for name, shape in shapes.items()}


@given(SHAPES, st.integers(0, 99))
def test_tensors_are_views_of_one_vector(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    tensors = drawn(shapes, seed)
    packed = Layout(shapes.items()).join(tensors.values())

    assert isinstance(packed, Packed)
    assert list(packed) == list(shapes)
    for name, x in tensors.items():
        assert packed[name].shape == x.shape
        assert np.array_equal(packed[name], x)
        assert np.shares_memory(packed[name], packed.vector)
        assert not np.shares_memory(packed[name], x)
    assert np.array_equal(flat(packed), flat(tensors))


@given(SHAPES, st.integers(0, 99))
def test_reductions_are_those_of_each_tensor(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    tensors, layout = drawn(shapes, seed), Layout(shapes.items())
    vector = flat(tensors)

    largest = layout.reduced(lambda part: vector[part])
    assert largest.tolist() == [x.max() for x in tensors.values()]
    sums = layout.reduced(lambda part: vector[part], np.add)
    assert sums == pytest.approx([x.sum() for x in tensors.values()], abs=1e-12)
    lost = vector.copy()
    lost[0] = np.nan
    assert math.isnan(layout.reduced(lambda part: lost[part])[0])
    first = next(iter(tensors.values())).ravel()[1:]
    of_first = layout.reduced(lambda part: lost[part], np.fmax)[0]
    assert of_first == first.max() if len(first) else math.isnan(of_first)


@given(SHAPES, st.integers(0, 99), st.data())
def test_a_part_of_the_vector_needs_no_vector(
    shapes: dict[str, tuple[int, ...]], seed: int, data: st.DataObject
) -> None:
    layout = Layout(shapes.items())
    start = data.draw(st.integers(0, layout.count - 1))
    part = slice(start, data.draw(st.integers(start + 1, layout.count)))
    tensors = drawn(shapes, seed)
    flats = [x.ravel().astype(np.float32) for x in tensors.values()]

    found = layout.entries_in(flats, part)

    assert found.dtype == np.float64
    assert np.array_equal(found, np.concatenate(flats)[part])


def test_few_tensors_and_several_dtypes_stay_apart() -> None:
    two: dict[str, Array] = {"a": np.ones(3), "b": np.zeros(2)}
    mixed: dict[str, Array] = {"a": np.ones(3), "b": np.zeros(2, np.float32), "c": np.zeros(1)}
    for tensors in (two, mixed):
        layout = layout_of({name: x.shape for name, x in tensors.items()})
        found = layout.join(tensors.values())
        assert not isinstance(found, Packed)
        assert {name: x.dtype for name, x in found.items()} == {
            name: x.dtype for name, x in tensors.items()
        }
        assert not any(np.shares_memory(found[name], x) for name, x in tensors.items())


def test_only_what_is_packed_alike_has_a_common_layout() -> None:
    shapes = {"a": (2,), "b": (3,), "c": (1,)}
    other = {"a": (3,), "b": (2,), "c": (1,)}
    one, same, differs = (
        layout_of(each).split(np.zeros(6)) for each in (shapes, dict(shapes), other)
    )
    assert common_layout(one, same) is one.layout
    assert common_layout(one, differs) is None
    assert common_layout(one, dict(same)) is None
    assert common_layout(dict(one), same) is None


VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.5, math.inf, -math.inf, math.nan])


@pytest.mark.slow
@settings(max_examples=200)
@given(SHAPES, st.integers(0, 99), st.lists(VALUES, max_size=4))
def test_packed_tensors_compare_as_each_does(
    shapes: dict[str, tuple[int, ...]], seed: int, odd: list[float]
) -> None:
    layout = Layout(shapes.items())
    draw = np.random.default_rng(seed)
    here, there = (np.round(draw.normal(size=layout.count), 1) for _ in range(2))
    bound = draw.random(layout.count)
    for value in odd:
        target = (here, there, bound)[draw.integers(3)]
        target[draw.integers(layout.count)] = abs(value) if target is bound else value
    scratch, framework, bounds = (layout.split(x) for x in (here, there, bound))

    with np.errstate(all="ignore"):
        found = each(scratch, framework, bounds)
        expected = {
            name: worst(name, scratch[name], framework[name], bounds[name]) for name in shapes
        }
        assert repr(found) == repr(expected)
        apart = drifts(scratch, framework)
        assert repr(apart) == repr({name: drift(scratch[name], framework[name]) for name in shapes})


def row_of(step: int, own: Packed, framework: Packed, bounds: Packed) -> Row:
    local = each(own, framework, bounds)
    apart = drifts(own, framework)
    return Row(step, 1, step, 0.0, 0.0, None, apart, {}, local, dict(local))


@pytest.mark.slow
@settings(max_examples=200)
@given(SHAPES, st.integers(0, 99), st.booleans())
def test_packed_tensors_need_what_each_needs(
    shapes: dict[str, tuple[int, ...]], seed: int, single: bool
) -> None:
    layout = layout_of(shapes)
    draw = np.random.default_rng(seed)
    meter, expected = DriftMeter(Tolerances()), dict[str, Needed]()
    for step in range(1, 4):
        there = np.round(draw.normal(size=layout.count), 1)
        here = there + draw.choice([0.0, 0.0, 1e-3, 0.5], size=layout.count)
        if single:
            here, there = here.astype(np.float32), there.astype(np.float32)
        own, framework = layout.split(here), layout.split(there)
        row = row_of(step, own, framework, layout.split(draw.random(layout.count)))
        steps = [Step({}, None, None, None, None, {}, None, after) for after in (own, framework)]
        meter.need_step(row, *steps)
        for name in shapes:
            one = needed(Tolerances().of(name), row.local[name], own[name], framework[name])
            expected[name] = expected.get(name, Needed()).joined(one)
        digits = [np.spacing(np.abs(x).max()) for x in own.values()]
        assert last_digit(own) == max(digits)

    assert meter.needed == expected
