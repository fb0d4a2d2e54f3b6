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
    if yaml.safe_load(spliced) == yaml.safe_load(dumped(wanted)):
        return spliced
    return dumped(wanted)


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
        old = text[start:end]
        tail = old[len(old.rstrip()) :]  # a block's value ends with its line
        text = text[:start].rstrip(" \n") + " " + flow(value) + tail + text[end:]
    if not text.endswith("\n"):
        text += "\n"
    return text + "".join(
        f"{key}: {flow(value)}\n" for key, value in changes.items() if key not in pairs
    )


def flow(value: Any) -> str:
    """Write a value in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    return text.removesuffix("...\n").rstrip("\n")


def dumped(content: Mapping[str, Any]) -> str:
    """Write a mapping, its keys in their order."""
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text
