"""What pydantic finds wrong with a spec, told in plain words and with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from regcheck.errors import Complaint, suggest
from regcheck.spec.data import ONE_SOURCE, SOURCES
from regcheck.spec.fields import Path, shown
from regcheck.spec.schema import MODELS, Spec
from regcheck.spec.yaml_text import Document, dotted

REASONS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "invalid_key": "a key must be a word",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_too_short": "must not be empty",
    "string_type": "must be a word",
    "string_unicode": "must hold no half of a surrogate pair",
    "too_long": "must hold at most {max_length:,} number",
    "too_short": "must not be empty",
}
"""Kinds of pydantic's errors, in plain words."""

LIMITS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": ("≥", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("≤", "le"),
}
"""Kinds of pydantic's errors about limits: the sign, and where the error holds the limit."""

REQUIRED: dict[Path, str] = {
    ("data",): f"with {ONE_SOURCE}",
    ("data", "X"): "with one list for each row",
    ("data", "target"): "the column that holds y",
    ("data", "y"): "with one number for each row of X",
    ("framework", "weight_decay", "bias"): "0 leaves the bias without a penalty",
    ("lr",): "the learning rate",
    ("model",): "one of " + ", ".join(MODELS),
    ("weight_decay", "bias"): "0 leaves the bias without a penalty",
}
"""What a missing key is for, where that helps."""

SYNONYMS = {"iterations": "epochs", "l2": "weight_decay", "lambda": "weight_decay"} | dict.fromkeys(
    ("alpha", "eta", "learning_rate"), "lr"
)
"""What other tools call a key of the spec."""


def complaint_of(error: ErrorDetails, document: Document) -> tuple[Path, Complaint]:
    """Turn one of pydantic's errors into a complaint; gives the path that it is about, too."""
    path, model = followed(error["loc"])
    at = path
    if error["type"] == "extra_forbidden":
        text = unknown_key(path, model)
    elif error["type"] == "missing":
        hint = REQUIRED.get(path, "")
        text, at = "is required" + (f": {hint}" if hint else ""), path[:-1]
    else:
        text = reason(error["type"], error.get("ctx", {}), error["input"])
    of_key = error["type"] in ("extra_forbidden", "missing")
    return path, Complaint(document.place(at, of_key=of_key), f"{dotted(path)}: {text}")


def unknown_key(path: Path, model: type[BaseModel]) -> str:
    """Say what is wrong with a key that a mapping does not have."""
    key = str(path[-1])
    if len(path) == 1 and key.lower() in SYNONYMS:
        return f"unknown key; did you mean `{SYNONYMS[key.lower()]}`?"
    return f"unknown key; {suggest(key, model.model_fields)}"


def reason(kind: str, context: Mapping[str, Any], value: object) -> str:
    """Say in plain words what was expected and what was found."""
    if kind == "regcheck":
        return str(context["text"])
    if kind == "literal_error":
        choices = [
            choice.strip("'")
            for choice in str(context["expected"]).replace(" or ", ", ").split(", ")
        ]
        hint = suggest(value, choices) if isinstance(value, str) else ""
        text = f"must be one of {', '.join(choices)}, got {shown(value)}"
        return f"{text}; {hint}" if hint.startswith("did") else text
    if kind in LIMITS:
        sign, key = LIMITS[kind]
        limit = context[key]
        number = (
            f"whole number {sign} {limit:,}"
            if isinstance(limit, int)
            else f"number {sign} {limit:g}"
        )
        return f"must be a {number}, got {shown(value)}"
    return f"{REASONS.get(kind, 'is not valid').format(**context)}, got {shown(value)}"


def followed(loc: tuple[str | int, ...]) -> tuple[Path, type[BaseModel]]:
    """Turn pydantic's location into a path of the document, without the tags of unions in it.

    Gives the path, and the model whose key the path's end is.
    """
    path, rest = list(loc), 0
    model: type[BaseModel] = Spec
    source = SOURCES.get(str(loc[1])) if loc[0] == "data" and len(loc) > 1 else None
    if source is not None:
        del path[1]
        model, rest = source, 1
    for key in path[rest:-1]:
        inner = model.model_fields[key].annotation if key in model.model_fields else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        model = next(
            (one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)),
            model,
        )
    return tuple(path), model
