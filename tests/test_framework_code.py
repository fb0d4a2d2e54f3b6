"""What a user's framework function does besides, through the command line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from regcheck import cli
from tests.conftest import SMALL, run_of, runs_of

HEAD = """
import os, sys
import torch
from torch import nn

def start(problem):
    model = nn.Sequential(nn.Linear(2, 1, dtype=torch.float64), nn.Flatten(0))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model[0].bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=problem.lr)

class At3(nn.Module):
    def __init__(self, model, act):
        super().__init__()
        self.model, self.act, self.calls = model, act, 0

    def forward(self, X):
        self.calls += 1
        if self.calls == 3:
            self.act()
        return self.model(X)

def leave():
    sys.exit(0)

def fail():
    {}["width"]

def endless():
    while True:
        pass

def interrupt():
    raise KeyboardInterrupt
"""

BUILDS: dict[str, tuple[str, int, list[str]]] = {
    "prints": (
        "print('hello'); return model, lambda z, y: (print('loss'), loss(z, y))[1], optimizer",
        0,
        ["hello", "loss"],
    ),
    "turns gradients off": (
        "torch.set_grad_enabled(False); return model, loss, optimizer",
        0,
        [],
    ),
    "sets the default dtype": (
        "torch.set_default_dtype(torch.float16); return model, loss, optimizer",
        0,
        [],
    ),
    "is in eval mode": ("return model.eval(), loss, optimizer", 0, []),
    "raises": (
        "raise KeyError('width')",
        2,
        ["build.py:build: raised KeyError: 'width'", "fix it there", "in build"],
    ),
    "exits": ("sys.exit(0)", 2, ["build.py:build: tried to end the program"]),
    "raises in forward": (
        "return At3(model, fail), loss, optimizer",
        2,
        ["framework: raised KeyError: 'width'", "in forward", "in fail"],
    ),
    "exits in forward": (
        "return At3(model, leave), loss, optimizer",
        2,
        ["framework: tried to end the program", "in leave"],
    ),
    "exits hard in forward": (
        "return At3(model, lambda: os._exit(0)), loss, optimizer",
        2,
        ["framework: tried to end the program"],
    ),
    "never comes back": (
        "return At3(model, endless), loss, optimizer",
        2,
        ["framework: took longer than 0.5 seconds", "--timeout SECONDS", "in endless"],
    ),
    "is interrupted": ("return At3(model, interrupt), loss, optimizer", 130, ["interrupted"]),
    "raises in the loss": (
        "return model, lambda z, y: 1 / 0, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in backward": (
        "model[0].weight.register_hook(lambda g: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
    "raises in step": (
        "optimizer.register_step_pre_hook(lambda *a: 1 / 0); return model, loss, optimizer",
        2,
        ["framework: raised ZeroDivisionError", "build.py"],
    ),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", BUILDS)
def test_what_own_framework_code_does_besides_is_no_harm_or_is_told(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body, code, told = BUILDS[name]
    source = (
        f"{HEAD}\ndef build(problem):\n    model, loss, optimizer = start(problem)\n    {body}\n"
    )
    (tmp_path / "build.py").write_text(textwrap.dedent(source), encoding="utf-8")
    spec = SMALL | {"weight_decay": 0, "epochs": 5, "framework": "build.py:build"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert cli.exit_code(["run", "--json", "--timeout", "0.5", str(path)]) == code
    captured = capfd.readouterr()
    for words in told:
        assert words in captured.err
    assert "/regcheck/regcheck/" not in captured.err
    assert str(Path(cli.__file__).parent) not in captured.err  # none of regcheck's own frames
    if code == 0:
        assert run_of(captured.out)["verdict"] == "equivalent"
    else:
        assert [one.get("verdict") for one in runs_of(captured.out)] == [None] * (code == 2)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
