"""YAML text to plain values, with the line and column of each.

YAML 1.2's core scalars are read (so `1e-3` is a number, and `no` a word), by PyYAML's parser.
Duplicate keys, keys without a value, more than one document, anchors and tags are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from regcheck.errors import Complaint, InputError, Place
from regcheck.spec.sections.fields import Path as SpecPath
from regcheck.spec.sections.fields import shown

SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], object]], ...] = (
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(text.replace(".", "")),
    ),
)
"""How plain text is read in YAML 1.2; any other is a word."""


@dataclass
class Document:
    """A YAML document as plain values, with the places of the key and the value of each path in it.

    `unread` are the paths whose values could not be read, each of which has its complaint.
    """

    file: str
    content: object = None
    places: dict[SpecPath, tuple[Place, Place]] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    unread: set[SpecPath] = field(default_factory=set)

    def place(self, path: SpecPath, *, of_key: bool = False) -> Place:
        """Return the place of a path, or that of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                key, value = self.places[path[:length]]
                return key if of_key and length == len(path) else value
        return Place(self.file)

    def at(self, node: yaml.Node) -> Place:
        """Return the place of a node; lines and columns count from 1."""
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def read(self, node: yaml.Node, path: SpecPath, key: yaml.Node | None = None) -> object:
        """Read the node that stands at `path` as plain values; note places and complaints."""
        self.places[path] = (self.at(key or node), self.at(node))
        if isinstance(node, yaml.MappingNode):
            return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.read_scalar(node, path)

    def read_mapping(self, node: yaml.MappingNode, path: SpecPath) -> dict[str, object]:
        """Read a mapping; the first of two equal keys counts, the second is complained about."""
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            inner = (*path, key)
            if not isinstance(key_node, yaml.ScalarNode):
                self.complaints.append(Complaint(self.at(key_node), "a key must be a string"))
            elif key in found:
                text = f"is given twice, first in line {self.places[inner][0].line}"
                text = f"{dotted(inner)}: {text}; keep one of them"
                self.complaints.append(Complaint(self.at(key_node), text))
            else:
                found[key] = self.read(value_node, inner, key_node)
        return found

    def read_scalar(self, node: yaml.ScalarNode, path: SpecPath) -> object:
        """Read a number, a word or a truth value; a missing value is complained about."""
        text: str = node.value
        kinds = (kind for pattern, kind in SCALARS if pattern.fullmatch(text))
        problem = "has no value; give it one, or remove the key"
        try:
            value = next(kinds, str)(text) if node.style is None else text
        except ValueError:  # Python reads no whole number of more than 4,300 digits
            value, problem = None, f"must be a finite number, got {len(text):,} digits"
        if value is None and path:
            self.unread.add(path)
            self.complaints.append(Complaint(self.at(node), f"{dotted(path)}: {problem}"))
        return value


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


SUFFIXES = (".yaml", ".yml")
"""How YAML files end."""


def meant(path: Path) -> str:
    """Name the spec that a missing one may be: its name with the other suffix of YAML files."""
    if path.suffix not in ("", *SUFFIXES):
        return ""
    others = (other for other in map(path.with_suffix, SUFFIXES) if other != path)
    found = filter(os.path.isfile, others)  # Path.is_file raises where a name is too long
    return "".join(f"; did you mean {other}?" for other in found)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        text = f"cannot be read: {error.strerror}{meant(path)}"
        raise InputError([Complaint(Place(str(path)), text)]) from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        text = f"not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        raise InputError([Complaint(Place(str(path), line, column), text)]) from None


MAX_DEPTH = 32
"""Deeper nesting than any spec has; refused before Python's own limit is met."""


class RefusedError(yaml.MarkedYAMLError):
    """Valid YAML that has no use in a spec."""


class SpecLoader(yaml.BaseLoader):
    """PyYAML's loader that leaves all scalars as text, and refuses what is fancy."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; PyYAML's composer calls this for each."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        text = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            text = "a spec takes no anchors or aliases; write the value itself"
        elif getattr(event, "tag", None):
            text = "a spec takes no tags; remove it"
        elif self.depth == MAX_DEPTH:
            text = "nested too deeply for a spec"
        if text:
            raise RefusedError(problem=text, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


HINTS = {
    "'\\t'": "indent with spaces, not tabs",
    "mapping values are not allowed": (
        "check the indentation, and quote a value that holds a colon"
    ),
    "could not find expected ':'": "a key ends in a colon and a space",
}
"""What may fix what PyYAML finds."""


def parse(text: str, file: str) -> Document:
    """Parse YAML text; `file` is what its places are called.

    Raises:
        InputError: it is not one plain YAML document. Duplicate keys and keys without a value do
            not raise but come as complaints of the document, to be reported with the spec's own.
    """
    try:
        node = yaml.compose(text, SpecLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        if not isinstance(error, RefusedError):
            hints = [f"; {hint}" for found, hint in HINTS.items() if found in reason]
            reason = f"not valid YAML: {reason}{''.join(hints)}"
        raise InputError([Complaint(place, reason)]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        reason = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise InputError([Complaint(place, reason)]) from None
    document = Document(file)
    document.content = None if node is None else document.read(node, ())
    return document
