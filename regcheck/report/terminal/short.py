"""The default report: verdict, rules, the first divergence, the fix, in at most 40 lines of 80.

Colour supports the words and marks, and never replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from regcheck.report.result import Report
from regcheck.report.summary import Rule, Summary, remark_groups, summary
from regcheck.report.terminal.console import STYLES, captured
from regcheck.report.texts.numbers import power
from regcheck.report.texts.step_table import table_lines
from regcheck.report.texts.text import count
from regcheck.report.texts.values import Value, value_rows

MOST_LINES = {"diverged": 40, "inconclusive": 40, "equivalent": 20}
"""Lines that a report has at most at 80 columns, so that the verdict stays on the screen."""

PLAIN = "NumPy, pytorch"
"""The title of a scratch side that goes by torch's own rule."""

FEW = 2
"""Lines that both rules share which are always shown."""

ROOMY = 72
"""Columns from which on numbers have all their digits."""

WIDE = 120
"""Columns from which on the two sides' rules stand beside each other."""


class Extent(NamedTuple):
    """How much is shown: steps of the table, lines that both rules share, remarks, end values.

    None stands for all steps; `formulas` is whether the rules' own lines are shown.
    """

    steps: int | None
    shared: int
    remarks: int
    ends: int
    formulas: bool = True


EXTENTS = (
    Extent(steps=5, shared=20, remarks=20, ends=9),
    Extent(steps=4, shared=20, remarks=3, ends=6),
    Extent(steps=3, shared=6, remarks=2, ends=5),
    Extent(steps=3, shared=0, remarks=2, ends=5),
    Extent(steps=3, shared=0, remarks=2, ends=4),
    Extent(steps=2, shared=0, remarks=2, ends=4),
    Extent(steps=2, shared=0, remarks=1, ends=3),
    Extent(steps=2, shared=0, remarks=1, ends=0),
    Extent(steps=0, shared=0, remarks=1, ends=0),
    Extent(steps=0, shared=0, remarks=1, ends=0, formulas=False),
)
"""From the most to the least; the first that fits is taken."""


def print_short(report: Report, console: Console, rows: int | str | None = "") -> None:
    """Print a report in short.

    Args:
        report: what was found.
        console: where it is printed.
        rows: how many steps the table shows, with all their tensors, None for all steps; where it
            is no number, the table is as short as the report must be.
    """
    found = summary(report)
    most = MOST_LINES[report.verdict] * 80 // min(80, console.width)
    for extent in EXTENTS:
        shown = Group(*sections(report, found, console.width, extent))
        if len(console.render_lines(shown)) <= most:
            break
    if not isinstance(rows, str):
        chosen = extent._replace(steps=rows)
        shown = Group(*sections(report, found, console.width, chosen, worst_alone=False))
    with captured(console):
        console.print(shown)


def short_text(report: Report, width: int = 80) -> str:
    """Return the short report as plain text."""
    stream = StringIO()
    print_short(report, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def sections(
    report: Report, found: Summary, width: int, extent: Extent, *, worst_alone: bool = True
) -> Iterator[RenderableType]:
    """Yield the sections from top to bottom, a blank line between them."""
    yield Text(found.subject, "dim")
    yield ""
    yield Text(found.headline, STYLES[report.verdict])
    if found.expectation:
        yield Text(found.expectation, "bold green" if report.expected else "bold red")
    yield ""
    yield from rules(found if extent.formulas else without_lines(found), width, extent.shared)
    if extent.steps != 0 and len(report.comparison.trace):
        yield ""
        for line in table_lines(report, extent.steps, width, worst_alone=worst_alone):
            yield Text.assemble(*line, no_wrap=True, overflow="ignore")
        yield from (Text(f" {legend}", "dim") for legend in found.ratio_means)
    if found.values is not None:
        yield from values(found, width)
        yield from (Padding(Text(line), (0, 0, 0, 2)) for line in found.before)
    said = remarks(found, extent.remarks)
    if said.row_count:
        yield ""
        yield said
    if found.final is not None and extent.ends:
        yield ""
        yield final(found, extent.ends, width)
    yield more(report)


def rules(found: Summary, width: int, shared: int) -> Iterator[RenderableType]:
    """Yield both rules: beside each other, or one below the other with what they share once."""
    grid = Table.grid(padding=(0, 2))
    known = [rule for rule in found.rules if rule.lines]
    if width >= WIDE and len(known) > 1:
        grid.add_row(*(Text.assemble((f" {one.side}  ", "bold"), one.title) for one in known))
        grid.add_row(*(formulas([f"   {line}" for line in one.lines]) for one in known))
        yield grid
    else:
        common = shared_lines(known) if len(known) > 1 else []
        alike = (
            common if len(common) <= max(shared, FEW) else [f"{count(len(common), 'line')} alike"]
        )
        sides = [
            Rule(one.side, one.title, tuple(line for line in one.lines if line not in common), "")
            for one in found.rules
        ]
        if common and not any(one.lines for one in sides) and sides[0].title == PLAIN:
            sides = [sides[1]._replace(side="both", lines=tuple(alike))]
        elif common:
            grid.add_row(Text(" both", "bold"), Text("\n".join(alike), "cyan"))
        for side in sides:
            for line in labelled_rule(side, width):
                grid.add_row(*line)
        yield grid
    if shared or width >= WIDE or any(one.lines not in ((), known[0].lines) for one in known):
        yield from (Text(f" {letter}", "dim") for letter in found.letters[: max(1, shared)])


def without_lines(found: Summary) -> Summary:
    """Return a summary with the titles of its rules alone."""
    return replace(found, rules=tuple(rule._replace(lines=()) for rule in found.rules), letters=())


def labelled_rule(rule: Rule, width: int) -> Iterator[tuple[Text, Text]]:
    """Yield a side's lines, its title beside the first if there is room, or else above."""
    title = rule.title.removeprefix("NumPy, ").removeprefix("torch.optim.")
    first, *others = rule.lines or ("",)
    label = Text(f" {rule.side}", "bold")
    if len(first) + len(title) + 14 <= width:
        yield label, Text.assemble((f"{first}   " if first else "", "cyan"), (title, "dim"))
    else:
        yield label, Text(title, "dim")
        others = [*rule.lines]
    for line in others:
        yield Text(), Text(line, "cyan")


def shared_lines(both: Sequence[Rule]) -> list[str]:
    """Return the lines that stand in all rules, in their order."""
    first, *others = both
    return [line for line in first.lines if all(line in other.lines for other in others)]


def formulas(lines: Sequence[str]) -> Group:
    """Return some formulas, one below the other."""
    return Group(*(Text(line, "cyan") for line in lines))


def values(found: Summary, width: int) -> Iterator[RenderableType]:
    """Yield the terms of the entry that diverges first."""
    assert found.values is not None
    yield Text(f"  {found.values.place}")
    table = number_table("", found.values.values, found.sides, width)
    table.add_row(f"  {found.values.allowed_by}", "", "", power(found.values.allowed))
    yield table


def number_table(head: str, found: Sequence[Value], sides: Sequence[str], width: int) -> Table:
    """Return a table of what both sides have and how far apart it is, a format for each column."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(head, overflow="fold")
    for name in (*sides, "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for what, *numbers in value_rows(found, narrow=width < ROOMY):
        table.add_row(f"  {what}", *numbers)
    return table


def remarks(found: Summary, most: int) -> Table:
    """Return what was verified, what is equally possible, what else is known, and the fixes."""
    grid = Table.grid(padding=(0, 2))
    for label, lines, side in remark_groups(replace(found, notes=found.notes[:most])):
        for place, line in enumerate(lines):
            style = "cyan" if side else ""
            grid.add_row(Text("" if place else f" {label}", "bold"), Text(line, style))
    return grid


def final(found: Summary, most: int, width: int) -> Table:
    """Return where both sides ended: the parameter farthest apart, the results, more parameters."""
    end = found.final
    assert end is not None
    first, *others = end.parameters
    results = end.results[: max(0, most - 1)]
    more = others[: most - 1 - len(results)] if most > 1 + len(results) else []
    shown = [first, *more, *results]
    return number_table(f" After step {end.step:,}", shown, found.sides, width)


def more(report: Report) -> Text:
    """Say where there is more."""
    causes = report.diagnosis.causes if report.diagnosis else ()
    named = f" · regcheck explain {causes[0]}" if causes else ""
    return Text(f"More: --details{named}", "dim")
