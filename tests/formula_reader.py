"""Trains by the text of formulas, with numbers for the letters; only g is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from regcheck.problem.batches import Batch, training_of
from regcheck.problem.problem import Parameters, build_problem
from regcheck.rules.convention import NO_FAULTS, Convention, Faults
from regcheck.rules.optimizers.update_rule import Memory
from regcheck.rules.settings import Settings, Training
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.every_rule import BASE
from tests.formula_text import Value, Values, assignments, chosen_of, lines_of, value_of

# --- what the letters stand for -------------------------------------------------------------------

FACTOR = 1.75
"""What stands for c."""

EPSILON = float(np.finfo(np.float64).eps)


class Case(NamedTuple):
    """A training, and the same one by torch's convention, which gives g."""

    spec: dict[str, Any]
    trainer: NumpyTrainer
    plain: NumpyTrainer
    training: Training
    convention: Convention

    def gradients(self, parameters: Parameters, batch: Batch) -> dict[str, Values]:
        """Return g of each tensor, and the average and sum of mᵢ gᵢ; all at ȳ and by p − y too."""
        mean = copy(self.plain)
        mean.y = self.plain.y.copy()
        for rows in batch.micro_batches:
            mean.y[rows] = mean.y[rows].mean()
        plain_slope = replace(self.plain.problem, faults=Faults(bce_slope="plain"))
        trainers = {"": self.plain, "(ȳ)": mean}
        trainers |= {"(p−y)": self.plain.by(plain_slope), "(p−ȳ)": mean.by(plain_slope)}
        found: dict[str, Values] = {name: {} for name in parameters}
        for at, trainer in trainers.items():
            whole = trainer.forward_backward(parameters, batch).gradient
            micro = [
                trainer.forward_backward(parameters, batch._replace(micro_batches=(rows,))).gradient
                for rows in batch.micro_batches
            ]
            sizes = [len(self.plain.y[index]) for index in batch.micro_batches]
            for name, g in whole.items():
                total = sum(m * one[name] for m, one in zip(sizes, micro, strict=True))
                found[name][f"g{at}"] = g
                found[name][f"sum(mᵢ gᵢ{at})"] = total
                found[name][f"average(mᵢ gᵢ{at})"] = total / len(micro)
        return found

    def rates(self, step: int) -> Values:
        """Return the lr of a step and of its neighbours."""
        schedule, step = self.trainer.problem.schedule, max(1, step)
        near = {"lr": step, "lr₊₁": step + 1, "lr₋₁": max(1, step - 1)}
        return {letter: schedule.lr_at(other) for letter, other in near.items()}

    def constants(self, batch: Batch, tensor: str) -> Values:
        """Return the numbers of one step for a tensor."""
        training = self.training
        decays = training.settings.weight_decay
        return {
            **self.rates(batch.step),
            # A penalty on a bias that has no λ of its own is by that of the weight.
            "λ": decays[tensor] or decays["weight"],
            **self.options(),
            "B": batch.size,
            "m": training.loss_rows[0],
            "n": training.train_rows,
            "k": len(batch.micro_batches),
            "batch_size": self.spec.get("batch_size", training.train_rows),
            "c": FACTOR,
            "clip_w": self.clip_alone,
            "clip_b": self.clip_alone,
        }

    def options(self) -> Values:
        """Return the optimizer's numbers by their letters."""
        settings = self.training.settings
        found, given = {"½": 0.5}, settings.rule.resolved(settings.options, EPSILON)
        for key, option in settings.rule.options.items():
            value = given[key]
            several = isinstance(option.letter, tuple)
            letters, values = (option.letter, value) if several else ((option.letter,), (value,))
            found |= dict(zip(letters, values, strict=True))
        if "β₂" in found:
            found["N∞"] = np.float64(2 / (1 - found["β₂"]) - 1)
        return found

    def clip_alone(self, value: Value) -> Value:
        return self.clip_with([value])(value)

    def clip_with(self, values: Iterable[Value]) -> Callable[[Value], Value]:
        """Return what clips, for what all tensors put into it."""
        limit = self.spec.get("clip_value")
        if limit is not None:
            return lambda value: np.clip(value, -limit, limit)
        total = math.sqrt(sum(float(np.sum(value * value)) for value in values))
        factor = min(1.0, self.spec.get("clip_norm", math.inf) / (total + 1e-6))
        return lambda value: value * factor


def case_of(spec: dict[str, Any], faults: Faults = NO_FAULTS) -> Case:
    """Make what a spec trains, with faults in its rule."""
    loaded = from_mapping(BASE | spec)
    problem = replace(build_problem(loaded), faults=faults)
    plain = build_problem(from_mapping(BASE | spec | {"convention": {}}))
    training = training_of(loaded.spec, len(problem.y))
    return Case(spec, NumpyTrainer(problem), NumpyTrainer(plain), training, problem.convention)


def training(**changes: Any) -> Training:
    """Make a plain training of 8 rows; changes of torch's settings are put into these."""
    given = Settings(0.1, {"weight": 0.5, "bias": 0.5})
    own = {key: changes.pop(key) for key in given.options if key in changes}
    settings = given.with_options(**own)
    settings = settings._replace(
        **{key: changes.pop(key) for key in settings._fields if key in changes}
    )
    return Training(settings, batch_rows=(8,), train_rows=8)._replace(**changes)


# --- training by the text -------------------------------------------------------------------------


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
        t = batch.batch if "each epoch begins with step 1" in self.lines[tensor] else batch.step
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
        anew = any(line.startswith("each epoch begins") for line in self.lines[name])
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
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13, err_msg=str(text))
    for batch in case.trainer.problem.schedule.batches():
        reported = read_loss(loss, case, state.parameters, batch)
        by_text.step(batch)
        update = case.trainer.step(state, batch)
        state = update.state
        # Up to 4 steps of some 50 roundings, of numbers of order 1 to 10.
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
