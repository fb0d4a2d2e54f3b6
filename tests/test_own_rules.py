"""Causes of the update rule, named for a user's own model and torch.optim class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from regcheck.checking import check
from regcheck.report.result import Report
from tests.own_rules import KINDS, Mlp, Rule, Spec, Tensors, build, by_hand, mlp, spec

Made = Callable[[nn.Module], Optimizer]

COMMON: Spec = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}

LAST = ("last.weight", "last.bias")
BIASES = ("first.bias", "last.bias")


def plain(kind: Any = AdamW, **options: Any) -> Made:
    return lambda model: kind(model.parameters(), **COMMON | options)


def grouped(*names: str, kind: Any = AdamW, common: Spec = COMMON, **own: Any) -> Made:
    """Give some tensors numbers of their own."""

    def made(model: nn.Module) -> Optimizer:
        known = dict(model.named_parameters())
        rest = [w for name, w in known.items() if name not in names]
        groups = [{"params": rest}, {"params": [known[name] for name in names], **own}]
        return kind(groups, **common)  # type: ignore[no-any-return]

    return made


def run(
    rule: Rule, made: Made, kind: str = "mlp", *, told: bool = False, dtype: Any = np.float64,
    **given: Any,
) -> Report:  # fmt: skip
    of, name = KINDS[kind], np.dtype(dtype).name
    return check(
        spec(kind, dtype=name, **given),
        framework=build(of.module, made, getattr(torch, name)),
        scratch=by_hand(of.gradients, rule, told=told, dtype=dtype),
    )


def causes(report: Report) -> tuple[str, ...]:
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    return report.diagnosis.causes


OF_BOTH = {
    "amsgrad": "adam-amsgrad-added",
    "by batch": "penalty-divided-by-batch",
    "by data": "penalty-divided-by-dataset",
    "compounded": "adam-bias-correction-compounded",
    "decay doubled": "penalty-doubled",
    "eps first": "adam-epsilon-uncorrected",
    "eps inside": "adam-epsilon-inside",
    "late correction": "adam-bias-correction-late",
    "lr halved": "learning-rate-scaled",
    "no correction": "adam-bias-correction-missing",
    "no decay": "penalty-missing",
    "no decay of biases": "bias-not-penalized",
    "no root": "root-missing",
    "stale": "moments-stale",
    "swapped betas": "adam-betas-swapped",
}
"""Mistakes in code that is to be torch's, each with its cause."""

MISTAKES: dict[str, dict[str, str]] = {
    "Adam": OF_BOTH | {"coupling": "penalty-decoupled"},
    "AdamW": OF_BOTH
    | {
        "coupling": "penalty-coupled",
        "decay after": "decay-after-update",
        "decay corrected": "decay-bias-corrected",
        "decay unscaled": "decay-not-scaled-by-lr",
    },
}

CASES = [
    (kind, mistake, sorted(KINDS)[place % 3])
    for kind, found in MISTAKES.items()
    for place, mistake in enumerate(found)
]


@pytest.mark.sampled(every=48)
@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "mistake", "kind"), CASES)
def test_mistake_is_named_and_nothing_else_is(optimizer: str, mistake: str, kind: str) -> None:
    made = plain(getattr(torch.optim, optimizer))
    report = run(Rule(coupled=optimizer == "Adam", mistakes=(mistake,)), made, kind)

    assert causes(report) == (MISTAKES[optimizer][mistake],)
    assert report.diagnosis is not None
    others = {one.causes for one in report.diagnosis.explanations[1:]}
    # λ and lr·c λ are one rule where the lr does not change.
    assert others <= ({("penalty-scaled",)} if mistake == "decay unscaled" else set())


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["amsgrad", "stale"])
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
def test_mistake_beside_amsgrad_is_named(optimizer: str, mistake: str) -> None:
    made = plain(getattr(torch.optim, optimizer), amsgrad=True)
    rule = Rule(coupled=optimizer == "Adam", amsgrad=True, mistakes=(mistake,))
    expected = {"amsgrad": "adam-amsgrad-missing", "stale": "moments-stale"}

    assert causes(run(rule, made, "embedding")) == (expected[mistake],)


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("coupled", [False, True])
def test_right_code_agrees_for_300_steps(kind: str, dtype: Any, coupled: bool) -> None:
    made = plain(Adam if coupled else AdamW, amsgrad=coupled, eps=1e-8)
    rule = Rule(coupled=coupled, amsgrad=coupled, eps=1e-8)
    report = run(rule, made, kind, dtype=dtype, epochs=100)

    assert (report.verdict, report.comparison.compared) == ("equivalent", 300)


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize(
    "mistakes",
    [
        ("no correction", "decay doubled"),
        ("coupling", "eps inside"),
        ("swapped betas", "no correction"),
        ("eps first", "by batch"),
        ("amsgrad", "coupling"),
        ("compounded", "no decay of biases"),
        ("no correction", "decay after", "no decay of biases"),
    ],
    ids=" and ".join,
)
@pytest.mark.parametrize("told", [False, True], ids=["", "with gradients"])
def test_several_mistakes_are_named_together(mistakes: tuple[str, ...], told: bool) -> None:
    found = causes(run(Rule(mistakes=mistakes), plain(), told=told))

    assert sorted(found) == sorted(MISTAKES["AdamW"][mistake] for mistake in mistakes)


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["no correction", "coupling", "eps first", "by batch"])
def test_mistake_is_named_in_float32(mistake: str) -> None:
    report = run(Rule(mistakes=(mistake,)), plain(), dtype=np.float32)

    assert causes(report) == (MISTAKES["AdamW"][mistake],)


# --- parameter groups -----------------------------------------------------------------------------


def of_last(own: Any, common: Any) -> Callable[[str], Any]:
    """Return what tensors have, the last layer's its own."""
    return lambda name: own if name in LAST else common


GROUPS: dict[str, tuple[Made, Rule]] = {
    "betas": (grouped(*LAST, betas=(0.5, 0.9)), Rule(betas=of_last((0.5, 0.9), (0.9, 0.99)))),
    "decay": (
        grouped(*BIASES, weight_decay=0.0),
        Rule(decay=lambda name: 0.0 if name in BIASES else 0.1),
    ),
    "decay of a layer": (grouped(*LAST, weight_decay=0.3), Rule(decay=of_last(0.3, 0.1))),
    "lr": (grouped(*LAST, lr=0.01), Rule(lr=of_last(0.01, 0.03))),
    "lr of 0": (grouped(*LAST, common=COMMON | {"lr": 0.0}, lr=0.03), Rule(lr=of_last(0.03, 0.0))),
}


@pytest.mark.sampled(every=24)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(
    "mistake", ["", "coupling", "no correction", "eps inside", "by batch", "swapped betas"]
)
def test_mistake_is_named_beside_groups_of_parameters(groups: str, mistake: str) -> None:
    made, rule = GROUPS[groups]
    report = run(rule._replace(mistakes=(mistake,)), made)

    if mistake:
        assert causes(report) == (MISTAKES["AdamW"][mistake],)
    else:
        assert report.verdict == "equivalent"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_lr_that_one_group_alone_has_is_named_with_its_tensors() -> None:
    report = run(Rule(), grouped(*LAST, lr=0.01))

    assert causes(report) == ("learning-rate-scaled",)
    assert report.diagnosis is not None
    assert report.diagnosis.best is not None
    note = f"{' and '.join(LAST)}: lr 0.03 instead of 0.01; all else follows torch's rule"
    assert report.diagnosis.best.note == note


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "step", "every": 2, "factor": 0.5},
        {"kind": "list", "values": [0.03, 0.02, 0.01]},
        {"kind": "cosine", "steps": 9, "floor": 0.01},
    ],
    ids=lambda schedule: schedule["kind"],
)
def test_groups_keep_their_proportion_to_a_schedule(schedule: Spec) -> None:
    lrs = {"step": (0.03, 0.03, 0.015, 0.015), "list": (0.03, 0.02, 0.01, 0.01)}

    def train(problem: Any) -> Iterator[Spec]:
        rates = problem.lrs
        if schedule["kind"] in lrs:
            assert rates[:4] == pytest.approx(lrs[schedule["kind"]])
        P: Tensors = dict(problem.initial)
        kept: dict[str, Tensors] = {name: {} for name in P}
        for t, rows in enumerate(problem.batches, start=1):
            loss, G = mlp(P, problem.X[rows], problem.y[rows])
            lr = of_last(2 * rates[t - 1], rates[t - 1] / 3)
            rule = Rule(lr=lr, mistakes=("no correction",))
            P = {n: rule.step(n, w, G[n], kept[n], t, len(rows)) for n, w in P.items()}
            yield {**P, "loss": loss}

    made = grouped(*LAST, common=COMMON | {"lr": 0.01}, lr=0.06)
    report = check(spec("mlp", lr_schedule=schedule), framework=build(Mlp, made), scratch=train)

    assert causes(report) == ("adam-bias-correction-missing",)


@pytest.mark.slow
def test_momentum_of_groups_is_named() -> None:
    def train(problem: Any) -> Iterator[Spec]:
        P: Tensors = dict(problem.initial)
        V = {name: 0 * w for name, w in P.items()}
        for rows in problem.batches:
            loss, G = mlp(P, problem.X[rows], problem.y[rows])
            for name, w in P.items():
                mu, lr = of_last((0.5, 0.01), (0.9, 0.03))(name)
                V[name] = mu * V[name] + (1 - mu) * (G[name] + 0.1 * w)
                P[name] = w - lr * V[name]
            yield {**P, "loss": loss}

    made = grouped(
        *LAST,
        kind=SGD,
        common={"lr": 0.03, "momentum": 0.9, "weight_decay": 0.1},
        lr=0.01,
        momentum=0.5,
    )
    report = check(spec("mlp"), framework=build(Mlp, made), scratch=train)

    assert causes(report) == ("momentum-dampened",)
