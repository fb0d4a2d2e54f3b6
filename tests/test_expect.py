"""Expectations of a spec, and strict runs: report, exit code and words."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from regcheck import cli
from regcheck.checking import check
from tests.conftest import SMALL

Spec = dict[str, Any]
Write = Callable[..., Path]

# What a run finds: changes of the small spec, its verdict, the step that it is about, its cause,
# a cause that it has not, and its exit code where nothing is expected.
OUTCOMES: dict[str, tuple[Spec, str, int | None, str | None, str, int]] = {
    "equivalent": ({}, "equivalent", None, None, "penalty-doubled", 0),
    "diverged": (
        {"convention": "divided-by-batch", "init": "zeros", "compare": ["parameters"]},
        "diverged",
        2,
        "penalty-divided-by-batch",
        "penalty-doubled",
        1,
    ),
    "loss-alone": (
        {"convention": {"penalty_in_loss": True}, "init": "zeros"},
        "diverged",
        2,
        "penalty-in-loss",
        "penalty-missing",
        1,
    ),
    # Each step multiplies the weights by about 1e61, which float64 holds five times.
    "blow-up": (
        {"lr": 1e60, "epochs": 8, "compare": ["parameters"]},
        "inconclusive",
        6,
        None,
        "loss-halved",
        4,
    ),
}
KEYS = ("verdict", "step", "cause")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.exit_code(["run", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def verdicts(text: str) -> list[str]:
    """Give the lines that tell an expectation."""
    return [line for line in text.splitlines() if "s expected" in line]


def wrong_value(key: str, verdict: str, step: int | None, not_cause: str) -> Any:
    """Give a value of `expect` that the outcome is not."""
    if key == "verdict":
        return "equivalent" if verdict != "equivalent" else "diverged"
    return (step or 0) + 1 if key == "step" else not_cause


def combinations() -> list[Any]:
    """Pair each outcome with each key left out, right and wrong; those that a spec may have."""
    found = []
    for name, (_, verdict, step, cause, not_cause, _) in OUTCOMES.items():
        right = {"verdict": verdict, "step": step, "cause": cause}
        for states in product(("left out", "right", "wrong"), repeat=3):
            expect = {
                key: right[key] if state == "right" else wrong_value(key, verdict, step, not_cause)
                for key, state in zip(KEYS, states, strict=True)
                if state != "left out"
            }
            possible = (
                expect
                and None not in expect.values()
                and not (expect.get("verdict") == "equivalent" and len(expect) > 1)
                and not (expect.get("verdict") == "inconclusive" and "cause" in expect)
            )
            if possible:
                shown = " ".join(f"{key}:{state}" for key, state in zip(KEYS, states, strict=True))
                found.append(
                    pytest.param(name, expect, "wrong" not in states, id=f"{name} {shown}")
                )
    return found


def test_combinations_cover_each_key_right_and_wrong() -> None:
    found = [one.values for one in combinations()]
    assert len(found) > 45
    for name, (_, _, step, cause, _, _) in OUTCOMES.items():
        rights = [expect for outcome, expect, right in found if outcome == name and right]
        assert {"verdict"} <= {key for expect in rights for key in expect}
        assert any("step" in expect for expect in rights) == (step is not None)
        assert any("cause" in expect for expect in rights) == (cause is not None)
        assert any(not right for outcome, _, right in found if outcome == name)


@pytest.mark.parametrize(("outcome", "expect", "right"), combinations())
def test_expectation_decides_the_exit_code(
    outcome: str,
    expect: Spec,
    right: bool,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, verdict, *_ = OUTCOMES[outcome]
    path = str(write_spec(**changes, expect=expect))
    code, text = run(capsys, "--json", path)
    report = json.loads(text)
    assert (report["verdict"], report["expected"]) == (verdict, right)
    assert code == (0 if right else 1)
    if right:
        return
    code, line = run(capsys, "--quiet", path)
    assert code == 1
    assert line.count("\n") == 1
    assert "Not as expected: the spec expects " in line
    for key in set(expect) & {"step", "cause"}:
        assert str(expect[key]) in line.split("Not as expected")[1]


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_without_an_expectation_the_verdict_decides(
    outcome: str, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, verdict, *_, code = OUTCOMES[outcome]
    path = str(write_spec(**changes))
    found, text = run(capsys, "--json", path)
    report = json.loads(text)
    assert (found, report["verdict"], report["expected"]) == (code, verdict, None)
    _, text = run(capsys, path)
    assert verdicts(text) == []


def test_step_of_a_divergence_in_the_loss_alone_is_the_loss_s(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    # The parameters part at step 1 already, and are not judged.
    changes: Spec = {"convention": {"penalty_in_loss": True, "loss_factor": 1.0}, "init": "zeros"}
    assert check(SMALL | changes).verdict_step == 2
    both: Spec = {"convention": {"penalty_in_loss": True, "update_order": "bias-first"}}
    both |= {"init": "zeros"}
    report = check(SMALL | both | {"compare": ["loss"]})
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.verdict_step) == (1, 2)
    assert check(SMALL | both).verdict_step == 1
    path = str(write_spec(**both, compare=["loss"], expect={"step": 2}))
    assert run(capsys, "--quiet", path)[0] == 0
    path = str(write_spec(**both, compare=["loss"], expect={"step": 1}))
    assert run(capsys, "--quiet", path)[0] == 1


BY_BATCH = "penalty-divided-by-batch"
STILL = "the cause is penalty-divided-by-batch and penalty-in-loss."


@pytest.mark.parametrize(
    ("outcome", "expect", "says"),
    [
        ("equivalent", {"verdict": "equivalent"}, "As expected."),
        ("diverged", {"step": 2}, "As expected."),
        ("blow-up", {"verdict": "inconclusive", "step": 6}, "As expected."),
        (
            "equivalent",
            {"verdict": "diverged"},
            "Not as expected: the spec expects diverged.",
        ),
        (
            "equivalent",
            {"step": 3},
            "Not as expected: the spec expects diverged at step 3.",
        ),
        (
            "diverged",
            {"verdict": "diverged", "step": 1},
            "Not as expected: the spec expects diverged at step 1.",
        ),
        (
            "diverged",
            {"verdict": "equivalent"},
            "Not as expected: the spec expects equivalent.",
        ),
        (
            "diverged",
            {"step": 1_000_000, "cause": BY_BATCH},
            f"Not as expected: the spec expects diverged at step 1,000,000 by {BY_BATCH}.",
        ),
        (
            "diverged",
            {"cause": "penalty-doubled"},
            f"Not as expected: the spec expects diverged by penalty-doubled; {STILL}",
        ),
        (
            "equivalent",
            {"cause": "penalty-doubled"},
            "Not as expected: the spec expects diverged by penalty-doubled.",
        ),
    ],
    ids=str,
)
def test_expectation_in_words(
    outcome: str,
    expect: Spec,
    says: str,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_spec(**OUTCOMES[outcome][0], expect=expect))
    _, line = run(capsys, "--quiet", path)
    assert line.rstrip("\n").endswith(f". {says}")
    _, text = run(capsys, path)
    assert says in " ".join(text.split())


def test_loss_alone_names_what_its_cause_leaves(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = OUTCOMES["loss-alone"][0]
    path = str(write_spec(**changes, expect={"cause": "penalty-missing"}))
    code, line = run(capsys, "--quiet", path)
    assert code == 1
    assert "the spec expects diverged by penalty-missing" in line


# --- several specs ------------------------------------------------------------------------------

AS_EXPECTED: dict[str, tuple[str, Spec]] = {
    "a.yaml": ("equivalent", {"verdict": "equivalent"}),
    "b.yaml": ("diverged", {"verdict": "diverged", "step": 2}),
    "c.yaml": ("blow-up", {"verdict": "inconclusive"}),
}
NOT_AS_EXPECTED: dict[str, tuple[str, Spec]] = {"d.yaml": ("equivalent", {"verdict": "diverged"})}


def write_all(folder: Path, specs: dict[str, tuple[str, Spec]]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (outcome, expect) in specs.items():
        spec = SMALL | OUTCOMES[outcome][0] | ({"expect": expect} if expect else {})
        (folder / name).write_text(yaml.safe_dump(spec), encoding="utf-8")
    return [str(folder / name) for name in specs]


def test_several_specs_that_are_all_as_expected_exit_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_all(tmp_path, AS_EXPECTED)
    code, text = run(capsys, "--quiet", *paths)
    assert code == 0
    assert [line.endswith(". As expected.") for line in text.splitlines()] == [True] * 3
    code, text = run(capsys, "--json", *paths)
    assert code == 0
    assert [one["expected"] for one in json.loads(text)] == [True] * 3


@pytest.mark.parametrize(
    ("others", "code"),
    [
        (NOT_AS_EXPECTED, 1),
        ({"d.yaml": ("blow-up", {})}, 4),
        ({"d.yaml": ("diverged", {})}, 1),
        ({"d.yaml": ("blow-up", {}), "e.yaml": ("equivalent", {"step": 1})}, 1),
        ({"d.yaml": ("equivalent", {})}, 0),
    ],
    ids=str,
)
def test_one_spec_in_a_folder_decides_for_all(
    others: dict[str, tuple[str, Spec]],
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_all(tmp_path, AS_EXPECTED)
    write_all(tmp_path / "deeper", others)
    found, text = run(capsys, "--quiet", str(tmp_path))
    assert found == code
    assert len(text.splitlines()) == 3 + len(others)


# --- strict -------------------------------------------------------------------------------------

# Every cause of a training without a penalty shows: rows, targets and gradients differ.
TELLS_ALL: Spec = {"weight_decay": 0, "epochs": 2}
# From zeros, one step has no penalty: nothing that concerns it can show.
BLIND: Spec = {"init": "zeros", "epochs": 1}


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [
        (TELLS_ALL, "equivalent", 0),
        (BLIND, "inconclusive", 4),
        (BLIND | {"expect": {"verdict": "inconclusive"}}, "inconclusive", 0),
        (BLIND | {"expect": {"verdict": "equivalent"}}, "inconclusive", 1),
        (BLIND | {"expect": {"verdict": "diverged"}}, "inconclusive", 1),
        (TELLS_ALL | {"expect": {"verdict": "equivalent"}}, "equivalent", 0),
        (TELLS_ALL | {"expect": {"verdict": "inconclusive"}}, "equivalent", 1),
        (OUTCOMES["diverged"][0], "diverged", 1),
        (OUTCOMES["diverged"][0] | {"expect": {"verdict": "diverged"}}, "diverged", 0),
        (OUTCOMES["blow-up"][0], "inconclusive", 4),
    ],
    ids=str,
)
def test_strict_makes_a_run_inconclusive_that_could_not_have_told(
    changes: Spec,
    verdict: str,
    code: int,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_spec(**changes))
    found, text = run(capsys, "--strict", "--json", path)
    report = json.loads(text)
    assert (report["verdict"], found) == (verdict, code)
    hidden = changes.items() >= BLIND.items()
    assert bool(report["not_distinguished"]) == hidden or verdict != "equivalent"
    if not hidden:
        # Strictness changes nothing else.
        assert run(capsys, "--json", path) == (found, text)
        return
    assert report["not_distinguished"]
    assert json.loads(run(capsys, "--json", path)[1])["verdict"] == "equivalent"


def test_strict_says_why_in_words(write_spec: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_spec(**BLIND))
    code, line = run(capsys, "--strict", "--quiet", path)
    assert code == 4
    assert "INCONCLUSIVE: the sides agree, but this run cannot tell " in line
    _, text = run(capsys, "--strict", path)
    assert "because what is penalized stays 0" in " ".join(text.split())
    assert "EQUIVALENT" not in text


def test_strict_says_nothing_more_where_every_cause_shows(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_spec(**TELLS_ALL))
    assert run(capsys, "--strict", path) == run(capsys, path)


def test_strict_holds_for_each_of_several_specs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = {"a": TELLS_ALL, "b": BLIND, "c": BLIND | {"expect": {"verdict": "inconclusive"}}}
    for name, changes in specs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    code, text = run(capsys, "--strict", "--json", str(tmp_path))
    assert code == 4
    assert [one["verdict"] for one in json.loads(text)] == [
        "equivalent",
        "inconclusive",
        "inconclusive",
    ]
    assert run(capsys, "--quiet", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))[0] == 0
