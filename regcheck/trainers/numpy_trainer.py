"""The scratch side: the training in NumPy, one update at a time, by any convention.

Written to read as the formulas, and to share nothing with the torch side but the problem.
"""

from __future__ import annotations

import math
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np

from regcheck.numerics.losses import LOSSES, Array, RowLosses, bce_plain, gradient, predict
from regcheck.numerics.sgd import TensorUpdate, sgd
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.rules.convention import is_bias, penalized
from regcheck.rules.settings import with_faults


class State(NamedTuple):
    """Where a training is: its parameters, and what its optimizer remembers.

    Each tensor has a velocity (None before step 1); `unzeroed` is the sum of all gradients so far,
    kept only where they are never zeroed.
    """

    parameters: Parameters
    velocities: dict[str, Array | None]
    unzeroed: Parameters | None = None


class ForwardBackward(NamedTuple):
    """One pass over a step's rows: z and row losses of each micro-batch, loss and gradient."""

    outputs: tuple[Array, ...]
    rows: tuple[RowLosses, ...]
    loss: float
    gradient: Parameters


class Update(NamedTuple):
    """One update: the new state, what happened, and the pass over the rows before it."""

    state: State
    step: Step
    forward_backward: ForwardBackward

    @property
    def dloss_dz(self) -> tuple[Array, ...]:
        """The rows' dℓ_i/dz_i of each micro-batch."""
        return tuple(part.dloss_dz for part in self.forward_backward.rows)


class NumpyTrainer:
    """The training of a problem in NumPy. It holds the data in its dtype, and no state."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = np.dtype(problem.scratch_dtype)
        self.X = problem.X.astype(self.dtype, copy=False)
        self.y = problem.y.astype(self.dtype, copy=False)
        self.options = with_faults(problem.sgd, problem.faults)

    def by(self, problem: Problem) -> NumpyTrainer:
        """Train on the same data by another rule, that of a problem which differs in no more."""
        other = copy(self)
        other.problem = problem
        other.options = with_faults(problem.sgd, problem.faults)
        return other

    def start(self) -> State:
        """Give the state before the first step."""
        parameters = {
            name: tensor.astype(self.dtype) for name, tensor in self.problem.initial.items()
        }
        velocities: dict[str, Array | None] = dict.fromkeys(parameters)
        if self.problem.faults.first_step == "dampened":  # μ 0 + (1 − τ) g
            velocities = {name: np.zeros_like(tensor) for name, tensor in parameters.items()}
        return State(parameters, velocities)

    def step(self, state: State, batch: Batch, known: ForwardBackward | None = None) -> Update:
        """Take one update from a state, whose parameters may be the other side's.

        Args:
            state: the parameters, and what the optimizer remembers.
            batch: the step's rows and lr.
            known: the pass over the rows at these parameters, where it is known already.
        """
        # Overflow is an outcome of the training, judged by the comparison.
        with np.errstate(all="ignore"):
            convention = self.problem.convention
            before = {
                name: tensor.astype(self.dtype, copy=False)
                for name, tensor in state.parameters.items()
            }
            state = state._replace(parameters=before)
            batch = self.rescheduled(batch)
            there = self.forward_backward(before, batch) if known is None else known
            gradients = self.gradients(there, state)
            effective_decays = self.effective_decays(batch)
            if convention.update_order == "bias-first":
                first = tuple(filter(is_bias, before))
                moves = self.move(state, batch, gradients, effective_decays, first)
                moved = before | {name: moves[name].parameter for name in first}
                late = self.gradients(self.forward_backward(moved, batch), state)
                gradients = late | {name: gradients[name] for name in first}
                rest = tuple(name for name in before if name not in first)
                moves |= self.move(state, batch, gradients, effective_decays, rest)
            else:
                moves = self.move(state, batch, gradients, effective_decays, tuple(before))
            velocities = {name: moves[name].velocity for name in before}
            step = Step(
                before=before,
                outputs=there.outputs,
                loss=self.reported_loss(there.loss, before, effective_decays),
                gradient=gradients,
                penalty={name: moves[name].penalty for name in before},
                velocity={name: v for name, v in velocities.items() if v is not None},
                delta={name: moves[name].delta for name in before},
                after={name: moves[name].parameter for name in before},
            )
            unzeroed = gradients if self.problem.faults.zeroing == "never" else None
            after = State(step.after, velocities, unzeroed)
        return Update(after, step, there)

    def rescheduled(self, batch: Batch) -> Batch:
        """Give the batch the lr at which this rule takes it."""
        faults = self.problem.faults
        if faults.lr_factor == 1 and faults.lr_shift == 0:
            return batch
        lr = self.problem.schedule.lr_at(batch.step + faults.lr_shift)
        return batch._replace(lr=faults.lr_factor * lr)

    def forward_backward(self, parameters: Parameters, batch: Batch) -> ForwardBackward:
        """Loss and gradient of a step's rows: the means over its micro-batches of each one's.

        One micro-batch: L = c/B Σ ℓ_i, or c Σ ℓ_i where `loss_reduction` is sum, with c the
        `loss_factor`; ∂L/∂z_i = c/B ℓ_i′, or c ℓ_i′.
        """
        outputs, rows, losses, gradients = [], [], [], []
        faults = self.problem.faults
        for index in batch.micro_batches:
            X, y = self.X[index], self.y[index]
            z = predict(X, parameters)
            row = self.row_losses(z, y)
            scale = self.problem.convention.loss_factor
            if faults.batch_divisor == "batch-size":
                scale /= self.problem.schedule.batch_size
            elif self.problem.convention.loss_reduction == "mean":
                scale /= len(y)
            outputs.append(z)
            rows.append(row)
            losses.append(float(scale * row.values.sum()))
            gradients.append(gradient(X, scale * row.dloss_dz, bias="bias" in parameters))
        parts = len(batch.micro_batches)
        if parts == 1:
            return ForwardBackward(tuple(outputs), tuple(rows), losses[0], gradients[0])
        total = {name: np.sum([one[name] for one in gradients], axis=0) for name in gradients[0]}
        if faults.accumulation == "mean":
            total = {name: g / parts for name, g in total.items()}
        return ForwardBackward(tuple(outputs), tuple(rows), sum(losses) / parts, total)

    def row_losses(self, z: Array, y: Array) -> RowLosses:
        """Give the rows' losses and slopes.

        With broadcast targets each is the mean over all of them. What is linear in y is the same
        at the targets' mean ȳ; a squared error (p − y)² has the mean (p − ȳ)² plus y's variance.
        """
        of = LOSSES[self.problem.model, self.problem.loss]
        if self.problem.faults.bce_slope == "plain" and self.problem.loss == "bce":
            of = bce_plain
        if self.problem.faults.target == "row":
            return of(z, y)
        row = of(z, np.full_like(y, y.mean()))
        spread = y.var() if self.problem.loss == "mse" else 0
        return row._replace(values=row.values + spread)

    def gradients(self, there: ForwardBackward, state: State) -> Parameters:
        """The gradient that the step takes: the pass's; with faults a multiple, or all so far."""
        factor, gradients = self.problem.faults.gradient_factor, there.gradient
        if factor != 1:
            gradients = {name: factor * g for name, g in gradients.items()}
        if state.unzeroed is not None:
            gradients = {name: state.unzeroed[name] + g for name, g in gradients.items()}
        return gradients

    def effective_decays(self, batch: Batch) -> dict[str, float]:
        """κ λ of each tensor: the factor on w in the penalty's gradient at this step."""
        convention = self.problem.convention
        divisor = {"nothing": 1, "batch": batch.size, "dataset": len(self.y)}
        factor = convention.penalty_factor / divisor[convention.divide_penalty_by]
        decays = self.problem.weight_decay
        if self.problem.faults.bias_decay == "of-weight":
            largest = max(decay for name, decay in decays.items() if not is_bias(name))
            decays = dict.fromkeys(decays, largest)
        return {
            name: factor * decay if penalized(convention, name) else 0.0
            for name, decay in decays.items()
        }

    def move(
        self,
        state: State,
        batch: Batch,
        gradients: Parameters,
        effective_decays: dict[str, float],
        names: tuple[str, ...],
    ) -> dict[str, TensorUpdate]:
        """Move some of the tensors by the optimizer's rule."""
        convention = self.problem.convention
        if convention.decay == "before-clipping":
            gradients = {
                name: g + self.penalty(effective_decays[name], state.parameters[name])
                for name, g in gradients.items()
            }
        clipped = self.clipped(gradients)
        return {
            name: sgd(
                self.options,
                convention,
                batch.lr,
                state.parameters[name],
                clipped[name],
                partial(self.penalty, effective_decays[name]),
                state.velocities[name],
            )
            for name in names
        }

    def penalty(self, effective_decay: float, w: Array) -> Array:
        """The penalty's gradient: κλ w, or κλ w/‖w‖ (0 at w = 0, as torch's norm has it).

        A fault makes it κλ alone.
        """
        if self.problem.faults.penalty_form == "constant":
            return np.full_like(w, effective_decay)
        if self.problem.convention.penalty_norm == "squared":
            return effective_decay * w
        norm = np.sqrt(np.sum(w * w))
        return effective_decay * w / norm if norm > 0 else 0 * w

    def clipped(self, gradients: Parameters) -> Parameters:
        """Clip as torch does: g · min(1, C/(‖g‖ + 1e-6)) over all tensors, or each entry to ±C."""
        if self.problem.clip_value is not None:
            limit = self.problem.clip_value
            return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}
        if self.problem.clip_norm is None:
            return gradients
        if self.problem.faults.clip_scope == "tensor":
            return {name: self.scaled_down({name: g})[name] for name, g in gradients.items()}
        return self.scaled_down(gradients)

    def scaled_down(self, gradients: Parameters) -> Parameters:
        """Scale some tensors down to the norm C that they may have together."""
        assert self.problem.clip_norm is not None
        norm = np.sqrt(sum(np.sum(g * g) for g in gradients.values()))
        factor = np.minimum(1, self.problem.clip_norm / (norm + 1e-6)).astype(self.dtype)
        return {name: g * factor for name, g in gradients.items()}

    def reported_loss(
        self, loss: float, parameters: Parameters, effective_decays: dict[str, float]
    ) -> float:
        """The data loss; with `penalty_in_loss`, plus κλ/2 ‖w‖² (or κλ ‖w‖) of each tensor."""
        convention = self.problem.convention
        if not convention.penalty_in_loss:
            return loss
        for name, w in parameters.items():
            squares = float(np.vdot(w, w))
            if convention.penalty_norm == "squared":
                loss += effective_decays[name] / 2 * squares
            else:
                loss += effective_decays[name] * math.sqrt(squares)
        return loss
