"""What a person sees: table, verdict, terms and fixes."""

from __future__ import annotations

import itertools
import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from regcheck.checking import check
from regcheck.report.terminal import console
from regcheck.report.terminal.console import print_line
from regcheck.report.terminal.details import print_report
from regcheck.report.texts.text import short
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from tests.printed import Spec, printed

MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
ZEROS: Spec = {"init": "zeros"}
BLOW_UP: Spec = {"lr": 1e6, "epochs": 100}
NO_TELLING = "nothing in this run distinguishes"
LEFT_OUT = "Not judged, since `compare` leaves it out: the"

# Changes of the small spec; what its report says, with its breaks undone; and what it does not.
SAYS: dict[str, tuple[Spec, list[str], list[str]]] = {
    "agreement": (
        {},
        ["EQUIVALENT over 3 steps", "The two trajectories are never more than"],
        [">", "!", "≠", NO_TELLING],
    ),
    "doubled": ({"convention": "doubled"}, ["DIVERGED at step 1"], ["could not show"]),
    "weights of zero": (
        ZEROS | {"convention": "doubled"},
        ["DIVERGED at step 2", "Step 1 agrees: the weights were still zero"],
        [],
    ),
    "no velocity": (
        MOMENTUM | {"convention": {"decay": "after-momentum"}},
        [
            "Step 1 agrees: there was no velocity from earlier steps.",
            "scratch subtracts 0.1 (v + 0.5 w)",
            "torch subtracts 0.1 v",
        ],
        [],
    ),
    "decoupled": (
        MOMENTUM | {"convention": "decoupled"},
        ["scratch subtracts 0.1·0.5 w + 0.1 v =", "torch subtracts 0.1 v ="],
        [],
    ),
    "loss alone": (
        {"convention": {"penalty_in_loss": True}},
        [
            "the reported loss; the training itself agrees.",
            "Loss penalty-in-loss: ",
            "To make them match in the scratch code report the loss without the weight-decay",
            "in the update reports mean ℓ in the spec",
        ],
        [],
    ),
    "torch matches": (
        {"convention": {"divide_penalty_by": "dataset", "loss_factor": 0.5}},
        ["or in torch torch.optim.SGD(lr=0.05, weight_decay=0.25)"],
        [],
    ),
    "nothing matches": (
        {"convention": {"penalty_norm": "unsquared"}},
        ["no lr and weight_decay match: λ w/‖w‖ is no constant multiple of w"],
        [],
    ),
    "groups": (
        {"convention": "bias-free"},
        [
            'or in torch torch.optim.SGD([{"params": [model.weight], "weight_decay": 0.5},',
            '{"params": [model.bias], "weight_decay": 0}], lr=0.1)',
        ],
        [],
    ),
    "masked": (  # at lr 0 nothing moves, whatever the gradients are
        {"lr": 0, "convention": {"loss_factor": 0.5}, "compare": ["parameters"]},
        ["EQUIVALENT", "differ in the gradient (step 1), but no parameter shows it"],
        [NO_TELLING],
    ),
    "parameters not judged": (
        {"convention": "doubled", "compare": ["loss"]},
        [
            "EQUIVALENT in the reported loss over 3 steps: no step differs.",
            f"{LEFT_OUT} parameters diverge at step 1.",
        ],
        ["both sides from the same parameters:", NO_TELLING],
    ),
    "loss not judged": (
        {"convention": {"penalty_in_loss": True}, "compare": ["parameters"]},
        ["EQUIVALENT", f"{LEFT_OUT} reported losses diverge at step 1."],
        [NO_TELLING],
    ),
    "cannot show": (
        ZEROS | {"epochs": 1, "convention": {"penalty_factor": 2}},
        [
            "EQUIVALENT over 1 step",
            f"convention differs in penalty_factor: 2 (torch: 1); {NO_TELLING}",
        ],
        [],
    ),
    "blow-up": (
        BLOW_UP,
        ["INCONCLUSIVE: from step", " agree.", "on the reported losses are out of range, and from"],
        [],
    ),
    "blow-up after a divergence": (
        BLOW_UP | {"convention": "doubled"},
        ["DIVERGED at step 1 of 100", "the run ends there"],
        [],
    ),
    "settings": (
        {
            "batch_size": 2,
            "accumulate": 2,
            "clip_norm": 0.5,
            "lr_schedule": {"kind": "exponential", "factor": 0.9},
        },
        [
            "micro-batches of 2",
            "clip: g · min(1, 0.5/(‖g‖ + 1e-6)), ‖g‖ over all tensors",
            "lr: 0.1, kind exponential, factor 0.9, per step",
        ],
        [],
    ),
    "clipped by value": ({"clip_value": 0.5}, ["clip: each entry of g to at most 0.5"], []),
    "steps left out": ({"epochs": 50}, ["41 steps not shown"], []),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", SAYS)
def test_report_says(name: str, small: Spec) -> None:
    changes, says, not_said = SAYS[name]
    text = " ".join(printed(small | changes).split())
    assert [one for one in says if one not in text] == []
    assert [one for one in not_said if one in text] == []


def test_report_marks_the_first_divergence_without_colour(small: Spec) -> None:
    lines = printed(small | {"convention": "divided-by-batch"}).splitlines()
    marked = [number for number, line in enumerate(lines) if line.startswith(">")]
    assert len(marked) == 1
    assert lines[marked[0]].split()[1] == "1"
    assert lines[marked[0]].endswith("!")
    assert "^ first divergence: " in lines[marked[0] + 2]
    assert "in the weight decay; the losses differ" in lines[marked[0] + 2]


def test_report_has_both_terms_with_formula_and_value(small: Spec) -> None:
    text = printed(small | {"convention": "divided-by-dataset"})
    found = re.findall(r"^  (scratch|torch) +adds (.*\S) += (\S+)$", text, flags=re.MULTILINE)
    (_, scratch, here), (_, torch, there) = found
    assert (scratch, torch) == ("λ/n w = 0.5/4 w", "λ w = 0.5 w")
    assert float(there) == pytest.approx(4 * float(here), rel=1e-8)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"convention": "divided-by-batch"},
        {"convention": {"decay": "after-update", "momentum_form": "dampened"}},
        {"epochs": 501, "batch_size": 2, "optimizer": {"name": "sgd", "momentum": 0.5}},
        {"convention": {"loss_reduction": "sum"}, "weight_decay": {"weight": 0.5, "bias": 0}},
        BLOW_UP,
        {"batch_size": 9, "drop_last": True},
    ],
    ids=str,
)
def test_report_fits_the_terminal_and_has_no_trailing_blanks(small: Spec, changes: Spec) -> None:
    report = check(small | changes)
    for width in (80, 100, 120):
        stream = StringIO()
        print_report(report, Console(file=stream, width=width), 9)
        for line in stream.getvalue().splitlines():
            assert len(line) <= width
            assert line == line.rstrip()


def test_report_in_colour_says_the_same_words(small: Spec) -> None:
    spec = small | {"convention": "doubled"}
    coloured = printed(spec, colour=True)
    assert "\x1b[1;31m" in coloured
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in stripped.splitlines()] == printed(spec).splitlines()


def test_losses_that_differ_by_rounding_alone_are_not_marked(small: Spec) -> None:
    spec = small | {"dtype": {"scratch": "float64", "framework": "float32"}, "epochs": 20}
    report = check(spec)
    assert any(row.scratch_loss != row.framework_loss for row in report.comparison.trace)
    assert "≠" not in printed(spec, rows=None)


@pytest.mark.slow
def test_divergence_in_the_update_alone_and_at_the_start_are_named(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, start = TorchTrainer.step, TorchTrainer.parameters

    def nudged(self: TorchTrainer, batch: Any) -> Any:
        step = real(self, batch)
        step.after["bias"][0] += 1e-9
        return step

    monkeypatch.setattr(TorchTrainer, "step", nudged)
    text = printed(small)
    assert "DIVERGED at step 1 of 3: bias, in the update." in text
    assert "scratch has" in text
    monkeypatch.undo()
    monkeypatch.setattr(
        TorchTrainer, "parameters", lambda self: {k: v + 1 for k, v in start(self).items()}
    )
    assert "at the start." in printed(small)


def test_line_holds_name_and_verdict_alone(small: Spec) -> None:
    stream = StringIO()
    print_line(check(small), Console(file=stream, width=40))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("spec: EQUIVALENT over 3 steps: ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (0.01, "0.01"),
        (123.4, "1.2e+02"),
        (4.4e-5, "4.4e-05"),
        (6.12e10, "6.1e+10"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_short_numbers_take_seven_columns_at_most(value: float, text: str) -> None:
    assert short(value) == text
    assert len(text) <= 7


def test_progress_shows_a_bar_on_a_terminal_after_half_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    with console.progress_bar("long.yaml") as advance:
        advance(2, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "long.yaml" in captured.err
    assert "2/3" in captured.err


def test_progress_shows_nothing_for_a_short_run_or_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bar("short.yaml") as advance:
        advance(1, 1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    with console.progress_bar("short.yaml") as advance:
        advance(1, 1)
    assert capsys.readouterr() == ("", "")
