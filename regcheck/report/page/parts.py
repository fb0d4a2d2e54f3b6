"""The words and tables of a page, as HTML; all that comes from a run is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from regcheck.report.files.words import ends, is_code, side_by_side
from regcheck.report.page.steps import Kept, mark
from regcheck.report.record import Record
from regcheck.report.summary import Summary, remark_groups
from regcheck.report.texts.numbers import in_columns, power
from regcheck.report.texts.text import count

FEW_ENTRIES, MOST_ENTRIES = 12, 50
"""Entries of the parameters that a table shows at once, and at all."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Write a table with its caption; its first column says what a row holds."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return (
        f"{paragraphs([caption], 'quiet')}"  # outside, so that it wraps where the table scrolls
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paragraphs(lines: Sequence[str], kind: str = "") -> str:
    """Write lines as paragraphs."""
    mark = f' class="{kind}"' if kind else ""
    return "".join(f"<p{mark}>{escape(line)}</p>" for line in lines if line)


def words_of(found: Summary) -> Iterator[str]:
    """Yield both rules, the entry that diverges first, the diagnosis and the fixes."""
    yield '<div class="rules">'
    for rule in found.rules:
        lines = "\n".join(rule.lines) or "not known"
        loss = f'<p class="quiet">reports {escape(rule.loss)}</p>' if rule.loss else ""
        yield (
            f'<article><h3>{escape(rule.side)} <span class="quiet">{escape(rule.title)}</span></h3>'
            f'<pre tabindex="0">{escape(lines)}</pre>{loss}</article>'
        )
    yield f"</div>{paragraphs(found.letters, 'quiet')}"
    remarks = "".join(remark_items(found))
    if remarks:
        yield f"<dl>{remarks}</dl>"
    if found.values is not None:
        heads = ("", *found.sides, "difference")
        yield "<h3>The first divergence in numbers</h3>"
        yield table(heads, side_by_side(found.values), found.values.place)
        yield paragraphs(found.before)


def remark_items(found: Summary) -> Iterator[str]:
    """Yield what was verified, is equally possible, is known, and the fixes."""
    for label, lines, side in remark_groups(found):
        if lines:
            kinds = ["code" if is_code(side, line) else "span" for line in lines]
            said = "".join(
                f"<dd><{kind}>{escape(line)}</{kind}></dd>"
                for kind, line in zip(kinds, lines, strict=True)
            )
            yield f"<dt>{escape(label)}</dt>{said}"


PATHS = """<figure class="wide"><figcaption>Parameters' paths, of the entries farthest apart
(solid: {}, dashed: {})</figcaption>
<div class="plot paths" tabindex="0" role="application" aria-describedby="keys"
 aria-label="Plot of the parameters along the steps"></div></figure>
"""


def plots(chosen: Kept, record: Record, sides: Sequence[str]) -> str:
    """Write where the plots and the table of steps go; the page's script fills them."""
    options = "".join(f"<option>{escape(name)}</option>" for name in chosen.tensors)
    left_out = len(record.trace.tensors) - len(chosen.tensors) if record.trace else 0
    notes = [
        f"{count(left_out, 'more tensor')} not shown; a .csv report has all." if left_out else "",
        f"One step in {chosen.every} is here; a .csv report has all." if chosen.every > 1 else "",
    ]
    marked = mark(record)
    hidden, label = ("", marked.button) if marked else (" hidden", "")
    return f"""
<h3>Every step</h3>{paragraphs(notes, "quiet")}
<div class="controls">
<label>Tensor <select class="tensor">{options}</select></label>
<label>Go to step <input class="step" type="number" min="1" inputmode="numeric"></label>
<button type="button" class="to-first"{hidden}>{label}</button>
<button type="button" class="to-all">All steps</button>
</div>
<div class="plots">
<figure><figcaption>Reported loss</figcaption>
<div class="plot losses" tabindex="0" role="application" aria-describedby="keys"
 aria-label="Plot of both reported losses"></div></figure>
<figure><figcaption>Difference of <b class="name"></b> (log scale; 0 is below it)</figcaption>
<div class="plot differences" tabindex="0" role="application" aria-describedby="keys"
 aria-label="Plot of the differences of a tensor"></div></figure>
{PATHS.format(*map(escape, sides)) if record.paths else ""}</div>
<p class="readout" aria-live="polite"></p>
<div class="steps" tabindex="0" role="group" aria-label="Table of every step"><table>
<thead></thead><tbody></tbody></table></div>"""


class Entry(NamedTuple):
    """One entry of a parameter, where both sides ended."""

    name: str
    scratch: float
    torch: float

    @property
    def apart(self) -> float:
        """How far apart the sides are; infinite where that is no number."""
        difference = abs(self.scratch - self.torch)
        return math.inf if math.isnan(difference) else difference


def final_part(record: Record, found: Summary) -> Iterator[str]:
    """Yield where both sides ended: the results, and the entries that differ most."""
    if found.final is None:
        return
    heads = ("", *found.sides, "difference")
    yield f"<h3>After step {found.final.step:,}</h3>"
    yield table(heads, ends(found.final), "Each side trained by itself")
    entries = sorted(entries_of(record.head["final"]), key=lambda one: -one.apart)
    shown = entries[:MOST_ENTRIES]
    columns = in_columns([one.scratch for one in shown], [one.torch for one in shown])
    rows = [
        (one.name, *numbers, power(one.apart))
        for one, *numbers in zip(shown, *columns, strict=True)
    ]
    which = f"the {len(shown):,} of {len(entries):,} entries that differ most"
    title = f"Parameters: {which if len(shown) < len(entries) else 'all entries'}"
    opened = " open" if len(entries) <= FEW_ENTRIES else ""
    body = table(heads, rows, "The farthest apart first")
    yield f"<details{opened}><summary>{title}</summary>{body}</details>"


def entries_of(final: dict[str, Any]) -> Iterator[Entry]:
    """Yield every entry of every parameter."""
    names = [name for name in final["framework"] if name not in ("loss", "accuracy")]
    for name in names:
        scratch, torch = (
            np.array(final[side][name], np.float64) for side in ("scratch", "framework")
        )
        for index in np.ndindex(torch.shape):
            place = f"{name}[{', '.join(map(str, index))}]" if torch.size > 1 else name
            yield Entry(place, float(scratch[index]), float(torch[index]))
