"""Trains by the text of formulas, with numbers for the letters; only g is given."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.rules.optimizers.update_rule import Memory
from tests.formula_cases import Case
from tests.formula_text import Value, Values, assignments, chosen_of, lines_of, value_of


class Tensor(NamedTuple):
    """One tensor's value, and what is remembered by letters: 0 before step 1."""

    w: Value
    known: Values

    def old(self) -> Values:
        """Return what was remembered before the step, with and without that said."""
        return self.known | {f"{letter}₋₁": value for letter, value in self.known.items()}


REMEMBERED: dict[str, tuple[str, ...]] = {
    "A": ("max_exp_avg_sq",),
    "C": ("col_var",),
    "D": ("acc_delta",),
    "M": ("exp_avg", "grad_avg"),
    "P": ("mu_product",),
    "Q": ("sum",),
    "R": ("row_var",),
    "S": ("exp_avg_sq", "square_avg"),
    "U": ("exp_inf",),
    "V": ("variance",),
    "h": ("prev",),
    "u": ("moved",),
    "v": ("momentum_buffer",),
    "Δ": ("step_size",),
}
"""The letters of what optimizers remember, with torch's names for it."""

SINGLE = ("P", "ηₜ")
"""What torch holds in float32, whatever the dtype of w."""


def by_letter(memory: Memory, none: Value) -> Values:
    """Write by letters what an optimizer remembers of a tensor."""
    return {
        letter: next((memory[name] for name in names if name in memory), none)
        for letter, names in REMEMBERED.items()
    }


class ByText:
    """Trains by the text of a rule alone; only g comes from elsewhere."""

    def __init__(self, case: Case, text: list[str]) -> None:
        self.case = case
        self.lines, self.bias_first = lines_of(text)
        start = case.trainer.start()
        self.now = {
            name: Tensor(w, self.remembered(name, start.memory[name], 0.0 * w))
            for name, w in start.parameters.items()
        }
        self.start = self.now
        self.summed: dict[str, Value] = {}  # by Σ in the earlier steps, and in this one
        self.adding: dict[str, Value] = {}

    def remembered(self, name: str, memory: Memory, none: Value) -> Values:
        """Return what is remembered before step 1: 0, or the start that the text has for step 1."""
        told = {line.split()[2] for line in self.lines[name] if line.startswith("step 1: ")}
        known = by_letter(memory, none)
        return {letter: x if letter in told else 0 * x for letter, x in known.items()}

    def step(self, batch: Batch) -> None:
        before = {name: tensor.w for name, tensor in self.now.items()}
        values = self.values(before, batch)
        bias = self.moved("bias", values, batch)
        if self.bias_first:
            values["weight"] = self.values(before | {"bias": bias.w}, batch)["weight"]
        self.now = {"weight": self.moved("weight", values, batch), "bias": bias}
        self.summed |= self.adding

    def values(self, parameters: Parameters, batch: Batch) -> dict[str, Values]:
        """Return the numbers of a step for each tensor."""
        return {
            name: self.counts(batch, name)
            | self.case.constants(batch, name)
            | g
            | {"Σ": partial(self.add, name)}
            for name, g in self.case.gradients(parameters, batch).items()
        }

    def counts(self, batch: Batch, tensor: str) -> Values:
        """Return the numbers of a step, of a tensor's update and of an epoch."""
        renewed = "each epoch starts with a new optimizer" in self.lines[tensor]
        t = batch.batch if renewed else batch.step
        names = list(self.now)
        return {"t": t, "j": len(names) * (t - 1) + names.index(tensor) + 1, "e": batch.epoch}

    def add(self, name: str, value: Value) -> Value:
        """Add a value to those of the earlier steps; a step may be worked out more than once."""
        self.adding[name] = self.summed.get(name, 0.0) + value
        return self.adding[name]

    def moved(self, name: str, values: dict[str, Values], batch: Batch) -> Tensor:
        """Carry out a tensor's lines, once it is known what all tensors put into `clip`."""
        clipped: dict[str, Value] = {}
        for other in self.now:
            keep = partial(clipped.setdefault, other)
            self.carry_out(other, values[other] | {"clip": keep}, batch)
        clip = self.case.clip_with(clipped.values())
        return self.carry_out(name, values[name] | {"clip": clip}, batch)

    def carry_out(self, name: str, values: Values, batch: Batch) -> Tensor:
        """Carry out a tensor's assignments, one after the other."""
        anew = any(line.startswith("each epoch starts") for line in self.lines[name])
        first = batch.step == 1 or (anew and batch.batch == 1)
        w, found = self.now[name].w, (self.start if first else self.now)[name].old()
        for line in self.lines[name]:
            when, _, line = line.rpartition(": ")
            if "←" not in line or (when and (when == "step 1") != first):
                continue  # of another step, or of what is remembered
            norm = math.sqrt(float(np.sum(w * w))) or 1.0  # w/‖w‖ is 0 where w is
            for target, text, start in assignments(line, np.shape(w)):
                known = values | found | {"w": w, "b": w, "‖w‖": norm, "‖b‖": norm}
                if target == "ηₜ":  # which is made in the step before
                    known |= self.case.rates(values["t"] - 1)
                if start and first:
                    known[target] = value_of(start, known)
                if target in SINGLE and target in known:
                    known[target] = np.float32(known[target])
                value = chosen_of(text, known, known.get(target, math.nan))
                if target in SINGLE:
                    value = float(np.float32(value))
                if target in ("w", "b"):
                    w = value
                else:
                    found[target] = value
                if target == "μₜ":
                    found["μₜ₊₁"] = value_of(text, known | {"t": values["t"] + 1})
        return Tensor(w, {letter: found[letter] for letter in REMEMBERED})


def read_loss(text: str, case: Case, parameters: Parameters, batch: Batch) -> float:
    head, *penalties = text.split(" + ")
    known = case.constants(batch, "weight")
    summed, head = "sum(" in head, head.replace("sum(", "average(")
    if head.endswith(")"):
        factor, inner = head.removesuffix(")").split("average(")
        losses = [data_losses(case, parameters, (rows,)) for rows in batch.micro_batches]
        total = sum(value_of(inner, known | one) for one in losses)
        total /= 1 if summed else len(losses)
        total *= value_of(factor, {}) if factor else 1.0
    else:
        total = value_of(head, known | data_losses(case, parameters, batch.micro_batches))
    for term in penalties:
        tensor, letter = ("weight", "w") if "w" in term else ("bias", "b")
        square = float(np.sum(parameters[tensor] ** 2))
        norms = {f"Σ{letter}²": square, f"‖{letter}‖": math.sqrt(square), "½": 0.5}
        total += value_of(term, case.constants(batch, tensor) | norms)
    return float(total)


def data_losses(case: Case, parameters: Parameters, micro_batches: tuple[Any, ...]) -> Values:
    """Return the losses of some rows, each output's against its own target and against all."""
    rows, pairs = [], []
    for index in micro_batches:
        X, y = case.plain.X[index], case.plain.y[index]
        z = X @ parameters["weight"][0] + parameters["bias"][0]
        rows += list(case.plain.row_losses(z, y).values)
        pairs += [case.plain.row_losses(z, np.full_like(y, target)).values for target in y]
    return {
        "mᵢ": len(rows),
        "Σℓ": math.fsum(rows),
        "mean ℓ": math.fsum(rows) / len(rows),
        "mean ℓᵢⱼ": float(np.mean(pairs)) if len(micro_batches) == 1 else math.nan,
    }


@np.errstate(all="ignore")  # a logarithm of 0, where p is 1
def agreeing_steps(case: Case, text: list[str], loss: str) -> int:
    """Train by the text and by the trainer; count the steps, each of which must be the same."""
    state, by_text, steps = case.trainer.start(), ByText(case, text), 0
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12, err_msg=str(text))
    for batch in case.trainer.problem.schedule.batches():
        reported = read_loss(loss, case, state.parameters, batch)
        by_text.step(batch)
        update = case.trainer.step(state, batch)
        state = update.state
        # Some steps of some 50 roundings, of numbers of order 1 to 10, which cancel here and there.
        for name, tensor in by_text.now.items():
            close(tensor.w, update.step.after[name])
            known = by_letter(update.step.memory[name], None)
            # NAdam keeps P where no bias is corrected too, and no line tells of it.
            untold = {"P"} - set("".join(text))
            for letter in {letter for letter, x in known.items() if x is not None} - untold:
                close(tensor.known[letter], known[letter])
        close(update.step.loss, reported)
        steps += 1
    return steps
