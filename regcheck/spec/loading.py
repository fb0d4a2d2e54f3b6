"""YAML text to plain values, with the line and column of each.

YAML 1.2's core scalars are read (so `1e-3` is a number, and `no` a word), by PyYAML's parser.
Duplicate keys, more than one document, and anchors are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from regcheck.errors import Complaint, InputError, Place

Path_ = tuple[str | int, ...]


class Mark(NamedTuple):
    """Where a key and its value stand, counted from 1."""

    key: tuple[int, int]
    value: tuple[int, int]


class Document(NamedTuple):
    """A YAML document as plain values, with the mark of each path in it."""

    file: str
    content: object
    marks: dict[Path_, Mark]
    complaints: list[Complaint]

    def place(self, path: Path_, *, of_key: bool = False) -> Place:
        """Give the place of a path, or that of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                at_key = of_key and length == len(path)
                return Place(self.file, *(mark.key if at_key else mark.value))
        return Place(self.file)


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


FLOAT = (
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)

for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", FLOAT, "-+.0123456789"),
):
    CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first)
    )

SCALARS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: text.lower() == "true",
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "int": int,
    "null": lambda _: None,
    "str": str,
}

MAX_DEPTH = 32
"""Deeper nesting than any spec has; refused before Python's own limit is met."""


def load(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        InputError: the file cannot be read, or is not one YAML document. Duplicate keys do not
            raise but come as complaints of the document, to be told with the spec's own.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            [Complaint(Place(str(path)), f"not UTF-8 text (byte {error.start}); save it as UTF-8")]
        ) from None
    except OSError as error:
        raise InputError(
            [Complaint(Place(str(path)), f"cannot be read: {error.strerror}")]
        ) from None
    return parse(text.removeprefix("\ufeff"), str(path))


def parse(text: str, file: str) -> Document:
    """Parse YAML text; `file` is what its places are called."""
    try:
        for event in yaml.parse(text, CoreLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                place = place_of(event, file)
                raise InputError([Complaint(place, "anchors and aliases have no use in a spec")])
        node = yaml.compose(text, CoreLoader)
    except yaml.MarkedYAMLError as error:
        raise InputError(
            [Complaint(yaml_place(error, file), f"not valid YAML: {yaml_reason(error)}")]
        ) from None
    except yaml.reader.ReaderError as error:
        raise InputError([Complaint(Place(file), f"not valid YAML: {error.reason}")]) from None
    except RecursionError:
        raise InputError([Complaint(Place(file), "nested too deeply for a spec")]) from None
    document = Document(file, None, {}, [])
    if node is None:
        return document
    content = Reader(document).read(node, ())
    return document._replace(content=content)


def place_of(part: yaml.Event | yaml.Node, file: str) -> Place:
    """Take the place of an event or a node, counted from 1."""
    mark = part.start_mark
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)


def yaml_place(error: yaml.MarkedYAMLError, file: str) -> Place:
    """Take the place of a YAML error from its mark."""
    mark = error.problem_mark or error.context_mark
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)


def yaml_reason(error: yaml.MarkedYAMLError) -> str:
    """Say what PyYAML found, in one line."""
    reason = " ".join(part for part in (error.problem, error.context) if part)
    if "\\t" in reason or "'\t'" in reason:
        reason += "; indent with spaces, not tabs"
    return reason


class Reader:
    """Turns YAML nodes into plain values, noting marks and duplicate keys in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def read(self, node: yaml.Node, path: Path_, key: yaml.Node | None = None) -> object:
        """Read one node that stands at `path`."""
        value_at = (node.start_mark.line + 1, node.start_mark.column + 1)
        key_at = (key.start_mark.line + 1, key.start_mark.column + 1) if key else value_at
        self.document.marks[path] = Mark(key_at, value_at)
        if len(path) > MAX_DEPTH:
            self.complain(path, "nested too deeply for a spec")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.read_scalar(node, path)

    def read_mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, object]:
        """Read a mapping; the first of two equal keys counts, the second is complained about."""
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain_at(key_node, "a key must be a word")
                continue
            key = str(key_node.value)
            if key in found:
                first = self.document.marks[(*path, key)].key[0]
                self.complain_at(
                    key_node, f"`{key}` is given twice (first in line {first}); keep one of them"
                )
                continue
            found[key] = self.read(value_node, (*path, key), key_node)
        return found

    def read_scalar(self, node: yaml.Node, path: Path_) -> object:
        """Read a number, a word, a truth value or nothing."""
        read = SCALARS.get(str(node.tag).rsplit(":", 1)[-1])
        if read is None:
            self.complain(path, f"a tag has no use in a spec, got {node.tag}")
            return None
        try:
            return read(str(node.value))
        except ValueError:
            self.complain(path, "a number with too many digits")
            return None

    def complain(self, path: Path_, text: str) -> None:
        """Note a complaint about what stands at a path."""
        self.document.complaints.append(Complaint(self.document.place(path), text))

    def complain_at(self, node: yaml.Node, text: str) -> None:
        """Note a complaint about a node."""
        place = Place(self.document.file, node.start_mark.line + 1, node.start_mark.column + 1)
        self.document.complaints.append(Complaint(place, text))
