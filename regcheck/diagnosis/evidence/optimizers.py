"""What is known of the framework side's optimizer: its class, and the settings it was made with."""

from __future__ import annotations

from typing import Any

from regcheck.diagnosis.evidence.record import Evidence, remark
from regcheck.diagnosis.records import Diagnosis, Run
from regcheck.rules.formulas.torch_call import option_text
from regcheck.rules.optimizers.registry import OPTIMIZERS


def unknown_rule(optimizer: object) -> Diagnosis:
    """Return that the framework side's rule is not in the catalogue."""
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    classes = [f"torch.optim.{rule.torch}" for rule in OPTIMIZERS.values()]
    if kind.__module__.startswith("torch.optim.") and f"torch.optim.{kind.__name__}" in classes:
        name = f"torch.optim.{kind.__name__} with `maximize`"
    text = (
        f"The framework side's optimizer is {name}; causes are known for {', '.join(classes)}, "
        "without `maximize`."
    )
    return Diagnosis(explained=False, evidence=(remark(text),))


def other_settings(run: Run) -> Evidence | None:
    """Describe where the optimizer's parameter groups have other numbers than the spec gives.

    None where they have not, or where the framework side is not compared with a textbook rule.
    """
    if not run.shares_gradient:
        return None
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
        return None
    return remark(f"Your optimizer's settings are not the spec's: {', '.join(found)}.")


def plain(value: Any) -> Any:
    """Return an option with lists as pairs."""
    return tuple(value) if isinstance(value, list) else value
