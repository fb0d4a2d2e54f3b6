"""What is trained by the text of a rule: specs, and the numbers that letters stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from regcheck.problem.batches import Batch, training_of
from regcheck.problem.problem import Parameters, build_problem
from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.settings import Settings, Training
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.every_rule import BASE
from tests.formula_text import Value, Values

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
        """Return g, the last gᵢ, average and sum of mᵢ gᵢ of each; all at ȳ and by p − y too."""
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
                found[name][f"gₖ{at}"] = micro[-1][name]
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
            "mₖ": len(self.plain.y[batch.micro_batches[-1]]),
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
