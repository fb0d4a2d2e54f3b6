"""What a user's function must be, and what a scratch function yields, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from regcheck.errors import one_line, shortened, suggest
from regcheck.numerics.packing import Layout
from regcheck.problem.problem import Array

EXAMPLES = {
    "framework": """
    def build(problem):
        model = torch.nn.Linear(problem.X.shape[1], 1, dtype=torch.float64)
        model.load_state_dict({name: torch.tensor(w) for name, w in problem.initial.items()})
        loss_function = lambda z, y: torch.nn.functional.mse_loss(z[:, 0], y)
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
        return model, loss_function, optimizer""",
    "scratch": """
    def train(problem):
        w, b = problem.initial["weight"], problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            slopes = 2 * (X @ w + b - y) / len(rows)
            w, b = w - problem.lr * slopes @ X, b - problem.lr * slopes.sum()
            yield {"weight": w, "bias": b}""",
}
"""A function of either side, to be copied: a line, trained with the squared error."""

WANTED = {
    side: f"it must be a function that is called with the problem and {does}, like{EXAMPLES[side]}"
    for side, does in {
        "framework": "returns (model, loss_function, optimizer)",
        "scratch": "yields the parameters after each update",
    }.items()
}
"""What a side's code must be."""

EXTRAS = ("loss", "grad")
"""What may be yielded besides the parameters."""

CONTENTS = {
    "O": "objects, not numbers",
    "U": "text, not numbers",
    "S": "text, not numbers",
    "b": "true and false, not numbers",
    "c": "complex numbers",
}
"""What arrays hold by their dtype's kind, where that is no real numbers."""


class Yielded(NamedTuple):
    """What the scratch function yields after an update.

    Attributes:
        parameters: float64 copies, in torch's shapes.
        loss: the loss, where it is yielded.
        gradient: likewise, in torch's shapes.
        fits_float32: whether float32 holds every parameter exactly.
    """

    parameters: Mapping[str, Array]
    loss: float | None
    gradient: Mapping[str, Array] | None
    fits_float32: bool


class Refused(Exception):  # noqa: N818  # never leaves this folder
    """What was yielded cannot be used."""


def read(
    value: object, layout: Layout, fixed: Mapping[str, Array] = MappingProxyType({})
) -> Yielded:
    """Read what the function yielded; those parameters that nobody trains may be left out."""
    if not isinstance(value, Mapping):
        found = "a tuple" if isinstance(value, tuple) else kind_of(value)
        raise Refused(f"yielded {found}, not a mapping\n  Write `{pattern(layout.shapes)}`.")
    check_names(value, layout, fixed, "")
    with np.errstate(all="ignore"):
        parameters = layout.join(
            shaped(numbers(value[name], name), shape, name) if name in value else fixed[name]
            for name, shape in layout.shapes.items()
        )
        return Yielded(
            parameters,
            read_loss(value.get("loss")),
            read_gradient(value.get("grad"), layout, fixed),
            all(map(fits_float32, parameters.values())),
        )


def read_loss(value: object) -> float | None:
    """Read a loss: one number, or None."""
    if value is None:
        return None
    array = numbers(value, "loss")
    if array.size != 1:
        text = f"`loss` has shape {array.shape}, {array.size:,} numbers; expected one number"
        raise Refused(f"{text}\n  Yield the mean (or the sum) over the batch's samples.")
    return float(array.reshape(()))


def read_gradient(
    value: object, layout: Layout, fixed: Mapping[str, Array]
) -> Mapping[str, Array] | None:
    """Read a gradient: a mapping of every parameter that is trained, or None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        wanted = pattern(layout.shapes).removeprefix("yield ")
        raise Refused(f'`grad` is {kind_of(value)}, not a mapping\n  Write `"grad": {wanted}`.')
    check_names(value, layout, fixed, " as `grad`")
    return layout.join(
        shaped(numbers(value[name], f"grad of {name}"), shape, f"grad of {name}")
        if name in value
        else np.zeros(shape)
        for name, shape in layout.shapes.items()
    )


def pattern(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Show what to yield."""
    named = ", ".join(f'"{name}": ..' for name in shapes)
    return f"yield {{{named}}}"


def check_names(
    value: Mapping[Any, Any], layout: Layout, fixed: Mapping[str, Array], inside: str
) -> None:
    """Refuse missing and unknown names, of the whole or `inside` of it."""
    expected = [name for name in layout.shapes if name not in fixed or name in value]
    allowed = [*expected, *(() if inside else EXTRAS), *fixed]
    faults = [f"`{name}` is missing" for name in expected if name not in value]
    for key in value:
        if key not in allowed:
            near = suggest(key, allowed) if isinstance(key, str) else "names are strings"
            faults.append(f"unknown name {shortened(one_line(repr(key)))} ({near})")
    if faults:
        needed = ", ".join(f"`{name}`" for name in expected)
        more = "" if inside else ", optionally `loss` and `grad`"
        found = f"in what it yielded{inside}, " + "; ".join(faults)
        raise Refused(f"{found}\n  It must have {needed}{more}, and nothing else.")


def numbers(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Read numbers from whatever NumPy makes numbers of."""
    detach = getattr(value, "detach", None)
    plain = detach() if callable(detach) else value
    masked = type(plain) is not np.ndarray and isinstance(plain, np.ma.MaskedArray)
    if masked and np.ma.is_masked(plain):
        raise Refused(
            f"`{name}` has masked entries\n  Fill them: every entry of a parameter is a number."
        )
    try:
        array = np.asarray(plain)
    except (TypeError, ValueError) as error:
        found = f", which NumPy cannot convert to numbers: {one_line(str(error))}"
    else:
        if array.dtype.kind in "fiu":
            return array
        found = f", and it holds {CONTENTS.get(array.dtype.kind, f'of dtype {array.dtype}')}"
    raise Refused(f"`{name}` is {kind_of(value)}{found}\n  Yield an array of real numbers.")


def shaped(array: np.ndarray[Any, Any], shape: tuple[int, ...], name: str) -> Array:
    """Return numbers in float64 and torch's shape; a flat array is taken row by row."""
    if array.shape == shape:
        return np.asarray(array, np.float64)
    squeezed = tuple(size for size in shape if size != 1)
    given = tuple(size for size in array.shape if size != 1)
    alike = len(squeezed) < 2 or len(given) < 2 or given == squeezed
    count = math.prod(shape)
    if alike and array.size == count:
        return np.asarray(array, np.float64).reshape(shape)
    todo = f"; ({count},) and ({count}, 1) are accepted too" if len(squeezed) < 2 else ""
    if given == squeezed[::-1]:
        todo = "\n  Transpose it: yield `W.T`."
    elif given == (count, count) and len(squeezed) == 1:
        todo += f"\n  A ({count},) and a ({count}, 1) broadcast to it: give both one shape first."
    elif given[1:] == squeezed:
        todo = "\n  It has one dimension more: sum over the samples."
    raise Refused(
        f"`{name}` has shape {array.shape}, {array.size:,} numbers; expected "
        f"{count:,} numbers in shape {shape}{todo}"
    )


def fits_float32(array: Array) -> bool:
    """Whether float32 holds every number exactly."""
    first = array.item(0)
    if first == first and float(np.float32(first)) != first:  # mostly one number decides it
        return False
    same = np.count_nonzero(array.astype(np.float32) == array)
    return bool(same + np.count_nonzero(array != array) == array.size)  # NaN differs from itself


def kind_of(value: object) -> str:
    """Return what kind of thing a value is, with its article."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
