"""Explanations as text, JSON and Markdown."""

from __future__ import annotations

import re

from regcheck.explain import Entry, Explanation

BOLD, DIFFERENT, PLAIN = "\x1b[1m", "\x1b[1;33m", "\x1b[0m"


def as_text(explanation: Explanation) -> str:
    """Write an explanation for a terminal; what is not torch's is highlighted and named."""
    torch = next(
        (entry for entry in explanation.entries if entry.name in ("pytorch", "torch")), None
    )
    blocks = ["\n".join(explanation.before)] if explanation.before else []
    blocks += [entry_text(entry, torch) for entry in explanation.entries]
    if explanation.after:
        blocks.append("\n".join(explanation.after))
    return "\n\n".join(blocks)


def entry_text(entry: Entry, torch: Entry | None) -> str:
    """Write one entry."""
    lines = [f"{BOLD}{entry.name}{PLAIN}  {entry.title}"]
    same = set(torch.formulas) if torch else set()
    for formula in entry.formulas:
        lines.append(
            f"    {formula if formula in same or torch is None else highlighted(formula, torch)}"
        )
    if entry.differs:
        keys = ", ".join(f"{key}: {here}" for key, (here, _) in entry.differs.items())
        lines.append(f"    not torch's: {keys}")
    lines += [f"    {note}" for note in entry.notes]
    return "\n".join(lines)


def highlighted(formula: str, torch: Entry) -> str:
    """Highlight the words of a formula that torch's formula of the same start has not."""
    theirs = next((line for line in torch.formulas if line[:2] == formula[:2]), "").split()
    return re.sub(
        r"\S+",
        lambda word: word[0] if word[0] in theirs else f"{DIFFERENT}{word[0]}{PLAIN}",
        formula,
    )


def as_json(explanation: Explanation) -> str:
    """Write an explanation as JSON."""
    import json

    entries = [
        entry._asdict()
        | {
            "differs": {
                key: {"here": here, "torch": torch} for key, (here, torch) in entry.differs.items()
            }
        }
        for entry in explanation.entries
    ]
    return json.dumps(explanation._asdict() | {"entries": entries}, indent=1, ensure_ascii=False)


def as_markdown(explanation: Explanation) -> str:
    """Write an explanation as Markdown."""
    blocks = ["  \n".join(explanation.before)] if explanation.before else []
    for entry in explanation.entries:
        blocks.append(
            f"## {entry.name}\n\n{entry.title}\n\n```\n" + "\n".join(entry.formulas) + "\n```"
        )
        if entry.differs:
            keys = ", ".join(f"`{key}: {here}`" for key, (here, _) in entry.differs.items())
            blocks.append(f"Not torch's: {keys}")
        if entry.notes:
            blocks.append(" ".join(entry.notes))
    if explanation.after:
        blocks.append("```\n" + "\n".join(explanation.after) + "\n```")
    return "\n\n".join(blocks)


FORMATS = {"json": as_json, "markdown": as_markdown, "text": as_text}
