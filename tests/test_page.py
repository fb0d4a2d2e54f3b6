"""The HTML page as a file: what it holds, what it escapes, how large it is."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck import cli
from regcheck.report.files import writing
from regcheck.report.page.page import MOST_PLOTTED, html_chunks
from regcheck.report.record import Record, record_of_error
from tests.records import HOSTILE, inconclusive, longer, named, question, renamed, run

BREAKOUT = '</script><script>hacked = 1</script><img src=x onerror="hacked = 1">\'&amp;'


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, texts, and scripts."""

    def __init__(self, *records: Record) -> None:
        super().__init__()
        self.source = "".join(html_chunks(records))
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        in_script = self.tags and self.tags[-1][0] == "script" and self.cdata_elem
        (self.scripts if in_script else self.texts).append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def steps(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.scripts if one.startswith("{")]


def numbers(text: str, kind: str) -> list[float]:
    return list(np.frombuffer(base64.b64decode(text), kind))


@pytest.mark.slow
def test_page_says_what_the_short_report_says() -> None:
    page, found = Page(question()), question().head["summary"]
    for part in (
        *(found["headline"].removeprefix("DIVERGED "), found["subject"], found["verified"]),
        *(found["values"]["place"], *found["before"], *found["ambiguous"], *found["loss"]),
        *(line for rule in found["rules"] for line in (rule["title"], *rule["lines"])),
        *(line for lines in found["fixes"].values() for line in lines),
        *("After step 1,000", "weight[0, 3]", "test accuracy"),
    ):
        assert part in page.words, part


@pytest.mark.slow
def test_page_holds_every_step() -> None:
    record = question()
    (data,) = Page(record).steps()
    assert data["sides"] == ["scratch", "torch"]
    assert record.trace is not None
    rows = list(record.trace)
    assert numbers(data["step"], "<u4") == [row.step for row in rows]
    assert numbers(data["scratch"], "<f8") == [row.scratch_loss for row in rows]
    weight, bias = data["tensors"]
    assert (weight["name"], bias["name"]) == ("weight", "bias")
    one_step = [row.tensors["bias"].local for row in rows]
    assert numbers(bias["oneStep"], "<f8") == one_step
    assert data["marked"]["step"] == 2


def test_page_loads_nothing_from_anywhere() -> None:
    page = Page(question())
    loaded = [
        value
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset", "poster") and tag != "a"
    ]
    assert loaded == []
    styles = re.search("<style>.*</style>", page.source, re.DOTALL)
    assert styles is not None
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    (policy,) = (one["content"] for tag, one in page.tags if "http-equiv" in one)
    assert str(policy).startswith("default-src 'none'")
    assert "http" not in str(policy)


def test_page_escapes_whatever_a_run_holds() -> None:
    plain = Page(run(convention="doubled"))
    record = renamed(named(run(convention="doubled"), BREAKOUT), "weight", BREAKOUT)
    page = Page(record)
    assert BREAKOUT in page.words
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.steps()[0]["tensors"][0]["name"] == BREAKOUT
    wrong = Page(record_of_error(BREAKOUT, f"{HOSTILE} {BREAKOUT}"))
    assert wrong.count("script") == wrong.count("img") == 0
    assert f"{HOSTILE} {BREAKOUT}" in wrong.words


def test_page_of_several_specs_has_the_worst_first() -> None:
    error = record_of_error("bad.yaml", "bad.yaml:1: no such key")
    page = Page(run(), inconclusive(), run(convention="doubled"), error)
    kinds = [one["class"] for tag, one in page.tags if tag == "details" and one.get("class")]
    assert kinds == [f"run {kind}" for kind in ("error", "diverged", "inconclusive", "equivalent")]
    assert page.words.startswith("1 of 4 specs pass")
    assert len(page.steps()) == 3


def test_page_of_many_specs_has_the_steps_of_some() -> None:
    page = Page(*[run()] * (MOST_PLOTTED + 2))
    assert len(page.steps()) == MOST_PLOTTED
    assert page.words.count("run this one alone") == 2


@pytest.mark.parametrize(
    ("hidden", "steps", "tensors", "every"),
    [(2, 10_000, 6, 1), (20, 1_000, 42, 1), (20, 10_000, 6, 1), (2, 100_000, 4, 8)],
)
@pytest.mark.whole
def test_page_stays_below_8_megabytes(hidden: int, steps: int, tensors: int, every: int) -> None:
    mlp = {"mlp": {"hidden": [1] * hidden, "activation": "tanh", "head": "linear"}}
    start = {"normal": {"std": 1.0, "seed": 0}}
    page = Page(longer(run(model=mlp, init=start, convention="doubled"), steps))
    assert len(page.source.encode()) < 8e6
    (data,) = page.steps()
    kept = numbers(data["step"], "<u4")
    assert len(data["tensors"]) == tensors
    assert kept[:3] == [1, 2, 3]  # around the first divergence
    assert kept[-1] == steps
    assert len(kept) == pytest.approx(steps / every, rel=1e-3)
    assert (f"One step in {every} is here" in page.words) == (every > 1)
    assert ("more tensors not shown" in page.words) == (tensors < 2 * hidden + 2)


def test_page_marks_where_a_run_can_be_judged_no_longer() -> None:
    (data,) = Page(inconclusive()).steps()
    assert data["marked"]["step"] == inconclusive().head["first_loss_unjudged"]
    assert not np.isfinite(numbers(data["scratch"], "<f8")).all()


def test_page_without_the_plotting_library_says_what_to_install(
    write_spec: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def without_plotly(name: str) -> Any:
        return None if name == "plotly" else find_spec(name)

    monkeypatch.setattr(writing, "find_spec", without_plotly)
    path = tmp_path / "x.html"
    assert cli.exit_code(["run", str(write_spec()), "--report", str(path)]) == 2
    captured = capsys.readouterr()
    assert "pip install 'regcheck[html]'" in captured.err
    assert "pip install -e '.[html]'" in captured.err
    assert captured.out == ""
    assert not path.exists()
