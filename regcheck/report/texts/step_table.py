"""The table of steps: a line for each tensor, and which column is judged by what."""

from __future__ import annotations

from typing import NamedTuple

from regcheck.compare.trace import TraceRow
from regcheck.report.result import Report
from regcheck.report.texts.text import WHERE, count, short

LEGEND = "drift: each side on its own · local: one step from the same parameters"

Line = list[tuple[str, str]]
"""Pieces of text, each with its style as rich has them."""


class Widths(NamedTuple):
    """Column widths of the table."""

    step: int
    epoch: int
    loss: int
    tensor: int


def table_lines(report: Report, rows: int | None) -> list[Line]:
    """Write a header and `rows` steps, None for all; the first divergence is marked with `>`."""
    trace = report.comparison.trace
    shown = chosen(report, rows)
    losses = [
        loss_number(loss)
        for index in shown
        for loss in (trace[index].scratch_loss, trace[index].framework_loss)
    ]
    widths = Widths(
        step=max(4, len(str(trace[-1].step))),
        epoch=max(5, len(str(trace[-1].epoch))),
        loss=max(map(len, losses)),
        tensor=max(6, *map(len, trace.tensors)),
    )
    header = (
        f"  {'step':>{widths.step}} {'epoch':>{widths.epoch}} batch"
        f" {'loss scratch':>{widths.loss + 2}}   {'torch':>{widths.loss}}"
        f"  {'tensor':<{widths.tensor}} {'drift':>7} {'local':>7} {ratio_head(report):>7}"
    )
    lines = [[(header, "bold")]]
    previous = -1
    for index in [*shown, len(trace)]:
        if index > previous + 1:
            left_out = count(index - previous - 1, "step")
            lines.append([(f"  {'…':>{widths.step}} {left_out} not shown", "dim")])
        if index < len(trace):
            lines += step_lines(report, trace[index], widths)
        previous = index
    return lines


def chosen(report: Report, rows: int | None) -> list[int]:
    """Choose the rows to show: around the first divergences, and the first and last steps."""
    total = len(report.comparison.trace)
    if rows is None or rows >= total:
        return list(range(total))
    firsts = (report.first_divergence, report.first_loss_divergence)
    anchors = [*(first.step - 1 for first in firsts if first), 0, total - 1]
    found: dict[int, None] = {}
    for distance in range(total):
        for anchor in anchors:
            for index in (anchor - distance, anchor + distance):
                if 0 <= index < total:
                    found[index] = None
                if len(found) == rows:
                    return sorted(found)
    return sorted(found)


def step_lines(report: Report, row: TraceRow, widths: Widths) -> list[Line]:
    """Write one step: a line for each tensor, and a line below that says what begins here."""
    begins = beginnings(report, row.step)
    beyond = row.loss_judged > report.spec.tolerance.of("loss").limit
    own = loss_number(row.scratch_loss) if report.comparison.losses.reported else "-"
    step = (
        f"{'>' if begins else ' '} {row.step:>{widths.step}} "
        f"{row.epoch:>{widths.epoch}} {row.batch:>5}   "
    )
    losses = (
        f"{own:>{widths.loss}} {'≠' if beyond else ' '} "
        f"{loss_number(row.framework_loss):>{widths.loss}}  "
    )
    start = [(step, ""), (losses, "red" if beyond else "")]
    lines = []
    for name, tensor in row.tensors.items():
        tolerance = report.spec.tolerance.of(name)
        exceeds = tensor.judged > tolerance.limit
        ratio = ("≠" if exceeds else "=") if tolerance.exact else short(tensor.judged)
        numbers = " ".join(
            f"{text:>7}" for text in (short(tensor.drift), short(tensor.local), ratio)
        )
        judged = (numbers + (" !" if exceeds else ""), "red" if exceeds else "")
        lines.append([*start, (f"{name:<{widths.tensor}} ", ""), judged])
        start = [(" " * len(step + losses), "")]
    if begins:
        lines.append([(f"  {'^':>{widths.step}} {'; '.join(begins)}", "")])
        lines = [[("".join(text for text, _ in line), "bold red")] for line in lines]
    return lines


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
            text = "drift, which must be exactly 0"
        elif tolerance.on_drift:
            allowed = f"{tolerance.atol or 0:g} + {tolerance.rtol or 0:g} |torch's|"
            text = f"drift over {allowed}; a step diverges above 1"
        else:
            over = "local over the bound on rounding"
            text = f"{over}; a step diverges above {tolerance.limit:g}"
        limits.setdefault(text, []).append(name)
    head = ratio_head(report)
    if len(limits) == 1:
        return [f"{head}: {next(iter(limits))}"]
    return [f"{head} of {', '.join(names)}: {text}" for text, names in limits.items()]
