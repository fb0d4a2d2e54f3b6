"""How torch's optimizer is called with some settings, and how weight decays are described."""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, TypeVar

from regcheck.rules.settings import Settings, Training, exact, number
from regcheck.rules.words import all_of

Value = TypeVar("Value")

MOST_TENSORS = 4
"""Tensors that are named in a sentence."""


def torch_call(settings: Settings) -> str:
    """Write the call of torch's optimizer with some settings.

    >>> torch_call(Settings(0.1, {"weight": 1.0, "bias": 1.0}))
    'torch.optim.SGD(lr=0.1, weight_decay=1)'
    """
    options = [f"lr={exact(settings.lr)}"]
    for key, value in settings.options.items():
        if value != settings.rule.options[key].default:
            options.append(f"{key}={option_text(value)}")
    own = {name: own_text(settings, name) for name in settings.weight_decay}
    groups = alike({name: (decay, own[name]) for name, decay in settings.weight_decay.items()})
    if len(groups) == 1:
        [(decay, _)] = groups
        options += [f"weight_decay={exact(decay)}"] if decay else []
        return f"torch.optim.{settings.rule.torch}({', '.join(options)})"
    written = [
        f'{{"params": [{", ".join(map(attribute, names))}], "weight_decay": {exact(decay)}{more}}}'
        for (decay, more), names in groups.items()
    ]
    return f"torch.optim.{settings.rule.torch}([{', '.join(written)}], {', '.join(options)})"


def framework_call(training: Training) -> str:
    """Write what torch trains by: its optimizer, and what averages the processes' gradients."""
    call = torch_call(training.settings)
    return f"{call}, DistributedDataParallel" if training.processes > 1 else call


def own_text(settings: Settings, tensor: str) -> str:
    """Write a tensor's lr and options where they are not the common ones: `, "lr": 0.1`."""
    own = settings.of(tensor)
    text = f', "lr": {exact(own.lr)}' if own.lr != settings.lr else ""
    differing = {key: x for key, x in own.options.items() if x != settings.options[key]}
    return text + "".join(f', "{key}": {option_text(x)}' for key, x in differing.items())


def option_text(value: Any) -> str:
    """Write an option's value as Python does.

    >>> option_text((0.9, 0.999)), option_text("original"), option_text(None)
    ('(0.9, 0.999)', '"original"', 'None')
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(option_text, value))})"
    if isinstance(value, str):
        return json.dumps(value)
    return exact(value) if isinstance(value, float) else str(value)


def alike(values: Mapping[str, Value]) -> dict[Value, list[str]]:
    """Return the tensors of each value, in their order."""
    found: dict[Value, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def attribute(name: str) -> str:
    """Write a parameter as Python reaches it: what a container numbers is an item of it.

    >>> attribute("layers.0.weight"), attribute("0.bias"), attribute("my-net.w")
    ('model.layers[0].weight', 'model[0].bias', 'model.get_parameter("my-net.w")')
    """
    parts = name.split(".")
    if not all(part.isdecimal() or (part.isidentifier() and not iskeyword(part)) for part in parts):
        return f"model.get_parameter({json.dumps(name)})"
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)


def decays_text(decays: Mapping[str, float], torch: Mapping[str, float]) -> str:
    """Describe which tensors have another weight decay than torch's, to follow who has it.

    >>> decays_text({"0.w": 0.05, "1.w": 0.0, "b": 0.0}, {"0.w": 0.1, "1.w": 0.1, "b": 0.0})
    "applies a weight decay of 0.05 to 0.w, torch's is 0.1; applies no weight decay to 1.w"
    >>> decays_text({"w": -0.1}, {"w": 0.0})
    'adds 0.1 w less than torch to the gradient of w'
    """
    found = []
    for (own, other), names in alike(other_decays(decays, torch)).items():
        if own < 0 == other:
            which = all_of(names, most=MOST_TENSORS)
            found.append(f"adds {-own:.6g} w less than torch to the gradient of {which}")
            continue
        decay = f"a weight decay of {own:.6g}" if own else "no weight decay"
        beside = f", torch's is {number(other)}" if own else ""
        found.append(f"applies {decay} to {all_of(names, most=MOST_TENSORS)}{beside}")
    return "; ".join(found)


def other_decays(
    decays: Mapping[str, float], torch: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return the weight decay, and torch's, of the tensors of which these are not the same."""
    return {name: (decay, torch[name]) for name, decay in decays.items() if decay != torch[name]}


def decay_cause(decays: Mapping[str, float], torch: Mapping[str, float]) -> str:
    """Name the cause of weight decays that are not torch's: missing where all these are 0."""
    other = other_decays(decays, torch).values()
    return "penalty-scaled" if any(own for own, _ in other) else "penalty-missing"
