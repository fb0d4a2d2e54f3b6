"""Odd users' functions through the command line that are no errors: an honest verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_of
from tests.user_files import YIELD, loop, run_here

IN_PLACE = (
    "w -= problem.lr * (2 * X.T @ r / len(y) + 0.5 * w); b -= problem.lr * (2 * r.mean() + 0.5 * b)"
)
ONE_MAPPING = "state = {'weight': w, 'bias': b}"

HARMLESS: dict[str, str] = {
    "copies": loop(),
    "arrays in place in one mapping": loop(
        first=ONE_MAPPING, update=IN_PLACE, give="state['loss'] = loss; yield state"
    ),
    "what was yielded is spoilt later": loop(
        give="mine = w.copy(); yield {'weight': mine, 'bias': b}; mine[:] = np.nan"
    ),
    "X and y spoilt after use": loop(give=f"X[:] = 0; y[:] = 0; rows[:] = 0; {YIELD}"),
    "settings": loop(
        "np.seterr(all='raise'); os.chdir('/'); sys.path.insert(0, '/nowhere'); np.random.seed(0); "
        "import torch; torch.set_default_dtype(torch.float16); torch.set_grad_enabled(False)"
    ),
    "a thread that fails": loop(
        "import threading; threading.excepthook = lambda *a: None; "
        "one = threading.Thread(target=lambda: 1 / 0); one.start(); one.join()"
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_code_that_trains_as_torch_does_is_equivalent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, HARMLESS[name], capsys)
    report = run_of(done.out)
    assert (done.code, report["verdict"], report["compared"]) == (0, "equivalent", 6)


def test_in_place_updates_are_judged_as_copies_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubled = IN_PLACE.replace("0.5", "1.0")
    source = loop(first=ONE_MAPPING, update=doubled, give="state['loss'] = loss; yield state")
    done = run_here(tmp_path, source, capsys)
    report = run_of(done.out)
    first = report["first_divergence"]
    assert (done.code, first["step"], first["stage"]) == (1, 1, "penalty")
    assert [cause["id"] for cause in report["diagnosis"]["causes"]] == ["penalty-doubled"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, as the code meets what is none
@pytest.mark.parametrize(
    ("act", "step", "number"),
    [
        ("w = w * np.nan if t >= 4 else w", 4, "nan"),
        ("b = b * np.nan", 1, "nan"),
        ("w = w + (np.inf if t >= 3 else 0)", 3, "inf"),
    ],
)
def test_numbers_that_are_none_diverge_at_the_step_where_they_come(
    act: str, step: int, number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, loop(give=f"{act}; {YIELD}"), capsys)
    report = run_of(done.out)
    first, diagnosis = report["first_divergence"], report["diagnosis"]
    assert (done.code, report["verdict"], report["compared"]) == (1, "diverged", step)
    assert (first["step"], first["scratch"]) == (step, number)
    assert (diagnosis["explained"], diagnosis["causes"]) == (False, [])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_loss_that_is_no_number_diverges_in_the_loss_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(tmp_path, loop("loss = np.log(-1.0) if t >= 3 else loss"), capsys)
    report = run_of(done.out)
    assert (done.code, report["verdict"], report["first_divergence"]) == (1, "diverged", None)
    first = report["first_loss_divergence"]
    assert (first["step"], first["scratch"]) == (3, "nan")


@pytest.mark.slow
def test_rows_changed_in_place_are_the_codes_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The code spoils its own X from step 3 on; torch's side keeps the rows as they are.
    done = run_here(tmp_path, loop("if t == 2: problem.X[:] *= 1.5"), capsys)
    report = run_of(done.out)
    assert (done.code, report["verdict"]) == (1, "diverged")
    assert report["first_divergence"]["step"] == 3
    right = run_of(run_here(tmp_path, loop(), capsys).out)
    assert report["final"]["framework"] == right["final"]["framework"]
