"""Specs: what may stand in one (`schema`), how it is read (`loading`), what is told (`reasons`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from regcheck.errors import Complaint, InputError
from regcheck.spec.fields import Path as SpecPath
from regcheck.spec.fields import shown
from regcheck.spec.messages import complaint_of
from regcheck.spec.schema import Spec
from regcheck.spec.yaml_text import Document, dotted, load

__all__ = ["LoadedSpec", "Spec", "from_mapping", "read_spec"]


class LoadedSpec(NamedTuple):
    """A valid spec, the name it goes by, and the document that gives places to complaints."""

    spec: Spec
    name: str
    folder: Path
    document: Document

    def complaint(self, path: SpecPath, text: str) -> Complaint:
        """Complain about what stands at a path of the spec."""
        return Complaint(self.document.place(path), f"{dotted(path)}: {text}")


def read_spec(path: Path, given: Mapping[str, object] | None = None) -> LoadedSpec:
    """Read and check a spec file.

    Args:
        path: the file.
        given: values of top-level keys that Python gives in the place of the file's.

    Raises:
        InputError: with every complaint about the file.
    """
    document = load(path)
    if given and isinstance(document.content, Mapping):
        document = document._replace(content={**document.content, **given})
    return LoadedSpec(validate(document), str(path), path.parent, document)


def from_mapping(content: Mapping[str, Any]) -> LoadedSpec:
    """Check a spec that is given as a mapping; relative paths are relative to here."""
    document = Document("spec", plain(content), {}, [], set())
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
    """Check a document's content; all complaints are raised at once, in the order of the file."""
    if not isinstance(document.content, Mapping):
        found = "is empty" if document.content is None else f"holds {shown(document.content)}"
        text = f"a spec is a mapping with data, model, lr, ..; this file {found}"
        raise InputError([Complaint(document.place(()), text)])
    complaints = list(document.complaints)
    try:
        spec = Spec.model_validate(document.content)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            path, complaint = complaint_of(error, document)
            if not any(touch(path, unread) for unread in document.unread):
                complaints.append(complaint)
    if complaints:
        raise InputError(
            sorted(complaints, key=lambda one: (one.place.line or 0, one.place.column or 0))
        )
    return spec


def touch(path: SpecPath, unread: SpecPath) -> bool:
    """Say whether one path leads through the other.

    What could not be read is told once: what then seems wrong with it, or with the whole that it
    is part of, is no news.
    """
    length = min(len(path), len(unread))
    return path[:length] == unread[:length]
