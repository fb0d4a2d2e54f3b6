"""What is said of a textbook rule beside a user's optimizer, and what a spec may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from regcheck import cli
from regcheck.checking import check
from regcheck.report.texts.roles import textbook
from tests.own_optimizers import OwnAdamW, build
from tests.own_rules import spec
from tests.test_spec import complaints
from tests.test_textbook import adamw, printed

# --- what is said ---------------------------------------------------------------------------------


def test_report_speaks_of_the_optimizer_and_the_textbook() -> None:
    report = adamw("coupled")
    text = printed(report)
    words = " ".join(text.split())

    verdict = text[text.index("DIVERGED") :]
    assert max(map(len, verdict.splitlines())) <= 80
    assert "NumPy, the textbook adamw: torch.optim.AdamW(lr=0.03, betas=(0.9," in words
    assert "penalty-coupled: your optimizer adds λ w to the gradient; the textbook's " in words
    assert "yours G ← g + 0.1 w" in words
    assert "textbook M ← 0.9 M + (1 − 0.9) g" in words
    assert "with this in the textbook's rule all 12 steps agree" in words
    assert "in your optimizer do not add λ w to the gradient" in words
    assert "as it stands torch.optim.Adam(lr=0.03" in words
    assert "Both sides take the gradient that torch has: the update alone is compared." in words
    assert "scratch side" not in words
    (cause,) = report.to_dict()["diagnosis"]["causes"]
    assert cause["title"].endswith("the textbook's weight decay is decoupled")
    assert report.to_dict()["diagnosis"]["fixed_spec"] is None


def test_words_for_torch_are_the_textbooks_but_in_its_names() -> None:
    worded = textbook("sgd").worded

    assert worded("torch's step, where torch has torch.optim.SGD") == (
        "the textbook's step, where the textbook sgd has torch.optim.SGD"
    )


def test_command_line_takes_a_spec_with_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        """
import torch
from torch import nn

class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                w.sub_(group["lr"] * (w.grad + group["weight_decay"] * w / 2))

def build(problem):
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    return model, nn.MSELoss(), Mine(model.parameters(), problem.lr, problem.weight_decay)
"""
    )
    path = tmp_path / "spec.yaml"
    path.write_text(
        "data: {X: [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]], y: [1.0, 2.0, -1.0]}\n"
        "lr: 0.1\nweight_decay: 0.5\nepochs: 4\nscratch: SGD\nframework: mine.py:build\n"
        "expect: {verdict: diverged, step: 1, cause: penalty-halved}\n"
    )

    assert cli.exit_code(["run", str(path)]) == 0
    assert "your optimizer halves the weight decay" in capsys.readouterr().out


# --- specs ----------------------------------------------------------------------------------------

LINES = "data: {X: [[1.0], [2.0]], y: [0, 1]}\nlr: 0.1\n"
OWN = "framework: my.py:build\n"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("scratch: adamw\n", "framework: `scratch: adamw` is the textbook rule for an optimizer "),
        ("scratch: adamw\nframework: {lr: 1}\n", "framework: `scratch: adamw` is the textbook ru"),
        (OWN + "scratch: AdamWW\n", "got 'AdamWW'; did you mean `adamw`?"),
        (OWN + "scratch: adam.w\n", "scratch: must be a Python file and a function in it"),
        (
            OWN + "scratch: adamw\noptimizer: sgd\n",
            "adamw is not the spec's optimizer, sgd",
        ),
        (
            OWN + "scratch: adamw\nconvention: doubled\n",
            "is the textbook rule adamw; leave convention out",
        ),
        (
            OWN + "scratch: adamw\ncompare: [loss]\n",
            "must contain parameters: `scratch: adamw`",
        ),
    ],
)
def test_spec_that_makes_no_sense_is_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    (found,) = complaints(tmp_path, LINES + lines)
    assert complaint in found


@pytest.mark.parametrize("name", ["adamw", "AdamW", "ADAMW"])
def test_name_is_taken_in_any_case_and_is_the_specs_optimizer(name: str) -> None:
    given = spec("mlp", scratch=name, weight_decay=0.1)
    made = build(OwnAdamW, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8)
    report = check(given, framework=made)

    assert report.verdict == "equivalent"
    assert (report.spec.textbook, report.spec.optimizer.name) == ("adamw", "adamw")
