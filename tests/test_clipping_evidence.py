"""Clipping that is not torch's: told by what it clips to, with what is beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LR,
    MOMENTUM,
    TORCHS,
    At,
    Spec,
    Step,
    code,
)


def to_norm(at: At) -> tuple[Any, Any]:
    scale = min(1, 0.5 / np.sqrt((at.gw**2).sum() + at.gb[0] ** 2))
    return at.along(scale * at.gw, scale * at.gb)


@pytest.mark.parametrize(
    ("step", "spec", "known"),
    [
        (TORCHS, {"clip_norm": 0.5}, "The updates are torch's without clipping: clip the"),
        (TORCHS, {"clip_value": 0.3}, "The updates are torch's without clipping: clip the"),
        (to_norm, {}, "The scratch side clips by 0.5/‖g‖, where torch does not"),
    ],
    ids=["norm", "value", "reverse"],
)
def test_clipping_of_one_side_alone_is_told(step: Step, spec: Spec, known: str) -> None:
    short = summary(check(BASE | BATCHES | spec, scratch=code(step)))
    assert short.known[0].startswith(known)
    assert known.removeprefix("The").partition(",")[0].partition(":")[0] in short.headline
    assert not short.next


def by_tensor(at: At) -> tuple[Any, Any]:
    gw, gb = (g * min(1.0, 0.5 / float(np.linalg.norm(g))) for g in (at.gw, at.gb))
    return at.along(gw, gb)


def with_decay(at: At) -> tuple[Any, Any]:
    pull, of_bias = at.gw + LAMBDA * at.w, at.gb + LAMBDA * at.b
    scale = min(1.0, 0.5 / float(np.linalg.norm(np.append(pull, of_bias))))
    return at.along(scale * pull, scale * of_bias, penalty=0)


@pytest.mark.parametrize(
    ("step", "beside"),
    [
        (to_norm, ""),
        (by_tensor, "clips each tensor by its own norm and "),
        (with_decay, "adds λ w before clipping and "),
    ],
)
def test_clip_without_torchs_1e_6_is_told_with_what_is_beside_it(step: Step, beside: str) -> None:
    short = summary(check(BASE | BATCHES | {"clip_norm": 0.5}, scratch=code(step)))
    clips = "clips by 0.5/‖g‖, where torch has 0.5/(‖g‖ + 1e-6)"
    assert short.known[0].startswith(f"The scratch side {beside}{clips}: ")
    assert short.known[0].endswith("add 1e-6 to the norm.")
    assert not short.next


def of_weights(at: At) -> tuple[Any, Any]:
    scale = min(1.0, 0.5 / (1e-8 + float(np.linalg.norm(at.gw))))
    return at.along(scale * at.gw, at.gb)[0], at.b - LR * at.gb


def by_value(at: At) -> tuple[Any, Any]:
    return tuple(np.clip(g, -0.3, 0.3) for g in (at.gw, at.gb))  # type: ignore[return-value]


def by_value_with_momentum(at: At) -> tuple[Any, Any]:
    for key, g, w in zip("vc", by_value(at), (at.w, at.b), strict=True):
        at.memory[key] = 0.9 * at.memory.get(key, 0) + g + LAMBDA * w
    return at.w - LR * at.memory["v"], at.b - LR * at.memory["c"]


def by_value_of_adagrad(at: At) -> tuple[Any, Any]:
    ends = []
    for key, g, w in zip("vc", by_value(at), (at.w, at.b), strict=True):
        at.memory[key] = at.memory.get(key, 0) + g**2
        ends.append(w - LR * g / (np.sqrt(at.memory[key]) + 1e-10))
    return ends[0], ends[1]


BY_NORM = "The scratch side clips by 0.5/‖g‖, where torch has 0.7/(‖g‖ + 1e-6): "
BY_WEIGHTS = (
    "The scratch side applies no weight decay to the bias and clips the weights alone, by "
    "0.5/(‖g_w‖ + 1e-8), where torch has 0.5/(‖g‖ + 1e-6): add λ b to the bias's gradient too, "
    "like λ w to the weights'; "
)
EACH = "The scratch side clips each entry of the gradient to ±0.3, where torch "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "spec", "known"),
    [
        (
            lambda at: at.along(*by_value(at)),
            {},
            EACH + "does not clip: remove the clipping, or set `clip_value: 0.3` in the spec.",
        ),
        (
            by_value_with_momentum,
            MOMENTUM | {"clip_norm": 0.5},
            EACH + "has 0.5/(‖g‖ + 1e-6): clip as `clip_norm: 0.5` of the spec does, or set "
            "`clip_value: 0.3` in the spec in its place.",
        ),
        (
            by_value_of_adagrad,
            {"optimizer": {"name": "adagrad"}, "clip_norm": 0.3, "weight_decay": 0.0},
            EACH + "has 0.3/(‖g‖ + 1e-6): clip as `clip_norm: 0.3` of the spec does, or set "
            "`clip_value: 0.3` in the spec in its place.",
        ),
        (
            to_norm,
            {"clip_norm": 0.7},
            BY_NORM
            + "clip to the spec's clip_norm, or set `clip_norm: 0.5` in the spec; add 1e-6 to the "
            "norm.",
        ),
        (
            of_weights,
            {"clip_norm": 0.5},
            BY_WEIGHTS + "clip all tensors by their one norm; add 1e-6 to the norm.",
        ),
    ],
    ids=["value", "momentum", "adagrad", "another norm", "weights"],
)
def test_other_kinds_of_clipping_are_told(step: Step, spec: Spec, known: str) -> None:
    # A gradient that is told may be clipped already.
    grad = by_value if spec == {} else None
    short = summary(check(BASE | BATCHES | spec, scratch=code(step, grad=grad)))
    assert short.known[-1] == known
    assert known.partition(", where")[0].removeprefix("The") in short.headline
    assert not short.next


def test_another_clip_is_told_by_its_factors_with_digits_that_differ_from_1() -> None:
    def step(at: At) -> tuple[Any, Any]:
        scale = min(1, 0.5 / (1e-7 + np.sqrt((at.gw**2).sum() + at.gb[0] ** 2)))
        return at.along(scale * at.gw, scale * at.gb, penalty=0)

    spec = BATCHES | {"clip_norm": 0.5, "weight_decay": 0}
    short = summary(check(BASE | spec, scratch=code(step)))
    assert short.headline.endswith("the updates are torch's times another number in each step")
    assert "from step 1 on 1.00000" in short.known[0]
    assert "gradient with torch's g · min(1, 0.5/(‖g‖ + 1e-6)), and then the lr" in short.known[0]
    assert not short.next
