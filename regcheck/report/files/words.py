"""What the files for people share: a record's summary, its order among others, and its words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from regcheck.compare.trace import TraceRow
from regcheck.report.record import Record
from regcheck.report.summary import Rule, Summary, remark_groups
from regcheck.report.texts.numbers import power
from regcheck.report.texts.step_table import around
from regcheck.report.texts.values import FinalValues, Values, value_rows

Cells = tuple[str, str, str, str]
"""A row of a table of numbers: what, both sides, and how far apart they are."""


def summary_of(record: Record) -> Summary | None:
    """Return a record's summary; None where there is an error in its place."""
    data = record.head.get("summary")
    return None if data is None else reader().validate_python(data)


@cache
def reader() -> TypeAdapter[Summary]:
    """Return what makes a summary of plain data."""
    return TypeAdapter(Summary)


def worst_first(records: Sequence[Record]) -> list[Record]:
    """Return errors first, then what failed, what is inconclusive, and what passed."""

    def grade(record: Record) -> int:
        if record.passed:
            return 3
        return {"error": 0, "inconclusive": 2}.get(record.outcome, 1)

    return sorted(records, key=grade)


def result_of(record: Record) -> str:
    """Return the verdict in one line, and whether it is what the spec expects."""
    expectation = (record.head.get("summary") or {}).get("expectation")
    return f"{record.headline}. {expectation}" if expectation else record.headline


class First(NamedTuple):
    """The steps at which the parameters and the reported losses first differ, if they do."""

    parameters: int | None
    losses: int | None

    @property
    def known(self) -> list[int]:
        """Those that there are."""
        return [step for step in self if step is not None]


def first_of(record: Record) -> First:
    """Return the steps at which a run first differs."""
    steps = (
        (record.head.get(key) or {}).get("step")
        for key in ("first_divergence", "first_loss_divergence")
    )
    return First(*steps)


def limits(record: Record) -> dict[str, float]:
    """Return the ratio above which each tensor diverges, and the loss."""
    found: dict[str, Any] = record.head["tolerance"]
    return {
        name: float(used["rounding"]) if "rounding" in used else 1.0 for name, used in found.items()
    }


def shown_rows(record: Record, most: int) -> list[TraceRow]:
    """Return some steps around the first differences, and the first and last ones."""
    trace = record.trace
    if trace is None:
        return []
    return [trace[index] for index in around(first_of(record).known, len(trace), most)]


def side_by_side(found: Values) -> list[Cells]:
    """Write the terms of an entry, and what its difference is allowed to be."""
    return [*value_rows(found.values), (found.allowed_by, "", "", power(found.allowed))]


def is_code(side: str, line: str) -> bool:
    """Return whether a fix of a side is torch's call or a spec's key, and no sentence."""
    return side == "spec" or line.startswith("torch.")


def ends(found: FinalValues) -> list[Cells]:
    """Write where both sides ended."""
    return value_rows([*found.parameters, *found.results])


def rule_text(rules: Sequence[Rule], letters: Sequence[str]) -> list[str]:
    """Write both rules, the losses that they report, and what the letters mean."""
    wide = max((len(rule.side) for rule in rules), default=0)
    found = []
    for rule in rules:
        reports = [f"reports  {rule.loss}"] if rule.loss else []
        for place, line in enumerate((rule.title, *rule.lines, *reports)):
            label = "" if place else rule.side
            found.append(f"{label:{wide}}  {line}" if place == 0 else f"{label:{wide}}    {line}")
    return [*found, *letters]


def plain_text(record: Record) -> str:
    """Write a report in short as lines of plain text; of a run with an error, the error."""
    found = summary_of(record)
    if found is None:
        return str(record.head["error"])
    parts = [
        [found.subject],
        [found.headline, *([found.expectation] if found.expectation else [])],
        rule_text(found.rules, found.letters),
    ]
    if found.values is not None:
        parts.append(
            [
                found.values.place,
                *aligned("", found.sides, side_by_side(found.values)),
                *found.before,
            ]
        )
    remarks = [f"{one.label}: {line}" for one in remark_groups(found) for line in one.lines]
    parts.append(remarks)
    if found.final is not None:
        parts.append(
            list(aligned(f"After step {found.final.step:,}", found.sides, ends(found.final)))
        )
    return "\n\n".join("\n".join(part) for part in parts if part)


def aligned(head: str, sides: Sequence[str], rows: Sequence[Cells]) -> Iterator[str]:
    """Write a table of numbers in columns."""
    table = [(head, *sides, "difference"), *rows]
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    for what, *numbers in table:
        columns = (f"  {text:>{wide}}" for text, wide in zip(numbers, others, strict=True))
        yield f"  {what:{first}}{''.join(columns)}".rstrip()
