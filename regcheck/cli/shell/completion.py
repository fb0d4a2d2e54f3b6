"""What a shell completes, spec files and names to explain; it loads neither NumPy nor torch."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def specs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Complete a spec's file name, and the folders on the way; else whatever the shell finds."""
    from pathlib import Path  # only here: `explain` starts faster without it

    folder, slash, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder + slash or ".").iterdir())
    except (OSError, ValueError):
        found = []
    names = [
        f"{folder}{slash}{one.name}{'/' * one.is_dir()}"
        for one in found
        if one.name.startswith(start)
        and (one.suffix in (".yaml", ".yml") or one.is_dir())
        and not (one.name.startswith(".") and not start)
    ]
    if not any(name.endswith((".yaml", ".yml")) for name in names):
        return [CompletionItem(incomplete, type="file")]  # the shell's own way through folders
    return [CompletionItem(name) for name in names]


def explainable(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a convention, a cause, an optimizer, ..; or a spec's file name."""
    from regcheck.explain import names_by_kind

    named = [
        CompletionItem(name, help=kind)
        for kind, names in names_by_kind().items()
        for name in names
        if name.startswith(incomplete)
    ]
    return named or specs(ctx, param, incomplete)
