"""Explanations: every name, the worked step, and specs."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

from regcheck import cli
from regcheck.cli.explanations import EXPLANATION_FORMATS as FORMATS
from regcheck.cli.explanations import as_text
from regcheck.explain import SAME_RULE, all_names, explain_all, explain_name
from regcheck.explain_spec import RULE_OF_CODE, explain_spec
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import HIDING
from regcheck.rules.convention import KEYS, NAMED, Decay, PenaltyNorm
from regcheck.rules.formulas.examples import one_step
from regcheck.rules.formulas.torch_call import torch_call
from regcheck.rules.optimizers.registry import OPTIMIZERS
from tests.conftest import ROOT
from tests.formula_cases import case_of, training
from tests.formula_text import value_of


def plain_text(explanation: Any, width: int = 1000) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", as_text(explanation, width)).replace("\xa0", " ")


def test_explain_works_the_answers_step_out_by_every_convention_torchs_first() -> None:
    names = [entry.name for entry in explain_all().entries]
    assert names[0] == "pytorch"
    assert sorted(names) == sorted(NAMED)
    given, *lines = explain_all().after
    assert "w = 1, g = -32, lr = 0.1, λ = 1, B = n = 2" in given
    results = {line.split()[0]: line.split()[-1] for line in lines}
    assert list(results) == names
    assert (results["pytorch"], results["divided-by-batch"]) == ("4.10", "4.15")


ANSWER = {"X": [[2.0], [4.0]], "y": [7.0, 11.0]}
"""Two points: at the weight 1 and the bias 1 the gradients are -32 and -10."""


@pytest.mark.parametrize("decay", get_args(Decay))
@pytest.mark.parametrize("norm_kind", get_args(PenaltyNorm))
def test_one_step_is_the_trainers_and_its_text_the_same_number(
    decay: Decay, norm_kind: PenaltyNorm
) -> None:
    choices = ([1.0, 2.0, -0.5, 0.0], [1.0, -2.0, 0.0], ["nothing", "batch"], ["mean", "sum"])
    for factor, start, divide, reduction in product(*choices):
        convention = {
            "decay": decay,
            "penalty_norm": norm_kind,
            "penalty_factor": factor,
            "divide_penalty_by": divide,
            "loss_reduction": reduction,
            "loss_factor": 0.5,
        }
        spec = {"lr": 0.125, "weight_decay": 0.5, "init": {"weight": [start], "bias": [1.0]}}
        case = case_of(spec | {"data": ANSWER, "convention": convention})
        batch = next(case.trainer.problem.schedule.batches())
        state = case.trainer.start()
        g = float(case.plain.forward_backward(state.parameters, batch).gradient["weight"].item())
        text, value = one_step(case.convention, case.training, start, g)
        after = float(case.trainer.step(state, batch).step.after["weight"].item())
        # Powers of two nearly everywhere: a rounding or two of numbers below 100.
        assert value == pytest.approx(after, rel=1e-14)
        # The text has six digits of each number, and there are no more here.
        assert value_of(text, {}) == pytest.approx(after, rel=1e-14), text


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_name_is_explained_in_every_format(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in all_names():
        assert cli.exit_code(["explain", name, "--format", form]) == 0
        out = capsys.readouterr().out
        assert name in out
        assert "None" not in out


def test_text_keeps_to_the_terminals_width_and_breaks_no_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    specs = ("configs/stackoverflow.yaml", "configs/penguins-one-cycle.yaml")
    explanations = [explain_all(), *map(explain_name, all_names()), *map(explain_spec, specs)]
    for explanation in explanations:
        words = plain_text(explanation).split()
        for width in (40, 60, 80):
            text = plain_text(explanation, width)
            assert text.split() == words
            over = [line for line in text.splitlines() if len(line) > width]
            # One word may be longer than a narrow terminal.
            assert not [line for line in over if width > 40 or " " in line.strip()]


def test_width_is_the_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.exit_code(["explain", "adamw"]) == 0
    printed = capsys.readouterr().out
    assert "adamw  torch.optim.AdamW(lr, betas=(β₁, β₂), eps=ε, amsgrad,\n    maximize" in printed
    assert max(map(len, printed.splitlines())) == 60
    assert "\xa0" not in printed


def test_list_holds_every_name_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["explain", "--list"]) == 0
    pairs = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert cli.exit_code(["explain", "--list", "--format", "json"]) == 0
    kinds = json.loads(capsys.readouterr().out)

    assert pairs == [[kind, name] for kind, names in kinds.items() for name in names]
    assert (kinds["convention"], kinds["key"]) == (list(NAMED), list(KEYS))
    assert (kinds["cause"], kinds["optimizer"]) == (list(CAUSES), list(OPTIMIZERS))
    assert kinds["loss"] == ["bce", "bce_with_logits", "cross_entropy", "mse"]


def test_text_names_what_is_not_torchs_and_highlights_it() -> None:
    text = as_text(explain_name("doubled"))
    assert "not torch's: penalty_factor: 2" in text
    assert "\x1b[1;33m" in as_text(explain_all())


def test_key_tells_every_value() -> None:
    text = plain_text(explain_name("decay"))
    for value in KEYS["decay"].values:
        assert f"{value}: " in text


def test_json_format_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["explain", "coursera", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["entries"][0]["differs"]["penalize_bias"] == {"here": "false", "torch": "true"}


@pytest.mark.parametrize("value", ["", "1"])
def test_no_color_is_respected_where_it_is_not_empty(
    value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.exit_code(["explain", "doubled"]) == 0
    assert ("\x1b" in capsys.readouterr().out) == (value == "")


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({}, "torch.optim.SGD(lr=0.1, weight_decay=0.5)"),
        ({"weight_decay": {"weight": 0.0, "bias": 0.0}}, "torch.optim.SGD(lr=0.1)"),
        (
            {"momentum": 0.9, "nesterov": True},
            "torch.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)",
        ),
        (
            {"momentum": 0.9, "dampening": 0.5, "weight_decay": {"weight": 0.5, "bias": 0.0}},
            (
                'torch.optim.SGD([{"params": [model.weight], "weight_decay": 0.5}, '
                '{"params": [model.bias], "weight_decay": 0}], '
                "lr=0.1, momentum=0.9, dampening=0.5)"
            ),
        ),
    ],
)
def test_torch_call_is_written_as(changes: dict[str, Any], call: str) -> None:
    assert torch_call(training(**changes).settings) == call


def test_spec_is_explained_with_its_numbers_and_the_match() -> None:
    text = plain_text(explain_spec(ROOT / "configs" / "stackoverflow.yaml"))
    assert "w ← w − 0.05 (g + 0.1/1096 w), b likewise" in text
    assert "w ← w − 0.05 (g + 0.1 w), b likewise" in text
    assert "torch.optim.SGD(lr=0.05, weight_decay=9.124087591240877e-05)" in text


def test_spec_of_one_rule_is_told_so() -> None:
    text = plain_text(explain_spec(ROOT / "configs" / "penguins.yaml"))
    assert "273 training samples, batches of 32 and 17" in text
    assert "Both sides already train by the same rule." in text


@pytest.mark.parametrize(
    "changes",
    [
        {"scratch": "own.py:train"},
        {"framework": "own.py:build"},
        {"scratch": "adam", "framework": "own.py:build"},
    ],
)
def test_rule_of_own_code_is_not_known_before_it_is_run(
    changes: dict[str, str], write_spec: Callable[..., Path]
) -> None:
    text = plain_text(explain_spec(write_spec(**changes)))
    assert text.count(RULE_OF_CODE) == 1
    assert f"{changes.get('framework', 'own.py:train')}, your " in text
    assert "regcheck run" in text.splitlines()[-1]
    assert "already" not in text


def test_spec_with_settings_for_torch_alone_has_them(write_spec: Callable[..., Path]) -> None:
    settings = {"lr": 0.25, "weight_decay": 0.5}
    text = plain_text(explain_spec(write_spec(framework=settings)))
    assert "torch  torch.optim.SGD(lr=0.25, weight_decay=0.5)" in text
    assert "already" not in text


def test_spec_that_nothing_matches_is_told_why(write_spec: Callable[..., Path]) -> None:
    path = write_spec(batch_size=3, convention="divided-by-batch")
    text = plain_text(explain_spec(path))
    assert "No lr and weight_decay make torch match: " in text
    assert "differ in size" in text


def test_spec_counts_rows_of_every_source(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "d.npz", X=np.ones((7, 2)), y=np.ones(7))
    (tmp_path / "d.csv").write_text("a,t\n" + "1,2\n" * 6, encoding="utf-8")
    sources = {
        "7": "{npz: d.npz}",
        "6": "{csv: d.csv, target: t}",
        "5": "{synthetic: {rows: 5, features: 2}}",
        "2": "{X: [[1], [2]], y: [1, 2]}",
    }
    for rows, source in sources.items():
        path = tmp_path / "s.yaml"
        path.write_text(f"data: {source}\nmodel: linear\nlr: 0.1\n", encoding="utf-8")
        assert f"{rows} training samples" in plain_text(explain_spec(path))


def test_cause_shows_what_differs_on_both_sides() -> None:
    (entry,) = explain_name("decay-after-momentum").entries
    assert entry.kind == "cause"
    assert entry.formulas == [
        "torch    v ← μ v + g + λ w",
        "torch    w ← w − lr v, b likewise",
        "scratch  v ← μ v + g",
        "scratch  w ← w − lr (v + λ w), b likewise",
    ]
    (entry,) = explain_name("penalty-in-loss").entries
    assert [line.split()[:2] for line in entry.formulas] == [
        ["torch", "reports"],
        ["scratch", "reports"],
    ]


SAME = {"initial-parameters", "option-differs", "precision", "row-order", "schedule-differs"}
"""Causes with which both sides' formulas are the same."""


@pytest.mark.parametrize("name", CAUSES)
def test_cause_has_both_formulas_since_when_it_shows_and_its_fix(name: str) -> None:
    (entry,) = explain_name(name).entries
    cause, said = CAUSES[name], " ".join(entry.notes)
    assert entry.title == f"the scratch side {cause.title}"
    assert f"Shows: {cause.since}." in said
    assert f"Fix: {cause.fix}." in said
    for hiding, reason in HIDING.items():
        assert (reason in said) == any(reason in HIDING[one] for one in cause.hidden_by), hiding
    sides = {line.split()[0] for line in entry.formulas}
    if name in SAME:
        assert entry.formulas == [SAME_RULE]
    else:
        assert sides >= {"torch", "scratch"}
        pairs = [line.split(maxsplit=1) for line in entry.formulas]
        lines = {line for _, line in pairs}
        ways = sum(side == "scratch" for side, _ in pairs) + sum(side == "or" for side, _ in pairs)
        # Of two ways to be wrong, each may keep a line of torch's that the other has not.
        assert len(lines) == len(pairs) or (len(cause.changes) > 1 and ways > 1)
        assert not lines <= {line for side, line in pairs if side == "torch"}


def test_cause_that_acts_in_two_ways_tells_both() -> None:
    (entry,) = explain_name("schedule-shifted").entries
    assert entry.formulas == [
        "torch    w ← w − lr (g + λ w), b likewise",
        "scratch  w ← w − lr₊₁ (g + λ w), b likewise",
        "or       w ← w − lr₋₁ (g + λ w), b likewise",
    ]
    text = plain_text(explain_name("schedule-shifted")).replace("\n", " ")
    assert "lr₊₁ lr of the next step, lr₋₁ lr of the previous step (at step 1, of step 1)" in text


def test_cause_is_explained_as_a_student_reads_it() -> None:
    assert plain_text(explain_name("penalty-divided-by-batch"), 80).splitlines() == [
        "w weight, b bias, g gradient of the batch's mean loss, without weight decay,",
        "lr learning rate, λ weight_decay, B samples in the step's batch",
        "",
        "penalty-divided-by-batch  the scratch side divides the weight decay by the batch",
        "    size",
        "    torch    w ← w − lr (g + λ w), b likewise",
        "    scratch  w ← w − lr (g + λ/B w), b likewise",
        "    Shows: once the weights are not 0.",
        "    Fix: add λ w to the mean gradient, not to the sum before it is divided by",
        "    the number of samples.",
        "    A run cannot show it where weight_decay is 0, or all parameters with",
        "    weight_decay stay 0, or each step has one sample.",
        "    A run that lists it in `not_distinguished` could not have shown it.",
    ]


def test_cause_of_any_factor_says_so() -> None:
    assert (
        "scratch  w ← w − c·lr (g + λ w), b likewise"
        in explain_name("learning-rate-scaled").entries[0].formulas
    )
    (entry,) = explain_name("penalty-scaled").entries
    assert "The factor is fitted; a run can show it if it shows 1.01." in entry.notes
