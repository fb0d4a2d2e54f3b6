"""What a report comes to, as a record: what every short form of it is written from.

The terminal's short report, Markdown, JUnit and the page are this record in other clothes, so that
none says what another does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.cause_text import explained_rules
from regcheck.report.texts.diagnosis.diagnosis_text import (
    alternatives,
    fitted_lines,
    verified,
)
from regcheck.report.texts.diagnosis.fixes import short_fixes
from regcheck.report.texts.diagnosis.loss_text import loss_texts
from regcheck.report.texts.diagnosis.next_steps import next_steps
from regcheck.report.texts.heading import short_size, subject
from regcheck.report.texts.headline import expectation, headline
from regcheck.report.texts.remarks import first_remarks, short_remarks
from regcheck.report.texts.roles import roles_of
from regcheck.report.texts.step_table import ratio_head, ratio_legend
from regcheck.report.texts.text import letter_meanings, sides
from regcheck.report.texts.values import FinalValues, Values, final_values, values_at

ALTERED = "torch's update has changed since the recording was made, or the recording has."


class Rule(NamedTuple):
    """One side's update rule: whose it is, by what name it goes, its lines, and its loss."""

    side: str
    title: str
    lines: tuple[str, ...]
    loss: str


@dataclass(frozen=True)
class Summary:
    """A report in short.

    Attributes:
        subject: the spec, its model, loss and dtype, and the number of samples and steps.
        headline: the verdict, the step, and the cause in words.
        expectation: whether that is what the spec expects; empty where it expects nothing.
        rules: of both sides. Where a user's code has none that is known, its is the one that the
            diagnosis found, and is empty without one.
        letters: what the letters in them mean.
        values: one entry at the first divergence, from the same parameters; None without one.
        before: why the steps before could not show it.
        ratio: the head of the table's column of what is judged.
        ratio_means: what that column holds, and above which number a step diverges.
        verified: what putting the cause into torch's rule comes to.
        ambiguous: what explains the run just as well, and which run would distinguish them.
        loss: what explains the reported losses.
        known: what is known of a divergence that has no cause.
        next: what to compare next, where no cause is named.
        fixes: what to change: in the scratch code, in torch, in the spec; one line each.
        notes: what else limits the verdict.
        final: where both sides ended: the largest differences, the loss, the accuracy.
    """

    subject: str
    headline: str
    expectation: str
    rules: tuple[Rule, ...]
    letters: tuple[str, ...]
    values: Values | None
    before: tuple[str, ...]
    ratio: str
    ratio_means: tuple[str, ...]
    verified: str
    ambiguous: tuple[str, ...]
    loss: tuple[str, ...]
    known: tuple[str, ...]
    next: tuple[str, ...]
    fixes: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    final: FinalValues | None

    @property
    def sides(self) -> tuple[str, ...]:
        """The names of both sides, as columns are headed."""
        return tuple(rule.side for rule in self.rules)


def summary(report: Report) -> Summary:
    """Return a report in short."""
    both = rules(report)
    return Summary(
        subject=f"{subject(report)}, {short_size(report)}",
        headline=headline(report),
        expectation=expectation(report),
        rules=both,
        letters=tuple(letter_meanings(report, [line for rule in both for line in rule.lines])),
        values=values_at(report),
        before=tuple(first_remarks(report)),
        ratio=ratio_head(report),
        ratio_means=tuple(ratio_legend(report)),
        **explanation(report),
        next=tuple(next_steps(report)),
        fixes=short_fixes(report),
        notes=tuple(short_remarks(report)),
        final=final_values(report),
    )


def explanation(report: Report) -> dict[str, Any]:
    """Return what a diagnosis says: proof and alternatives, or what is known without a cause."""
    found = report.diagnosis
    if found is None:
        return {"verified": "", "ambiguous": (), "loss": (), "known": ()}
    worded = roles_of(report.spec).worded
    best, known = found.best, []
    if best is None and report.first_divergence is not None:
        known = [one.text for one in found.evidence]
        if report.spec.recording:
            known = [ALTERED, *known[:1]]
        known += [f"{one.text[0].upper()}{one.text[1:]}." for one in fitted_lines(report, found)]
    return {
        "verified": worded(f"{verified(report, found, best)}.") if best else "",
        "ambiguous": tuple(map(worded, alternatives(report, found))),
        "loss": tuple(map(worded, loss_texts(report, found))),
        "known": tuple(map(worded, known)),
    }


def rules(report: Report) -> tuple[Rule, ...]:
    """Return both sides' rules; of a user's own code that which the diagnosis found."""
    found, named = [], sides(report)
    best = report.diagnosis.best if report.diagnosis else None
    explained: tuple[list[str], list[str]] = explained_rules(report, best) if best else ([], [])
    if report.spec.textbook is not None:  # which is the scratch side, and the rule to go by
        explained = explained[::-1]
    for side, lines in zip(named, explained, strict=True):
        shown = tuple(side.update or lines)
        found.append(Rule(side.side, side.title, shown, side.loss))
    return tuple(found)


class Group(NamedTuple):
    """Remarks under one label, and where they are a fix, the side that they change."""

    label: str
    lines: Sequence[str]
    side: str = ""


def remark_groups(found: Summary) -> list[Group]:
    """Return the proof, what else is possible, what is known, the fixes; groups may be empty."""
    sides = enumerate(found.fixes.items())
    return [
        Group("Verified", [found.verified] if found.verified else []),
        Group("But", found.ambiguous),
        Group("Loss", found.loss),
        Group("Known", found.known),
        Group("Next", found.next),
        Group("Note", found.notes),
        *(Group(f"{'or' if at else 'Fix'} {side}", lines, side) for at, (side, lines) in sides),
    ]
