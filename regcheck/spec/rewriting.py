"""A spec's text with some top-level keys changed; comments and all else stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


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
