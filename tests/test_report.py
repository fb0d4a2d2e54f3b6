"""What a person sees: table, verdict, terms and ways out."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from regcheck.checking import check
from regcheck.report.step_table import chosen
from regcheck.report.terminal import print_line, print_report, report_text
from regcheck.report.text import short

Spec = dict[str, Any]


def printed(spec: Spec, *, width: int = 80, rows: int | None = 9, colour: bool = False) -> str:
    stream = StringIO()
    console = Console(
        file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_report(check(spec), console, rows)
    return stream.getvalue()


def test_report_marks_the_first_divergence_without_colour(small: Spec) -> None:
    lines = printed(small | {"convention": "divided-by-batch"}).splitlines()
    marked = [number for number, line in enumerate(lines) if line.startswith(">")]
    assert len(marked) == 1
    assert lines[marked[0]].split()[1] == "1"
    assert lines[marked[0]].endswith("!")
    assert "^ first divergence: " in lines[marked[0] + 2]
    assert "in the penalty; the losses differ" in lines[marked[0] + 2]


def test_report_of_an_equivalent_run_marks_nothing(small: Spec) -> None:
    text = printed(small)
    assert not [line for line in text.splitlines() if line.startswith(">")]
    assert "!" not in text
    assert "≠" not in text
    assert "EQUIVALENT over 3 steps" in text


def test_report_tells_both_terms_with_formula_and_value(small: Spec) -> None:
    text = printed(small | {"convention": "divided-by-dataset"})
    values = {
        side: line.rsplit("= ", 1)[1]
        for line in text.splitlines()
        for side in ("scratch", "torch")
        if line.startswith(f"  {side} ") and "adds" in line
    }
    assert "adds λ/n w = 0.5/4 w" in text.replace("λ/n b", "λ/n w").replace("/4 b", "/4 w")
    assert float(values["torch"]) == pytest.approx(4 * float(values["scratch"]), rel=1e-8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"convention": "divided-by-batch"},
        {"convention": {"decay": "after-update", "momentum_form": "dampened"}},
        {"epochs": 2501, "batch_size": 1, "optimizer": {"name": "sgd", "momentum": 0.5}},
        {"convention": {"loss_reduction": "sum"}, "weight_decay": {"weight": 0.5, "bias": 0}},
        {"lr": 1e6, "epochs": 100},
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


def test_report_says_how_many_steps_it_leaves_out(small: Spec) -> None:
    text = printed(small | {"epochs": 50}, rows=4)
    assert "46 steps not shown" in text
    assert "not shown" not in printed(small | {"epochs": 50}, rows=None)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9, 40])
def test_chosen_rows_hold_the_divergence_first(small: Spec, rows: int) -> None:
    spec = small | {
        "epochs": 40,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "convention": {"momentum_form": "lr-inside"},
        "lr_schedule": {"kind": "step", "every": 20, "factor": 0.5},
    }
    report = check(spec)
    assert report.first_divergence is not None
    shown = chosen(report, rows)
    assert len(shown) == rows
    assert shown == sorted(set(shown))
    assert report.first_divergence.step - 1 in shown
    if rows >= 5:
        assert {0, 19, 20, 39} <= set(shown)


def test_zero_weights_are_told_as_the_reason_that_step_1_shows_nothing(small: Spec) -> None:
    text = printed(small | {"init": "zeros", "convention": "doubled"})
    assert "DIVERGED at step 2" in text
    assert "Step 1 could not show it: " in text
    assert "still zero" in text
    assert "could not show" not in printed(small | {"convention": "doubled"})


def test_empty_velocity_is_told_as_the_reason_that_step_1_shows_nothing(small: Spec) -> None:
    spec = small | {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "convention": {"decay": "after-momentum"},
    }
    assert "Step 1 could not show it: there was no velocity from earlier steps." in printed(spec)


def test_reported_loss_alone_is_told_apart_from_the_training(small: Spec) -> None:
    text = printed(small | {"convention": {"penalty_in_loss": True}})
    assert "the reported loss; the training itself agrees." in text
    assert "Loss    penalty-in-loss: " in text
    ways = text.split("To make them match")[1].split("Notes")[0]
    assert "report the loss of the data alone" in ways
    assert "reports  mean ℓ\n" in ways
    assert "w ←" not in ways
    assert "in torch" not in ways


def test_way_out_gives_torch_the_numbers_that_match(small: Spec) -> None:
    spec = small | {"convention": {"divide_penalty_by": "dataset", "loss_factor": 0.5}}
    text = " ".join(printed(spec).split())
    assert "torch.optim.SGD(lr=0.05, weight_decay=0.25)" in text
    matched = small | {"lr": 0.05, "weight_decay": 0.25}
    scratch = check(spec).comparison.final["scratch"].parameters["weight"]
    framework = check(matched).comparison.final["framework"].parameters["weight"]
    # Three steps of numbers about 1 in float64.
    assert scratch == pytest.approx(framework, abs=1e-15)


def test_way_out_says_where_nothing_matches(small: Spec) -> None:
    text = printed(small | {"convention": {"penalty_norm": "unsquared"}})
    assert "no lr and weight_decay match: λ w/‖w‖ is no constant multiple of w" in " ".join(
        text.split()
    )


def test_masked_difference_is_told_though_no_parameter_shows_it(small: Spec) -> None:
    # At lr 0 nothing moves, whatever the gradients are.
    text = printed(small | {"lr": 0, "convention": {"loss_factor": 0.5}, "compare": ["parameters"]})
    assert "EQUIVALENT" in text
    assert "differ in the data gradient (step 1), but no parameter shows it" in " ".join(
        text.split()
    )


def test_final_lists_the_entries_that_differ_most(small: Spec) -> None:
    spec = small | {
        "data": {"synthetic": {"rows": 30, "features": 20}},
        "init": "zeros",
        "convention": "doubled",
    }
    text = printed(spec)
    assert "… 13 more, with smaller differences" in text
    assert text.count("weight[0, ") >= 8


def test_feature_names_stand_beside_their_weights() -> None:
    from tests.conftest import ROOT

    text = report_text(check(ROOT / "configs" / "penguins.yaml"))
    assert "weight[0, 2] (flipper_length_mm)" in text


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
    import itertools

    from regcheck.report import terminal

    seconds = itertools.count()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("time.monotonic", lambda: float(next(seconds)))
    with terminal.progress("long.yaml") as advance:
        advance(2, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "long.yaml" in captured.err
    assert "2/3" in captured.err


def test_progress_shows_nothing_for_a_short_run_or_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from regcheck.report import terminal

    with terminal.progress("short.yaml") as advance:
        advance(1, 1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    with terminal.progress("short.yaml") as advance:
        advance(1, 1)
    assert capsys.readouterr() == ("", "")


def test_divergence_in_the_update_alone_and_at_the_start_are_told(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regcheck.trainers.torch_trainer import TorchTrainer

    real = TorchTrainer.step

    def nudged(self: TorchTrainer, batch: Any) -> Any:
        step = real(self, batch)
        step.after["bias"][0] += 1e-9
        return step

    monkeypatch.setattr(TorchTrainer, "step", nudged)
    text = printed(small)
    assert "DIVERGED at step 1 of 3: bias, in the update." in text
    assert "scratch has" in text
    monkeypatch.undo()

    start = TorchTrainer.parameters
    monkeypatch.setattr(
        TorchTrainer, "parameters", lambda self: {k: v + 1 for k, v in start(self).items()}
    )
    assert "at the start." in printed(small)


def test_loss_that_parts_late_is_shown(small: Spec) -> None:
    # With lr-inside momentum the sides part at step 21; the penalty in the loss shows from step 1.
    schedule = {"kind": "step", "every": 20, "factor": 0.5}
    report = check(
        small
        | {
            "epochs": 40,
            "weight_decay": 0.0,
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "convention": {"momentum_form": "lr-inside"},
            "lr_schedule": schedule,
        }
    )
    assert report.first_divergence is not None
    assert report.first_loss_divergence is None
    late = check(small | {"epochs": 40, "init": "zeros", "convention": {"penalty_in_loss": True}})
    assert late.first_loss_divergence is not None
    assert late.first_loss_divergence.step == 2
    assert 1 in chosen(late, 1)


def test_losses_that_differ_by_rounding_alone_are_not_marked(small: Spec) -> None:
    spec = small | {"dtype": {"scratch": "float64", "framework": "float32"}, "epochs": 20}
    report = check(spec)
    assert any(row.scratch_loss != row.framework_loss for row in report.comparison.trace)
    assert "≠" not in printed(spec, rows=None)


def test_final_entries_listed_are_those_that_differ_most(small: Spec) -> None:
    spec = small | {
        "data": {"synthetic": {"rows": 30, "features": 20}},
        "init": {"normal": {"std": 1.0}},
        "convention": "doubled",
    }
    report = check(spec)
    apart = [
        abs(float(a) - float(b))
        for a, b in zip(
            report.comparison.final["scratch"].parameters["weight"][0],
            report.comparison.final["framework"].parameters["weight"][0],
            strict=True,
        )
    ]
    text = printed(spec)
    most = sorted(range(20), key=lambda index: -apart[index])[:6]
    for index in most:
        assert f"weight[0, {index}] " in text


def test_blow_up_is_told_in_full(small: Spec) -> None:
    text = " ".join(printed(small | {"lr": 1e6, "epochs": 100}).split())
    assert "INCONCLUSIVE: from step" in text
    assert re.search(r"; steps 1 to \d+ agree\.", text)
    assert "on the reported losses are out of range, and from step" in text
    parted = " ".join(printed(small | {"lr": 1e6, "epochs": 100, "convention": "doubled"}).split())
    assert "DIVERGED at step 1 of 100" in parted
    assert "the run ends there" in parted


def test_equivalent_run_tells_the_drift(small: Spec) -> None:
    assert "The two trajectories are never more than" in printed(small)


def test_what_compare_leaves_out_is_said_and_not_judged(small: Spec) -> None:
    text = " ".join(printed(small | {"convention": "doubled", "compare": ["loss"]}).split())
    assert "EQUIVALENT in the reported loss over 3 steps" in text
    assert "Not judged, since `compare` leaves it out: the parameters diverge at step 1." in text
    assert "e+1" not in text.split("EQUIVALENT")[1].split(" of 8 allowed")[0]
    assert "both sides from the same parameters:" not in text


def test_run_that_cannot_show_a_difference_says_so(small: Spec) -> None:
    one = small | {"init": "zeros", "epochs": 1, "convention": {"penalty_factor": 2}}
    text = " ".join(printed(one).split())
    assert "EQUIVALENT over 1 step" in text
    assert "convention differs in penalty_factor: 2 (torch: 1); nothing in this run tells" in text
    assert "nothing in this run tells" not in printed(small)


def test_terms_of_the_optimizer_are_told_with_their_formulas(small: Spec) -> None:
    spec = small | {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "convention": {"decay": "after-momentum"},
    }
    text = printed(spec)
    assert "scratch subtracts 0.1 (v + 0.5 " in text
    assert "torch   subtracts 0.1 v" in text


def test_groups_with_decays_of_their_own_are_told_as_python(small: Spec) -> None:
    text = " ".join(printed(small | {"convention": "bias-free"}).split())
    call = text.split("or in torch")[1]
    for part in (
        '{"params": [model.weight], "weight_decay": 0.5}',
        '[model.bias], "weight_decay": 0}',
    ):
        assert part in call


@pytest.mark.parametrize("width", [60, 80])
def test_long_feature_names_are_cut_and_numbers_are_not(tmp_path: Path, width: int) -> None:
    name = "a very very long column name with spaces and more of them than anyone would want"
    (tmp_path / "d.csv").write_text(f"{name},t\n1.5,2\n2.5,1\n", encoding="utf-8")
    spec = {
        "data": {"csv": str(tmp_path / "d.csv"), "target": "t"},
        "model": "linear",
        "lr": 0.123456,
        "epochs": 3,
    }
    text = printed(spec, width=width)
    final = check(spec).comparison.final["framework"].parameters["weight"][0, 0]
    line = next(line for line in text.splitlines() if line.startswith("weight[0, 0]"))
    assert "…" in line
    assert f"{final:.9g}" in line


def test_settings_that_formulas_only_hint_at_are_told(small: Spec) -> None:
    text = " ".join(
        printed(
            small
            | {
                "batch_size": 2,
                "accumulate": 2,
                "clip_norm": 0.5,
                "lr_schedule": {"kind": "exponential", "factor": 0.9},
            }
        ).split()
    )
    assert "micro-batches of 2" in text
    assert "clip: g · min(1, 0.5/(‖g‖ + 1e-6)), ‖g‖ over all tensors" in text
    assert "lr: 0.1, kind exponential, factor 0.9, per step" in text
    assert "clip: each entry of g to at most 0.5" in " ".join(
        printed(small | {"clip_value": 0.5}).split()
    )


def test_decoupled_decay_with_momentum_is_told_as_the_sum_that_is_subtracted(small: Spec) -> None:
    momentum = {"optimizer": {"name": "sgd", "momentum": 0.9}}
    text = printed(small | momentum | {"convention": "decoupled"})
    assert re.search(r"scratch subtracts 0\.1·0\.5 [wb] \+ 0\.1 v = ", text)
    assert re.search(r"torch   subtracts 0\.1 v += ", text)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0, "convention": {"loss_factor": 0.5}, "compare": ["parameters"]},
        {"convention": "doubled", "compare": ["loss"]},
        {"convention": {"penalty_in_loss": True}, "compare": ["parameters"]},
    ],
    ids=["masked", "loss-alone", "parameters-alone"],
)
def test_run_that_shows_a_difference_it_does_not_judge_does_not_say_it_shows_none(
    small: Spec, changes: Spec
) -> None:
    text = " ".join(printed(small | changes).split())
    assert "EQUIVALENT" in text
    assert "nothing in this run tells" not in text
    assert "no parameter shows it" in text or "Not judged, since `compare` leaves it out" in text
