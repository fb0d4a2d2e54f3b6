"""Where both sides start: the parameters before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from regcheck.rules.models import Shape
from regcheck.rules.words import all_of
from regcheck.spec import LoadedSpec
from regcheck.spec.sections.init import Init

Array = NDArray[np.floating]
Parameters = dict[str, Array]
"""Tensors by torch's names."""


def start(loaded: LoadedSpec, init: Init, shapes: Mapping[str, Shape]) -> Parameters:
    """Make the parameters that both sides start from.

    Normal numbers are drawn from `numpy.random.default_rng(seed)`, tensor by tensor in the order of
    the layers, a layer's weight before its bias.
    """
    if init.normal is not None:
        random, std = np.random.default_rng(init.normal.seed), init.normal.std
        return {name: std * random.normal(size=shape) for name, shape in shapes.items()}
    if init.constant is not None:
        return {name: np.full(shape, float(init.constant)) for name, shape in shapes.items()}
    return {name: given_start(loaded, init, name, shape) for name, shape in shapes.items()}


def given_start(loaded: LoadedSpec, init: Init, name: str, shape: Shape) -> Array:
    """Return a tensor's numbers as a spec gives them.

    Raises:
        InputError: they are not as many as the tensor has, or not so arranged.
    """
    given = init.numbers[name]
    flat = init.tensors is None
    if flat and len(given) == math.prod(shape):
        return np.array(given, np.float64).reshape(shape)
    if flat:
        text = f"must have {shape[-1]} numbers, one for each feature, got {len(given)}"
        raise loaded.error(("init", name), text)
    widths = {len(row) for row in given} if len(shape) == 2 else {shape[-1]}
    if len(given) != shape[0] or widths != {shape[-1]}:
        rows = f"{shape[0]} rows of {shape[1]}" if len(shape) == 2 else f"{shape[0]}"
        found = f"{len(given)} of {all_of(map(str, sorted(widths)))}"
        found = found if len(shape) == 2 else str(len(given))
        raise loaded.error(("init", name), f"must have {rows} numbers, got {found}")
    return np.array(given, np.float64)


def check_range(loaded: LoadedSpec, X: Array, y: Array, initial: Parameters) -> None:
    """Refuse data and a start that overflow in float32 where a side uses it."""
    if "float32" not in (loaded.spec.dtype.scratch, loaded.spec.dtype.framework):
        return
    for name, arrays in {"data": (X, y), "initial parameters": tuple(initial.values())}.items():
        largest = max(float(np.abs(numbers).max()) for numbers in arrays)
        if largest > float(np.finfo(np.float32).max):
            text = f"float32 cannot hold the {name}, with a number of size {largest:.3g}"
            raise loaded.error(("dtype",), f"{text}; use float64")
