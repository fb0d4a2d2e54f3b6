"""Who differs from whom: the scratch side from torch, or a user's optimizer from the textbook."""

from __future__ import annotations

import re
from typing import NamedTuple

from regcheck.spec import Spec


class Roles(NamedTuple):
    """How the side that a diagnosis explains is called, and the one that goes by the rule.

    Attributes:
        explained, reference: the labels of their formulas.
        who: the explained side, as a headline names it.
        fix: where to change what is explained.
        matching: what stands before torch's call that does the same.
        words: patterns in the catalogue's sentences, and what is written in their places.
        explains_torch: whether it is torch's side that is explained.
    """

    explained: str
    reference: str
    who: str
    fix: str
    matching: str
    words: tuple[tuple[str, str], ...] = ()
    explains_torch: bool = False

    @property
    def sides(self) -> tuple[str, str]:
        """The names of the scratch side and of torch's, as columns and rules are headed."""
        names = self.explained, self.reference
        return names[::-1] if self.explains_torch else names

    def worded(self, text: str) -> str:
        """Write a sentence of the catalogue, or of the diagnosis, for these sides."""
        for pattern, words in self.words:
            text = re.sub(pattern, words, text)
        return text


SCRATCH = Roles("scratch", "torch", "scratch", "in the scratch code", "or in torch")


RECORDED = Roles(
    "recorded",
    "now",
    "recording",
    "to keep what torch does now",
    "or to train as recorded",
    (("The scratch side", "The recording"), ("the scratch side", "the recording")),
)


def roles_of(spec: Spec) -> Roles:
    """Return the roles of a spec's sides.

    >>> textbook("adamw").worded("the scratch side adds λ w, where torch shrinks w; it is torch's")
    "your optimizer adds λ w, where the textbook adamw shrinks w; it is the textbook's"
    """
    if spec.recording:
        return RECORDED
    return SCRATCH if spec.textbook is None else textbook(spec.textbook)


def textbook(name: str) -> Roles:
    """Return the roles where a user's optimizer stands beside a formula."""
    words = (
        ("The scratch side", "Your optimizer"),
        ("the scratch side", "your optimizer"),
        (r"\btorch's\b", "the textbook's"),
        (r"\btorch\b(?!\.)", f"the textbook {name}"),
    )
    return Roles(
        "yours",
        "textbook",
        "your optimizer",
        "in your optimizer",
        "as it stands",
        words,
        explains_torch=True,
    )
