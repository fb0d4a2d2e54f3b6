"""Explanations as text, JSON and Markdown."""

from __future__ import annotations

import json
import re

from regcheck.explain import Entry, Explanation

BOLD, DIFFERENT, PLAIN = "\x1b[1m", "\x1b[1;33m", "\x1b[0m"


def as_text(explanation: Explanation) -> str:
    """Write an explanation for a terminal; what is not torch's is highlighted and named."""
    torch = next((one for one in explanation.entries if one.name in ("pytorch", "torch")), None)
    theirs = torch.formulas if torch else []
    blocks = ["\n".join(explanation.before)] if explanation.before else []
    for entry in explanation.entries:
        lines = [f"{BOLD}{entry.name}{PLAIN}  {entry.title}"]
        lines += [f"    {highlighted(formula, theirs)}" for formula in entry.formulas]
        if entry.differs:
            lines.append(f"    not torch's: {', '.join(differing(entry))}")
        lines += [f"    {note}" for note in entry.notes]
        blocks.append("\n".join(lines))
    if explanation.after:
        blocks.append("\n".join(explanation.after))
    return "\n\n".join(blocks)


def highlighted(formula: str, torch: list[str]) -> str:
    """Highlight the words of a formula that torch's formula of the same start has not."""
    if not torch or formula in torch:
        return formula
    theirs = next((line for line in torch if line[:2] == formula[:2]), "").split()
    return re.sub(
        r"\S+",
        lambda word: word[0] if word[0] in theirs else f"{DIFFERENT}{word[0]}{PLAIN}",
        formula,
    )


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


EXPLANATION_FORMATS = {"json": as_json, "markdown": as_markdown, "text": as_text}


def listed(kinds: dict[str, list[str]], form: str) -> str:
    """Write every name that can be explained, one a line by kind, or as JSON."""
    if form == "json":
        return json.dumps(kinds, indent=1)
    start = "- " if form == "markdown" else ""
    return "\n".join(f"{start}{kind:<12}{name}" for kind, names in kinds.items() for name in names)
