"""What is known of a user's optimizer beside a textbook rule: the settings it was made with."""

from __future__ import annotations

from typing import Any

from regcheck.diagnosis.records import Run
from regcheck.rules.formulas.torch_call import option_text


def other_settings(run: Run) -> str:
    """Describe where the optimizer's parameter groups have other numbers than the spec gives.

    Empty where they have not, or where the framework side is not compared with a textbook rule.
    """
    if not run.shares_gradient:
        return ""
    settings = run.torch.problem.settings
    found: dict[str, None] = {}
    for name, group in run.sides.probe.groups.items():
        own = settings.of(name)
        spec = {"lr": own.lr, "weight_decay": settings.weight_decay[name], **own.options}
        for key, value in spec.items():
            if key in group and plain(group[key]) != value:
                text = option_text(plain(group[key]))
                found[f"{key} {text} where the spec has {option_text(value)}"] = None
    if not found:
        return ""
    return f"Your optimizer's settings are not the spec's: {', '.join(found)}."


def plain(value: Any) -> Any:
    """Return an option with lists as pairs."""
    return tuple(value) if isinstance(value, list) else value
