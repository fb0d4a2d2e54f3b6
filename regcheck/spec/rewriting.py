"""A spec's text with some keys changed, in a file; comments and all else stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from regcheck.errors import InputError, UsageError, one_line
from regcheck.spec.read import LoadedSpec
from regcheck.spec.yaml_text import SpecLoader, parse
from regcheck.writing import write_whole

WRITTEN = "# Written by `regcheck run --write-fixed`"
"""How a file begins that may be overwritten."""


def write_fixed(
    loaded: LoadedSpec, text: str, changes: Mapping[str, Any], why: str, path: Path
) -> None:
    """Write a spec with changes to a file; its comments stay, and its paths mean what they meant.

    Raises:
        UsageError: the file is there already and is not regcheck's own, or cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a regular file; `--write-fixed` writes a new one")
        there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if there.strip() and not there.startswith(WRITTEN):
        raise UsageError(f"{path}: exists already; `--write-fixed` does not overwrite it")
    changes = {**relocated(loaded, path), **changes}
    if loaded.spec.expect is not None:
        changes["expect"] = {"verdict": "equivalent"}
    head = one_line(f"{WRITTEN} from {loaded.name}: {why}.") + "\n"
    content = head + rewritten(text.removeprefix("\ufeff"), changes)
    write_whole(path, [content])


def relocated(loaded: LoadedSpec, path: Path) -> dict[str, Any]:
    """Return the keys whose paths are relative, as they read from another file's folder."""
    here, there = loaded.folder.resolve(), path.resolve().parent
    content = loaded.document.content
    if here == there or not isinstance(content, Mapping):
        return {}

    def from_there(name: str) -> str:
        relative = Path(os.path.relpath(here / name, there)).as_posix()
        return name if Path(name).is_absolute() else relative

    found: dict[str, Any] = {}
    data = content.get("data")
    if isinstance(data, Mapping):
        files = {key: data[key] for key in ("csv", "npz") if isinstance(data.get(key), str)}
        if files:
            found["data"] = {**data, **{key: from_there(name) for key, name in files.items()}}
    for key in ("scratch", "framework"):
        code = content.get(key)
        if isinstance(code, str):
            file, _, function = code.rpartition(":")
            found[key] = f"{from_there(file)}:{function}"
    return found


def rewritten(text: str, changes: Mapping[str, Any]) -> str:
    """Return a YAML mapping's text with other values for some of its keys; new ones come last.

    Comments and all else stay. Where that cannot be done in place, the whole is written anew,
    without comments.
    """
    content = parse(text, "").content
    assert isinstance(content, dict)
    wanted = content | dict(changes)
    spliced = in_place(text, changes)
    try:
        if parse(spliced, "").content == wanted:
            return spliced
    except InputError:  # a mapping in braces, or a document with an end
        pass
    anew: str = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    return anew


def in_place(text: str, changes: Mapping[str, Any]) -> str:
    """Replace values where they stand, from the last to the first."""
    node = yaml.compose(text, SpecLoader)
    assert isinstance(node, yaml.MappingNode)
    pairs = [(key.value, value) for key, value in node.value if key.value in changes]
    for key, value in reversed(pairs):
        start, end = value.start_mark.index, value.end_mark.index
        tail = after_value(text[start:end])
        text = text[:start].rstrip(" \n") + " " + flow(changes[key]) + tail + text[end:]
    if not text.endswith("\n"):
        text += "\n"
    new = changes.keys() - dict(pairs).keys()
    return text + "".join(f"{key}: {flow(changes[key])}\n" for key in changes if key in new)


def after_value(text: str) -> str:
    """Return what follows a value in its place: a block ends with its line, and comments after."""
    lines = text.split("\n")
    last = len(lines)
    while last > 1 and lines[last - 1].strip()[:1] in ("", "#"):
        last -= 1
    value = "\n".join(lines[:last])
    return value[len(value.rstrip()) :] + "".join("\n" + line for line in lines[last:])


def flow(value: Any) -> str:
    """Write a value in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    return text.removesuffix("...\n").rstrip("\n")
