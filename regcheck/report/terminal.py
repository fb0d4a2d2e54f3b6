"""A report for people: what was compared, the table of steps, the verdict and its terms.

Colour supports the words and marks, and never replaces them. Only this module imports rich.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from regcheck.compare.differences import Difference
from regcheck.compare.trace import TraceRow
from regcheck.report import diagnosis_text as why
from regcheck.report import text as words
from regcheck.report import tolerance_text as judgement
from regcheck.report.numbers import both, short
from regcheck.report.remarks import first_remarks, remarks
from regcheck.report.result import Report

ROWS = 9
"""Steps that the table shows unless told otherwise."""

ENTRIES = 8
"""Entries of the final parameters that are listed."""

STYLES = {"diverged": "bold red", "equivalent": "bold green", "inconclusive": "bold yellow"}

TRAILING_BLANKS = re.compile(r"[ ]+((?:\x1b\[0m)?)$", re.MULTILINE)

LEGEND = "drift: each side on its own · local: one step from the same parameters"


class Widths(NamedTuple):
    """Column widths of the table of steps."""

    step: int
    epoch: int
    batch: int
    loss: int
    tensor: int


def print_report(report: Report, console: Console, rows: int | None) -> None:
    """Print a report; `rows` is how many steps the table shows, None for all."""
    with console.capture() as capture:
        print_heading(report, console)
        if len(report.comparison.trace):
            console.print()
            print_table(report, console, rows)
        console.print()
        print_verdict(report, console)
        if report.comparison.compared:
            console.print()
            print_final(report, console)
    # rich fills its lines with blanks; in a file or a pipe they are only in the way.
    console.file.write(TRAILING_BLANKS.sub(r"\1", capture.get()))


def terminal() -> Console:
    """Give the console that standard output is."""
    return Console(soft_wrap=False)


def print_line(report: Report, console: Console) -> None:
    """Print a report's verdict alone, in one line."""
    line = Text(f"{report.name}: ")
    line.append(words.sentence(report), STYLES[report.verdict])
    if report.diagnosis is not None:
        line.append(f". Cause: {', '.join(report.diagnosis.causes) or 'not explained'}")
    if judgement.expectation(report):
        line.append(f". {judgement.expectation(report)}")
    console.print(line, soft_wrap=True)


def report_text(report: Report, rows: int | None = ROWS) -> str:
    """Give a report as plain text, 100 columns wide."""
    stream = StringIO()
    print_report(report, Console(file=stream, width=100, color_system=None), rows)
    return stream.getvalue()


def print_heading(report: Report, console: Console) -> None:
    """Print what is compared with what: the rules with their numbers."""
    console.print(Text(words.subject(report), "bold"))
    console.print(words.training_size(report), highlight=False)
    console.print()
    grid = Table.grid(padding=(0, 2))
    for side in words.sides(report):
        grid.add_row(Text(f" {side.side}", "bold"), Text(side.title))
        for line in side.update:
            grid.add_row("", Text(line, "cyan"))
        grid.add_row("", Text(f"reports  {side.loss}"))
    console.print(grid)
    for meaning in words.meanings_of(report):
        console.print(f" {meaning}", style="dim", highlight=False)


def print_table(report: Report, console: Console, rows: int | None) -> None:
    """Print the steps, one line a tensor; the first divergence is marked with `>`."""
    last = report.comparison.trace[-1]
    shown = chosen(report, rows)
    widths = Widths(
        step=max(4, len(str(last.step))),
        epoch=max(5, len(str(last.epoch))),
        batch=5,
        loss=max(
            len(loss_number(loss))
            for index in shown
            for loss in (
                report.comparison.trace[index].scratch_loss,
                report.comparison.trace[index].framework_loss,
            )
        ),
        tensor=max(6, *(len(name) for name in last.tensors)),
    )
    header = (
        f"  {'step':>{widths.step}} {'epoch':>{widths.epoch}} {'batch':>{widths.batch}}"
        f" {'loss scratch':>{widths.loss + 2}}   {'torch':>{widths.loss}}"
        f"  {'tensor':<{widths.tensor}} {'drift':>7} {'local':>7} {judgement.ratio_head(report):>7}"
    )
    lines = [Text(header, "bold")]
    previous = -1
    for index in shown:
        lines += gap(widths, index - previous - 1)
        lines += step_lines(report, report.comparison.trace[index], widths)
        previous = index
    lines += gap(widths, len(report.comparison.trace) - previous - 1)
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    for text in (LEGEND, *judgement.ratio_legend(report)):
        console.print(text, style="dim", highlight=False)


def chosen(report: Report, rows: int | None) -> list[int]:
    """Choose the rows to show: around the first divergences, and the first and last steps."""
    total = len(report.comparison.trace)
    if rows is None or rows >= total:
        return list(range(total))
    anchors = [0, total - 1]
    if report.first_loss_divergence:
        anchors.insert(0, report.first_loss_divergence.step - 1)
    if report.first_divergence:
        anchors.insert(0, report.first_divergence.step - 1)
    found: dict[int, None] = {}
    for distance in range(total):
        for anchor in anchors:
            for index in (anchor - distance, anchor + distance):
                if 0 <= index < total:
                    found[index] = None
                if len(found) == rows:
                    return sorted(found)
    return sorted(found)


def gap(widths: Widths, steps: int) -> list[Text]:
    """Write the line that says how many steps are left out, if any are."""
    if steps == 0:
        return []
    return [Text(f"  {'…':>{widths.step}} {words.count(steps, 'step')} not shown", "dim")]


def step_lines(report: Report, row: TraceRow, widths: Widths) -> list[Text]:
    """Write one step: a line for each tensor, and a line below that says what begins here."""
    divergence, loss = report.first_divergence, report.first_loss_divergence
    diverges = divergence is not None and divergence.step == row.step
    loss_parts = loss is not None and loss.step == row.step
    mark = ">" if diverges or loss_parts else ""
    beyond = row.loss_judged > report.spec.tolerance.of("loss").limit
    lines = []
    line = Text(
        f"{mark:<1} {row.step:>{widths.step}} "
        f"{row.epoch:>{widths.epoch}} {row.batch:>{widths.batch}}   "
    )
    own = loss_number(row.scratch_loss) if report.comparison.losses_reported else "-"
    line.append(
        f"{own:>{widths.loss}} {'≠' if beyond else ' '} "
        f"{loss_number(row.framework_loss):>{widths.loss}}  ",
        "red" if beyond else "",
    )
    margin = len(line)
    for name, tensor in row.tensors.items():
        tolerance = report.spec.tolerance.of(name)
        exceeds = tensor.judged > tolerance.limit
        ratio = ("≠" if exceeds else "=") if tolerance.exact else short(tensor.judged)
        numbers = (f"{text:>7}" for text in (short(tensor.drift), short(tensor.local), ratio))
        line.append(f"{name:<{widths.tensor}} ")
        line.append(" ".join(numbers) + (" !" if exceeds else ""), "red" if exceeds else "")
        lines.append(line)
        line = Text(" " * margin)
    if mark:
        begins = []
        if diverges and divergence is not None:
            at = divergence.at
            where = at.tensor
            if at.tensor != "bias":
                where += f"[{', '.join(map(str, at.index))}]"
            begins.append(f"first divergence: {where}, {words.WHERE[divergence.stage]}")
        if loss_parts:
            begins.append("the losses part" if begins else "the reported losses part")
        lines.append(Text(f"  {'^':>{widths.step}} {'; '.join(begins)}"))
        for each in lines:
            each.stylize("bold red")
    return lines


def loss_number(value: float) -> str:
    """Write a loss in ten characters, or eleven where its exponent has three digits."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.{9 - len(str(int(abs(value))))}f}"
    return f"{value:.4e}"


def print_verdict(report: Report, console: Console) -> None:
    """Print the verdict, the terms that differ, and what to change."""
    console.print(Text(words.sentence(report) + ".", STYLES[report.verdict]))
    if judgement.expectation(report):
        style = "bold green" if report.expected else "bold red"
        console.print(Text(judgement.expectation(report), style))
    if report.first_divergence is not None and words.judged(report, "parameters"):
        print_terms(report, console)
    print_remarks(first_remarks(report), console)
    print_why(report, console)
    ways = why.ways_out(report) if report.verdict == "diverged" else []
    if ways:
        console.print("To make them match", style="bold")
        grid = Table.grid(padding=(0, 2))
        for label, lines in ways:
            for position, line in enumerate(lines):
                grid.add_row("" if position else f"  {label}", Text(line, "cyan"))
        console.print(grid)
    told = report.comparison.compared and (
        report.verdict != "inconclusive" or report.comparison.stops(report.spec.compare)
    )
    rest = remarks(report) + ([judgement.smallest_line(report)] if told else [])
    if ways or report.diagnosis is not None:
        console.print("Besides", style="bold")
    print_remarks(rest, console)


def print_remarks(told: list[str], console: Console) -> None:
    """Print some remarks, each a paragraph."""
    for remark in told:
        console.print(Padding(Text(remark), (0, 0, 0, 2)))


def print_why(report: Report, console: Console) -> None:
    """Print the diagnosis: what explains the divergence, and how well."""
    grid = Table.grid(padding=(0, 2))
    for label, text, formula in why.why(report):
        grid.add_row(Text(f"{label:<6}", "bold"), Text(text, "cyan" if formula else ""))
    if grid.row_count:
        console.print(grid)


def print_terms(report: Report, console: Console) -> None:
    """Print the two terms that differ, one above the other."""
    divergence = report.first_divergence
    assert divergence is not None
    if report.spec.tolerance.of(divergence.at.tensor).on_drift:
        print_drift(report, divergence.at, console)
        if divergence.within == divergence.at:
            return
    within = divergence.within
    where = words.entry(report, within.tensor, within.index)
    grid = Table.grid(padding=(0, 1))
    terms = words.terms(report, divergence)
    values = both(terms[0].value + 0.0, terms[1].value + 0.0)
    for term, text in zip(terms, values, strict=True):
        formula = Text(" = ".join(term.formulas), "cyan")
        value = f"= {text}" if term.formulas else text
        grid.add_row(
            f"  {term.side}", term.does, formula, "" if term.formulas == ["nothing"] else value
        )
    apart = short(abs(terms[0].value - terms[1].value))
    console.print(Text(f"  {where}, both sides from the same parameters:"))
    console.print(grid)
    how = f"difference {apart}: {short(within.ratio)} rounding bounds"
    if not math.isfinite(within.difference):
        how = "one side alone is not finite"
    console.print(f"  {how}", highlight=False)


def print_drift(report: Report, at: Difference, console: Console) -> None:
    """Print the entry whose drift exceeds its tolerance, one side above the other."""
    grid = Table.grid(padding=(0, 1))
    for side, value in zip(("scratch", "torch"), both(at.scratch, at.framework), strict=True):
        grid.add_row(f"  {side}", f"has {value}")
    console.print(Text(f"  {words.entry(report, at.tensor, at.index)}, each side on its own:"))
    console.print(grid)
    console.print(f"  difference {at.difference:.4g}, allowed {at.bound:.4g}", highlight=False)


def print_final(report: Report, console: Console) -> None:
    """Print where both sides ended, side by side."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(f"after step {report.comparison.trace[-1].step:,}", no_wrap=True)
    for name in ("scratch", "torch", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    scratch, framework = report.comparison.final["scratch"], report.comparison.final["framework"]
    entries = [
        (
            name,
            index,
            float(scratch.parameters[name][index]),
            float(framework.parameters[name][index]),
        )
        for name in framework.parameters
        for index in np.ndindex(framework.parameters[name].shape)
    ]
    listed = entries
    if len(entries) > ENTRIES:
        ranked = sorted(entries, key=lambda one: -abs(one[2] - one[3]))[:ENTRIES]
        listed = [one for one in entries if one in ranked]
    # Numbers are never cut; a long feature's name is.
    room = max(12, console.width - 46)
    for name, index, left, right in listed:
        label = words.entry(report, name, index)
        add_pair(table, label if len(label) <= room else f"{label[: room - 1]}…", left, right)
    if len(listed) < len(entries):
        rest = len(entries) - len(listed)
        table.add_row(Text(f"… {rest} more, that differ less", "dim"))
    if report.comparison.losses_reported:
        add_pair(table, "loss reported in it", scratch.loss, framework.loss)
    for part, here in scratch.accuracy.items():
        there = framework.accuracy[part]
        if here is not None and there is not None:
            difference = "" if here == there else f"{abs(here - there):.2%}".replace("nan%", "")
            table.add_row(f"accuracy, {part}", f"{here:.2%}", f"{there:.2%}", difference)
    console.print(table)


def add_pair(table: Table, name: str, left: float, right: float) -> None:
    """Add a line of two numbers and their difference."""
    table.add_row(Text(name), f"{left:.9g}", f"{right:.9g}", short(abs(left - right)))


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while steps are compared, if it is a terminal.

    It comes up after half a second, so that a short run shows none.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _step, _total: None
        return
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(label)
    running = False
    due = time.monotonic() + 0.5

    def update(step: int, total: int) -> None:
        nonlocal running, due
        now = time.monotonic()
        if now < due:
            return
        if not running:
            bar.start()
            running = True
        bar.update(task, completed=step, total=total)
        due = now + 0.1

    try:
        yield update
    finally:
        if running:
            bar.stop()
