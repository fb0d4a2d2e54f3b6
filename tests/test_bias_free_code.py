"""`bias: false` in a user's own code, and in what is written of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from regcheck import cli
from regcheck.checking import check
from regcheck.errors import InputError, UserCodeError
from regcheck.explain_spec import explain_spec
from regcheck.problem.problem import Problem, build_problem
from regcheck.spec import from_mapping
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import Spec, told
from tests.test_bias_free import SPEC, START, TARGETS, X, spec_of


def divided(problem: UserProblem) -> Iterator[Spec]:
    w = problem.initial["weight"]
    for rows in problem.batches:
        residuals = problem.X[rows] @ w - problem.y[rows]
        loss = (residuals**2).mean()
        pull = problem.weight_decay / len(rows) * w  # type: ignore[operator]
        w = w - problem.lr * (2 * residuals @ problem.X[rows] / len(rows) + pull)
        yield {"weight": w, "loss": loss}


def line(problem: UserProblem, *, bias: bool = False) -> tuple[Any, Any, Any]:
    model = nn.Linear(problem.X.shape[1], 1, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(problem.initial["weight"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, weight_decay=0.5)
    return nn.Sequential(model, nn.Flatten(0)), nn.MSELoss(), optimizer


def test_bias_goes_with_a_model() -> None:
    spec = {"data": spec_of()["data"], "lr": 0.1, "bias": False}
    with pytest.raises(InputError, match="spec: bias: needs a `model`; leave it out where"):
        check(spec, scratch=divided, framework=line)


@pytest.mark.slow
def test_users_code_is_given_and_yields_the_weight_alone() -> None:
    starts = []

    def seen(problem: UserProblem) -> Iterator[Spec]:
        starts.append((problem.initial, problem.weight_decay))
        yield from divided(problem)

    report = check(spec_of(), scratch=seen)
    assert told(report.diagnosis).causes == ("penalty-divided-by-batch",)
    ((initial, decay),) = starts
    assert {name: w.tolist() for name, w in initial.items()} == {"weight": START}
    assert decay == 0.5


def test_bias_that_is_yielded_is_refused() -> None:
    def both(problem: UserProblem) -> Iterator[Spec]:
        yield from ({**step, "bias": 0.0} for step in divided(problem))

    with pytest.raises(UserCodeError, match="unknown name 'bias'") as told:
        check(spec_of(), scratch=both)
    assert "It must have `weight`, optionally `loss`" in str(told.value)


def test_function_that_yields_nothing_is_shown_what_to_yield() -> None:
    with pytest.raises(UserCodeError) as told:
        check(spec_of(), scratch=lambda problem: iter(()))
    assert '`yield {"weight": ..}` once after each update' in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("features", [1, 3])
def test_own_framework_has_one_weight(features: int) -> None:
    data = {"X": X[:, :features].tolist(), "y": TARGETS["linear"].tolist()}
    spec = spec_of(data=data, init={"weight": START[:features]})
    assert check(spec, framework=line).verdict == "equivalent"

    with pytest.raises(UserCodeError) as told:
        check(spec, framework=lambda problem: line(problem, bias=True))
    assert f"0.weight (1, {features}), 0.bias (1,)" in str(told.value)
    assert "the spec's linear model has one weight of" in str(told.value)
    assert "and no bias (`bias: false`)" in str(told.value)


# --- what is written ------------------------------------------------------------------------------


def test_explanation_has_no_bias(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "weight_decay: 0.1\nconvention: coursera\n", encoding="utf-8")
    found = explain_spec(path)
    lines = [*found.before[1:], *found.after]  # the first names the file
    for entry in found.entries:
        lines += entry.formulas
        assert "penalize_bias" not in entry.differs
    assert "w ← w − 0.1 (g + 0.1/3 w)" in lines
    assert "reports  mean ℓ + ½·0.1/3 Σw²" in lines
    assert not re.search(r"\bb\b|Σb|bias", " ".join(lines))


@pytest.mark.slow
def test_spec_with_the_fix_has_one_decay_and_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "def train(problem):\n"
        "    w = problem.initial['weight']\n"
        "    for rows in problem.batches:\n"
        "        r = problem.X[rows] @ w - problem.y[rows]\n"
        "        pull = problem.weight_decay / len(rows) * w\n"
        "        w = w - problem.lr * (2 * r @ problem.X[rows] / len(rows) + pull)\n"
        "        yield {'weight': w}\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    spec = (
        SPEC.replace("logistic", "linear") + "scratch: mine.py:train\nweight_decay: {weight: 0.6}\n"
    )
    spec += "init: {weight: [1, 2]}\nepochs: 3\n"
    (tmp_path / "spec.yaml").write_text(spec, encoding="utf-8")
    fixed = tmp_path / "fixed.yaml"
    cli.exit_code(["run", str(tmp_path / "spec.yaml"), "--write-fixed", str(fixed)])
    assert "run again: EQUIVALENT" in capsys.readouterr().out
    content = yaml.safe_load(fixed.read_text(encoding="utf-8"))
    assert content["framework"]["weight_decay"] == pytest.approx(0.2)
    assert content["bias"] is False


def test_problem_has_no_bias_anywhere() -> None:
    problem: Problem = build_problem(from_mapping(spec_of()))
    assert problem.initial.keys() == problem.weight_decay.keys() == {"weight"}
    assert check(spec_of()).to_dict()["final"]["framework"].keys() == {"weight", "loss", "accuracy"}
