"""A spec file or mapping to a valid spec; what is wrong with it in plain words, with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from regcheck.errors import Complaint, InputError, suggest
from regcheck.rules.models import MODELS
from regcheck.spec.schema import Spec
from regcheck.spec.sections.data import ONE_SOURCE, source_of
from regcheck.spec.sections.fields import Path as SpecPath
from regcheck.spec.sections.fields import Section, choice_text, shown
from regcheck.spec.sections.training import options_section
from regcheck.spec.yaml_text import Document, dotted, parse, read_text


class LoadedSpec(NamedTuple):
    """A valid spec, the name it goes by, and the document that gives places to complaints."""

    spec: Spec
    name: str
    folder: Path
    document: Document

    def error(self, path: SpecPath, text: str) -> InputError:
        """Return an error about what stands at a path of the spec."""
        return InputError([Complaint(self.document.place(path), f"{dotted(path)}: {text}")])


def read_spec(path: Path, given: Mapping[str, object] | None = None) -> LoadedSpec:
    """Read and check a spec file.

    Args:
        path: the file.
        given: values of top-level keys that Python gives in the place of the file's.

    Raises:
        InputError: with every complaint about the file.
    """
    document = parse(read_text(path), str(path))
    if given and isinstance(document.content, Mapping):
        document = replace(document, content={**document.content, **given})
    return LoadedSpec(validate(document), str(path), path.parent, document)


def from_mapping(content: Mapping[str, Any]) -> LoadedSpec:
    """Check a spec that is given as a mapping; relative paths are relative to here."""
    document = Document("spec", plain(content))
    return LoadedSpec(validate(document), "spec", Path(), document)


def plain(value: object) -> object:
    """Turn what Python has and YAML has not into what YAML has: arrays and tuples into lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    # NumPy's arrays and numbers, and torch's tensors; NumPy is not loaded for it.
    return value.tolist() if hasattr(value, "tolist") else value


def validate(document: Document) -> Spec:
    """Check a document's content; all complaints are raised at once, in the order of the file.

    What could not be read has its complaint: what then seems wrong with it, or with the whole that
    it is part of, is no news.
    """
    if not isinstance(document.content, Mapping):
        found = "is empty" if document.content is None else f"holds {shown(document.content)}"
        text = f"a spec must be a mapping of data, model, lr and more; this file {found}"
        raise InputError([Complaint(document.place(()), text)])
    complaints = list(document.complaints)
    try:
        spec = Spec.model_validate(document.content)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            path = error["loc"]
            if not any(path[: len(one)] == one[: len(path)] for one in document.unread):
                complaints.append(complaint_of(error, document))
    if complaints:
        complaints.sort(key=lambda one: (one.place.line or 0, one.place.column or 0))
        raise InputError(complaints)
    return spec


REASONS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "invalid_key": "a key must be a string",
    "list_type": "must be a list",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text without lone surrogates",
    "too_long": "must have at most {max_length:,} number",
    "too_short": "must not be empty",
}
"""Kinds of pydantic's errors, in plain words."""

LIMITS = {
    "greater_than": ">",
    "greater_than_equal": "≥",
    "less_than": "<",
    "less_than_equal": "≤",
}
"""Kinds of pydantic's errors about limits, which hold the limit and no more."""

REQUIRED: dict[SpecPath, str] = {
    ("data",): f"with {ONE_SOURCE}",
    ("data", "X"): "with one list of numbers for each sample",
    ("data", "target"): "the column that holds y",
    ("data", "y"): "with one number for each row of X",
    ("framework", "weight_decay", "bias"): "0 means no weight decay on the bias",
    ("lr",): "the learning rate",
    ("model",): "one of " + ", ".join(MODELS),
    ("weight_decay", "bias"): "0 means no weight decay on the bias",
}
"""What a missing key is for, where that helps."""

SYNONYMS: dict[SpecPath, dict[str, str]] = {
    (): {"iterations": "epochs", "l2": "weight_decay", "lambda": "weight_decay"}
    | dict.fromkeys(("alpha", "eta", "learning_rate"), "lr"),
    ("lr_schedule",): {"gamma": "factor", "step_size": "every", "eta_min": "floor"}
    | dict.fromkeys(("t_max", "total_iters", "total_steps"), "steps"),
}
"""What other tools call a key of the spec, or of a section."""

NO_KEYS: dict[SpecPath, str] = {
    ("lr_schedule", "max_lr"): "the largest lr is `lr` itself",
    ("lr_schedule", "cycle_momentum"): "the momentum stays the optimizer's at each step",
}
"""What other tools have a key for, and what is here in its place."""


def complaint_of(error: ErrorDetails, document: Document) -> Complaint:
    """Turn one of pydantic's errors into a complaint."""
    path, of_key = error["loc"], True
    if error["type"] == "extra_forbidden":
        text, at = f"unknown key; {nearest_key(path, document.content)}", path
    elif error["type"] == "missing":
        hint = REQUIRED.get(path, "")
        text, at = "is required" + (f": {hint}" if hint else ""), path[:-1]
    else:
        text, at, of_key = reason(error["type"], error.get("ctx", {}), error["input"]), path, False
    return Complaint(document.place(at, of_key=of_key), f"{dotted(path)}: {text}")


CHOSEN_BY_CONTENT: dict[str, Callable[[Any], type[Section]]] = {
    "data": source_of,
    "optimizer": lambda content: options_section(content["name"]),
}
"""Sections that have other keys by what stands in them."""


def nearest_key(path: SpecPath, content: Any) -> str:
    """Describe which key may be meant by one that a mapping does not have."""
    key = str(path[-1])
    if path in NO_KEYS:
        return NO_KEYS[path]
    synonyms = SYNONYMS.get(path[:-1], {})
    if key.lower() in synonyms:
        return f"did you mean `{synonyms[key.lower()]}`?"
    section: type[Section] = Spec
    for name in path[:-1]:
        content = content[name]
        if name in CHOSEN_BY_CONTENT:
            section = CHOSEN_BY_CONTENT[str(name)](content)
            continue
        annotation = section.model_fields[str(name)].annotation
        kinds = (annotation, *get_args(annotation))
        [section] = (one for one in kinds if isinstance(one, type) and issubclass(one, Section))
    return suggest(key, section.model_fields)


def reason(kind: str, context: Mapping[str, Any], value: object) -> str:
    """Describe in plain words what was expected and what was found."""
    if kind == "regcheck":
        return str(context["text"])
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return choice_text(choices, value)
    expected = REASONS.get(kind, "is not valid").format(**context)
    if kind in LIMITS:
        (limit,) = context.values()
        number = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        whole = "whole " if isinstance(limit, int) else ""
        expected = f"must be a {whole}number {LIMITS[kind]} {number}"
    return f"{expected}, got {shown(value)}"
