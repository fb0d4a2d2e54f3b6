"""YAML text to plain values, with the line and column of each.

YAML 1.2's core scalars are read (so `1e-3` is a number, and `no` a word), by PyYAML's parser.
Duplicate keys, keys without a value, more than one document, anchors and tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from regcheck.errors import Complaint, InputError, Place
from regcheck.spec.fields import Path as SpecPath
from regcheck.spec.fields import shown


class Mark(NamedTuple):
    """Where a key and its value stand, counted from 1."""

    key: tuple[int, int]
    value: tuple[int, int]


class Document(NamedTuple):
    """A YAML document as plain values, with the mark of each path in it.

    `unread` are the paths whose values could not be read, each of which has its complaint.
    """

    file: str
    content: object
    marks: dict[SpecPath, Mark]
    complaints: list[Complaint]
    unread: set[SpecPath]

    def place(self, path: SpecPath, *, of_key: bool = False) -> Place:
        """Give the place of a path, or that of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                at_key = of_key and length == len(path)
                return Place(self.file, *(mark.key if at_key else mark.value))
        return Place(self.file)


def dotted(path: SpecPath) -> str:
    """Write a path as a person would: `data.X[3]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]{1,40}", part) else shown(part)
            text += f".{name}" if text else name
    return text


MAX_DEPTH = 32
"""Deeper nesting than any spec has; refused before Python's own limit is met."""


class RefusedError(yaml.MarkedYAMLError):
    """Valid YAML that has no use in a spec."""


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema, and nothing fancy."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; PyYAML's composer calls this for each."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self.refuse(event, "anchors and aliases have no use in a spec; write the value out")
        if getattr(event, "tag", None):
            self.refuse(event, "tags have no use in a spec; remove it")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(event, "nested too deeply for a spec")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def refuse(self, event: yaml.Event, text: str) -> None:
        """Refuse what an event starts."""
        raise RefusedError(problem=text, problem_mark=event.start_mark)  # type: ignore[arg-type]


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
    "str": str,
}
"""How a scalar is read, by the end of its tag."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise InputError([Complaint(Place(str(path)), text)]) from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        text = f"not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        raise InputError([Complaint(Place(str(path), line, column), text)]) from None


def load(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        InputError: the file cannot be read, or is not one plain YAML document. Duplicate keys and
            keys without a value do not raise but come as complaints of the document, to be told
            with the spec's own.
    """
    return parse(read_text(path), str(path))


def parse(text: str, file: str) -> Document:
    """Parse YAML text; `file` is what its places are called."""
    try:
        node = yaml.compose(text, CoreLoader)
    except RefusedError as error:
        raise InputError([Complaint(yaml_place(error, file), str(error.problem))]) from None
    except yaml.MarkedYAMLError as error:
        place = yaml_place(error, file)
        raise InputError([Complaint(place, f"not valid YAML: {yaml_reason(error)}")]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        found = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise InputError([Complaint(place, found)]) from None
    document = Document(file, None, {}, [], set())
    if node is None:
        return document
    return document._replace(content=Reader(document).read(node, ()))


def yaml_place(error: yaml.MarkedYAMLError, file: str) -> Place:
    """Take the place of a YAML error from its mark."""
    mark = error.problem_mark or error.context_mark
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)


def yaml_reason(error: yaml.MarkedYAMLError) -> str:
    """Say what PyYAML found, in one line, and what may fix it."""
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in reason:
        reason += "; indent with spaces, not tabs"
    if "mapping values are not allowed" in reason:
        reason += "; check the indentation, and quote a value that holds a colon"
    if "could not find expected ':'" in reason:
        reason += "; a key ends in a colon and a space"
    return reason


class Reader:
    """Turns YAML nodes into plain values, noting marks and complaints in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def read(self, node: yaml.Node, path: SpecPath, key: yaml.Node | None = None) -> object:
        """Read one node that stands at `path`."""
        self.document.marks[path] = Mark(position(key or node), position(node))
        if isinstance(node, yaml.MappingNode):
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.read_scalar(node, path)

    def read_mapping(self, node: yaml.MappingNode, path: SpecPath) -> dict[str, object]:
        """Read a mapping; the first of two equal keys counts, the second is complained about."""
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node, "a key must be a word")
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in found:
                line = self.document.marks[inner].key[0]
                text = f"is given twice, first in line {line}; keep one of them"
                self.complain(key_node, f"{dotted(inner)}: {text}")
            else:
                found[key] = self.read(value_node, inner, key_node)
        return found

    def read_scalar(self, node: yaml.Node, path: SpecPath) -> object:
        """Read a number, a word or a truth value; a missing value is complained about."""
        kind = str(node.tag).rsplit(":", 1)[-1]
        if kind == "null":
            if path:
                self.leave(path, node, "has no value; give it one, or leave an optional key out")
            return None
        try:
            return SCALARS[kind](node.value)
        except ValueError:  # Python reads no whole number of more than 4,300 digits
            self.leave(path, node, f"must be a finite number, got {len(node.value):,} digits")
            return None

    def leave(self, path: SpecPath, node: yaml.Node, text: str) -> None:
        """Complain about a value that cannot be read."""
        self.document.unread.add(path)
        self.complain(node, f"{dotted(path)}: {text}")

    def complain(self, node: yaml.Node, text: str) -> None:
        """Note a complaint about a node."""
        place = Place(self.document.file, *position(node))
        self.document.complaints.append(Complaint(place, text))


def position(node: yaml.Node) -> tuple[int, int]:
    """Give a node's line and column, counted from 1."""
    return node.start_mark.line + 1, node.start_mark.column + 1
