"""What a user's scratch function yields after an update, read and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


class Yielded(NamedTuple):
    """What the scratch function yields after an update.

    Attributes:
        parameters: float64 copies, in torch's shapes.
        loss: the loss, where it is yielded.
        gradient: likewise, in torch's shapes.
        fits_float32: whether float32 holds every parameter exactly.
    """

    parameters: dict[str, Array]
    loss: float | None
    gradient: dict[str, Array] | None
    fits_float32: bool


class Refused(Exception):  # noqa: N818  # never leaves this module
    """What was yielded cannot be used."""


EXTRAS = ("loss", "grad")
"""What may be yielded besides the parameters."""


def read(
    value: object, layout: Layout, fixed: Mapping[str, Array] = MappingProxyType({})
) -> Yielded:
    """Read what the function yielded; those parameters that nobody trains may be left out."""
    shapes = layout.shapes
    if not isinstance(value, Mapping):
        listed = "a tuple" if isinstance(value, tuple) else kind_of(value)
        raise Refused(f"yielded {listed}, not a mapping\n  Write `{pattern(shapes)}`.")
    required = [name for name in shapes if name not in fixed or name in value]
    check_names(value, required, (*EXTRAS, *fixed), "")
    with np.errstate(all="ignore"):
        parameters = layout.join(
            shaped(numbers(value[name], name), shape, name) if name in value else fixed[name]
            for name, shape in shapes.items()
        )
        return Yielded(
            parameters,
            read_loss(value.get("loss")),
            read_gradient(value.get("grad"), layout, fixed),
            all(map(fits_float32, parameters.values())),
        )


def pattern(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Show what to yield."""
    named = ", ".join(f'"{name}": ..' for name in shapes)
    return f"yield {{{named}}}"


def check_names(
    value: Mapping[Any, Any], names: Iterable[str], extras: Iterable[str], inside: str
) -> None:
    """Refuse missing and unknown names."""
    expected, allowed = list(names), [*names, *extras]
    missing = [name for name in expected if name not in value]
    unknown = [key for key in value if key not in allowed]
    if not missing and not unknown:
        return
    parts = [f"`{name}` is missing" for name in missing]
    for key in unknown:
        near = suggest(key, allowed) if isinstance(key, str) else "a name is a string"
        parts.append(f"there is no {shortened(one_line(repr(key)))} here ({near})")
    more = ", besides `loss` and `grad` if you like" if inside == "" else ""
    needed = ", ".join(f"`{name}`" for name in expected)
    found = f"in what it yielded{inside}, " + "; ".join(parts)
    raise Refused(f"{found}\n  It must hold {needed}{more}, and nothing else.")


def numbers(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Read numbers from whatever NumPy makes numbers of."""
    detach = getattr(value, "detach", None)
    plain = detach() if callable(detach) else value
    masked = type(plain) is not np.ndarray and isinstance(plain, np.ma.MaskedArray)
    if masked and np.ma.is_masked(plain):
        raise Refused(f"`{name}` has masked entries\n  Fill them: a parameter has all its numbers.")
    try:
        array = np.asarray(plain)
    except (TypeError, ValueError) as error:
        reason = one_line(str(error))
        text = f"`{name}` is {kind_of(value)}, of which NumPy makes no numbers: {reason}"
        raise Refused(f"{text}\n  Yield an array of real numbers.") from None
    if array.dtype.kind not in "fiu":
        what = KINDS.get(array.dtype.kind, f"of dtype {array.dtype}")
        text = f"`{name}` is {kind_of(value)}, and it holds {what}"
        raise Refused(f"{text}\n  Yield an array of real numbers.")
    return array


KINDS = {
    "O": "objects, not numbers",
    "U": "text, not numbers",
    "S": "text, not numbers",
    "b": "true and false, not numbers",
    "c": "complex numbers",
}
"""What arrays hold by their dtype's kind, where that is no real numbers."""


def shaped(array: np.ndarray[Any, Any], shape: tuple[int, ...], name: str) -> Array:
    """Return numbers in float64 and torch's shape; a flat array is taken row by row."""
    if array.shape == shape:
        return np.asarray(array, np.float64)
    squeezed = tuple(size for size in shape if size != 1)
    given = tuple(size for size in array.shape if size != 1)
    alike = len(squeezed) < 2 or len(given) < 2 or given == squeezed
    fits = array.size == math.prod(shape) and alike
    if not fits:
        raise Refused(
            f"`{name}` has shape {array.shape}, {array.size:,} numbers; expected "
            f"{math.prod(shape):,} numbers in shape {shape}{forms(shape, array)}"
        )
    return np.asarray(array, np.float64).reshape(shape)


def forms(shape: tuple[int, ...], array: np.ndarray[Any, Any]) -> str:
    """Say which other shapes will do, or what to do about this one."""
    squeezed = tuple(size for size in shape if size != 1)
    if tuple(size for size in array.shape if size != 1) == squeezed[::-1]:
        return "\n  Transpose it: yield `W.T`."
    if len(squeezed) < 2:
        count = math.prod(shape)
        return f"; ({count},) and ({count}, 1) will do too"
    return ""


def fits_float32(array: Array) -> bool:
    """Say whether float32 holds every number exactly."""
    first = array.item(0)
    if first == first and float(np.float32(first)) != first:  # mostly one tells
        return False
    same = np.count_nonzero(array.astype(np.float32) == array)
    return bool(same + np.count_nonzero(array != array) == array.size)  # NaN differs from itself


def read_loss(value: object) -> float | None:
    """Read a loss: one number, or None."""
    if value is None:
        return None
    array = numbers(value, "loss")
    if array.size != 1:
        text = f"`loss` has shape {array.shape}, {array.size:,} numbers; expected one number"
        raise Refused(f"{text}\n  Yield the mean (or the sum) over the rows, as the spec has it.")
    return float(array.reshape(()))


def read_gradient(
    value: object, layout: Layout, fixed: Mapping[str, Array]
) -> dict[str, Array] | None:
    """Read a gradient: a mapping of every parameter that is trained, or None."""
    if value is None:
        return None
    shapes = layout.shapes
    if not isinstance(value, Mapping):
        named = pattern(shapes).removeprefix("yield ")
        raise Refused(f'`grad` is {kind_of(value)}, not a mapping\n  Write `"grad": {named}`.')
    required = [name for name in shapes if name not in fixed or name in value]
    check_names(value, required, fixed, " as `grad`")
    return layout.join(
        shaped(numbers(value[name], f"grad of {name}"), shape, f"grad of {name}")
        if name in value
        else np.zeros(shape)
        for name, shape in shapes.items()
    )


def kind_of(value: object) -> str:
    """Say what kind of thing a value is."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
