"""What later versions will have: this one refuses it by name, not as an unknown word."""

from __future__ import annotations

from typing import NamedTuple


class Planned(NamedTuple):
    """Names of one kind in lower case, and how a message calls one."""

    called: str
    names: tuple[str, ...]


PLANNED: dict[str, Planned] = {
    "cause": Planned(
        "recognising the cause {}",
        (
            "adagrad-accumulator-initial",
            "adam-bias-correction-compounded",
            "adam-bias-correction-missing",
            "adam-epsilon-uncorrected",
            "decay-bias-corrected",
            "penalty-coupled",
            "rmsprop-epsilon-inside",
        ),
    ),
    "command": Planned("`regcheck {}`", ("convert", "init", "schema")),
    "loss": Planned("the loss {}", ("cross_entropy",)),
    "model": Planned("the model {}", ("mlp", "softmax")),
    "optimizer": Planned(
        "the optimizer {}",
        (
            "adadelta",
            "adafactor",
            "adagrad",
            "adam",
            "adamax",
            "adamw",
            "asgd",
            "muon",
            "nadam",
            "radam",
            "rmsprop",
        ),
    ),
    "option": Planned("`{}`", ("--report",)),
}


def is_planned(kind: str, name: object) -> bool:
    """Whether a later version will have what a name stands for."""
    return isinstance(name, str) and name.lower() in PLANNED[kind].names


def refusal(kind: str, name: object) -> str:
    """Return the message that refuses a planned name.

    >>> refusal("optimizer", "Adam")
    'the optimizer Adam is planned, and not in this version of regcheck'
    """
    return f"{PLANNED[kind].called.format(name)} is planned, and not in this version of regcheck"
