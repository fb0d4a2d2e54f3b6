"""An optimizer is its rule and one entry of the registry, by which it is judged and diagnosed.

Lion (Chen and others, 2023) is none of torch's; here it stands among them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.explain_spec import explain_spec
from regcheck.report.terminal.details import report_text
from regcheck.rules.convention import Convention
from regcheck.rules.faults import Faults
from regcheck.rules.optimizers import registry
from regcheck.rules.optimizers.update_rule import (
    Array,
    Memory,
    Option,
    Options,
    StepInput,
    UpdateRule,
    Written,
    averaged,
    namespace,
)
from tests.conftest import SMALL, Spec
from tests.test_explain import plain_text


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    return {"exp_avg": namespace(w).zeros_like(w)}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr sign(β₁ M + (1 − β₁) g), and M ← β₂ M + (1 − β₂) g."""
    (beta1, beta2), m = at.options["betas"], at.memory["exp_avg"]
    direction = namespace(at.g).sign(beta1 * m + (1 - beta1) * at.g)
    return at.lr * direction, {"exp_avg": beta2 * m + (1 - beta2) * at.g}


def written(options: Options, convention: Convention, faults: Faults, lr: str, g: str) -> Written:
    beta1, beta2 = options["betas"]
    lines = [f"d ← sign({averaged(beta1, 'M', g)})", f"M ← {averaged(beta2, 'M', g)}"]
    return Written(lines, "d")


LION = UpdateRule(
    torch="Lion",
    options={"betas": Option((0.9, 0.99), ("β₁", "β₂"), below=1.0)},
    init=init,
    step=step,
    written=written,
    meanings={"M": "moment of the gradient, 0 before step 1"},
    examples={"plain": {}},
    torchs=lambda _: {"decay": "decoupled"},
    scaling=None,
)


class Lion(torch.optim.Optimizer):
    """The same in torch, written on its own."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                state = self.state[w]
                m = state.setdefault("exp_avg", torch.zeros_like(w))
                beta1, beta2 = group["betas"]
                w.mul_(1 - group["lr"] * group["weight_decay"])
                w.add_(torch.sign(m.lerp(w.grad, 1 - beta1)), alpha=-group["lr"])
                m.lerp_(w.grad, 1 - beta2)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register it, as a file and a line of `registry` would."""
    monkeypatch.setitem(registry.OPTIMIZERS, "lion", LION)
    monkeypatch.setattr(torch.optim, "Lion", Lion, raising=False)


SPEC: Spec = SMALL | {"optimizer": "lion", "lr": 0.01, "epochs": 12, "batch_size": 3}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", [{}, {"betas": [0.5, 0.8]}])
def test_new_optimizer_is_compared_with_torchs_class(options: Spec, dtype: str) -> None:
    report = check(SPEC | {"optimizer": {"name": "lion", **options}, "dtype": dtype})
    assert report.verdict == "equivalent"
    assert "torch.optim.Lion(lr=0.01" in report_text(report)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"convention": {"decay": "gradient"}}, "penalty-coupled"),
        ({"convention": {"divide_penalty_by": "dataset"}}, "penalty-divided-by-dataset"),
        ({"framework": {"lr": 0.013}}, "learning-rate-scaled"),
        ({"convention": {"decay": "decoupled-unscaled"}}, "decay-not-scaled-by-lr"),
    ],
)
def test_what_is_wrong_beside_it_is_named(changes: Spec, cause: str) -> None:
    report = check(SPEC | changes)
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert cause in report.diagnosis.causes


def test_new_optimizer_is_written_by_its_rule(tmp_path: Any) -> None:
    path = tmp_path / "lion.yaml"
    path.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    text = plain_text(explain_spec(path))
    assert "d ← sign(0.9 M + (1 − 0.9) g)" in text
    assert "w ← w − 0.01·0.5 w − 0.01 d, b likewise" in text


def test_options_of_the_new_optimizer_are_checked() -> None:
    with pytest.raises(InputError, match=r"optimizer\.betas"):
        check(SPEC | {"optimizer": {"name": "lion", "betas": [0.5, 1.5]}})
