"""Mismatches that users reported, as their own code, with the numbers recomputed for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from regcheck.checking import check
from regcheck.report.result import Report
from tests.conftest import Spec, step_of, told
from tests.faults import FAULTS
from tests.user_functions import Code

Numbers = tuple[float, float, float]

MOMENTUM = {"name": "sgd", "momentum": 0.9}
WITH_MOMENTUM: Spec = {"lr": 0.01, "optimizer": MOMENTUM}
PENALIZED: Spec = {"lr": 0.1, "weight_decay": {"weight": 0.5, "bias": 0}}

BASE: Spec = {
    "data": {"X": [[1, 2], [3, -1], [-2, 0.5], [0.5, 1.5]], "y": [1, 2, -1, 0.5]},
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
    "model": "linear",
    "epochs": 10,
}


class Case(NamedTuple):
    """A reported mismatch, recomputed in float64.

    Attributes:
        spec: what torch is given.
        cause: what is wrong in the user's code, and what explains it.
        step: the first at which the sides differ.
        others: what explains it just as well.
        matching: the weight_decay and lr with which torch does as the code; None: there are none.
        framework: torch's weights and bias after step 10.
        scratch: the code's.
    """

    spec: Spec
    cause: str
    step: int
    others: list[list[str]]
    matching: tuple[Any, float] | None
    framework: Numbers
    scratch: Numbers


DECAYED = (0.5654037764361873, 0.0197647647148401, 0.2596892205703198)
HEAVY_BALL = (0.6560574983815296, 0.09414162714346556, 0.3180523417274259)

CASES = {
    # bbabenko.github.io weight-decay, titu1994/DenseNet#57, mlcommons/hpc#22
    "l2-factor2": Case(
        PENALIZED,
        *("penalty-doubled", 1, [["learning-rate-scaled", "loss-halved"]]),
        ({"weight": 1.0, "bias": 0.0}, 0.1),
        DECAYED,
        (0.5269911862984832, 0.008138666291138501, 0.2813765664040223),
    ),
    # community.deeplearning.ai t/736960
    "l2-over-m": Case(
        PENALIZED,
        *("penalty-divided-by-batch", 1),
        [["penalty-divided-by-dataset"], ["learning-rate-scaled", "loss-summed"]],
        ({"weight": 0.125, "bias": 0.0}, 0.1),
        DECAYED,
        (0.5979619106902007, 0.030572218740558276, 0.24158686600015197),
    ),
    # discuss.pytorch.org t/1796, t/151583
    "bias-decay": Case(
        {"lr": 0.1, "weight_decay": 0.5},
        *("bias-not-penalized", 1, []),
        ({"weight": 0.5, "bias": 0.0}, 0.1),
        (0.5753727624714456, 0.03788013185654308, 0.2024823262827207),
        DECAYED,
    ),
    # pytorch/pytorch PR 13801. Step 1 is the same: there v is the gradient.
    "wd-after-momentum": Case(
        WITH_MOMENTUM | {"weight_decay": 0.5},
        *("decay-after-momentum", 2, [["penalty-decoupled"]]),
        None,
        (0.6013617981396238, 0.11659991579825559, 0.2925501021572205),
        (0.6475067036649665, 0.09585293162776282, 0.3113555489768795),
    ),
    # HIPS/autograd#289, ml-explore/mlx PR 87
    "momentum-1-minus-mu": Case(
        WITH_MOMENTUM,
        *("momentum-dampened", 1, [["gradient-scaled"], ["learning-rate-scaled"]]),
        (0.0, 0.001),
        HEAVY_BALL,
        (0.5290807805474281, -0.24373461533379495, 0.13450395107337992),
    ),
    # keras-team/keras#14115
    "nesterov-vs-plain": Case(
        {"lr": 0.01, "optimizer": MOMENTUM | {"nesterov": True}},
        *("nesterov-missing", 1, []),
        (0.0, 0.01),
        (0.6409026350420314, 0.08767812224040812, 0.3055763907238575),
        HEAVY_BALL,
    ),
    # Stack Overflow: MLP from scratch and in PyTorch
    "mse-half": Case(
        {"lr": 0.1},
        *("loss-halved", 1, [["learning-rate-scaled"]]),
        (0.0, 0.05),
        (0.6096272746605916, 0.034628708655996224, 0.23517112117708827),
        (0.6031430583523371, -0.0009407763708532031, 0.24679465209088314),
    ),
    # discuss.pytorch.org t/2517
    "mse-sum-vs-mean": Case(
        {"lr": 0.01},
        *("loss-summed", 1, [["gradient-scaled"], ["learning-rate-scaled"]]),
        (0.0, 0.04),
        (0.5544118325747941, -0.18339728027256225, 0.1686820813007844),
        (0.6000848918448554, -0.022042786540793856, 0.24245523202876235),
    ),
}

# Ten steps of some 30 roundings of numbers below 5 stay below 1e-13 (and torch's kernels may add
# in another order on another machine).
TOLERANCE = 1e-12


def ended(report: Report, side: str) -> list[float]:
    final = report.to_dict()["final"][side]
    return [*final["weight"][0], *final["bias"]]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", CASES)
def test_users_code_has_its_cause_and_the_settings_that_match(name: str) -> None:
    case = CASES[name]
    spec = BASE | case.spec
    scratch = Code(spec, FAULTS[case.cause].rule()).train
    report = check(spec | {"compare": ["parameters"]}, scratch=scratch)
    assert (report.verdict, told(report.first_divergence).step) == ("diverged", case.step)
    found = report.to_dict()["diagnosis"]
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [(case.cause, "update")]
    assert found["alternatives"] == case.others
    for side, numbers in (("framework", case.framework), ("scratch", case.scratch)):
        assert ended(report, side) == pytest.approx(numbers, rel=0, abs=TOLERANCE)
    match = found["matching"]
    if case.matching is None:
        assert match is None
        return
    # A named cause has its numbers from the spec, with a rounding or two.
    assert match["weight_decay"] == pytest.approx(case.matching[0], rel=1e-15)
    assert match["lr"] == pytest.approx(case.matching[1], rel=1e-15)
    settings = {key: match[key] for key in ("lr", "weight_decay")}
    if "optimizer" in case.spec:
        settings["optimizer"] = {"name": "sgd", **{k: match[k] for k in ("momentum", "nesterov")}}
    again = check(spec | {"framework": settings, "compare": ["parameters"]}, scratch=scratch)
    assert (again.verdict, again.comparison.compared) == ("equivalent", 10)
    assert ended(again, "framework") == pytest.approx(case.scratch, rel=0, abs=TOLERANCE)


CONVENTIONS: dict[str, Any] = {
    "bias-decay": "bias-free",
    "l2-factor2": {"penalty_factor": 2, "penalize_bias": False},
    "l2-over-m": {"divide_penalty_by": "batch", "penalize_bias": False},
    "momentum-1-minus-mu": {"momentum_form": "dampened"},
    "mse-half": {"loss_factor": 0.5},
    "mse-sum-vs-mean": {"loss_reduction": "sum"},
    "wd-after-momentum": {"decay": "after-momentum"},
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", CONVENTIONS)
def test_convention_of_the_spec_comes_to_the_same_numbers(name: str) -> None:
    case = CASES[name]
    spec = BASE | case.spec | {"convention": CONVENTIONS[name], "compare": ["parameters"]}
    report = check(spec)
    assert step_of(report.first_divergence) == case.step
    for side, numbers in (("framework", case.framework), ("scratch", case.scratch)):
        assert ended(report, side) == pytest.approx(numbers, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("form", ["code", "convention"])
def test_velocity_that_holds_the_lr_is_the_same_rule_at_a_constant_lr(form: str) -> None:
    # pytorch/pytorch#1099: the negative control.
    spec = BASE | WITH_MOMENTUM
    if form == "code":
        report = check(spec, scratch=Code(spec, FAULTS["momentum-lr-inside"].rule()).train)
    else:
        report = check(spec | {"convention": {"momentum_form": "lr-inside"}})
    assert (report.verdict, report.comparison.compared) == ("equivalent", 10)
    assert report.diagnosis is None
    for side in ("scratch", "framework"):
        assert ended(report, side) == pytest.approx(HEAVY_BALL, rel=0, abs=TOLERANCE)
