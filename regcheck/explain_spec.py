"""The explanation of a spec: both sides' formulas with its numbers, and what makes torch match.

Loads neither torch nor NumPy.
"""

from __future__ import annotations

from pathlib import Path

from regcheck.explain import Entry, Explanation, formulas, legend
from regcheck.problem.batches import check_shares, schedule_of, torch_settings_of, training_of
from regcheck.problem.data.files import train_rows
from regcheck.rules.convention import Convention, differences, name_of
from regcheck.rules.equivalent import NoMatchError, matching
from regcheck.rules.formulas.formula import rule_lines
from regcheck.rules.formulas.torch_call import framework_call, torch_call
from regcheck.rules.optimizers.lr_schedules import scheduler_call
from regcheck.rules.settings import Training, exact, letters
from regcheck.spec import Spec, read_spec

RULE_OF_CODE = "Its rule is what this code does, which is not known until it is run."


def explain_spec(path: str | Path) -> Explanation:
    """Explain a spec: both sides' rules with its numbers, and what makes torch match.

    A user's own code has no formulas here: what it does is found by running it.

    Raises:
        InputError: the spec or its data are not as they must be.
    """
    loaded = read_spec(Path(path))
    spec = loaded.spec
    check_shares(loaded, count := train_rows(loaded))
    training = training_of(spec, count).of_kinds()
    torchs = training_of(spec, count)._replace(settings=torch_settings_of(spec)).of_kinds()
    entries = [scratch_entry(spec, training), torch_entry(spec, torchs)]
    before = training.rows_lines(f"{path}") + legend(entries, of=training)
    if all(entry.formulas for entry in entries) and spec.textbook is None:
        after = matching_lines(spec.named_convention(), training, torchs)
    else:
        after = ["`regcheck run` says whether both sides follow the same rule."]
    return Explanation(before, entries, [*schedule_lines(spec, training), *after])


def scratch_entry(spec: Spec, training: Training) -> Entry:
    """Explain the scratch side: a convention, an optimizer's textbook rule, or a user's code."""
    given = letters(training)
    if spec.textbook is not None:
        title = f"NumPy, the textbook {spec.textbook}: {torch_call(training.settings)}"
        return Entry("scratch", "side", title, rule_lines(given.torchs, given))
    if spec.scratch is not None:
        return Entry("scratch", "side", f"{spec.scratch}, your code", [], [RULE_OF_CODE])
    convention = spec.named_convention()
    title = f"NumPy, {name_of(convention, given.torchs) or 'a convention of its own'}"
    differs = differences(convention, given.torchs, bias="bias" in training.settings.weight_decay)
    return Entry("scratch", "side", title, formulas(convention, given), differs=differs)


def torch_entry(spec: Spec, training: Training) -> Entry:
    """Explain torch's side: one of its optimizers, or a user's model, loss and optimizer."""
    if spec.own_framework is not None:
        title = f"{spec.own_framework}, your model, loss and optimizer"
        return Entry("torch", "side", title, [], [RULE_OF_CODE])
    given = letters(training)
    return Entry("torch", "side", framework_call(training), formulas(given.torchs, given))


def matching_lines(convention: Convention, training: Training, torchs: Training) -> list[str]:
    """Describe what makes torch train as the scratch side does."""
    try:
        match = matching(convention, training)
    except NoMatchError as reason:
        return [f"No lr and weight_decay make torch match: {reason}."]
    if match.settings == torchs.settings:
        return ["Both sides already train by the same rule."]
    lines = ["torch matches the scratch side with", f"  {torch_call(match.settings)}"]
    if training.lr_varies:
        lines.append(f"  and every lr of the schedule times {exact(match.lr_factor)}")
    return lines


def schedule_lines(spec: Spec, training: Training) -> list[str]:
    """Describe the schedule of a spec's lr: torch's class, the formula, and some of its lrs."""
    schedule, kind = schedule_of(spec, training.train_rows), spec.lr_schedule
    if kind is None:
        return []
    call = scheduler_call(kind.kind, kind.all_keys, spec.lr)
    steps = dict.fromkeys(1 + (schedule.steps - 1) * quarter // 4 for quarter in range(5))
    lrs = ", ".join(f"{step:,}: {schedule.lr_at(step):.6g}" for step in steps if step > 0)
    lines = [*kind.rule.formulas, f"at steps {lrs}"]
    return [f"lr  {call}, by {kind.per}", *(f"    {line}" for line in lines), ""]
