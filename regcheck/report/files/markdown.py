"""The Markdown report: GitHub's kind, with tables, for a job's summary or a pull request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from regcheck.compare.trace import TensorTrace, TraceRow
from regcheck.report.files.words import (
    Cells,
    ends,
    first_of,
    is_code,
    limits,
    result_of,
    rule_text,
    shown_rows,
    side_by_side,
    summary_of,
    worst_first,
)
from regcheck.report.record import Record
from regcheck.report.summary import Summary, remark_groups
from regcheck.report.texts.numbers import power
from regcheck.report.texts.step_table import loss_number

STEPS, TENSORS = 7, 4
"""Steps that the table shows, and tensors of each."""

MEANINGFUL = re.compile(r"[\\`*_\[\]<>#|~&$]|^[-+=]|(?<=^\d)[.)]")
"""What Markdown would read as its own; some only where a text begins."""


def plain(text: str) -> str:
    r"""Write a text so that Markdown changes nothing in it, also in a table.

    >>> print(plain("a|b <c> weight[0]"))
    a\|b \<c\> weight\[0\]
    """
    return MEANINGFUL.sub(r"\\\g<0>", " ".join(text.split()))


def fence(text: str, least: int) -> str:
    """Return more backticks than the text has in a row."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def code(text: str) -> str:
    """Write a text as code within a line."""
    line, ticks = " ".join(text.split()), fence(text, 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def block(lines: Sequence[str]) -> str:
    """Write lines as a block of code."""
    text = "\n".join(lines)
    ticks = fence(text, 3)
    return f"{ticks}text\n{text}\n{ticks}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Write a table; the columns at `left` are aligned there, all others to the right."""
    sides = ["---" if at in left else "---:" for at in range(len(heads))]
    body = [[plain(cell) for cell in row] for row in (heads, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (body[0], sides, *body[1:]))


def markdown_chunks(records: Sequence[Record]) -> Iterator[str]:
    """Yield the text of some runs: of one its report, of several a table of them first."""
    if len(records) == 1:
        yield "\n\n".join(run_parts(records[0])) + "\n"
        return
    ordered = worst_first(records)
    yield overview(ordered)
    for record in ordered:
        title = escape(f"{record.head['spec']}: {result_of(record)}".replace("\n", " "))
        yield f"\n<details><summary>{title}</summary>\n\n"
        yield "\n\n".join(run_parts(record)) + "\n\n</details>\n"


def overview(records: Sequence[Record]) -> str:
    """Write how many runs passed, and a line for each."""
    passed = sum(record.passed for record in records)
    rows = [
        ("ok" if one.passed else "FAIL", str(one.head["spec"]), result_of(one)) for one in records
    ]
    head = f"### {passed:,} of {len(records):,} specs pass"
    return f"{head}\n\n{table(('', 'spec', 'result'), rows, left=(0, 1, 2))}\n"


def run_parts(record: Record) -> Iterator[str]:
    """Yield the paragraphs, tables and blocks of one run."""
    found = summary_of(record)
    yield f"### {plain(record.headline)}"
    if found is None:
        yield block(str(record.head["error"]).splitlines())
        return
    yield plain(found.subject)
    if found.expectation:
        yield f"**{plain(found.expectation)}**"
    yield block(rule_text(found.rules, found.letters))
    if found.values is not None:
        yield plain(found.values.place)
        yield number_table("", found.sides, side_by_side(found.values))
        yield from map(plain, found.before)
    remarks = list(remark_lines(found))
    if remarks:
        yield "\n".join(remarks)
    rows = shown_rows(record, STEPS)
    if rows:
        yield step_table(record, found, rows)
        yield from map(plain, found.ratio_means)
        if len(rows[0].tensors) > TENSORS:
            yield f"Of {len(rows[0].tensors):,} tensors the {TENSORS} that exceed their limit most."
    if found.final is not None:
        yield number_table(f"After step {found.final.step:,}", found.sides, ends(found.final))


def number_table(head: str, sides: Sequence[str], rows: Sequence[Cells]) -> str:
    """Write a table of what both sides have."""
    return table((head, *sides, "difference"), rows)


def remark_lines(found: Summary) -> Iterator[str]:
    """Yield a list: proof, alternatives, what is known, and the fixes."""
    for label, lines, side in remark_groups(found):
        for line in lines:
            yield f"- **{plain(label)}** {code(line) if is_code(side, line) else plain(line)}"


def step_table(record: Record, found: Summary, rows: Sequence[TraceRow]) -> str:
    """Write some steps, a line for each tensor; `>` is where it begins, `!` what exceeds."""
    # A side without a loss has no column; of the others the first step's is a number.
    none = math.isnan(rows[0].scratch_loss)
    heads = (
        *("", "step", "epoch", "batch", *(f"loss {side}" for side in found.sides[none:])),
        *("tensor", "accumulated", "one-step", found.ratio, ""),
    )
    limit, first = limits(record), first_of(record).known
    lines = []
    for row in rows:
        losses = [loss_number(row.scratch_loss), loss_number(row.framework_loss)][none:]
        own = (">" if row.step in first else "", *map(str, row[:3]), *losses)
        for name, one in worst(row, limit):
            numbers = (power(one.drift), power(one.local), power(one.judged))
            lines.append((*own, name, *numbers, "!" if one.judged > limit[name] else ""))
            own = ("",) * len(own)
    return table(heads, lines, left=(0, len(heads) - 5, len(heads) - 1))


def worst(row: TraceRow, limit: Mapping[str, float]) -> list[tuple[str, TensorTrace]]:
    """Return a step's tensors; of more than there is room for, those that exceed most."""
    tensors = list(row.tensors.items())
    if len(tensors) > TENSORS:
        tensors.sort(key=lambda one: -nan_last(one[1].judged / limit[one[0]]))
    return tensors[:TENSORS]


def nan_last(value: float) -> float:
    """Return a number, below all others where it is none."""
    return -math.inf if math.isnan(value) else value
