"""The scratch side: the training in NumPy, one update at a time, by any convention.

Written to read as the formulas, and to share nothing with the torch side but the problem.
"""

from __future__ import annotations

import math
from copy import copy
from functools import partial

import numpy as np

from regcheck.numerics.losses import Array, RowLosses, bce_plain, loss_of, total_weight
from regcheck.numerics.models import model_of
from regcheck.numerics.norms import clipped
from regcheck.numerics.packing import layout_of
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.rules.convention import is_bias, penalized
from regcheck.rules.models import ONE_LAYER
from regcheck.rules.optimizers.update import TensorUpdate, update
from regcheck.rules.optimizers.update_rule import StepInput
from regcheck.rules.settings import with_faults
from regcheck.trainers.numpy_state import ForwardBackward, State, Update, unchanged

Decays = dict[str, float]
"""κ λ of each tensor, its effective decay."""


class NumpyTrainer:
    """The training of a problem in NumPy. It holds the data in its dtype, and no state."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = np.dtype(problem.scratch_dtype)
        self.X = problem.X.astype(self.dtype, copy=False)
        labels = problem.y.dtype.kind == "i"  # which are indices
        self.y = problem.y if labels else problem.y.astype(self.dtype, copy=False)
        self.model = model_of(problem.architecture or ONE_LAYER)
        self.settings = with_faults(problem.settings, problem.faults)
        self.layout = layout_of({name: w.shape for name, w in problem.initial.items()})

    def by(self, problem: Problem) -> NumpyTrainer:
        """Train on the same data by another rule, that of a problem which differs in no more."""
        other = copy(self)
        other.problem = problem
        other.settings = with_faults(problem.settings, problem.faults)
        return other

    def start(self) -> State:
        """Return the state before the first step."""
        parameters = {
            name: tensor.astype(self.dtype) for name, tensor in self.problem.initial.items()
        }
        init, own = self.settings.rule.init, self.problem
        memory = {
            name: init(self.settings.of(name).options, own.convention, own.faults, w)
            for name, w in parameters.items()
        }
        return State(parameters, memory)

    def step(self, state: State, batch: Batch, known: ForwardBackward | None = None) -> Update:
        """Take one update from a state, whose parameters may be the other side's.

        Args:
            state: the parameters, and what the optimizer remembers.
            batch: the step's rows and lr.
            known: the pass over the rows at these parameters, where it is known already.
        """
        # Overflow is an outcome of the training, judged by the comparison.
        with np.errstate(all="ignore"):
            before = {
                name: tensor.astype(self.dtype, copy=False)
                for name, tensor in state.parameters.items()
            }
            state = state._replace(parameters=before)
            batch = self.rescheduled(batch)
            there = self.forward_backward(before, batch) if known is None else known
            gradients = self.gradients(there, state)
            decays = self.effective_decays(batch)
            loss = self.reported_loss(there.loss, before, decays)
            if self.problem.convention.update_order == "bias-first":
                gradients, updates = self.update_bias_first(state, batch, gradients, decays)
            else:
                updates = self.update(state, batch, gradients, decays)
            updates |= {name: unchanged(state, name) for name in there.skipped}
            step = self.step_of(there, before, gradients, updates)._replace(loss=loss)
            missed = {name: state.missed.get(name, 0) + 1 for name in there.skipped}
            unzeroed = gradients if self.problem.faults.zeroing == "never" else None
            state = State(step.after, step.memory, unzeroed, {**state.missed, **missed})
        return Update(state, step, there)

    def step_of(
        self,
        there: ForwardBackward,
        before: Parameters,
        gradients: Parameters,
        updates: dict[str, TensorUpdate],
    ) -> Step:
        """Return what a step did; its loss is the data's."""
        packed = self.layout.packed
        return Step(
            before=before,
            outputs=there.outputs,
            loss=there.loss,
            gradient=packed(gradients),
            penalty=packed({name: updates[name].penalty for name in before}),
            memory={name: updates[name].memory for name in before},
            delta=packed({name: updates[name].delta for name in before}),
            after=packed({name: updates[name].parameter for name in before}),
            skipped=there.skipped,
        )

    def rescheduled(self, batch: Batch) -> Batch:
        """Return the batch with the lr at which this rule takes it."""
        faults = self.problem.faults
        if faults.lr_factor == 1 and faults.lr_shift == 0:
            return batch
        lr = self.problem.schedule.lr_at(batch.step + faults.lr_shift)
        return batch._replace(lr=faults.lr_factor * lr)

    def forward_backward(self, parameters: Parameters, batch: Batch) -> ForwardBackward:
        """Return the loss and gradient of a step's rows: the means over its micro-batches.

        One micro-batch: L = c/B Σ ℓ_i, or c Σ ℓ_i where `loss_reduction` is sum, with c the
        `loss_factor`; ∂L/∂z_i = c/B ℓ_i′, or c ℓ_i′. B is the rows, or the sum of their weights.
        By a fault the mean is over all rows of the step: B is theirs, and the parts are added up.
        """
        outputs, rows, losses, gradients = [], [], [], []
        faults = self.problem.faults
        for index in batch.micro_batches:
            X, y = self.X[index], self.y[index]
            there = self.model.forward(X, parameters)
            row = self.row_losses(there.outputs, y)
            scale = self.problem.convention.loss_factor
            if faults.batch_divisor == "batch-size":
                scale /= self.problem.schedule.batch_size
            elif self.problem.convention.loss_reduction == "mean":
                together = faults.accumulation == "over-rows"
                of = batch.micro_batches if together else (index,)
                scale /= sum(total_weight(self.y[one], self.problem.loss_options) for one in of)
            outputs.append(there.outputs)
            rows.append(row)
            losses.append(float(scale * row.values.sum()))
            gradients.append(self.model.backward(there, scale * row.dloss_dz, parameters))
        count = len(batch.micro_batches)
        if count == 1:
            return ForwardBackward(tuple(outputs), tuple(rows), losses[0], gradients[0])
        total = {name: np.sum([one[name] for one in gradients], axis=0) for name in gradients[0]}
        if faults.accumulation == "mean":
            total = {name: g / count for name, g in total.items()}
        loss = sum(losses) if faults.accumulation == "over-rows" else sum(losses) / count
        return ForwardBackward(tuple(outputs), tuple(rows), loss, total)

    def row_losses(self, z: Array, y: Array) -> RowLosses:
        """Return the rows' losses and dℓ/dz.

        With broadcast targets each is the mean over all of them. What is linear in y is the same
        at the targets' mean ȳ; a squared error (p − y)² has the mean (p − ȳ)² plus y's variance.
        """
        problem = self.problem
        of = loss_of((problem.architecture or ONE_LAYER).head, problem.loss, problem.loss_options)
        if problem.faults.bce_slope == "plain" and problem.loss == "bce":
            of = bce_plain
        if problem.faults.target == "row":
            return of(z, y)
        row = of(z, np.full_like(y, y.mean()))
        return row._replace(values=row.values + (y.var() if problem.loss == "mse" else 0))

    def gradients(self, there: ForwardBackward, state: State) -> Parameters:
        """Return the gradient that is used: the pass's; by faults a multiple, or all so far."""
        factor, gradients = self.problem.faults.gradient_factor, there.gradient
        if factor != 1:
            gradients = {name: factor * g for name, g in gradients.items()}
        if state.unzeroed is not None:
            gradients = {name: state.unzeroed[name] + g for name, g in gradients.items()}
        return gradients

    def effective_decays(self, batch: Batch) -> Decays:
        """Return κ λ of each tensor: the factor on w in the penalty's gradient at this step."""
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

    def update(
        self, state: State, batch: Batch, gradients: Parameters, decays: Decays
    ) -> dict[str, TensorUpdate]:
        """Update all tensors by the optimizer's rule."""
        convention = self.problem.convention
        if convention.decay == "before-clipping":
            sign = -1 if self.settings.options.get("maximize", False) else 1
            gradients = {
                name: g + sign * self.penalty(decays[name], state.parameters[name])
                for name, g in gradients.items()
            }
        rule, epsilon = self.settings.rule, float(np.finfo(self.problem.framework_dtype).eps)
        found = {}
        for name, g in self.clipped(gradients).items():
            at = StepInput(
                rule.resolved(self.settings.of(name).options, epsilon),
                convention,
                self.problem.faults,
                self.lr_of(name, batch),
                batch.step - state.missed.get(name, 0),
                state.parameters[name],
                g,
                state.memory[name],
            )
            found[name] = update(rule, at, partial(self.penalty, decays[name]))
        return found

    def lr_of(self, name: str, batch: Batch) -> float:
        """Return a tensor's lr at a step: its own keeps its proportion to the schedule's."""
        own, common = self.settings.of(name).lr, self.settings.lr
        return batch.lr if own == common else batch.lr * (own / common)

    def update_bias_first(
        self, state: State, batch: Batch, gradients: Parameters, decays: Decays
    ) -> tuple[Parameters, dict[str, TensorUpdate]]:
        """Update the bias, and the rest by its gradient at the new bias; with both gradients."""
        updates = self.update(state, batch, gradients, decays)
        biases = [name for name in updates if is_bias(name)]
        moved = state.parameters | {name: updates[name].parameter for name in biases}
        late = self.gradients(self.forward_backward(moved, batch), state)
        gradients = late | {name: gradients[name] for name in biases}
        rest = self.update(state, batch, gradients, decays)
        return gradients, rest | {name: updates[name] for name in biases}

    def penalty(self, decay: float, w: Array) -> Array:
        """Return the penalty's gradient: κλ w, or κλ w/‖w‖ (0 at w = 0, as torch's norm has it).

        A fault makes it κλ alone.
        """
        if self.problem.faults.penalty_form == "constant":
            return np.full_like(w, decay)
        if self.problem.convention.penalty_norm == "squared":
            return decay * w
        norm = np.sqrt(np.sum(w * w))
        return decay * w / norm if norm > 0 else 0 * w

    def clipped(self, gradients: Parameters) -> Parameters:
        """Clip over all tensors together; by a fault each tensor by its own norm."""
        limits = self.problem.clip_norm, self.problem.clip_value
        if self.problem.faults.clip_scope == "tensor":
            return {name: clipped({name: g}, *limits)[name] for name, g in gradients.items()}
        return clipped(gradients, *limits)

    def reported_loss(self, loss: float, parameters: Parameters, decays: Decays) -> float:
        """Return the data loss; by `penalty_in_loss` plus κλ/2 ‖w‖² (or κλ ‖w‖) of each tensor."""
        convention = self.problem.convention
        if not convention.penalty_in_loss:
            return loss
        for name, w in parameters.items():
            squares = float(np.vdot(w, w))
            if convention.penalty_norm == "squared":
                loss += decays[name] / 2 * squares
            else:
                loss += decays[name] * math.sqrt(squares)
        return loss
