"""The fix of a spec: what is changed in it, and where no change is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from regcheck.checking import check
from regcheck.diagnosis.records import SpecFix
from tests.by_hand import BASE, BATCHES, LR, At, code
from tests.conftest import told
from tests.fixed_specs import MOMENTUM, SHUFFLED, SPEC, Folder


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


FIXES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "a built-in convention": (
        ["convention: doubled\n"],
        {"convention": "pytorch"},
        "the built-in scratch side follows torch",
    ),
    "a convention by its keys": (
        ["convention:\n  penalize_bias: false\n  loss_factor: 0.5\n"],
        {"convention": "pytorch"},
        "the built-in scratch side follows torch",
    ),
    "settings that match own code": (
        ["scratch: mine.py:divided\n"],
        {"framework": {"weight_decay": 0.125}},
        "torch has settings that match your code",
    ),
    "own code that reports another loss": (
        ["scratch: mine.py:with_penalty\n"],
        {"compare": ["parameters"]},
        "the losses are not compared, since your code reports another one",
    ),
    "both": (
        ["scratch: mine.py:both\n"],
        {"framework": {"weight_decay": 0.125}, "compare": ["parameters"]},
        "torch has settings that match your code; the losses are not compared",
    ),
    "the order of the rows": (
        ["scratch: mine.py:in_order\n", SHUFFLED],
        {"shuffle": False},
        "the samples are not shuffled, as in your code",
    ),
    "a start": (
        ["scratch: mine.py:elsewhere\n"],
        {"init": {"weight": [0.75, -0.05], "bias": [0.2]}},
        "both sides start from your code's parameters",
    ),
    "a tolerance that rounding exceeds": (
        ["scratch: mine.py:right\n", "tolerance: exact\n"],
        {"tolerance": {"rounding": 8}},
        "the sides differ by rounding alone, which the tolerance now allows",
    ),
}


def near(found: Any, expected: Any) -> bool:
    """Compare the values of a spec; a start is found to rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[k], expected[k]) for k in found)
    if isinstance(expected, list) and isinstance(expected[0], float):
        return bool(found == pytest.approx(expected, abs=1e-13))
    return bool(found == expected)


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", FIXES)
def test_spec_with_the_fix_is_equivalent(name: str, folder: Folder) -> None:
    lines, changes, text = FIXES[name]
    done, fixed = folder.fix(*lines)
    assert (done.code, done.err) == (1, "")
    assert f"{fixed}: the spec with the fix ({text}" in done.out
    assert "run again: EQUIVALENT over" in done.out
    before = yaml.safe_load((folder.path / "spec.yaml").read_text(encoding="utf-8"))
    after = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    assert after.keys() == before.keys() | changes.keys()
    for key, value in after.items():
        assert near(value, changes.get(key, before.get(key))), key
    again = folder.run(fixed)
    assert (again.code, again.err) == (0, "")
    assert "EQUIVALENT" in again.out


@pytest.mark.slow
def test_settings_for_torch_alone_are_replaced(folder: Folder) -> None:
    done, fixed = folder.fix("scratch: mine.py:divided\n", "framework: {weight_decay: 0.3}\n")
    assert done.code == 1
    after = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    assert after["framework"] == {"weight_decay": pytest.approx(0.125, rel=1e-9)}
    assert folder.run(fixed).code == 0


def test_original_stays_and_comments_are_kept(folder: Folder) -> None:
    _, fixed = folder.fix("scratch: mine.py:divided  # our loop\n")
    original = (folder.path / "spec.yaml").read_text(encoding="utf-8")
    assert original == SPEC + "scratch: mine.py:divided  # our loop\n"
    head, _, rest = fixed.read_text(encoding="utf-8").partition("\n")
    assert head.startswith("# Written by `regcheck run --write-fixed` from ")
    assert head.endswith("spec.yaml: torch has settings that match your code.")
    assert rest == original + "framework: {weight_decay: 0.125}\n"


def test_value_is_replaced_where_it_stands_and_its_comment_stays(folder: Folder) -> None:
    _, fixed = folder.fix("convention: doubled  # as in the course\n", "# The end.\n")
    rest = fixed.read_text(encoding="utf-8").partition("\n")[2]
    assert rest == SPEC + "convention: pytorch  # as in the course\n# The end.\n"


def test_expectation_becomes_that_the_sides_agree(folder: Folder) -> None:
    expect = "expect: {verdict: diverged, cause: penalty-divided-by-batch}\n"
    done, fixed = folder.fix("scratch: mine.py:divided\n", expect)
    assert done.code == 0  # diverged, as expected
    assert yaml.safe_load(fixed.read_text(encoding="utf-8"))["expect"] == {"verdict": "equivalent"}
    again = folder.run(fixed)
    assert again.code == 0
    assert "As expected" in again.out


NOT_WRITTEN: dict[str, tuple[list[str], int, str]] = {
    "an equivalent run": (["scratch: mine.py:right\n"], 0, "the sides agree"),
    "an equivalent built-in run": ([], 0, "the sides agree"),
    "code that no settings match": (
        ["scratch: mine.py:late\n", MOMENTUM],
        1,
        "decay-after-momentum: no settings of torch's match your code: change the code",
    ),
    "a penalty that torch cannot have": (
        ["scratch: mine.py:uphill\n"],
        1,
        "penalty-sign-flipped: no settings of torch's match your code: change the code",
    ),
    "rows that no spec takes": (
        ["scratch: mine.py:all_rows\n", SHUFFLED],
        1,
        "row-order: no change of the spec fixes it: change the code",
    ),
    "a loss that is not explained": (
        ["scratch: mine.py:doubled_and_odd\n"],
        1,
        "penalty-doubled: the fix is in the scratch code; why the reported losses differ",
    ),
    "code that is not explained": (["scratch: mine.py:nonsense\n"], 1, "no cause was found"),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_nothing_is_written_where_no_fix_is_known(name: str, folder: Folder) -> None:
    lines, code, text = NOT_WRITTEN[name]
    done, fixed = folder.fix(*lines)
    assert (done.code, done.err) == (code, "")
    assert f"{fixed}: not written: {text}" in done.out
    assert folder.files() == {"mine.py", "spec.yaml"}


def test_adagrads_eps_inside_the_root_is_torchs_start_of_the_sum() -> None:
    def step(at: At) -> tuple[Any, Any]:
        q, r = (at.memory.get(key, 0) + g**2 for key, g in (("q", at.gw), ("r", at.gb)))
        at.memory |= {"q": q, "r": r}
        return at.w - LR * at.gw / np.sqrt(q + 0.1), at.b - LR * at.gb / np.sqrt(r + 0.1)

    own = {"optimizer": {"name": "adagrad", "eps": 0.1}, "weight_decay": 0.0}
    spec = BASE | BATCHES | own
    found = told(check(spec, scratch=code(step)).diagnosis)
    assert found.causes == ("rmsprop-epsilon-inside",)
    assert isinstance(found.fix, SpecFix)
    torchs = {"name": "adagrad", "initial_accumulator_value": 0.1, "eps": 0.0}
    assert found.fix.changes == {"framework": {"optimizer": torchs}}
    assert check(spec | found.fix.changes, scratch=code(step)).verdict == "equivalent"


def test_lr_of_a_seventh_is_torchs_to_the_last_digit() -> None:
    zeros = BASE | {"weight_decay": 0, "init": "zeros", "lr": 0.07, "epochs": 3}

    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw / 7, at.gb / 7, penalty=0, lr=0.07)

    found = told(check(zeros, scratch=code(step)).diagnosis)
    assert isinstance(found.fix, SpecFix)
    assert found.fix.changes == {"framework": {"lr": 0.01}}
