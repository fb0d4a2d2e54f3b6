"""Reads formulas back: evaluates their text, and sorts a rule's lines by tensor."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

Value = Any  # a float or an array
Values = dict[str, Value]

TOKEN = re.compile(
    r"\s*((?:average|sum)\(mᵢ gᵢ(?:\((?:p−)?[ȳy]\))?\)|g\((?:p−)?[ȳy]\)|clip_[wb]|clip|lr[₊₋]₁|lr|½"
    r"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|‖[wb]‖|Σ[wb]²|Σℓ|mean ℓᵢⱼ|mean ℓ|Σ|batch_size|mᵢ"
    r"|max|abs|β[₁₂]|(?:M̂|[A-Z]|[a-zαδελμρτŜ])(?:₋₁)?|ᵗ⁺¹|[()+−·/√²ᵗ,])"
)
SIGNS = {"+": "+", "−": "-", "·": "*", "/": "/", ",": ",", "²": "**2", "ᵗ": "**values['t']"}
SIGNS["ᵗ⁺¹"] = "**(values['t'] + 1)"
POWERS = ("²", "ᵗ", "ᵗ⁺¹")
FUNCTIONS = ("clip", "clip_w", "clip_b", "Σ", "√", "max", "abs")


def value_of(text: str, values: Values) -> Value:
    """Evaluate one side of an assignment; what stands side by side is multiplied."""
    text = re.sub(r"Σ(g(\([^)]*\))?)", r"Σ(\1)", text)
    text = re.sub(r"√((?:M̂|[A-ZŜ])(?:₋₁)?)", r"√(\1)", text)
    text = re.sub(r"\|([^|]*)\|", r"abs(\1)", text)
    tokens = TOKEN.findall(text)
    assert "".join(tokens).replace(" ", "") == text.replace(" ", ""), text
    python, before = "", "("
    for token in tokens:
        joins = (*(sign for sign in SIGNS if sign not in POWERS), *FUNCTIONS, "(")
        if token not in SIGNS and token != ")" and before not in joins:
            python += "*"
        plain = token in "()" or re.fullmatch(r"-?\d.*", token)
        python += SIGNS.get(token) or (token if plain else f"values[{token!r}]")
        before = token
    return eval(python, {"values": {"√": np.sqrt, "max": np.maximum, "abs": np.abs} | values})


def lines_of(text: list[str]) -> tuple[dict[str, list[str]], bool]:
    """Sort a rule's assignments by tensor; and whether the bias goes first."""
    *before, last = text
    if text[0].startswith("first  "):
        weight, _, end = last.partition(", with ")
        assert end == "g at the new b"
        bias = text[0].removeprefix("first  ").split("; ")
        return {"weight": [*before[1:], weight], "bias": bias}, True
    if last.endswith(", b likewise"):
        weights = [*before, last.removesuffix(", b likewise")]
        return {"weight": weights, "bias": [line.replace("w", "b") for line in weights]}, False
    return {"weight": before, "bias": last.split("; ")}, False
