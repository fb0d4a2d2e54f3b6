"""Several processes as the rest of regcheck sees them: the shares of a batch, and their mean.

No process is started: one torch trainer takes the same shares, by the same formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.checking import check
from regcheck.cli.explanations import as_text
from regcheck.diagnosis.records import SpecFix
from regcheck.errors import InputError
from regcheck.explain_spec import explain_spec
from regcheck.numerics.bounds.rounding import averaging
from regcheck.problem.batches import schedule_of, shares, training_of
from regcheck.problem.problem import build_problem
from regcheck.spec import from_mapping
from regcheck.trainers import sides
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.user_code.problem_api import user_problem
from tests.conftest import Spec, agrees, in_one_line, told
from tests.faults import BUGS
from tests.first_steps import spec_of
from tests.random_specs import matched_spec

TWO: Spec = {"framework": {"processes": 2}}


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one torch trainer take all shares."""
    monkeypatch.setattr(sides, "processes_of", lambda *_: nullcontext(None))


def shares_of(**keys: Any) -> list[list[list[int]]]:
    """Return the rows of each share of each step, of 7 rows."""
    data = {"X": [[float(row)] for row in range(7)], "y": [0.0] * 7}
    spec = from_mapping({"data": data, "model": "linear", "lr": 0.1, **keys}).spec
    rows = np.arange(7)
    return [
        [rows[part].tolist() for part in batch.micro_batches]
        for batch in schedule_of(spec, 7).batches()
    ]


# --- which rows are whose -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [[[0, 1, 2, 3], [4, 5, 6]]]),
        ({"batch_size": 4}, [[[0, 1], [2, 3]], [[4, 5], [6]]]),
        ({"batch_size": 5, "accumulate": 2}, [[[0, 1, 2], [3, 4], [5], [6]]]),
        ({"framework": {"processes": 3}}, [[[0, 1, 2], [3, 4], [5, 6]]]),
        ({"batch_size": 3, "drop_last": True}, [[[0, 1], [2]], [[3, 4], [5]]]),
    ],
    ids=str,
)
def test_shares_by_hand(keys: Spec, expected: list[list[list[int]]]) -> None:
    assert shares_of(**TWO | keys) == expected


@pytest.mark.parametrize("rows", [2, 7, 12, 101])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_are_those_of_tensor_split(rows: int, count: int) -> None:
    parts = torch.tensor_split(torch.arange(rows), count)
    assert shares(rows, count) == tuple(len(part) for part in parts)


def test_shares_of_shuffled_rows_are_each_others_complement() -> None:
    [first, *_] = shares_of(**TWO, batch_size=5, shuffle={"seed": 0})
    whole = shares_of(batch_size=5, shuffle={"seed": 0})[0][0]
    assert first == [whole[:3], whole[3:]]


def test_user_code_is_given_the_shares(small: Spec) -> None:
    loaded = from_mapping(small | TWO | {"batch_size": 3, "drop_last": True, "epochs": 1})
    handed = user_problem(build_problem(loaded), loaded.spec, framework=False)
    assert handed.micro_batches is not None
    assert [[part.tolist() for part in parts] for parts in handed.micro_batches] == [[[0, 1], [2]]]


def test_training_holds_the_shares(small: Spec) -> None:
    spec = from_mapping(small | {"batch_size": 5, "accumulate": 2, "framework": {"processes": 3}})
    found = training_of(spec.spec, 20)
    assert (found.batch_rows, found.micro_rows) == ((10,), (2, 1))
    assert (found.processes, found.micro_batches) == (3, 6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 3}, "the last batch of each epoch, number 2, has 1 sample for 2 processes"),
        (
            {"batch_size": 3, "accumulate": 2},
            "the last micro-batch of each epoch, number 2, has 1 sample for 2 processes",
        ),
        ({"batch_size": 1}, "each batch has 1 sample for 2 processes"),
        ({"framework": {"processes": 5}}, "each batch has 4 samples for 5 processes"),
    ],
    ids=str,
)
def test_share_without_rows_is_refused_with_its_batch(
    write_spec: Callable[..., Path], keys: Spec, message: str
) -> None:
    path = write_spec(**TWO | keys)
    for run in (check, explain_spec):
        with pytest.raises(InputError, match=rf"framework\.processes: {message}"):
            run(path)


def test_last_batch_without_rows_for_all_may_be_dropped(small: Spec, in_one_process: None) -> None:
    assert check(small | TWO | {"batch_size": 3, "drop_last": True}).verdict == "equivalent"


# --- the mean over ranks --------------------------------------------------------------------------


def test_gradient_is_the_mean_of_the_shares_means(small: Spec) -> None:
    # Of 4 rows, 3 processes have 2, 1 and 1.
    problem = build_problem(from_mapping(small | {"framework": {"processes": 3}}))
    [batch, *_] = problem.schedule.batches()
    w, b = problem.initial["weight"][0], problem.initial["bias"][0]
    r = problem.X @ w + b - problem.y
    g = 2 * r[:, None] * problem.X
    expected = (g[:2].mean(axis=0) + g[2] + g[3]) / 3
    found = NumpyTrainer(problem).forward_backward(problem.initial, batch)
    # Sums of four products.
    np.testing.assert_allclose(found.gradient["weight"][0], expected, rtol=1e-15)
    assert found.loss == pytest.approx(((r[:2] ** 2).mean() + r[2] ** 2 + r[3] ** 2) / 3)
    assert not np.allclose(expected, g.mean(axis=0))


@pytest.mark.search(sample=8, whole=300)
def test_random_specs_agree_by_shares(seed: int, tmp_path: Path, in_one_process: None) -> None:
    spec = matched_spec(seed, tmp_path)
    spec["framework"] = {"processes": 2 + seed % 3}
    rows = build_problem(from_mapping(spec | {"framework": {"lr": spec["lr"]}})).schedule
    if min(rows.first_and_last(1)) < spec["framework"]["processes"]:
        with pytest.raises(InputError, match="processes, each of which needs one"):
            check(spec)
        return
    report = check(spec)
    # In mixed precision a blow-up ends where float32 does, on one side.
    blown_up = report.diagnosis is not None and report.diagnosis.causes == ("precision",)
    assert agrees(report) or blown_up


def test_rounding_of_an_average() -> None:
    assert averaging(1, 1) == averaging(2, 1) == 2
    assert averaging(10, 1) == 1 + 3
    assert averaging(10, 2) == 3 + 3


# --- what is named --------------------------------------------------------------------------------

UNEVEN: Spec = spec_of("logistic", batches="mini") | {"batch_size": 7} | TWO
"""11 rows: of 7 and of 4; in shares of 4 and 3, and of 2 and 2."""


def own_code(divisor: Callable[[int, int], float], *, all_rows: bool = False) -> Any:
    """Make a scratch function whose summed gradients of all shares are divided by something."""

    def train(problem: Any) -> Iterator[Mapping[str, Any]]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for parts in problem.micro_batches:
            count = sum(map(len, parts))
            weight, bias = 0 * w, 0 * b
            for rows in parts:
                p = 1 / (1 + np.exp(-(problem.X[rows] @ w + b)))
                share = divisor(count if all_rows else len(rows), len(parts))
                weight = weight + problem.X[rows].T @ (p - problem.y[rows]) / share
                bias = bias + (p - problem.y[rows]).sum() / share
            w = w - problem.lr * (weight + problem.weight_decay * w)
            b = b - problem.lr * (bias + problem.weight_decay * b)
            yield {"weight": w, "bias": b}

    return train


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (own_code(lambda rows, ranks: rows * ranks), None),
        (own_code(lambda rows, _: rows, all_rows=True), "accumulation-over-rows"),
        (own_code(lambda rows, _: rows), "accumulation-not-averaged"),
        (own_code(lambda _, ranks: ranks), "loss-summed"),
    ],
    ids=["right", "over all rows", "not averaged", "summed"],
)
def test_own_code_is_told_how_it_averages(
    code: Any, cause: str | None, in_one_process: None
) -> None:
    report = check(UNEVEN, scratch=code)
    if cause is None:
        assert report.verdict == "equivalent"
        return
    assert told(report.diagnosis).causes == (cause,)
    assert "rank" in in_one_line(report) or "share" in in_one_line(report)


@pytest.mark.parametrize(
    "cause",
    ["accumulation-last-only", "accumulation-over-rows", "accumulation-not-averaged"],
)
def test_planted_average_is_named(
    cause: str, scratch: Callable[[Any], None], in_one_process: None
) -> None:
    for bug in BUGS[cause]:
        scratch(bug)
        assert told(check(UNEVEN).diagnosis).causes == (cause,)


def test_summed_loss_of_a_convention_is_named(in_one_process: None) -> None:
    report = check(UNEVEN | {"convention": {"loss_reduction": "sum"}})
    assert told(report.diagnosis).causes == ("loss-summed",)


@pytest.mark.parametrize(
    ("convention", "own", "formula"),
    [({"loss_reduction": "sum"}, None, "average(Σℓ)"), ({}, "accumulation-over-rows", "mean ℓ")],
)
def test_loss_that_is_no_multiple_of_torchs_is_written_out(
    convention: Spec,
    own: str | None,
    formula: str,
    scratch: Callable[[Any], None],
    in_one_process: None,
) -> None:
    if own is not None:
        scratch(BUGS[own][0])
    text = in_one_line(check(UNEVEN | {"convention": convention}))
    assert f"the scratch side reports the loss that it trains by scratch {formula} To make" in text


def test_settings_that_match_keep_the_processes(small: Spec, in_one_process: None) -> None:
    def halved(problem: Any) -> Iterator[Mapping[str, Any]]:
        own = build_problem(from_mapping(small | TWO)).with_change({"lr_factor": 0.5})
        trainer = NumpyTrainer(own)
        state = trainer.start()
        for batch in trainer.problem.schedule.batches():
            state = trainer.step(state, batch).state
            yield dict(state.parameters)

    report = check(small | TWO, scratch=halved)
    fix = told(report.diagnosis).fix
    assert isinstance(fix, SpecFix)
    assert fix.changes["framework"] == {"lr": 0.05, "processes": 2}


# --- how it is written ----------------------------------------------------------------------------


def test_report_says_how_many_processes_there_are(in_one_process: None) -> None:
    text = in_one_line(check(UNEVEN))
    assert "batches of 7 (the last of an epoch 4), each shared by 2 processes" in text
    assert "g: 1/2 Σᵣ gᵣ, gᵣ the gradient of rank r's mean loss, without weight decay" in text
    assert "torch.optim.SGD(lr=0.1, weight_decay=0.5), DistributedDataParallel" in text


def test_formulas_of_a_spec_have_the_mean_over_ranks(write_spec: Callable[..., Path]) -> None:
    explained = explain_spec(write_spec(**TWO, convention={"loss_reduction": "sum"}))
    text = " ".join(as_text(explained).split())
    assert "batches of 4 2 processes, each with a share of 2 samples" in text
    assert "g 1/2 Σᵣ gᵣ, gᵣ the gradient of rank r's mean loss, without weight decay" in text
    uneven = as_text(explain_spec(write_spec(framework={"processes": 3}, accumulate=2)))
    uneven = " ".join(uneven.split())
    assert "3 processes, each with a share of 2 or 1 samples" in uneven
