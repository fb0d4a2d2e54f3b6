"""Expectations of a spec, and strict runs: report, exit code and words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from regcheck import cli
from regcheck.checking import check
from tests.conftest import SMALL, Spec, run_of, runs_of, told

Write = Callable[..., Path]

# What a run finds: changes of the small spec, its verdict, and its exit code where nothing is
# expected.
OUTCOMES: dict[str, tuple[Spec, str, int]] = {
    "equivalent": ({}, "equivalent", 0),
    "diverged": (
        {"convention": "divided-by-batch", "init": "zeros", "compare": ["parameters"]},
        "diverged",
        1,
    ),
    "loss-alone": ({"convention": {"penalty_in_loss": True}, "init": "zeros"}, "diverged", 1),
    # Each step multiplies the weights by about 1e61, which float64 holds five times.
    "blow-up": ({"lr": 1e60, "epochs": 8, "compare": ["parameters"]}, "inconclusive", 4),
}

BY_BATCH = "penalty-divided-by-batch"
IS_BY_BATCH = f"; the cause is {BY_BATCH} and penalty-in-loss"

# What is expected of an outcome, and as what it is found not to be so; None where it is.
EXPECTED: list[tuple[str, Spec, str | None]] = [
    ("equivalent", {"verdict": "equivalent"}, None),
    ("equivalent", {"verdict": "diverged"}, "diverged"),
    ("equivalent", {"verdict": "inconclusive"}, "inconclusive"),
    ("equivalent", {"step": 3}, "diverged at step 3"),
    ("equivalent", {"cause": "penalty-doubled"}, "diverged by penalty-doubled"),
    ("diverged", {"verdict": "diverged"}, None),
    ("diverged", {"step": 2}, None),
    ("diverged", {"cause": BY_BATCH}, None),
    ("diverged", {"verdict": "diverged", "step": 2, "cause": BY_BATCH}, None),
    ("diverged", {"verdict": "equivalent"}, "equivalent"),
    ("diverged", {"verdict": "inconclusive"}, "inconclusive"),
    ("diverged", {"verdict": "inconclusive", "step": 2}, "inconclusive at step 2"),
    ("diverged", {"verdict": "diverged", "step": 1}, "diverged at step 1"),
    ("diverged", {"step": 10**6, "cause": BY_BATCH}, f"diverged at step 1,000,000 by {BY_BATCH}"),
    ("diverged", {"cause": "penalty-doubled"}, f"diverged by penalty-doubled{IS_BY_BATCH}"),
    (
        "diverged",
        {"step": 2, "cause": "penalty-doubled"},
        f"diverged at step 2 by penalty-doubled{IS_BY_BATCH}",
    ),
    ("loss-alone", {"verdict": "diverged", "step": 2, "cause": "penalty-in-loss"}, None),
    ("loss-alone", {"step": 3}, "diverged at step 3"),
    (
        "loss-alone",
        {"cause": "penalty-missing"},
        "diverged by penalty-missing; the cause is penalty-in-loss",
    ),
    ("blow-up", {"verdict": "inconclusive"}, None),
    ("blow-up", {"verdict": "inconclusive", "step": 6}, None),
    ("blow-up", {"step": 6}, None),
    ("blow-up", {"verdict": "inconclusive", "step": 7}, "inconclusive at step 7"),
    ("blow-up", {"verdict": "equivalent"}, "equivalent"),
    ("blow-up", {"cause": "loss-halved"}, "diverged by loss-halved"),
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.exit_code(["run", "--jobs", "1", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


@pytest.mark.sampled(every=6)
@pytest.mark.parametrize(("outcome", "expect", "instead"), EXPECTED, ids=str)
def test_expectation_decides_the_exit_code_and_is_put_in_words(
    outcome: str,
    expect: Spec,
    instead: str | None,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, verdict, _ = OUTCOMES[outcome]
    path = str(write_spec(**changes, expect=expect))
    code, text = run(capsys, "--json", path)
    report = run_of(text)
    assert (report["verdict"], report["expected"]) == (verdict, instead is None)
    assert code == (0 if instead is None else 1)
    says = "As expected." if instead is None else f"Not as expected: the spec expects {instead}."
    assert run(capsys, "--quiet", path)[1].endswith(f". {says}\n")
    assert says in " ".join(run(capsys, path)[1].split())


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_without_an_expectation_the_verdict_decides(
    outcome: str, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, verdict, code = OUTCOMES[outcome]
    path = str(write_spec(**changes))
    found, text = run(capsys, "--json", path)
    report = run_of(text)
    assert (found, report["verdict"], report["expected"]) == (code, verdict, None)
    assert "s expected" not in run(capsys, path)[1]


@pytest.mark.slow
@pytest.mark.parametrize("judged", [["loss"], ["loss", "parameters"]], ids=str)
def test_step_of_a_divergence_is_of_what_is_judged(judged: list[str]) -> None:
    # The parameters differ at step 1 already, the loss at step 2.
    both: Spec = {"convention": {"penalty_in_loss": True, "update_order": "bias-first"}}
    spec = SMALL | both | {"init": "zeros", "compare": judged}
    report = check(spec)
    assert told(report.first_divergence).step == 1
    assert report.verdict_step == (2 if judged == ["loss"] else 1)
    for step in (1, 2):
        expecting = check(spec | {"expect": {"step": step}})
        assert expecting.expected == (step == report.verdict_step)


# --- several specs ------------------------------------------------------------------------------

AS_EXPECTED: list[tuple[str, Spec]] = [
    ("equivalent", {"verdict": "equivalent"}),
    ("diverged", {"verdict": "diverged", "step": 2}),
    ("blow-up", {"verdict": "inconclusive"}),
]


def write_all(folder: Path, specs: list[tuple[str, Spec]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (outcome, expect) in enumerate(specs):
        spec = SMALL | OUTCOMES[outcome][0] | ({"expect": expect} if expect else {})
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")


def test_several_specs_that_are_all_as_expected_exit_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path, AS_EXPECTED)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    code, text = run(capsys, "--quiet", *paths)
    assert code == 0
    assert [line.endswith(". As expected.") for line in text.splitlines()] == [True] * 3
    code, text = run(capsys, "--json", *paths)
    assert code == 0
    assert [one["expected"] for one in runs_of(text)] == [True] * 3


@pytest.mark.parametrize(
    ("others", "code"),
    [
        ([("equivalent", {"verdict": "diverged"})], 1),
        ([("blow-up", {})], 4),
        ([("diverged", {})], 1),
        ([("blow-up", {}), ("equivalent", {"step": 1})], 1),
        ([("equivalent", {})], 0),
    ],
    ids=str,
)
def test_one_spec_in_a_folder_decides_for_all(
    others: list[tuple[str, Spec]], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path, AS_EXPECTED)
    write_all(tmp_path / "deeper", others)
    found, text = run(capsys, "--quiet", str(tmp_path))
    assert found == code
    assert len(text.splitlines()) == 3 + len(others)


# --- strict -------------------------------------------------------------------------------------

# Every cause of a training without a penalty shows: rows, targets and gradients differ.
SHOWS_ALL: Spec = {"weight_decay": 0, "epochs": 2}
# From zeros, one step has no penalty: nothing that concerns it can show.
BLIND: Spec = {"init": "zeros", "epochs": 1}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("changes", "code", "strict"),
    [
        (SHOWS_ALL, 0, 0),
        (SHOWS_ALL | {"expect": {"verdict": "equivalent"}}, 0, 0),
        (SHOWS_ALL | {"expect": {"verdict": "inconclusive"}}, 1, 1),
        (OUTCOMES["diverged"][0], 1, 1),
        (OUTCOMES["diverged"][0] | {"expect": {"verdict": "diverged"}}, 0, 0),
        (OUTCOMES["blow-up"][0], 4, 4),
        (BLIND, 0, 4),
        (BLIND | {"expect": {"verdict": "inconclusive"}}, 1, 0),
        (BLIND | {"expect": {"verdict": "equivalent"}}, 0, 1),
        (BLIND | {"expect": {"verdict": "diverged"}}, 1, 1),
    ],
    ids=str,
)
def test_strict_makes_a_run_inconclusive_that_could_not_have_told(
    changes: Spec,
    code: int,
    strict: int,
    write_spec: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_spec(**changes))
    found = run(capsys, "--json", path)
    strictly = run(capsys, "--strict", "--json", path)
    assert (found[0], strictly[0]) == (code, strict)
    if not changes.items() >= BLIND.items():  # it changes nothing
        assert strictly == found
        assert run(capsys, "--strict", path) == run(capsys, path)
        return
    reports = [run_of(text) for _, text in (found, strictly)]
    assert [one["verdict"] for one in reports] == ["equivalent", "inconclusive"]
    assert reports[1]["not_distinguished"]


def test_strict_says_why_in_words(write_spec: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_spec(**BLIND))
    line = run(capsys, "--strict", "--quiet", path)[1]
    assert "INCONCLUSIVE: the sides agree, but this run cannot distinguish " in line
    text = run(capsys, "--strict", "--details", path)[1]
    assert "because all parameters with weight_decay stay 0" in " ".join(text.split())
    assert "EQUIVALENT" not in text


def test_strict_holds_for_each_of_several_specs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in {"a": SHOWS_ALL, "b": BLIND}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    code, text = run(capsys, "--strict", "--json", str(tmp_path))
    assert code == 4
    assert [one["verdict"] for one in runs_of(text)] == ["equivalent", "inconclusive"]
    assert run(capsys, "--quiet", str(tmp_path))[0] == 0
