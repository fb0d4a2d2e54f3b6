"""Random users' functions: the planted cause is named, and no cause that is not there.

More of them: `pytest -n 2 tests/test_random_functions.py --count 5000 --seed 1000`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.compare import trace
from regcheck.diagnosis import search
from regcheck.diagnosis.replay import Replay
from regcheck.rules.causes.catalogue import CAUSES
from tests.exact_steps import Seen, exactly, see
from tests.faults import FAULTS, OF_CLASSES, OUTSIDE
from tests.judged_functions import faults_of
from tests.random_functions import DRAWN_APART, Case, random_case, random_causes
from tests.random_needs import NEEDS, random_spec
from tests.rule import Reported, Rule
from tests.user_functions import Code

Record = Callable[[str, object], None]


@pytest.mark.slow
@pytest.mark.search(sample=12, whole=400)
def test_planted_cause_is_named_and_no_other_alone(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    seen = see(random_case(seed, tmp_path))
    record_property("users' functions", seen.outcome())
    record_property("seconds of a diagnosis", seen.used)
    print(seen.case)

    assert faults_of(seen) == []


ONCE_WRONG = {
    100029: "a penalty of fitted strengths in a loss that float32 rounds, of parameters that rest",
    100194: "float32 leaves the steps by the code's own rule",
    100441: "two decays of 0, and an option, in the place of no penalty and the option",
    100467: "a variance that is nearly 0, whose rounding is the code's own",
    100644: "three causes in the place of one schedule; its lrs are known to a few limits alone",
    100727: "an lr and an option in the place of (1 − μ) g and the option",
    100827: "a pair in the place of one schedule",
    100834: "a rare cause that torch's rule would not show, beside one that brings it out",
    100854: "a root that is missing where ε was inside, and so nowhere",
    100957: "Adafactor's means of one step, whose digits were lost",
    100998: "a factor on the gradient beside a cause, where squares start above 0",
    200014: "another option beside a rare cause",
    500018: "a loss after the update, which is much larger than the one before it",
    500032: "a start that step 2 alone tells, from which step 1 goes the other way in some entries",
    500270: "a variance that M² is nearly all of, which rounds by more than its longer steps",
    500274: "a penalty fitted to the one step whose loss tells",
    600030: "two causes that come to no step, of code that never takes one",
    600062: "a penalty in the loss, smaller than what the loss at a found start is known to",
    600200: "a penalty in a loss of nearly 0, which float32 rounds by its own size",
    700362: "twice a loss whose limit, were it twice as wide, would allow torch's too",
}
"""Seeds, and what once was wrong in them."""


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("seed", ONCE_WRONG, ids=ONCE_WRONG.get)
def test_what_once_was_named_wrongly_is_not(seed: int, tmp_path: Path) -> None:
    assert faults_of(see(random_case(seed, tmp_path))) == []


def test_every_cause_of_the_update_is_planted() -> None:
    drawn = {
        cause for seed in range(1000) for cause in random_causes(np.random.default_rng(seed))[0]
    }
    update = {name for name, cause in CAUSES.items() if cause.kind == "update"}

    assert FAULTS.keys() | OUTSIDE.keys() == update - OF_CLASSES
    assert drawn | DRAWN_APART.keys() == update - OF_CLASSES


@pytest.mark.slow
def test_random_functions_come_to_every_outcome(tmp_path: Path) -> None:
    # A generator that had nothing to find would pass all of the above.
    outcomes = {see(random_case(seed, tmp_path)).outcome() for seed in (1, 2, 3, 16, 369)}

    assert outcomes == {
        "equivalent",
        "explained",
        "inconclusive",
        "loss unexplained",
        "unexplained",
    }


# --- what is judged is able to fail ---------------------------------------------------------------


def planted_alone(cause: str, folder: Path) -> Iterator[Seen]:
    """Check some cases of one cause, or of none."""
    for seed in range(4):
        random = np.random.default_rng(seed)
        needs = NEEDS.get(cause, frozenset())
        spec, X, y = random_spec(random, needs, folder / f"{cause}-{seed}.npz")
        rule = FAULTS[cause].rule() if cause else Rule()
        yield see(Case(spec, X, y, Code(spec, rule), frozenset({cause}), frozenset(), {}))


def faults_with(cause: str, folder: Path) -> list[str]:
    """Judge some cases of one cause."""
    return [fault for seen in planted_alone(cause, folder) for fault in faults_of(seen)]


def test_code_without_a_cause_is_exactly_torchs_rule(tmp_path: Path) -> None:
    for seen in planted_alone("", tmp_path):
        assert seen.report.verdict != "diverged"
        assert max(step.update for step in exactly(seen, Rule())) < 0.5


@pytest.mark.sampled(every=8)
@pytest.mark.slow
@pytest.mark.parametrize(
    "cause", ["penalty-divided-by-batch", "decay-after-update", "loss-halved", "nesterov-added"]
)
def test_row_missing_in_the_catalogue_is_caught(cause: str, tmp_path: Path) -> None:
    rest = {name: row for name, row in CAUSES.items() if name != cause}

    assert faults_with(cause, tmp_path) == []
    with patch.object(search, "CAUSES", rest):
        assert any(cause in fault for fault in faults_with(cause, tmp_path))


@pytest.mark.slow
def test_cause_named_whatever_the_steps_are_is_caught(tmp_path: Path) -> None:
    with patch.object(Replay, "residual", lambda self, change: 0.5 if change else 2.0):
        faults = faults_with("penalty-halved", tmp_path)

    assert any("leaves" in fault for fault in faults)


@pytest.mark.slow
def test_mistake_without_a_name_that_is_explained_is_caught(tmp_path: Path) -> None:
    wrong = [seed for seed in range(60) if random_causes(np.random.default_rng([seed, 2]))[1]][:6]
    with patch.object(Replay, "residual", lambda self, change: 0.5 if change else 2.0):
        caught = [seed for seed in wrong if faults_of(see(random_case(seed, tmp_path)))]

    assert len(caught) > len(wrong) / 2


@pytest.mark.parametrize(
    ("cause", "diverges", "fault"),
    [("penalty-missing", False, "not found"), ("", True, "diverged")],
)
def test_wrong_verdict_is_caught(cause: str, diverges: bool, fault: str, tmp_path: Path) -> None:
    with patch.object(trace, "diverges", lambda row, tolerances: diverges):
        faults = faults_with(cause, tmp_path)

    assert any(found.startswith(fault) for found in faults)


def test_loss_that_is_taken_for_another_is_caught(tmp_path: Path) -> None:
    (spec, X, y) = random_spec(np.random.default_rng(0), frozenset(), tmp_path / "data.npz")
    code = Code(spec, Rule(), Reported("after"))
    case = Case(spec, X, y, code, frozenset(), frozenset({"loss-after-update"}), {})
    seen = see(case)
    assert (seen.outcome(), faults_of(seen)) == ("loss explained", [])
    with patch("regcheck.diagnosis.diagnose.explain_losses", return_value=None):
        faults = faults_of(see(case))

    assert any(fault.startswith("loss:") and "not explained" in fault for fault in faults)
