"""Mismatches that people reported, through specs, to the numbers recomputed for each.

The numbers are [weight, bias] after steps 1 and 10, computed in float64 with torch 2.13.0 on the
one side and a hand-written loop on the other, from the formulas in the reports named beside them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from regcheck.checking import check

DATA = {
    "X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5]],
    "y": [1.0, 2.0, -1.0, 0.5],
}
BASE: dict[str, Any] = {
    "data": DATA,
    "model": "linear",
    "loss": "mse",
    "init": {"weight": [0.5, -0.3], "bias": [0.1]},
}
MOMENTUM = {"name": "sgd", "momentum": 0.9}

Numbers = tuple[float, float, float]
"""weight[0, 0], weight[0, 1], bias."""


class Reported(NamedTuple):
    """One report: what either side does, when they part, and where they are after 1 and 10."""

    spec: dict[str, Any]
    first_divergence: int | None
    framework: tuple[Numbers, Numbers]
    scratch: tuple[Numbers, Numbers]


DECAYED = (
    (0.55, -0.14375, 0.1875),
    (0.5654037764361873, 0.0197647647148401, 0.2596892205703198),
)
HEAVY_BALL = (
    (0.5075, -0.285875, 0.10875),
    (0.6560574983815296, 0.09414162714346556, 0.3180523417274259),
)

REPORTED = {
    # pytorch.org discussions t/1796, t/151583
    "bias-decay": Reported(
        {"lr": 0.1, "weight_decay": 0.5, "convention": "bias-free"},
        1,
        (
            (0.55, -0.14375, 0.1825),
            (0.5753727624714456, 0.03788013185654308, 0.2024823262827207),
        ),
        DECAYED,
    ),
    # bbabenko.github.io weight-decay, titu1994/DenseNet#57, mlcommons/hpc#22
    "l2-factor2": Reported(
        {
            "lr": 0.1,
            "weight_decay": {"weight": 0.5, "bias": 0},
            "convention": {"penalty_factor": 2, "penalize_bias": False},
        },
        1,
        DECAYED,
        (
            (0.525, -0.12874999999999998, 0.1875),
            (0.5269911862984832, 0.008138666291138501, 0.2813765664040223),
        ),
    ),
    # community.deeplearning.ai t/736960
    "l2-over-m": Reported(
        {
            "lr": 0.1,
            "weight_decay": {"weight": 0.5, "bias": 0},
            "convention": {"divide_penalty_by": "batch", "penalize_bias": False},
        },
        1,
        DECAYED,
        (
            (0.56875, -0.15499999999999997, 0.1875),
            (0.5979619106902007, 0.030572218740558276, 0.24158686600015197),
        ),
    ),
    # HIPS/autograd#289, ml-explore/mlx PR 87
    "momentum-1-minus-mu": Reported(
        {"lr": 0.01, "optimizer": MOMENTUM, "convention": {"momentum_form": "dampened"}},
        1,
        HEAVY_BALL,
        (
            (0.50075, -0.2985875, 0.100875),
            (0.5290807805474281, -0.24373461533379495, 0.13450395107337992),
        ),
    ),
    # pytorch/pytorch#1099: the negative control. At a constant lr the two forms are one rule.
    "momentum-keras-const-lr-equal": Reported(
        {"lr": 0.01, "optimizer": MOMENTUM, "convention": {"momentum_form": "lr-inside"}},
        None,
        HEAVY_BALL,
        (
            (0.5075, -0.285875, 0.10875),
            (0.6560574983815296, 0.09414162714346558, 0.318052341727426),
        ),
    ),
    # Stack Overflow: MLP from scratch and in PyTorch
    "mse-half": Reported(
        {"lr": 0.1, "convention": {"loss_factor": 0.5}},
        1,
        (
            (0.575, -0.15874999999999997, 0.1875),
            (0.6096272746605916, 0.034628708655996224, 0.23517112117708827),
        ),
        (
            (0.5375, -0.229375, 0.14375),
            (0.6031430583523371, -0.0009407763708532031, 0.24679465209088314),
        ),
    ),
    # discuss.pytorch.org t/2517
    "mse-sum-vs-mean": Reported(
        {"lr": 0.01, "convention": {"loss_reduction": "sum"}},
        1,
        (
            (0.5075, -0.285875, 0.10875),
            (0.5544118325747941, -0.18339728027256225, 0.1686820813007844),
        ),
        (
            (0.53, -0.24349999999999997, 0.135),
            (0.6000848918448554, -0.022042786540793856, 0.24245523202876235),
        ),
    ),
    # pytorch/pytorch PR 13801
    "wd-after-momentum": Reported(
        {
            "lr": 0.01,
            "weight_decay": 0.5,
            "optimizer": MOMENTUM,
            "convention": {"decay": "after-momentum"},
        },
        2,
        (
            (0.505, -0.284375, 0.10825),
            (0.6013617981396238, 0.11659991579825559, 0.2925501021572205),
        ),
        (
            (0.505, -0.284375, 0.10825),
            (0.6475067036649665, 0.09585293162776282, 0.3113555489768795),
        ),
    ),
}

# Ten steps of some 30 roundings of numbers below 5 stay below 1e-13 (and torch's kernels may add
# in another order on another machine).
TOLERANCE = 1e-12


def numbers_of(side: dict[str, Any]) -> list[float]:
    """Write where a side ended as one list."""
    return [*side["weight"][0], *side["bias"]]


@pytest.mark.parametrize("name", REPORTED)
def test_reported_numbers_after_1_and_10_steps(name: str) -> None:
    reported = REPORTED[name]
    for at, epochs in enumerate((1, 10)):
        report = check(BASE | reported.spec | {"epochs": epochs}).to_dict()
        final = report["final"]
        assert numbers_of(final["framework"]) == pytest.approx(
            reported.framework[at], rel=0, abs=TOLERANCE
        )
        assert numbers_of(final["scratch"]) == pytest.approx(
            reported.scratch[at], rel=0, abs=TOLERANCE
        )


@pytest.mark.parametrize("name", REPORTED)
def test_reported_mismatch_is_found_at_its_step(name: str) -> None:
    reported = REPORTED[name]
    spec = BASE | reported.spec | {"epochs": 10, "compare": ["parameters"]}
    report = check(spec).to_dict()
    if reported.first_divergence is None:
        assert report["verdict"] == "equivalent"
        assert report["first_divergence"] is None
        assert report["compared"] == 10
    else:
        assert report["verdict"] == "diverged"
        assert report["first_divergence"]["step"] == reported.first_divergence


@pytest.mark.parametrize("nesterov", [True, False])
def test_nesterov_and_plain_momentum_each_through_its_own_spec(nesterov: bool) -> None:
    # keras-team/keras#14115: torch with Nesterov against a loop without it.
    after = {
        True: (
            (0.51425, -0.2731625, 0.116625),
            (0.6409026350420314, 0.08767812224040812, 0.3055763907238575),
        ),
        False: HEAVY_BALL,
    }[nesterov]
    for epochs, expected in zip((1, 10), after, strict=True):
        optimizer = MOMENTUM | {"nesterov": nesterov}
        report = check(BASE | {"lr": 0.01, "optimizer": optimizer, "epochs": epochs}).to_dict()
        assert report["verdict"] == "equivalent"
        for side in ("scratch", "framework"):
            found = numbers_of(report["final"][side])
            assert found == pytest.approx(expected, rel=0, abs=TOLERANCE)


def test_question_parts_at_step_2_in_the_penalty() -> None:
    # The question: zero start, so the penalty is nothing at step 1; λ/n and the penalty in the
    # reported cost. Its data are not public; any 1,096 rows of 4 features do.
    report = check(
        {
            "data": {"synthetic": {"rows": 1096, "features": 4}},
            "model": "logistic",
            "lr": 0.05,
            "weight_decay": 0.1,
            "epochs": 3,
            "convention": "divided-by-batch",
        }
    ).to_dict()
    assert report["verdict"] == "diverged"
    assert report["first_divergence"]["step"] == 2
    assert report["first_divergence"]["stage"] == "penalty"
    assert report["first_loss_divergence"]["step"] == 2


ANSWER: dict[str, Any] = {
    "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
    "model": "linear",
    "init": {"weight": [1.0], "bias": [1.0]},
    "lr": 0.1,
    "weight_decay": 1.0,
    "epochs": 1,
    "convention": {"divide_penalty_by": "batch"},
}


def test_answers_numbers_are_in_the_report_to_full_precision() -> None:
    # The answer's two points: z = 3 and 5 against 7 and 11.
    report = check(ANSWER).to_dict()
    sample = report["sample"]
    assert (report["verdict"], sample["step"]) == ("diverged", 1)
    assert sample["before"] == {"weight": [[1.0]], "bias": [1.0]}
    for side in ("scratch", "framework"):
        assert sample[side]["loss"] == 26.0
        assert sample[side]["gradient"] == {"weight": [[-32.0]], "bias": [-10.0]}
    # The last digit is float64's own: 1 - 0.1 (-32 + 1) and so on, with a rounding or two.
    after = {side: numbers_of(sample[side]["after"]) for side in ("scratch", "framework")}
    assert after["framework"] == pytest.approx([4.1, 1.9], rel=2e-16)
    assert after["scratch"] == pytest.approx([4.15, 1.95], rel=2e-16)
    for side, numbers in after.items():
        assert numbers_of(report["final"][side]) == numbers


def test_answers_reported_loss_with_the_penalty_in_it() -> None:
    report = check(ANSWER | {"convention": "divided-by-batch"}).to_dict()
    assert report["first_loss_divergence"]["scratch"] == 26.5  # + 1/(2·2) (1² + 1²)
    assert report["first_loss_divergence"]["framework"] == 26.0
