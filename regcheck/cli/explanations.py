"""Explanations as text, JSON and Markdown."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence

from regcheck.explain import Entry, Explanation

NARROWEST = 40
"""Columns that are taken for granted."""

BOLD, DIFFERENT, PLAIN = "\x1b[1m", "\x1b[1;33m", "\x1b[0m"


def as_text(explanation: Explanation, width: int = 80) -> str:
    """Write an explanation for a terminal; what is not torch's is highlighted and named."""
    torch = next((one for one in explanation.entries if one.name in ("pytorch", "torch")), None)
    theirs = torch.formulas if torch else []
    blocks = [[line for one in explanation.before for line in wrapped(one, width, 0)]]
    for entry in explanation.entries:
        head, *lines = wrapped(f"{entry.name}  {entry.title}", width, 4)
        lines.insert(0, f"{BOLD}{entry.name}{PLAIN}{head.removeprefix(entry.name)}")
        for formula in entry.formulas:
            lines += highlighted(wrapped(f"    {formula}", width), formula, theirs)
        if entry.differs:
            lines += wrapped(f"    not torch's: {', '.join(differing(entry))}", width)
        for note in paragraphs(entry.notes):
            lines += wrapped(f"    {note}", width, 4)
        blocks.append(lines)
    blocks.append([line for one in explanation.after for line in wrapped(one, width)])
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def wrapped(line: str, width: int, indent: int | None = None) -> list[str]:
    """Break a line at spaces; what follows is indented, by itself beyond a label and two spaces."""
    if indent is None:
        label = re.match(r" *(\S+  +)?", line)
        indent = 2 + (label.end() if label else 0)
    return textwrap.wrap(
        line,
        max(width, NARROWEST),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def paragraphs(notes: Sequence[str]) -> list[str]:
    """Join the lines of notes up to those that end a sentence."""
    return re.split(r"(?<=\.)\n", "\n".join(notes)) if notes else []


def highlighted(lines: list[str], formula: str, torch: list[str]) -> list[str]:
    """Highlight the words of a formula that torch's formula of the same start has not."""
    if not torch or formula in torch:
        return lines
    theirs = next((line for line in torch if line[:2] == formula[:2]), "").split()

    def highlight(word: re.Match[str]) -> str:
        return word[0] if word[0] in theirs else f"{DIFFERENT}{word[0]}{PLAIN}"

    return [re.sub(r"\S+", highlight, line) for line in lines]


def differing(entry: Entry) -> list[str]:
    """Write the keys in which an entry is not torch's."""
    return [f"{key}: {here}" for key, (here, _) in entry.differs.items()]


def as_json(explanation: Explanation) -> str:
    """Write an explanation as JSON."""
    entries = []
    for entry in explanation.entries:
        differs = {
            key: {"here": here, "torch": torch} for key, (here, torch) in entry.differs.items()
        }
        entries.append(entry._asdict() | {"differs": differs})
    return json.dumps(explanation._asdict() | {"entries": entries}, indent=1, ensure_ascii=False)


def as_markdown(explanation: Explanation) -> str:
    """Write an explanation as Markdown."""
    blocks = ["  \n".join(explanation.before)] if explanation.before else []
    for entry in explanation.entries:
        formulas = "\n".join(entry.formulas)
        blocks.append(f"## {entry.name}\n\n{entry.title}\n\n```\n{formulas}\n```")
        if entry.differs:
            blocks.append(f"Not torch's: {', '.join(f'`{one}`' for one in differing(entry))}")
        if entry.notes:
            blocks.append(" ".join(entry.notes))
    if explanation.after:
        blocks.append("```\n" + "\n".join(explanation.after) + "\n```")
    return "\n\n".join(blocks)


EXPLANATION_FORMATS = {"json": as_json, "markdown": as_markdown}
"""The formats but text, which has a width."""


def listed(kinds: dict[str, list[str]], form: str) -> str:
    """Write every name that can be explained, one a line by kind, or as JSON."""
    if form == "json":
        return json.dumps(kinds, indent=1)
    start = "- " if form == "markdown" else ""
    return "\n".join(f"{start}{kind:<12}{name}" for kind, names in kinds.items() for name in names)
