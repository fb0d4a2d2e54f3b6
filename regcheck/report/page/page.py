"""The page as a whole: one file with its styles, its script and the plotting library within it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from regcheck.report.files.words import result_of, summary_of, worst_first
from regcheck.report.page.parts import final_part, paragraphs, plots, words_of
from regcheck.report.page.steps import MOST_BYTES, kept, steps_text
from regcheck.report.record import Record

MOST_PLOTTED = 10
"""Runs of which a page holds the steps, the worst first; of all others it has the words."""

NOTHING_ELSE = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What a browser may load for the page: nothing from anywhere, whatever the page holds."""


def html_chunks(records: Sequence[Record]) -> Iterator[str]:
    """Yield the text of a page."""
    from plotly.offline import get_plotlyjs

    ordered = worst_first(records)
    plotted = [place for place, one in enumerate(ordered) if one.trace][:MOST_PLOTTED]
    yield opening(ordered)
    for place, record in enumerate(ordered):
        most_bytes = MOST_BYTES // max(1, len(plotted)) if place in plotted else 0
        name = str(record.head["spec"]) if len(ordered) > 1 else ""
        yield from section(place, name, record, most_bytes)
    yield '<p id="keys" class="quiet">In a plot: ← and → go a step, Page Up and Page Down a tenth '
    yield "of all, Home and End to the ends.</p></main>\n"
    if plotted:
        yield f"<script>{get_plotlyjs()}</script>\n"
        yield f"<script>{own('page.js')}</script>\n"
    yield "</body></html>\n"


def own(name: str) -> str:
    """Return a file that stands beside this module."""
    return (files("regcheck.report.page") / name).read_text(encoding="utf-8")


def opening(records: Sequence[Record]) -> str:
    """Write the page's head, and a list of the specs where there are several."""
    passed = sum(one.passed for one in records)
    several = len(records) > 1
    title = f"{passed:,} of {len(records):,} specs pass" if several else records[0].headline
    lines = "".join(
        f'<li class="{escape(one.outcome)}"><a href="#run-{place}">{escape(str(one.head["spec"]))}'
        f"</a> {'ok' if one.passed else 'FAIL'}: {escape(result_of(one))}</li>"
        for place, one in enumerate(records)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{NOTHING_ELSE}">
<title>{escape(title)}</title>
<style>{own("page.css")}</style></head>
<body><main>
{f"<h1>{escape(title)}</h1><ul>{lines}</ul>" if several else ""}
"""


def section(place: int, name: str, record: Record, most_bytes: int) -> Iterator[str]:
    """Yield one run, under a name if there are several; its steps where it has bytes for them."""
    found = summary_of(record)
    outcome, _, rest = record.headline.partition(" ")
    shown = " open" if place == 0 else ""
    yield f'<details class="run {escape(record.outcome)}" id="run-{place}"{shown}><summary>'
    yield f"<h2><strong>{escape(outcome)}</strong> {escape(rest)}"
    if name:
        yield f'<span class="quiet">{escape(name)}</span>'
    yield "</h2></summary>\n"
    if found is None:
        yield f'<pre tabindex="0">{escape(str(record.head["error"]))}</pre></details>\n'
        return
    yield paragraphs([found.subject], "quiet")
    yield paragraphs([found.expectation], "as-expected" if record.passed else "unexpected")
    yield from words_of(found)
    if most_bytes:
        chosen = kept(record, most_bytes)
        yield plots(chosen, record, found.sides)
        yield f'<script type="application/json">{steps_text(record, chosen)}</script>\n'
    elif record.trace:
        yield paragraphs([f"Of {MOST_PLOTTED} specs the steps are here; run this one alone."])
    yield from final_part(record, found)
    yield "</details>\n"
