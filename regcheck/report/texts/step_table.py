"""The table of steps: a line for each tensor, and which column is judged by what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from regcheck.compare.drift import no_nan
from regcheck.compare.trace import TensorTrace, TraceRow
from regcheck.report.result import Report
from regcheck.report.texts.numbers import power
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.text import WHERE, count

LEGEND = "accumulated: each side by itself · one-step: both from the same parameters"

Line = list[tuple[str, str]]
"""Pieces of text, each with its style as rich has them."""


class Column(NamedTuple):
    """A column: its head, the blanks before it, and which columns go before it for want of width.

    `goes` counts from 1; a column of 0 stays.
    """

    head: str
    gap: int
    goes: int = 0
    left: bool = False


class Cells(NamedTuple):
    """A line of the table: a text and a style for each column, and a remark below it."""

    texts: tuple[str, ...]
    styles: tuple[str, ...]
    remark: str = ""


def columns(report: Report) -> tuple[Column, ...]:
    """Return the columns from left to right, and which go first where the width is short."""
    losses, accumulated = (3, 2) if report.first_loss_divergence else (2, 3)
    scratch, torch = roles_of(report.spec).sides
    # A side without a loss has no column.
    of_both = [(f"loss {scratch}", 2), ("", 1), (torch, 1)]
    if not report.comparison.losses.reported:
        of_both = [("", 0), ("", 0), (f"loss {torch}", 2)]
    return (
        Column("", 0),
        Column("step", 1),
        Column("epoch", 1, goes=1),
        Column("batch", 1, goes=1),
        *(Column(head, gap, goes=losses) for head, gap in of_both),
        Column("tensor", 2, left=True),
        Column("accumulated", 2, goes=accumulated),
        Column("one-step", 2),
        Column(ratio_head(report), 2),
        Column("", 1),
    )


def table_lines(
    report: Report, rows: int | None, width: int, *, worst_alone: bool = False
) -> list[Line]:
    """Write a header and `rows` steps, None for all; the first divergence is marked with `>`.

    A step has a line for each tensor. With `worst_alone` it has one, for the tensor that exceeds
    its limit most, and nothing else has a line.
    """
    trace = report.comparison.trace
    shown = chosen(report, rows)
    found: list[Cells | str] = []
    previous = -1
    for index in [*shown, len(trace)]:
        if index > previous + 1 and not worst_alone:
            found.append(f"… {count(index - previous - 1, 'step')} not shown")
        if index < len(trace):
            found += step_cells(report, trace[index], worst_alone)
        previous = index
    return list(laid_out(columns(report), found, width))


def laid_out(all_columns: Sequence[Column], found: list[Cells | str], width: int) -> Iterator[Line]:
    """Align the cells in those columns that the width has room for."""
    wide = [
        max(len(column.head), *(len(one.texts[at]) for one in found if isinstance(one, Cells)))
        for at, column in enumerate(all_columns)
    ]
    kept = list(range(len(all_columns)))
    for going in (1, 2, 3):
        if sum(wide[at] + all_columns[at].gap for at in kept) <= width:
            break
        kept = [at for at in kept if all_columns[at].goes != going]

    def line(texts: Sequence[str], styles: Sequence[str]) -> Line:
        pieces = []
        for at in kept:
            side = "<" if all_columns[at].left else ">"
            text = " " * all_columns[at].gap + f"{texts[at]:{side}{wide[at]}}"
            pieces.append((text, styles[at]))
        return pieces

    yield line([column.head for column in all_columns], ["bold"] * len(all_columns))
    for one in found:
        if isinstance(one, str):
            yield [(" " * (1 + wide[1]) + one, "dim")]
            continue
        yield line(one.texts, one.styles)
        if one.remark:
            yield [(" " * (1 + wide[1]) + "^ " + one.remark, "bold red")]


def chosen(report: Report, rows: int | None) -> list[int]:
    """Choose the rows to show."""
    firsts = (report.first_divergence, report.first_loss_divergence)
    return around([one.step for one in firsts if one], len(report.comparison.trace), rows)


def around(firsts: Sequence[int], total: int, rows: int | None) -> list[int]:
    """Choose the rows around the first divergences, and the first and last steps.

    >>> around([500], 1000, 4)
    [0, 498, 499, 999]
    """
    if rows is None or rows >= total:
        return list(range(total))
    anchors = [*(step - 1 for step in firsts), 0, total - 1]
    found: dict[int, None] = {}
    for distance in range(total):
        for anchor in anchors:
            for index in (anchor - distance, anchor + distance):
                if 0 <= index < total:
                    found[index] = None
                if len(found) == rows:
                    return sorted(found)
    return sorted(found)


def step_cells(report: Report, row: TraceRow, worst_alone: bool) -> list[Cells]:
    """Write one step; the remark says what begins here."""
    begins = beginnings(report, row.step)
    beyond = row.loss_judged > report.spec.tolerance.of("loss").limit
    own = loss_number(row.scratch_loss) if report.comparison.losses.reported else ""
    at = [">" if begins else "", str(row.step), str(row.epoch), str(row.batch)]
    losses = [own, "≠" if beyond else "", loss_number(row.framework_loss)]
    of_loss = "red" if beyond else ""
    tensors = list(row.tensors.items())
    if worst_alone:
        # Where all agree, the one that earlier steps put farthest apart.
        tensors = [max(tensors, key=lambda one: (excess(report, *one), no_nan(one[1].drift)))]
    lines = []
    for place, (name, tensor) in enumerate(tensors):
        exceeds = tensor.judged > report.spec.tolerance.of(name).limit
        of_tensor = "red" if exceeds else ""
        start = ["" for _ in (*at, *losses)] if place else [*at, *losses]
        texts = (*start, name, *tensor_numbers(report, name, tensor), "!" if exceeds else "")
        styles = ("",) * 4 + (of_loss,) * 3 + ("", "", "") + (of_tensor,) * 2
        lines.append(Cells(texts, ("bold red",) * len(texts) if begins else styles))
    if begins and not worst_alone:
        lines[-1] = lines[-1]._replace(remark="; ".join(begins))
    return lines


def excess(report: Report, name: str, tensor: TensorTrace) -> float:
    """Return how much of what its tolerance allows a tensor's difference is; NaN counts as 0."""
    limit = report.spec.tolerance.of(name).limit
    share = tensor.judged / limit if limit else tensor.judged
    return 0.0 if share != share else share


def tensor_numbers(report: Report, name: str, tensor: TensorTrace) -> tuple[str, str, str]:
    """Write a tensor's accumulated and one-step difference, and the ratio that is judged."""
    ratio = power(tensor.judged)
    if report.spec.tolerance.of(name).exact:
        ratio = "≠" if tensor.judged > 0 else "="
    return power(tensor.drift), power(tensor.local), ratio


def beginnings(report: Report, step: int) -> list[str]:
    """Say what begins at a step: the divergence of the parameters, and of the losses."""
    divergence, loss = report.first_divergence, report.first_loss_divergence
    found = []
    if divergence is not None and divergence.step == step:
        at = divergence.at
        index = "" if at.tensor == "bias" else f"[{', '.join(map(str, at.index))}]"
        found.append(f"first divergence: {at.tensor}{index}, {WHERE[divergence.stage]}")
    if loss is not None and loss.step == step:
        found.append("the losses differ" if found else "the reported losses differ")
    return found


def loss_number(value: float) -> str:
    """Write a loss in ten characters, or eleven where its exponent has three digits."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.{9 - len(str(int(abs(value))))}f}"
    return f"{value:.4e}"


def ratio_head(report: Report) -> str:
    """Head the column of what is judged: `× bound`, `× tol` on the drift, `ratio` where mixed."""
    drifts = {report.spec.tolerance.of(name).on_drift for name in report.comparison.trace.tensors}
    return "ratio" if len(drifts) > 1 else "× tol" if True in drifts else "× bound"


def ratio_legend(report: Report) -> list[str]:
    """Say what that column holds, and above which number a step diverges; and so for the loss."""
    tolerances, tensors = report.spec.tolerance, report.comparison.trace.tensors
    same = any(tolerances.of("loss") == tolerances.of(name) for name in tensors)
    limits: dict[str, list[str]] = {}
    for name in (*tensors, *([] if same else report.spec.judged(["loss"]))):
        tolerance = tolerances.of(name)
        if tolerance.exact:
            text = "accumulated difference, which must be exactly 0"
        elif tolerance.on_drift:
            allowed = f"{tolerance.atol or 0:g} + {tolerance.rtol or 0:g} |torch's|"
            text = f"accumulated over {allowed}; diverges above 1"
        else:
            over = "one-step over what rounding could cause"
            text = f"{over}; diverges above {tolerance.limit:g}"
        limits.setdefault(text, []).append(name)
    head = ratio_head(report)
    if len(limits) == 1:
        return [f"{head}: {next(iter(limits))}"]
    return [f"{head} of {', '.join(names)}: {text}" for text, names in limits.items()]
