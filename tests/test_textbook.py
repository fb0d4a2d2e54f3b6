"""A user's own optimizer beside the textbook rule of a name."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from regcheck.checking import check
from regcheck.diagnosis.evidence.step_counts import told
from regcheck.problem.batches import Schedule
from regcheck.report.result import Report
from regcheck.report.summary import summary
from regcheck.report.terminal.details import print_report
from regcheck.report.terminal.short import short_text
from regcheck.report.texts.diagnosis.next_steps import BY_STAGE, next_steps
from regcheck.rules.optimizers.registry import OPTIMIZERS
from tests.by_hand import BASE
from tests.own_optimizers import OwnAdamW, OwnSGD, build
from tests.own_rules import Mlp, Spec, spec
from tests.test_skipped_tensors import Frozen, Spare
from tests.user_modules import flat_line

OPTIONS: Spec = {"betas": (0.9, 0.99), "eps": 1e-3}
ADAMW: Spec = {"optimizer": {"name": "adamw", **OPTIONS}, "scratch": "adamw"}
SGD: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}, "scratch": "sgd"}


def adamw(mistake: str = "", model: Any = Mlp, dtype: Any = torch.float64, **given: Any) -> Report:
    """Check an AdamW with a mistake."""
    made = build(OwnAdamW, model, dtype, mistake=mistake, weight_decay=0.1, **OPTIONS)
    return check(spec("mlp", **ADAMW | given), framework=made)


def sgd(mistake: str = "", dtype: Any = torch.float64, **given: Any) -> Report:
    """Check an SGD with a mistake."""
    made = build(OwnSGD, Mlp, dtype, mistake=mistake, weight_decay=0.1, momentum=0.9)
    return check(spec("mlp", **SGD | given), framework=made)


def printed(report: Report, width: int = 80) -> str:
    stream = StringIO()
    print_report(report, Console(file=stream, width=width, color_system=None), 4)
    return stream.getvalue()


def explanations(report: Report) -> list[tuple[str, ...]]:
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    return [one.causes for one in report.diagnosis.explanations]


# --- right optimizers -----------------------------------------------------------------------------


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", [name for name, rule in OPTIMIZERS.items() if not rule.matrices])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_torchs_own_optimizer_is_the_textbooks(name: str, decay: float) -> None:
    rule = OPTIMIZERS[name]
    if decay and not rule.weight_decay:
        pytest.skip("torch's takes no weight decay")
    options: Spec = {"weight_decay": decay} if rule.weight_decay else {}
    made = build(getattr(torch.optim, rule.torch), **options)
    report = check(spec("mlp", scratch=name, weight_decay=decay, epochs=20), framework=made)

    assert (report.verdict, report.comparison.compared) == ("equivalent", 60)
    assert report.comparison.drift.largest < 1e-10


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_optimizer_is_equivalent_for_300_steps(dtype: str) -> None:
    own = getattr(torch, dtype)
    for report in (adamw(dtype=own, epochs=100), sgd(dtype=own, epochs=100)):
        assert (report.verdict, report.comparison.compared) == ("equivalent", 300)
        assert not report.not_distinguished  # that no loss is compared hides nothing
        assert all(share < 1e-2 for share in report.comparison.power.shares.values())


CIRCUMSTANCES: dict[str, Spec] = {
    "accumulated": {"batch_size": 4, "accumulate": 2},
    "clipped": {"clip_norm": 0.1},
    "clipped by value": {"clip_value": 0.05},
    "scheduled": {"lr_schedule": {"kind": "cosine", "steps": 9, "floor": 0.01}},
    "shuffled": {"shuffle": {"seed": 1}},
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
@pytest.mark.parametrize("mistake", ["", "no correction"])
def test_formula_takes_what_torch_gives_the_optimizer(circumstance: str, mistake: str) -> None:
    report = adamw(mistake, **CIRCUMSTANCES[circumstance])

    if mistake:
        assert explanations(report) == [("adam-bias-correction-missing",)]
    else:
        assert report.verdict == "equivalent"


@pytest.mark.parametrize("model", [Frozen, Spare], ids=["frozen", "without gradients"])
@pytest.mark.parametrize("mistake", ["", "coupled"])
def test_tensors_that_are_left_alone_are_left_by_the_formula_too(model: Any, mistake: str) -> None:
    report = adamw(mistake, model)

    if mistake:
        assert explanations(report) == [("penalty-coupled",)]
    else:
        assert report.verdict == "equivalent"


def test_weight_decay_of_weights_alone_is_the_formulas_too() -> None:
    def made(problem: Any) -> Any:
        model, loss, _ = build(OwnAdamW, weight_decay=0.1, **OPTIONS)(problem)
        tensors = dict(model.named_parameters())
        groups: list[Spec] = [
            {"params": [w for name, w in tensors.items() if name.endswith("weight")]},
            {"params": [w for name, w in tensors.items() if name.endswith("bias")]},
        ]
        groups[1]["weight_decay"] = 0.0
        return model, loss, OwnAdamW(groups, lr=problem.lr, weight_decay=0.1, **OPTIONS)

    given = spec("mlp", **ADAMW | {"weight_decay": {"weight": 0.1, "bias": 0.0}})
    assert check(given, framework=made).verdict == "equivalent"
    report = check(spec("mlp", **ADAMW), framework=made)
    assert explanations(report) == [("bias-not-penalized",)]
    text = " ".join(printed(report).split())
    assert "settings are not the spec's: weight_decay 0 where the spec has" in text


def test_model_of_the_spec_has_the_specs_start() -> None:
    def made(problem: Any) -> Any:
        model = flat_line(problem)
        return (
            model,
            nn.MSELoss(),
            OwnSGD(model.parameters(), lr=0.05, weight_decay=0.1, momentum=0),
        )

    report = check(BASE | {"scratch": "SGD"}, framework=made)

    assert report.verdict == "equivalent"
    assert report.comparison.trace[0].tensors["weight"].bound < 1e-14


# --- wrong ones -----------------------------------------------------------------------------------

NAMED: dict[str, list[tuple[str, ...]]] = {
    "coupled": [("penalty-coupled",)],
    "decay late": [("decay-after-update",)],
    "doubled": [("penalty-doubled",)],
    "eps first": [("adam-epsilon-uncorrected",)],
    "eps inside": [("adam-epsilon-inside",)],
    "largest": [("adam-amsgrad-added",)],
    "lr halved": [("learning-rate-scaled",)],
    "no correction": [("adam-bias-correction-missing",)],
    "no decay of biases": [("bias-not-penalized",)],
    "swapped": [("adam-betas-swapped",)],
    "unscaled": [("decay-not-scaled-by-lr",), ("penalty-scaled",)],
}


COUNTED: dict[str, tuple[str, str]] = {
    "t from 0": (
        "step 1: first.weight is nan after step 1 of your optimizer, where the textbook's step",
        "look for a division by 0 (by 1 − βᵗ, if t starts at 0)",
    ),
    "t late": ("step 2: the updates are the textbook's with another t", "step 2 on it is 1 too"),
    "t of the epoch": ("step 4: the updates are", "correction: it counts from 1 in each epoch"),
    "t any": (
        "step 3: the updates are",
        "step 3 on 2, 5, 3, 3, .., where the textbook adamw has 3",
    ),
}


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("mistake", COUNTED)
def test_wrong_t_is_told(mistake: str) -> None:
    report = adamw(mistake)
    text = " ".join(short_text(report).split())

    assert report.verdict == "diverged"
    assert all(part in text for part in COUNTED[mistake]), text
    assert ("Next let t be 1 at the first step" in text) == (mistake != "t from 0")
    # The sides are named as the headline does, and the one without a loss has no column of it.
    assert "step epoch batch loss yours tensor accumulated" in text
    assert "textbook yours difference update" in text
    assert "scratch" not in text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([1, 2, 1, 2, 1, 2], "it counts from 1 in each epoch"),
        ([1, 2, 2, 3, 4, 5], "from step 3 on it is 1 too small"),
        ([1, 4, 5, 6, 7, 8], "from step 2 on it is 2 too large"),
        ([1, 2, 9, 9, 9, 8], "from step 3 on 9, 9, 9, 8, .., where torch has 3, 4, 5, 6, .."),
    ],
)
def test_other_t_is_described(counts: list[int], text: str) -> None:
    batches = Schedule(4, 3, 2, False, 1, None, 0.1, None).batches()
    assert told(counts, list(batches)) == text


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("mistake", NAMED)
def test_mistake_of_an_optimizer_is_named(mistake: str) -> None:
    report = adamw(mistake)

    assert explanations(report) == NAMED[mistake]
    assert report.first_divergence is not None
    assert report.first_divergence.step == {"swapped": 2, "largest": 3}.get(mistake, 1)
    assert report.first_divergence.stage in ("optimizer", "penalty")


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        ("dampened", "momentum-dampened"),
        ("decoupled", "decay-after-momentum"),
        ("nesterov", "nesterov-added"),
    ],
)
def test_mistake_of_a_momentum_is_named(mistake: str, cause: str) -> None:
    assert (cause,) in explanations(sgd(mistake))


def test_rule_of_ones_own_optimizer_is_written_with_its_cause_and_not_as_the_textbooks() -> None:
    def made(problem: Any) -> Any:
        model = flat_line(problem)
        own = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
        return model, nn.MSELoss(), OwnAdamW(model.parameters(), mistake="decay late", **own)

    # (A spec with a model: without one, nothing is written of a rule that is not known.)
    report = check(BASE | {"scratch": "adamw", "optimizer": "adamw"}, framework=made)
    found = {rule.side: rule.lines for rule in summary(report).rules}

    assert report.names("decay-after-update")
    assert found["textbook"][-1].startswith("w ← w − 0.05·0.1 w − 0.05 M̂/")
    assert found["yours"][-1].startswith("w ← w − 0.05·0.1 w")
    assert found["yours"][-2].startswith("w ← w − 0.05 M̂/")
    assert found["yours"][:-2] == found["textbook"][:-1]


@pytest.mark.parametrize("mistake", ["coupled", "no correction", "eps first"])
def test_mistake_is_named_in_float32(mistake: str) -> None:
    assert explanations(adamw(mistake, dtype=torch.float32)) == NAMED[mistake]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_what_is_no_known_mistake_is_in_the_optimizer() -> None:
    report = adamw("noise")

    assert explanations(report) == []
    assert report.diagnosis is not None
    assert report.diagnosis.evidence == ()
    assert next_steps(report) == [BY_STAGE["optimizer"].format(step="step 1")]


@pytest.mark.slow
def test_other_options_than_the_specs_are_pointed_out() -> None:
    made = build(OwnAdamW, weight_decay=0.01, betas=[0.8, 0.99], eps=1e-3)
    report = check(spec("mlp", **ADAMW), framework=made)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    told = "Your optimizer's settings are not the spec's: "
    told += "weight_decay 0.01 where the spec has 0.1, "
    told += "betas (0.8, 0.99) where the spec has (0.9, 0.99)."
    assert [one.text for one in report.diagnosis.evidence[:1]] == [told]


# --- runs that prove nothing ----------------------------------------------------------------------


def test_run_that_could_not_tell_is_inconclusive() -> None:
    report = adamw(lr=0.0)

    assert report.verdict == "inconclusive"
    assert "a doubled lr" in report.reason


def test_weight_decay_that_rounding_swallows_is_told() -> None:
    made = build(OwnAdamW, weight_decay=1e-17, **OPTIONS)
    report = check(spec("mlp", **ADAMW | {"weight_decay": 1e-17}), framework=made)

    assert (report.verdict, report.reason) == (
        "inconclusive",
        "a doubled weight decay and a missing weight decay would have passed too",
    )


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.001, 1 - 1e-9])
def test_small_share_of_the_lr_shows(factor: float) -> None:
    made = build(OwnAdamW, weight_decay=0.1, lr=0.03 * factor, **OPTIONS)
    report = check(spec("mlp", **ADAMW), framework=made)

    assert explanations(report)[0] == ("learning-rate-scaled",)
    assert report.first_divergence is not None
    assert report.first_divergence.step == 1


def test_dropout_is_pointed_out() -> None:
    class Dropping(Mlp):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return super().forward(functional.dropout(X, 0.5))

    assert "the framework side's model is random" in adamw(model=Dropping).reason


@pytest.mark.slow
def test_user_writing_nan_is_found() -> None:
    class Broken(OwnSGD):
        def move(self, w: Any, g: Any, group: Any, state: Any) -> None:
            super().move(w, g, group, state)
            if state["t"] == 3:
                w.flatten()[0] = np.nan

    made = build(Broken, weight_decay=0.1, momentum=0.9)
    report = check(spec("mlp", **SGD), framework=made)

    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert report.first_divergence.step == 3
