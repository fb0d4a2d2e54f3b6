"""All that a report has to say: what was compared, the steps, the verdict and its terms."""

from __future__ import annotations

import math
from io import StringIO

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from regcheck.compare.steps import Divergence
from regcheck.report.result import Report
from regcheck.report.terminal.console import STYLES, captured
from regcheck.report.texts import text
from regcheck.report.texts.diagnosis.diagnosis_text import diagnosis_lines
from regcheck.report.texts.diagnosis.fixes import fixes
from regcheck.report.texts.heading import subject, training_size
from regcheck.report.texts.headline import expectation, sentence
from regcheck.report.texts.remarks import first_remarks, remarks
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.step_table import LEGEND, ratio_legend, table_lines

ROWS = 9
"""Steps that the table shows by default."""

ENTRIES = 8
"""Entries of the final parameters that are listed."""


def print_report(report: Report, console: Console, rows: int | None) -> None:
    """Print a report; `rows` is how many steps the table shows, None for all."""
    with captured(console):
        print_heading(report, console)
        if len(report.comparison.trace):
            console.print()
            print_table(report, console, rows)
        console.print()
        print_verdict(report, console)
        if report.comparison.compared:
            console.print()
            print_final(report, console)


def report_text(report: Report, rows: int | None = ROWS) -> str:
    """Return a report as plain text, 100 columns wide."""
    stream = StringIO()
    print_report(report, Console(file=stream, width=100, color_system=None), rows)
    return stream.getvalue()


def print_heading(report: Report, console: Console) -> None:
    """Print what is compared with what: the rules with their numbers."""
    console.print(Text(subject(report), "bold"))
    console.print(training_size(report), highlight=False)
    console.print()
    grid = Table.grid(padding=(0, 2))
    for side in text.sides(report):
        grid.add_row(Text(f" {side.side}", "bold"), Text(side.title))
        for line in side.update:
            grid.add_row("", Text(line, "cyan"))
        grid.add_row("", Text(f"reports  {side.loss}"))
    console.print(grid)
    lines = [line for side in text.sides(report) for line in side.update]
    for meaning in text.letter_meanings(report, lines):
        console.print(f" {meaning}", style="dim", highlight=False)


def print_table(report: Report, console: Console, rows: int | None) -> None:
    """Print the table of steps, and what its columns hold."""
    for line in table_lines(report, rows, console.width):
        console.print(Text.assemble(*line), no_wrap=True, overflow="ignore", crop=False)
    for legend in (LEGEND, *ratio_legend(report)):
        console.print(legend, style="dim", highlight=False)


def print_verdict(report: Report, console: Console) -> None:
    """Print the verdict, the terms that differ, the diagnosis, and what to change."""
    console.print(Text(sentence(report) + ".", STYLES[report.verdict]))
    if report.spec.expect:
        style = "bold green" if report.expected else "bold red"
        console.print(Text(expectation(report), style))
    divergence = report.first_divergence
    if divergence is not None and "parameters" in report.spec.compare:
        print_terms(report, divergence, console)
    print_remarks(first_remarks(report), console)
    diagnosis = Table.grid(padding=(0, 2))
    for label, line, formula in diagnosis_lines(report):
        diagnosis.add_row(Text(f"{label:<6}", "bold"), Text(line, "cyan" if formula else ""))
    if diagnosis.row_count:
        console.print(diagnosis)
    ways = fixes(report) if report.verdict == "diverged" else {}
    if ways:
        console.print("To make them match", style="bold")
        grid = Table.grid(padding=(0, 2))
        for label, lines in ways.items():
            for position, line in enumerate(lines):
                grid.add_row("" if position else f"  {label}", Text(line, "cyan"))
        console.print(grid)
    if report.diagnosis is not None:
        console.print("Notes", style="bold")
    print_remarks(remarks(report), console)


def print_remarks(found: list[str], console: Console) -> None:
    """Print some remarks, each a paragraph."""
    for remark in found:
        console.print(Padding(Text(remark), (0, 0, 0, 2)))


def print_terms(report: Report, divergence: Divergence, console: Console) -> None:
    """Print the two terms that differ, one above the other."""
    at, within = divergence.at, divergence.within
    if report.spec.tolerance.of(at.tensor).on_drift:
        where = text.entry(report, at.tensor, at.index)
        console.print(Text(f"  {where}, each side on its own:"))
        names, numbers = roles_of(report.spec).sides, text.both(at.scratch, at.framework)
        for name, number in zip(names, numbers, strict=True):
            console.print(f"  {name:<{max(map(len, names))}} has {number}", highlight=False)
        console.print(f"  difference {at.difference:.4g}, allowed {at.bound:.4g}", highlight=False)
        if within == at:
            return
    terms = text.terms(report, divergence)
    grid = Table.grid(padding=(0, 1))
    for term, value in zip(terms, text.both(*(term.value + 0.0 for term in terms)), strict=True):
        shown = f"= {value}" if term.formulas else value
        grid.add_row(
            f"  {term.side}",
            term.does,
            Text(" = ".join(term.formulas), "cyan"),
            "" if term.formulas == ["nothing"] else shown,
        )
    where = text.entry(report, within.tensor, within.index)
    console.print(Text(f"  {where}, both sides from the same parameters:"))
    console.print(grid)
    if math.isfinite(within.difference):
        size = text.short(abs(terms[0].value - terms[1].value))
        how = f"difference {size}: {text.short(within.ratio)} rounding bounds"
    else:
        how = "only one side is finite"
    console.print(f"  {how}", highlight=False)


def print_final(report: Report, console: Console) -> None:
    """Print where both sides ended, side by side."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(f"after step {report.comparison.trace[-1].step:,}", no_wrap=True)
    for name in (*roles_of(report.spec).sides, "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    scratch, framework = report.comparison.final["scratch"], report.comparison.final["framework"]
    entries = [
        (name, index, float(scratch.parameters[name][index]), float(w[index]))
        for name, w in framework.parameters.items()
        for index in np.ndindex(w.shape)
    ]
    listed = entries
    if len(entries) > ENTRIES:
        ranked = sorted(entries, key=lambda one: -abs(one[2] - one[3]))[:ENTRIES]
        listed = [one for one in entries if one in ranked]
    # Numbers are never cut; a long feature's name is.
    longest = max(12, console.width - 46)
    for name, index, left, right in listed:
        label = text.entry(report, name, index)
        cut = label if len(label) <= longest else f"{label[: longest - 1]}…"
        table.add_row(Text(cut), *difference(left, right))
    if len(listed) < len(entries):
        rest = len(entries) - len(listed)
        table.add_row(Text(f"… {rest} more, with smaller differences", "dim"))
    if report.comparison.losses.reported:
        table.add_row("reported loss", *difference(scratch.loss, framework.loss))
    for rows, here in scratch.accuracy.items():
        there = framework.accuracy[rows]
        if here is not None and there is not None:
            off = "" if here == there else f"{abs(here - there):.2%}".replace("nan%", "")
            table.add_row(f"accuracy, {rows}", f"{here:.2%}", f"{there:.2%}", off)
    console.print(table)


def difference(left: float, right: float) -> tuple[str, str, str]:
    """Write two numbers and their difference."""
    return f"{left:.9g}", f"{right:.9g}", text.short(abs(left - right))
