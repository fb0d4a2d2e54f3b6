"""Specs: what may stand in one (`schema`), and how it is read from a file (`loading`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from regcheck.errors import Complaint, InputError, suggest
from regcheck.spec.loading import Document, Path_, load
from regcheck.spec.schema import LATER_KEYS, MODELS, Spec, shown

__all__ = ["LoadedSpec", "Spec", "from_mapping", "read_spec"]


class LoadedSpec(NamedTuple):
    """A valid spec, the name it goes by, and the document that gives places to complaints."""

    spec: Spec
    name: str
    folder: Path
    document: Document

    def complaint(self, path: Path_, text: str) -> Complaint:
        """Complain about what stands at a path of the spec."""
        return Complaint(self.document.place(path), f"{dotted(path)}: {text}" if path else text)


def read_spec(path: Path) -> LoadedSpec:
    """Read and check a spec file.

    Raises:
        InputError: with every complaint about the file.
    """
    document = load(path)
    return LoadedSpec(validate(document), str(path), path.parent, document)


def from_mapping(content: Mapping[str, Any]) -> LoadedSpec:
    """Check a spec that is given as a mapping; relative paths are relative to here."""
    document = Document("spec", dict(content), {}, [])
    return LoadedSpec(validate(document), "spec", Path(), document)


def validate(document: Document) -> Spec:
    """Check a document's content; all complaints are raised at once, in the order of the file."""
    complaints = list(document.complaints)
    spec = None
    if not isinstance(document.content, Mapping):
        found = "is empty" if document.content is None else f"holds {shown(document.content)}"
        complaints.append(
            Complaint(
                document.place(()),
                f"a spec is a mapping with data, model, lr, ..; this file {found}",
            )
        )
    else:
        try:
            spec = Spec.model_validate(document.content)
        except ValidationError as invalid:
            complaints += [
                complaint_of(error, document)
                for error in invalid.errors(include_url=False, include_context=True)
            ]
    if complaints or spec is None:
        raise InputError(
            sorted(complaints, key=lambda one: (one.place.line or 0, one.place.column or 0))
        )
    return spec


def complaint_of(error: Any, document: Document) -> Complaint:
    """Turn one of pydantic's errors into a complaint with its place, in plain words."""
    path, model = followed(error["loc"])
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        key = str(path[-1])
        if len(path) == 1 and key in LATER_KEYS:
            text = f"{LATER_KEYS[key]} is planned, and not in this version of regcheck"
        else:
            text = f"unknown key; {suggest(key, model.model_fields)}"
        return Complaint(document.place(path, of_key=True), f"{dotted(path)}: {text}")
    if kind == "missing":
        text = "is required" + required_hint(path)
        return Complaint(document.place(path[:-1], of_key=True), f"{dotted(path)}: {text}")
    place = document.place(path)
    name = dotted(path)
    return Complaint(
        place, f"{name}: {reason(kind, context, value)}" if name else reason(kind, context, value)
    )


def required_hint(path: Path_) -> str:
    """Name what a missing key may hold, where that helps."""
    hints = {"model": ", one of " + ", ".join(MODELS), "data": ": csv, npz, synthetic, or X and y"}
    return hints.get(str(path[-1]), "") if len(path) == 1 else ""


REASONS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_too_short": "must not be empty",
    "string_type": "must be a word",
    "too_short": "must not be empty",
}
LIMITS = {
    "greater_than": "must be a number > {gt:g}",
    "greater_than_equal": "must be a number ≥ {ge:g}",
    "less_than": "must be a number < {lt:g}",
    "less_than_equal": "must be a number ≤ {le:g}",
}


def reason(kind: str, context: Mapping[str, Any], value: object) -> str:
    """Say in plain words what was expected and what was found."""
    if kind == "regcheck":
        return str(context["text"])
    if kind in ("literal_error", "enum"):
        choices = [
            choice.strip("'")
            for choice in str(context["expected"]).replace(" or ", ", ").split(", ")
        ]
        hint = suggest(value, choices) if isinstance(value, str) else ""
        text = f"must be one of {', '.join(choices)}, got {shown(value)}"
        return f"{text}; {hint}" if hint.startswith("did") else text
    if kind in LIMITS:
        return f"{LIMITS[kind].format(**context)}, got {shown(value)}"
    return f"{REASONS.get(kind, 'is not valid')}, got {shown(value)}"


def followed(loc: tuple[str | int, ...]) -> tuple[Path_, type[BaseModel]]:
    """Turn pydantic's location into a path of the document.

    Locations through a tagged union hold the tag as well, which is no key of the file. Gives the
    path without tags, and the model whose key the path's end is.
    """
    from regcheck.spec import schema

    tagged: dict[str, type[BaseModel]] = {
        "csv": schema.CsvData,
        "npz": schema.NpzData,
        "synthetic": schema.SyntheticData,
        "inline": schema.InlineData,
    }
    path = list(loc)
    model: type[BaseModel] = Spec
    if len(path) >= 2 and path[0] == "data" and path[1] in tagged:
        model = tagged[str(path.pop(1))]
    depth = 1 if model is not Spec else 0
    for key in path[depth:-1]:
        inner = model.model_fields[key].annotation if key in model.model_fields else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        model = next(
            (one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)),
            model,
        )
    return tuple(path), model


def dotted(path: Path_) -> str:
    """Write a path as a person would: `data.X[3]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
