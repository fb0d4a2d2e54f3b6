"""What stands on a side of a spec: a user's function, an optimizer's name, or torch's settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from regcheck.errors import suggest
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.spec.sections.fields import has_bias, shown, wrong
from regcheck.spec.sections.training import TorchSettings

UserCode = str | Callable[[Any], Any]
"""A user's function: `FILE.py:FUNCTION` in a spec, or the function itself from Python."""

FUNCTION = "a Python file and a function in it, like my_train.py:train"


def in_a_module(value: object) -> str:
    """Describe how a function is named that a value names as Python imports it, if it does.

    >>> in_a_module("my.code.train")
    '; for the function train of a module, write my/code.py:train'
    """
    dotted = re.fullmatch(r"((?:\w+\.)*\w+)[.:](\w+)", value) if isinstance(value, str) else None
    if dotted is None or dotted[1].endswith(".py") or not dotted[2].isidentifier():
        return ""
    if dotted[2] == "py":  # a file without a function
        return ""
    file = dotted[1].replace(".", "/") + ".py"
    return f"; for the function {dotted[2]} of a module, write {file}:{dotted[2]}"


def user_code(forms: str, value: object) -> object:
    """Check that a value names a function in a Python file, or is one, or a class that may be."""
    named = re.fullmatch(r"\s*(\S.*\.py:(\w+))\s*", value) if isinstance(value, str) else None
    if named is not None and named[2].isidentifier():
        return named[1]
    if not callable(value):
        raise wrong(f"must be {forms}; got {shown(value)}{in_a_module(value)}")
    return value


def scratch_form(value: object) -> object:
    """Check that a value names a user's function or an optimizer, in any case, or is a function."""
    if not isinstance(value, str) or not value.strip().isidentifier():
        return user_code(f"{FUNCTION}, or an optimizer's name", value)
    name = value.strip().lower()
    if name not in OPTIMIZERS:
        hint = suggest(name, OPTIMIZERS)
        raise wrong(f"must be {FUNCTION}, or an optimizer's name; got {shown(value)}; {hint}")
    return name


def framework_form(value: object, info: ValidationInfo) -> object:
    """Check that a value names a user's function, or holds settings of torch's own.

    An error stands for one that is missing.
    """
    if isinstance(value, PydanticCustomError):
        raise value
    if isinstance(value, Mapping):
        return TorchSettings.model_validate(value, context={"bias": has_bias(info)})
    if isinstance(value, TorchSettings):
        return value
    forms = f"{FUNCTION}, or a mapping like {{lr: 0.2}} of settings for torch alone"
    return user_code(forms, value)


def own_optimizer_needed(textbook: str) -> PydanticCustomError:
    """Make the error that a textbook rule stands beside no optimizer of the user's."""
    return wrong(
        f"`scratch: {textbook}` is the textbook rule for an optimizer of your own: name the "
        "function that makes it, like `framework: my_optimizer.py:build`; to compare the built-in "
        f"sides, set `optimizer: {textbook}` and leave scratch out"
    )


def textbook_of(scratch: object) -> str | None:
    """Return the optimizer that `scratch` names in the place of a user's function, if it does."""
    return scratch if isinstance(scratch, str) and scratch in OPTIMIZERS else None


NAMED_CODE = {"type": "string", "pattern": r"^\s*\S.*\.py:[^\W\d]\w*\s*$"}
"""What names a function in a spec, in the JSON Schema."""

Scratch = Annotated[
    UserCode | None,
    BeforeValidator(scratch_form),
    WithJsonSchema({"anyOf": [NAMED_CODE, {"enum": [*OPTIMIZERS]}]}),
]
Framework = Annotated[
    Annotated[UserCode, WithJsonSchema(NAMED_CODE)] | TorchSettings | None,
    BeforeValidator(framework_form),
]
