"""A spec's text with some keys changed, in a file; comments and all else stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from regcheck.errors import UsageError, one_line
from regcheck.spec import LoadedSpec

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
            raise UsageError(f"{path}: is no ordinary file; `--write-fixed` writes a new one")
        there = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if there.strip() and not there.startswith(WRITTEN):
        raise UsageError(f"{path}: is there already; `--write-fixed` does not overwrite it")
    changes = {**relocated(loaded, path), **changes}
    if loaded.spec.expect is not None:
        changes["expect"] = {"verdict": "equivalent"}
    head = one_line(f"{WRITTEN} from {loaded.name}: {why}.") + "\n"
    content = head + rewritten(text.removeprefix("\ufeff"), changes)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content.encode("utf-8", "backslashreplace"))
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def relocated(loaded: LoadedSpec, path: Path) -> dict[str, Any]:
    """Return the keys whose paths are relative, as they read from another file's folder."""
    here, there = loaded.folder.resolve(), path.resolve().parent
    content = loaded.document.content
    if here == there or not isinstance(content, Mapping):
        return {}

    def from_there(name: str) -> str:
        return (
            name
            if Path(name).is_absolute()
            else Path(os.path.relpath(here / name, there)).as_posix()
        )

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
    """Give a YAML mapping's text with other values for some of its keys; new ones come last.

    Where that cannot be done in place, the whole is written anew, without comments.
    """
    wanted = {**yaml.safe_load(text), **changes}
    spliced = in_place(text, changes)
    try:
        same = yaml.safe_load(spliced) == yaml.safe_load(dumped(wanted))
    except yaml.YAMLError:  # a mapping in braces, or a document with an end
        same = False
    return spliced if same else dumped(wanted)


def in_place(text: str, changes: Mapping[str, Any]) -> str:
    """Replace values where they stand, from the last to the first."""
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    pairs = {key.value: value for key, value in node.value}
    for key, value in sorted(
        ((key, value) for key, value in changes.items() if key in pairs),
        key=lambda pair: -int(pairs[pair[0]].start_mark.index),
    ):
        start, end = pairs[key].start_mark.index, pairs[key].end_mark.index
        tail = after_value(text[start:end])
        text = text[:start].rstrip(" \n") + " " + flow(value) + tail + text[end:]
    if not text.endswith("\n"):
        text += "\n"
    return text + "".join(
        f"{key}: {flow(value)}\n" for key, value in changes.items() if key not in pairs
    )


def after_value(text: str) -> str:
    """Give what follows a value in its place: a block ends with its line, and comments after it."""
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


def dumped(content: Mapping[str, Any]) -> str:
    """Write a mapping, its keys in their order."""
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text
