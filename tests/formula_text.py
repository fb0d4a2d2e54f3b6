"""Reads formulas back: evaluates their text, and sorts a rule's lines by tensor."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

Value = Any  # a float or an array
Values = dict[str, Value]

TOKEN = re.compile(
    r"\s*((?:average|sum)\(mᵢ gᵢ(?:\((?:p−)?[ȳy]\))?\)|gₖ?\((?:p−)?[ȳy]\)|gₖ|clip_[wb]|clip|lr[₊₋]₁"
    r"|lr|½|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|‖[wb]‖|Σ[wb]²|Σℓ|mean ℓᵢⱼ|mean ℓ|Σ|batch_size|mᵢ|mₖ"
    r"|rows|columns|mean|RMS|sign|min|max|abs|[βε][₁₂]|[μη]ₜ(?:₊₁)?|η[₊₋]|Δmin|Δmax|N∞"
    r"|(?:M̂|[A-ZΔ]|[a-zαγδεζκλμνρτφψŜ])(?:₋₁)?|[ᵗʲᵉ]⁺¹|[()+−·/√²¹ᵗʲᵉ^,])"
)
POWERS = {"²": "**2", "¹": "**1"}
for sign, count in zip("ᵗʲᵉ", "tje", strict=True):
    POWERS |= {sign: f"**values['{count}']", f"{sign}⁺¹": f"**(values['{count}'] + 1)"}
SIGNS = {"+": "+", "−": "-", "·": "*", "/": "/", ",": ",", "^": "**"} | POWERS
OF_ARRAYS: Values = {
    "√": np.sqrt,
    "abs": np.abs,
    "columns": partial(np.mean, axis=-2, keepdims=True),
    "max": np.maximum,
    "mean": partial(np.mean, axis=-2, keepdims=True),
    "min": np.minimum,
    "rows": partial(np.mean, axis=-1, keepdims=True),
    "RMS": lambda x: np.sqrt(np.mean(x**2)),
    "sign": np.sign,
}
FUNCTIONS = ("clip", "clip_w", "clip_b", "Σ", *OF_ARRAYS)


def value_of(text: str, values: Values) -> Value:
    """Evaluate one side of an assignment; what stands side by side is multiplied."""
    text = re.sub(r"Σ(g(\([^)]*\))?)", r"Σ(\1)", text)
    text = re.sub(r"√((?:M̂|[A-ZŜt])(?:₋₁)?)", r"√(\1)", text)
    text = re.sub(r"\|([^|]*)\|", r"abs(\1)", text)
    text = text.replace("mean R", "mean(R)")
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
    return eval(python, {"values": OF_ARRAYS | values})


def chosen_of(text: str, values: Values, none: Value) -> Value:
    """Evaluate what has conditions, entry by entry; where none of them holds it is another value.

    >>> chosen_of("2 w where w > 1, w² where w < 0, else 5", {"w": np.array([3.0, -3.0, 1.0])}, 0)
    array([6., 9., 5.])
    """
    found, open_entries = none, True
    for clause in split(text):
        value, _, condition = clause.removeprefix("else ").partition(" where ")
        holds: Value = True
        if condition:
            left, sign, right = re.split(r" ([<>]) ", condition)
            apart = value_of(left, values) - value_of(right, values)
            holds = apart > 0 if sign == ">" else apart < 0
        chosen = value_of(value, values)
        if holds is True and open_entries is True:
            return chosen
        found = np.where(open_entries & holds, chosen, found)
        open_entries = open_entries & np.logical_not(holds)
    return found


def split(text: str) -> list[str]:
    """Split at the commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def assignments(line: str, shape: tuple[int, ...]) -> list[tuple[str, str, str]]:
    """Return what a line assigns to a tensor of a shape: the letter, its value, and its start.

    >>> assignments("P ← P μₜ, from 1 on", ())
    [('P', 'P μₜ', '1')]
    >>> assignments("R ← a R + mean of g² along rows, C along columns", (3, 2))
    [('R', 'a R + rows(g²)', ''), ('C', 'a C + columns(g²)', '')]
    """
    target, text = line.split(" ← ")
    *parts, last = split(text)
    start = ""
    if last.startswith("from "):
        start = last.removeprefix("from ").removesuffix(" on")
    elif last.endswith(" along columns"):
        other = last.removesuffix(" along columns")
        of_rows = re.sub(r"mean of (.*) along rows", r"rows(\1)", ", ".join(parts))
        of_columns = re.sub(rf"\b{target}\b", other, of_rows.replace("rows(", "columns("))
        return [(target, of_rows, ""), (other, of_columns, "")] if len(shape) > 1 else []
    elif last.startswith("of a vector "):
        parts = parts if len(shape) > 1 else [last.removeprefix("of a vector ")]
    else:
        parts.append(last)
    return [(target, ", ".join(parts), start)]


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
        biases = [re.sub(r"(?<!\w)w(?!\w)", "b", line) for line in weights]
        return {"weight": weights, "bias": biases}, False
    return {"weight": before, "bias": last.split("; ")}, False
