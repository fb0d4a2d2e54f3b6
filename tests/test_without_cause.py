"""What is known of code that no cause explains, and what a yielded gradient tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.evidence.tensors import FROZEN, NOT_GIVEN
from regcheck.report.summary import summary
from regcheck.report.terminal.details import report_text
from regcheck.report.texts.diagnosis.next_steps import BY_KIND, BY_STAGE, OF_LOSS, YIELD_GRADIENT
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LR,
    MOMENTUM,
    ROWS,
    TORCHS,
    At,
    Spec,
    Step,
    causes_of,
    code,
    descent,
    found_by,
    silent,
)
from tests.conftest import in_one_line, told
from tests.user_modules import NO_MODEL, mlp, mlp_by_hand, sgd, user

NESTEROV: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}


def wrong_sign_of_bias(at: At) -> tuple[Any, Any]:
    return at.along(at.gw, -at.gb)


def uphill(at: At) -> tuple[Any, Any]:
    return at.along(at.gw, at.gb, lr=-LR)


def stale(at: At) -> tuple[Any, Any]:
    last = at.memory.get("last", (at.gw, at.gb))
    at.memory["last"] = at.gw, at.gb
    return at.along(*last)


def before_its_velocity(at: At) -> tuple[Any, Any]:
    v, c = at.memory.get("v", 0), at.memory.get("c", 0)
    at.memory["v"] = 0.9 * v + at.gw + LAMBDA * at.w
    at.memory["c"] = 0.9 * c + at.gb + LAMBDA * at.b
    return at.w - LR * v, at.b - LR * c


def half_nesterov(at: At) -> tuple[Any, Any]:
    v = at.memory["v"] = 0.9 * at.memory.get("v", 0) + at.gw
    c = at.memory["c"] = 0.9 * at.memory.get("c", 0) + at.gb
    return at.w - LR * (at.gw + 0.5 * v), at.b - LR * (at.gb + 0.5 * c)


def absolute(at: At) -> tuple[Any, Any]:
    return (
        at.w - LR * (at.gw + LAMBDA * np.sign(at.w)),
        at.b - LR * (at.gb + LAMBDA * np.sign(at.b)),
    )


def wrong_derivative(at: At) -> tuple[Any, Any]:
    return at.along(*at.mean(np.abs(at.slope)))


WRONG: dict[str, tuple[Step, Spec, int, str, list[str]]] = {
    "a sign in one tensor": (
        wrong_sign_of_bias,
        {},
        1,
        "gradient",
        [
            "weight is updated by torch's rule.",
            "bias is updated by a wrong sign: −1 times torch's gradient.",
        ],
    ),
    "all signs": (
        uphill,
        {},
        1,
        "gradient",
        ["weight and bias are updated by −1 times torch's update: a sign is wrong."],
    ),
    "the gradient of the step before": (
        stale,
        BATCHES,
        2,
        "gradient",
        ["Each update uses the gradient of the previous step: compute the predictions"],
    ),
    "the velocity of the step before": (
        before_its_velocity,
        BATCHES | MOMENTUM,
        1,
        "optimizer",
        ["Each update uses the velocity, or the gradient, of the previous step: swap the two"],
    ),
    "a derivative": (
        wrong_derivative,
        {},
        1,
        "gradient",
        ["Finite differences of the loss confirm torch's gradient: at step 1 they differ from it"],
    ),
    "another form of Nesterov momentum": (
        half_nesterov,
        BATCHES | NESTEROV | {"weight_decay": 0},
        1,
        "optimizer",
        [
            (
                "Each update subtracts 0.075 g − 0.045 times the previous g + 0.9 times the "
                "previous update; torch's subtracts 0.095 g − 0.045 times the previous g + 0.9"
            )
        ],
    ),
    "nothing in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b),
        {},
        1,
        "update",
        ["weight is updated by torch's rule.", "bias is never updated."],
    ),
    "a sum in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * (ROWS * at.gb)),
        {},
        1,
        "gradient",
        ["weight is updated by torch's rule.", "bias is updated by 40 times torch's gradient"],
    ),
    "a mean of a mean in one tensor": (
        lambda at: (at.w - LR * (at.gw + LAMBDA * at.w), at.b - LR * at.gb / len(at.y)),
        BATCHES,
        1,
        "gradient",
        [
            "weight is updated by torch's rule.",
            "bias is updated by 1/B times torch's gradient, B being each batch's own size, without",
        ],
    ),
    "an L1 penalty": (
        absolute,
        {},
        1,
        "penalty",
        ["The updates are torch's with weight decay whose gradient is 0.1 sign(w), as of an L1"],
    ),
}


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_code_is_not_explained_and_what_is_known_is_told(name: str) -> None:
    step, spec, first, stage, clues = WRONG[name]
    report = check(BASE | spec, scratch=code(step))
    found = report.to_dict()["diagnosis"]
    assert not found["explained"]
    assert (causes_of(found), found["alternatives"], found["matching"]) == ([], [], None)
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (first, stage)
    assert found["stage"] == stage
    for clue in clues:
        assert any(one.startswith(clue) for one in found["clues"]), found["clues"]
    text = " ".join(report_text(report).split())
    assert "not explained: no known cause" in text
    assert all(" ".join(clue.split()) in text for clue in found["clues"])
    assert told(report.diagnosis).fix is None


@pytest.mark.slow
def test_derivative_of_tanh_from_the_wrong_side_of_it_is_told_by_its_tensors() -> None:
    assert check(NO_MODEL, scratch=mlp_by_hand(), framework=user(mlp)).verdict == "equivalent"
    wrong = check(NO_MODEL, scratch=mlp_by_hand(slope=lambda a, h: 1 - a**2), framework=user(mlp))
    first, found = wrong.first_divergence, wrong.diagnosis
    assert first is not None
    assert found is not None
    assert (first.step, first.stage, found.explained) == (1, "gradient", False)
    told = " ".join(one.text for one in found.evidence)
    assert "0.weight and 0.bias are updated by no constant combination of torch's gradient" in told
    assert "2.weight and 2.bias are updated by torch's rule." in told
    assert "Finite differences of the loss confirm torch's gradient" in told


def frozen(problem: UserProblem) -> Any:
    model, loss, optimizer = user(mlp)(problem)
    model[0].requires_grad_(False)
    return model, loss, optimizer


def forgotten(problem: UserProblem) -> Any:
    model, loss, _ = user(mlp)(problem)
    return model, loss, sgd(problem, model[2])


@pytest.mark.parametrize(("framework", "why"), [(frozen, FROZEN), (forgotten, NOT_GIVEN)])
def test_tensors_that_torch_does_not_train_are_told_with_the_reason(
    framework: Any, why: Evidence
) -> None:
    short = summary(check(NO_MODEL, scratch=mlp_by_hand(), framework=framework))
    assert f"{short.headline}.".endswith(f": 0.weight and 0.bias are {why.text}")
    assert short.next == (BY_KIND[why.kind],)


def test_tensor_that_is_never_updated_is_told_with_what_is_next() -> None:
    short = summary(check(BASE, scratch=code(WRONG["nothing in one tensor"][0])))
    assert short.headline == "DIVERGED at step 1: bias is never updated"
    assert short.next == (BY_KIND["never-updated"],)


@pytest.mark.parametrize("name", ["sgd", "radam"])
def test_code_that_never_updates_is_explained_by_no_lr_of_0_and_no_causes_together(
    name: str,
) -> None:
    # Old moments of an optimizer that each epoch of one step makes anew come to no step, too.
    falling = {"lr_schedule": {"kind": "step", "every": 3, "factor": 0.5}}
    report = check(
        BASE | falling | {"optimizer": {"name": name}}, scratch=code(lambda at: (at.w, at.b))
    )
    assert summary(report).headline == "DIVERGED at step 1: weight and bias are never updated"


def test_code_that_updates_in_its_first_steps_alone_is_told_no_lr_of_0() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return (at.w, at.b) if at.t > 1 else at.along(at.gw, at.gb)

    short = summary(check(BASE, scratch=code(step)))
    assert short.headline == "DIVERGED at step 3: nothing is updated from step 3 on"
    assert len(short.known) == 1
    assert not short.next


def test_loss_that_differs_from_the_same_parameters_is_told_first() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(*at.mean(at.slope + 0.1 * np.sin(at.y)))

    report = check(BASE, scratch=code(step, loss=lambda at: at.loss + 0.1 * np.sin(at.y).mean()))
    found, short = told(report.diagnosis), summary(report)
    assert found.evidence[0].text == (
        "The loss differs already at step 1, computed from the same parameters: the forward pass, "
        "the loss or the data differ, and not the update alone."
    )
    assert short.headline.startswith("DIVERGED at step 1: the loss differs already, computed")
    assert short.next == (f"{OF_LOSS.format(step='step 1')}; is the start `problem.initial`?",)
    assert "Next compare at step 1, in this order: the samples" in in_one_line(report)


# --- steps that are another one's, or differ alone ------------------------------------------------


@pytest.mark.parametrize("spec", [{}, BATCHES, BATCHES | MOMENTUM], ids=["full", "batches", "μ"])
def test_code_that_yields_before_its_update_is_told_so(spec: Spec) -> None:
    def step(at: At) -> tuple[Any, Any]:
        v = at.memory["v"] = at.memory.get("v", 0) * momentum + at.gw + LAMBDA * at.w
        c = at.memory["c"] = at.memory.get("c", 0) * momentum + at.gb + LAMBDA * at.b
        return at.w - LR * v, at.b - LR * c

    def train(problem: UserProblem) -> Iterator[Spec]:
        before = problem.initial
        for after in code(step)(problem):
            yield {**before, "loss": after["loss"]}
            before = {name: after[name] for name in before}

    momentum = 0.9 if "optimizer" in spec else 0
    assert check(BASE | spec, scratch=code(step)).verdict == "equivalent"
    report = check(BASE | spec, scratch=train)
    short = summary(report)
    assert told(report.diagnosis).causes == ()
    assert short.headline.endswith("your code yields its parameters before their update")
    assert [one.partition(",")[0] for one in short.next] == ["put `yield` after the update"]
    assert not short.fixes


def test_one_step_without_decay_is_no_other_start_where_its_loss_is_torchs() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(at.gw, at.gb, penalty=LAMBDA if at.t else 0)

    report = check(BASE | BATCHES, scratch=code(step))
    assert told(report.diagnosis).causes == ()
    assert summary(report).headline == (
        "DIVERGED at step 1: only step 1 differs, and is torch's without weight decay"
    )
    # A loss that is not told contradicts nothing.
    assert check(BASE | BATCHES, scratch=code(step, silent)).names("initial-parameters")


def test_first_step_alone_asks_for_the_start_unless_its_loss_is_torchs() -> None:
    # λ = 1/lr and X = 0: from any start torch's weight is 0 after a step.
    def step(at: At) -> tuple[Any, Any]:
        w, b = at.along(at.gw, at.gb, penalty=1 / LR)
        return w + (at.t == 0), b

    def told_loss(at: At) -> float:
        return at.loss

    data = {"X": np.zeros((4, 3)).tolist(), "y": [1.0, 2.0, 3.0, 4.0]}
    spec = BASE | {"data": data, "weight_decay": 1 / LR}
    for loss, said in ((silent, "Is the start `problem.initial`? Else look"), (told_loss, "Look")):
        short = summary(check(spec, scratch=code(step, loss)))
        assert f"are torch's. {said} for what step 1 does otherwise" in short.known[0]


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


# --- the gradient that the code yields ------------------------------------------------------------


def curved(at: At) -> tuple[Any, Any]:
    """Make something of the gradient that no cause makes."""
    return at.along(at.gw + 0.1 * at.gw**2, at.gb)


def own(at: At) -> tuple[Any, Any]:
    return at.gw, at.gb


def with_penalty(at: At) -> tuple[Any, Any]:
    return at.gw + LAMBDA * at.w, at.gb + LAMBDA * at.b


def flipped(at: At) -> tuple[Any, Any]:
    return -at.gw, at.gb


OF_GRADIENT = BY_STAGE["gradient"].format(step="step 1")

NEXT_BY = {
    ("gradient", False): (OF_GRADIENT, YIELD_GRADIENT),
    ("gradient", True): (OF_GRADIENT,),
    ("optimizer", True): (BY_STAGE["optimizer"].format(step="step 1"),),
}
"""What is next, by the stage and whether the code yields its gradient."""


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("grad", "stage", "clue"),
    [
        (None, "gradient", "weight is updated by no constant combination of torch's gradient"),
        (own, "optimizer", "Your code's gradient is torch's at step 1, to"),
        (with_penalty, "optimizer", "Your code's gradient is torch's at step 1, to"),
        (flipped, "gradient", "Your code's gradient is not torch's at step 1."),
    ],
    ids=["none", "data gradient", "with the penalty", "wrong"],
)
def test_gradient_that_is_yielded_decides_the_stage(
    grad: Step | None, stage: str, clue: str
) -> None:
    report = check(BASE, scratch=code(curved, grad=grad))
    found = told(report.diagnosis)
    assert not found.explained
    assert (told(report.first_divergence).stage, found.stage) == (stage, stage)
    assert sum(one.text.startswith(clue) for one in found.evidence) == 1
    assert sum(one.text.startswith("Your code's gradient is") for one in found.evidence) == (
        grad is not None
    )
    assert summary(report).next == NEXT_BY[stage, grad is not None]


@pytest.mark.parametrize("grad", [own, with_penalty, flipped])
def test_gradient_that_is_yielded_does_not_decide_the_verdict(grad: Step) -> None:
    # It is told for the diagnosis; what trains is what comes of it.
    assert check(BASE, scratch=code(TORCHS, grad=grad)).verdict == "equivalent"
    found = found_by(code(descent(2 * LAMBDA), grad=grad))
    assert causes_of(found) == ["penalty-doubled"]
