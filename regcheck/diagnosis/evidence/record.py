"""One piece of what is known without a cause, as the texts read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "float32",
    "frozen",
    "l1-penalty",
    "look-ahead",
    "loss-differs",
    "never-updated",
    "not-given",
    "other",
    "other-lrs",
    "other-t",
    "says-next",
    "schedule-goes-on",
    "schedule-ignored",
    "yielded-early",
]
"""What the texts distinguish; `says-next` is all that ends with what is next by itself."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a difference that no cause explains: a sentence, and what it is of.

    The texts choose by these fields, never by the words.

    Attributes:
        clause: how the sentence begins, or all of it, as a headline may say it; empty where none
            may.
        rest: how it goes on.
        kind: which of those that the texts distinguish it is.
        tensors: those that it names; empty where it is of all.
    """

    clause: str
    rest: str = ""
    kind: Kind = "other"
    tensors: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole sentence."""
        return self.clause + self.rest


def remark(text: str, kind: Kind = "other") -> Evidence:
    """Return a sentence that is for no headline."""
    return Evidence("", text, kind)
