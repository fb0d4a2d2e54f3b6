"""The Markdown report: read by a Markdown parser, its tables hold and no name breaks them."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from regcheck.report.files.markdown import code, markdown_chunks, overview, plain
from regcheck.report.record import Record, record_of_error
from tests.records import HOSTILE, inconclusive, named, question, run


def rendered(*records: Record) -> str:
    """Return a report as HTML, as GitHub has it but for its styles."""
    text = "".join(markdown_chunks(records))
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def words(html: str) -> str:
    """Return what a reader sees."""
    text = re.sub("<[^>]*>", " ", html)
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, sign)
    return " ".join(text.split())


@pytest.mark.slow
def test_markdown_holds_the_short_report() -> None:
    html, found = rendered(question()), question().head["summary"]
    text = words(html)
    for part in (
        *(found["headline"], found["subject"], found["values"]["place"], found["verified"]),
        *(*found["before"], *found["ambiguous"], *found["loss"], *found["ratio_means"]),
        *(rule["lines"][0] for rule in found["rules"]),
        *(line for lines in found["fixes"].values() for line in lines),
    ):
        assert part in text, part
    assert html.count("<table>") == 3
    assert "After step 1,000" in text
    marked = re.search(r"<tr>\s*<td[^>]*>&gt;</td>\s*<td[^>]*>(\d+)</td>", html)
    assert marked is not None
    assert marked[1] == "2"


def test_markdown_tables_have_as_many_cells_in_each_row_as_heads() -> None:
    for table in re.findall("<table>.*?</table>", rendered(question()), re.DOTALL):
        counts = {len(re.findall("<t[hd]", row)) for row in table.split("<tr>")[1:]}
        assert len(counts) == 1


def test_markdown_of_several_specs_begins_with_a_table_the_worst_first() -> None:
    passed, failed = run(), run(convention="doubled")
    unjudged = inconclusive()
    error = record_of_error("bad.yaml", "bad.yaml:1: no such key\nbad.yaml:2: nor this")
    html = rendered(passed, unjudged, failed, error)
    assert words(html).startswith("1 of 4 specs pass")
    rows = re.findall(r"<td>(ok|FAIL)</td>\s*<td>.*?</td>\s*<td>(\w+)", html)
    verdicts = ["ERROR", "DIVERGED", "INCONCLUSIVE", "EQUIVALENT"]
    assert rows == list(zip(["FAIL"] * 3 + ["ok"], verdicts, strict=True))
    assert html.count("<details>") == html.count("</details>") == 4
    assert "bad.yaml:2: nor this" in html


def test_control_that_diverges_as_expected_says_so_in_its_row() -> None:
    control = run(convention="doubled", expect={"verdict": "diverged"})
    row = overview([control]).splitlines()[-1]
    assert row.startswith("| ok |")
    assert row.endswith("added twice). As expected. |")


def test_markdown_shows_any_name_as_it_is() -> None:
    records = [named(run(), HOSTILE), record_of_error(HOSTILE, f"{HOSTILE}: no")]
    html = rendered(*records)
    assert "<script" not in html
    assert "<em>" not in html
    assert "<s>" not in html
    assert "<a " not in html
    assert f"ok {HOSTILE} EQUIVALENT" in words(html)
    assert words(html).count(HOSTILE) == 9


@pytest.mark.parametrize("text", [HOSTILE, "- a", "+ a", "1. a", "1) a", "=", "> a", "    a", "#a"])
def test_plain_text_is_read_back(text: str) -> None:
    html = MarkdownIt("commonmark").render(plain(text))
    assert html.startswith("<p>")
    assert words(html) == " ".join(text.split())


@pytest.mark.parametrize("text", ["SGD(lr=0.1)", "a `b` c", "``", "` x", "a|b"])
def test_code_is_read_back(text: str) -> None:
    assert MarkdownIt("commonmark").render(code(text)).count("<code>") == 1
    assert words(MarkdownIt("commonmark").render(code(text))) == text


def test_markdown_shows_the_worst_of_many_tensors() -> None:
    layers = {
        "model": {"mlp": {"hidden": [3, 3], "activation": "tanh", "head": "linear"}},
        "init": {"normal": {"std": 0.5, "seed": 0}},
    }
    html = rendered(run(**layers, convention="bias-free"))
    assert "Of 6 tensors the 4 that exceed their limit most." in html


def test_markdown_says_whether_the_run_is_as_expected() -> None:
    record = run(convention="doubled", expect={"step": 2})
    assert record.head["summary"]["expectation"] in words(rendered(record))
