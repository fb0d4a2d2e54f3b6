"""What a report says of its diagnosis: each number by its name, each loss with its factor."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.diagnosis.distinguishing import unlike
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from regcheck.report.texts.diagnosis.diagnosis_text import diagnosis_lines
from regcheck.report.texts.text import letter_meanings
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.formulas.torch_call import attribute, decays_text
from regcheck.spec import from_mapping
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import LAMBDA, LR, At, Spec, Train, code, descent
from tests.conftest import told
from tests.own_models import trained_by

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(10, 3)), RANDOM.normal(size=10)
BASE: Spec = {
    "data": {"X": X.tolist(), "y": Y.tolist()},
    "model": "linear",
    "lr": LR,
    "epochs": 4,
    "weight_decay": LAMBDA,
}
MINI: Spec = {"batch_size": 4}  # 4, 4 and 2 rows


def trained(
    *,
    gradient: float = 1,
    rate: float = 1,
    decay: tuple[float, float] = (LAMBDA, LAMBDA),
    reported: Callable[[int], float] = lambda rows: 1.0,
    inside: float = 0,
) -> Train:
    """Return a user's code with factors in it.

    Args:
        gradient, rate: on the gradient, and on the lr.
        decay: λ of weight and bias.
        reported: the factor on the mean loss that is reported, of a batch's rows.
        inside: κ of the weight's penalty in the reported loss.
    """
    return code(
        descent(*decay, by=gradient, lr=rate * LR),
        lambda at: reported(len(at.y)) * at.loss + inside / 2 * (at.w @ at.w),
    )


def linear_of(optimizer: Callable[..., torch.optim.Optimizer], **options: float) -> Any:
    """Write a user's own linear model, with a loss that is a plain function."""

    def build(problem: UserProblem) -> Any:
        model = nn.Linear(3, 1, dtype=torch.float64)
        with torch.no_grad():
            for name, w in model.named_parameters():
                w.copy_(torch.from_numpy(problem.initial[name]))
        made = optimizer(model.parameters(), lr=problem.lr, **options)
        return model, lambda z, y: ((z[:, 0] - y) ** 2).mean(), made

    return build


def text_of(report: Report) -> str:
    return re.sub(r"\s+", " ", report_text(report))


# --- names of parameters --------------------------------------------------------------------------


class Net(nn.Module):
    """A model with containers of each kind, and a name that is no identifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 2, dtype=torch.float64), nn.Linear(2, 1, dtype=torch.float64)
        )
        self.extra = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.float64))])
        self.heads = nn.ModuleDict({"my-head": nn.Linear(1, 1, dtype=torch.float64)})
        self.heads["lambda"] = nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, x: Any) -> Any:
        z = self.layers(x) * self.extra[0]
        return self.heads["lambda"](self.heads["my-head"](z))[:, 0]


def test_parameters_are_written_as_python_reaches_them() -> None:
    model = Net()
    for name, tensor in model.named_parameters():
        assert eval(attribute(name), {"model": model}) is tensor


@pytest.mark.slow
def test_call_in_a_report_makes_the_optimizer_that_matches() -> None:
    torch.manual_seed(0)
    first = Net()

    def build(problem: UserProblem) -> Any:
        model = Net()
        model.load_state_dict(first.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, weight_decay=0.1)
        return model, nn.MSELoss(), optimizer

    def free(problem: UserProblem) -> Any:
        """Build the same, but with no decay of the biases."""
        model, loss, _ = build(problem)
        groups = [
            {"params": [w], "weight_decay": 0.0 if name.endswith("bias") else 0.1}
            for name, w in model.named_parameters()
        ]
        return model, loss, torch.optim.SGD(groups, lr=problem.lr)

    spec = {key: BASE[key] for key in ("data", "lr", "epochs")}
    report = check(spec, scratch=trained_by(free), framework=build)
    assert told(report.diagnosis).causes == ("bias-not-penalized",)
    call = re.search(r"or in torch (torch\.optim\.SGD\(.*?\], lr=[\d.]+\))", text_of(report))
    model = Net()
    names = {id(w): name for name, w in model.named_parameters()}
    optimizer = eval(told(call)[1], {"torch": torch, "model": model})
    decays = {
        names[id(w)]: group["weight_decay"]
        for group in optimizer.param_groups
        for w in group["params"]
    }
    assert decays == {name: 0 if name.endswith("bias") else 0.1 for name in names.values()}
    assert len(optimizer.param_groups) == 2


# --- factors --------------------------------------------------------------------------------------

FACTORS: dict[str, tuple[Train, Spec, str]] = {
    "gradient-scaled, named": (trained(gradient=0.25), MINI, "remove the factor 0.25 = 1/B:"),
    "gradient-scaled, odd": (trained(gradient=0.3), {}, "remove the factor 0.3:"),
    "learning-rate-scaled": (trained(rate=2), {}, "remove the factor 2: use torch's lr"),
    "penalty-scaled": (trained(decay=(0.13, 0.13)), {}, "remove the factor 1.3: add λ w"),
}


@pytest.mark.parametrize("name", FACTORS)
def test_fix_names_the_factor_that_was_fitted(name: str) -> None:
    train, more, fix = FACTORS[name]
    report = check(BASE | more, scratch=train)
    text = text_of(report)
    assert fix in text
    assert "factor c" not in text
    (cause,) = report.to_dict()["diagnosis"]["causes"]
    assert cause["id"] == name.partition(",")[0]
    assert cause["fix"].startswith(fix.partition(":")[0])


@pytest.mark.parametrize("cause", [name for name, one in CAUSES.items() if one.factor_key])
def test_fix_of_a_cause_with_an_open_factor_has_a_place_for_it(cause: str) -> None:
    assert "the factor c" in CAUSES[cause].fix
    assert not CAUSES[cause].fix_apart or "the factor c" in CAUSES[cause].fix_apart


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("factor", [2.0, 0.5, 4.0, 0.25, 3.0])
@pytest.mark.parametrize("key", ["rate", "gradient"])
def test_number_is_written_once_where_its_name_is_that_number(key: str, factor: float) -> None:
    for more in ({}, MINI):
        text = text_of(check(BASE | more, scratch=trained(**{key: factor})))  # type: ignore[arg-type]
        assert re.search(r"factor: [\d.]+|loss-halved|loss-summed", text)
        assert not re.search(r"(?<![\d.])([\d.]+) = \1(?![\d.])", text)


@pytest.mark.slow
def test_decay_of_each_tensor_is_told_in_words() -> None:
    report = check(BASE, scratch=trained(decay=(0.05, 0.2)))
    text = text_of(report)
    assert "applies a weight decay of 0.05 to weight, torch's is 0.1; applies a weight" in text
    assert "decay weight and bias by torch's weight_decay, 0.1" in text
    assert "factor c" not in text
    (cause,) = report.to_dict()["diagnosis"]["causes"]
    assert cause["scratch_formula"] == "w ← w − 0.05 (g + 0.05 w); b ← b − 0.05 (g + 0.2 b)"


def test_decays_are_told_together_where_they_are_alike() -> None:
    torch_has = {"0.w": 0.1, "1.w": 0.1, "b": 0.0, "c": 0.3}
    assert decays_text({"0.w": 0.0, "1.w": 0.0, "b": 0.2, "c": 0.3}, torch_has) == (
        "applies no weight decay to 0.w and 1.w; applies a weight decay of 0.2 to b, torch's is 0"
    )


# --- losses ---------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[Train, Spec, str, str]] = {
    "half": (trained(reported=lambda rows: 0.5), {}, "½ torch's loss", "0.5 mean ℓ"),
    "half with a penalty": (
        trained(reported=lambda rows: 0.5, inside=0.1),
        {},
        "½ torch's loss + ½·0.1 Σw²",
        "0.5 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²",
    ),
    "sum": (trained(reported=float), MINI, "B times torch's loss", "Σℓ"),
    "half the sum": (
        trained(reported=lambda rows: rows / 2),
        MINI,
        "½ B times torch's loss",
        "0.5 Σℓ",
    ),
    "odd": (trained(reported=lambda rows: 0.3), {}, "0.3·torch's loss", "0.3 mean ℓ"),
    "to the base 10 with a penalty": (
        trained(reported=lambda rows: 1 / np.log(10), inside=0.1),
        {},
        "1/ln 10·torch's loss + ½·0.1 Σw²",
        "0.434294 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²",
    ),
    "penalty alone": (
        trained(inside=0.2),
        {},
        "torch's loss + ½·0.2 Σw²",
        "mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_reported_loss_is_written_with_its_factor(name: str) -> None:
    train, more, formula, in_json = LOSSES[name]
    report = check(BASE | more, scratch=train)
    lines = [line.text for line in diagnosis_lines(report) if line.formula]
    assert lines == [f"scratch  {formula}"]
    causes = report.to_dict()["diagnosis"]["causes"]
    assert causes[-1]["scratch_formula"] == f"reports  {in_json}"
    assert causes[-1]["framework_formula"] == "reports  mean ℓ"


def test_loss_of_the_rule_that_is_trained_is_written_too() -> None:
    report = check(BASE, scratch=trained(gradient=0.5, reported=lambda rows: 0.5))
    assert told(report.diagnosis).causes == ("loss-halved",)
    assert (
        "Loss the scratch side reports the loss that it trains by scratch ½ torch's loss"
        in text_of(report)
    )


def test_loss_of_broadcast_targets_is_no_multiple_of_torchs() -> None:
    def step(at: At) -> tuple[Any, Any]:
        return at.along(*at.mean(2 * (at.z - at.y.mean())))

    pairs = code(step, lambda at: ((at.z[:, None] - at.y) ** 2).mean())
    assert "reports the loss that it trains by scratch mean ℓᵢⱼ To" in text_of(
        check(BASE, scratch=pairs)
    )


def test_loss_of_ones_own_is_not_called_the_mean() -> None:
    own = linear_of(torch.optim.SGD, weight_decay=0.1)
    text = text_of(check(BASE, scratch=trained(inside=0.1), framework=own))
    assert "reports torch's loss, as your loss function has it" in text
    assert "mean ℓ" not in text


# --- which run distinguishes them, and what is fitted ---------------------------------------------


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"init": "zeros"}, 1, "nonzero initial parameters"),
        ({"init": {"weight": [1, 2, 3], "bias": [0]}}, 2, "nonzero initial parameters"),
        ({"init": {"constant": 1}}, 2, "other data"),
        ({"init": {"constant": 1}}, 5, "more steps"),
        ({"init": "zeros"}, 5, "more steps"),
    ],
)
def test_circumstance_that_the_run_has_already_tells_nothing(
    settings: Spec, step: int, expected: str
) -> None:
    assert unlike(build_problem(from_mapping(BASE | settings)), step) == expected


def test_run_away_from_zero_is_not_told_to_start_there() -> None:
    # In one step from w, any factor on the lr is one on gradient and penalty together.
    spec = BASE | {"epochs": 1, "init": {"constant": 1}}
    for train in (trained(rate=0.5), trained(gradient=0.5, decay=(0.05, 0.05))):
        assert "nonzero initial parameters" not in text_of(check(spec, scratch=train))


@pytest.mark.slow
def test_nothing_is_said_of_steps_to_which_nothing_was_fitted() -> None:
    report = check(BASE, scratch=trained(), framework=linear_of(torch.optim.Adam))
    assert report.verdict == "diverged"
    assert "Fitted" not in text_of(report)


def test_number_of_the_update_is_explained_where_a_cause_counts_it() -> None:
    report = check(BASE | {"optimizer": "adam", "epochs": 1})
    assert letter_meanings(report, ["M̂ ← M/(1 − 0.9ʲ)"])[-1].startswith("j: number of the update")
