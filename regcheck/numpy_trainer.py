"""The scratch side: the training in NumPy, one update at a time, by any convention.

Written to read as the formulas, and to share nothing with the torch side but the problem.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from regcheck.convention import penalized
from regcheck.losses import LOSSES, Array, RowLosses
from regcheck.models import gradient, predict
from regcheck.optimizers import Moved, sgd
from regcheck.problem import Parameters, Problem, Step
from regcheck.schedule import Batch


class State(NamedTuple):
    """Where a training is: its parameters, and each tensor's velocity (none before step 1)."""

    parameters: Parameters
    velocities: dict[str, Array | None]


class Update(NamedTuple):
    """One update: the new state, what happened, and the rows' slopes of each micro-batch."""

    state: State
    step: Step
    slopes: tuple[Array, ...]


class Pass(NamedTuple):
    """One pass over a step's rows: z and row losses of each micro-batch, loss and gradient."""

    outputs: tuple[Array, ...]
    rows: tuple[RowLosses, ...]
    loss: float
    gradient: Parameters


class NumpyTrainer:
    """The training of a problem in NumPy. It holds the data in its dtype, and no state."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = np.dtype(problem.scratch_dtype)
        self.X = problem.X.astype(self.dtype, copy=False)
        self.y = problem.y.astype(self.dtype, copy=False)

    def start(self) -> State:
        """Give the state before the first step."""
        parameters = {
            name: tensor.astype(self.dtype) for name, tensor in self.problem.initial.items()
        }
        return State(parameters, dict.fromkeys(parameters))

    def step(self, state: State, batch: Batch) -> Update:
        """Take one update from a state, whose parameters may be the other side's."""
        # Overflow is an outcome of the training, judged by the comparison.
        with np.errstate(all="ignore"):
            convention = self.problem.convention
            before = {
                name: tensor.astype(self.dtype, copy=False)
                for name, tensor in state.parameters.items()
            }
            state = state._replace(parameters=before)
            seen = self.pass_over(before, batch)
            strengths = self.strengths(batch)
            if convention.update_order == "bias-first":
                bias = self.move(state, batch, seen.gradient, strengths, ("bias",))
                moved = before | {"bias": bias["bias"].parameter}
                late = self.pass_over(moved, batch)
                seen = seen._replace(gradient=late.gradient | {"bias": seen.gradient["bias"]})
                moves = self.move(state, batch, seen.gradient, strengths, ("weight",)) | bias
            else:
                moves = self.move(state, batch, seen.gradient, strengths, tuple(before))
            velocities = {name: moves[name].velocity for name in before}
            step = Step(
                before=before,
                outputs=seen.outputs,
                loss=self.reported_loss(seen.loss, before, strengths),
                gradient=seen.gradient,
                penalty={name: moves[name].penalty for name in before},
                velocity={name: v for name, v in velocities.items() if v is not None},
                shift={name: moves[name].shift for name in before},
                after={name: moves[name].parameter for name in before},
            )
            after = State(step.after, velocities)
        return Update(after, step, tuple(part.slopes for part in seen.rows))

    def pass_over(self, parameters: Parameters, batch: Batch) -> Pass:
        """Loss and gradient of a step's rows: the means over its micro-batches of each one's.

        One micro-batch: L = c/B Σ ℓ_i, or c Σ ℓ_i where `loss_reduction` is sum, with c the
        `loss_factor`; ∂L/∂z_i = c/B ℓ_i′, or c ℓ_i′.
        """
        outputs, rows, losses, gradients = [], [], [], []
        for index in batch.parts:
            X, y = self.X[index], self.y[index]
            z = predict(X, parameters)
            row = LOSSES[self.problem.model, self.problem.loss](z, y)
            scale = self.problem.convention.loss_factor
            if self.problem.convention.loss_reduction == "mean":
                scale /= len(y)
            outputs.append(z)
            rows.append(row)
            losses.append(scale * float(row.values.sum()))
            gradients.append(gradient(X, scale * row.slopes))
        parts = len(batch.parts)
        if parts == 1:
            return Pass(tuple(outputs), tuple(rows), losses[0], gradients[0])
        mean = {
            name: np.sum([one[name] for one in gradients], axis=0) / parts for name in gradients[0]
        }
        return Pass(tuple(outputs), tuple(rows), sum(losses) / parts, mean)

    def strengths(self, batch: Batch) -> dict[str, float]:
        """κ λ of each tensor: the factor on w in the penalty's gradient at this step."""
        convention = self.problem.convention
        divisor = {"nothing": 1, "batch": batch.size, "dataset": len(self.y)}
        factor = convention.penalty_factor / divisor[convention.divide_penalty_by]
        return {
            name: factor * decay if penalized(convention, name) else 0.0
            for name, decay in self.problem.weight_decay.items()
        }

    def move(
        self,
        state: State,
        batch: Batch,
        gradients: Parameters,
        strengths: dict[str, float],
        names: tuple[str, ...],
    ) -> dict[str, Moved]:
        """Move some of the tensors by the optimizer's rule."""
        convention = self.problem.convention
        if convention.decay == "before-clipping":
            gradients = {
                name: g + self.penalty(strengths[name], state.parameters[name])
                for name, g in gradients.items()
            }
        clipped = self.clipped(gradients)
        return {
            name: sgd(
                self.problem.optimizer,
                convention,
                batch.lr,
                state.parameters[name],
                clipped[name],
                partial(self.penalty, strengths[name]),
                state.velocities[name],
            )
            for name in names
        }

    def penalty(self, strength: float, w: Array) -> Array:
        """The penalty's gradient: κλ w, or κλ w/‖w‖ (0 at w = 0, as torch's norm has it)."""
        if self.problem.convention.penalty_norm == "squared":
            return strength * w
        norm = np.sqrt(np.sum(w * w))
        return strength * w / norm if norm > 0 else 0 * w

    def clipped(self, gradients: Parameters) -> Parameters:
        """Clip as torch does: g · min(1, C/(‖g‖ + 1e-6)) over all tensors, or each entry to ±C."""
        if self.problem.clip_value is not None:
            limit = self.problem.clip_value
            return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}
        if self.problem.clip_norm is None:
            return gradients
        norm = np.sqrt(sum(np.sum(g * g) for g in gradients.values()))
        factor = np.minimum(1, self.problem.clip_norm / (norm + 1e-6)).astype(self.dtype)
        return {name: g * factor for name, g in gradients.items()}

    def reported_loss(
        self, loss: float, parameters: Parameters, strengths: dict[str, float]
    ) -> float:
        """The data loss; with `penalty_in_loss`, plus κλ/2 ‖w‖² (or κλ ‖w‖) of each tensor."""
        convention = self.problem.convention
        if not convention.penalty_in_loss:
            return loss
        for name, w in parameters.items():
            squares = float(np.vdot(w, w))
            if convention.penalty_norm == "squared":
                loss += strengths[name] / 2 * squares
            else:
                loss += strengths[name] * math.sqrt(squares)
        return loss
