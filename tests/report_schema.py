"""Reports held against the JSON Schema that the package publishes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator

from regcheck.report.files.envelope import json_chunks
from regcheck.report.record import Record

FILE = files("regcheck.report.schema") / "report.schema.json"


def published() -> dict[str, Any]:
    """Return the schema."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def closed(schema: Any) -> Any:
    """Return a schema that allows no key but those that it describes."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(one) for key, one in schema.items()}
    if "properties" in schema and schema.get("additionalProperties") is True:
        found["additionalProperties"] = False
    return found


@cache
def validator(strict: bool) -> Draft202012Validator:
    """Return what checks reports; a strict one knows no other keys."""
    return Draft202012Validator(closed(published()) if strict else published())


def envelope(records: Sequence[Record]) -> dict[str, Any]:
    """Return the JSON report of some runs, read back, with few of their rows."""
    found: dict[str, Any] = json.loads("".join(json_chunks(records)))
    for run in found["runs"]:
        if "rows" in run:
            run["rows"] = [*run["rows"][:5], *run["rows"][-5:]]
    return found


def complaints(report: Any, *, strict: bool = True) -> list[str]:
    """Return what is wrong with a report."""
    return list(islice(said(validator(strict).iter_errors(report)), 20))


def said(errors: Any) -> Iterator[str]:
    """Yield the complaints with their places, of an `anyOf` those of its parts."""
    for error in errors:
        if error.context:
            yield from said(error.context)
        else:
            yield f"{error.json_path}: {error.message[-200:]}"
