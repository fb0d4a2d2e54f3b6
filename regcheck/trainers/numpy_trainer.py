"""The scratch side: the training in NumPy, one update at a time, by any convention.

Written to read as the formulas, and to share nothing with the torch side but the problem.
"""

from __future__ import annotations

import math
from copy import copy

import numpy as np

from regcheck.numerics.losses import Array, RowLosses, bce_plain, loss_of, total_weight
from regcheck.numerics.models import model_of
from regcheck.numerics.packing import Packed, layout_of
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.rules.convention import is_bias, penalized
from regcheck.rules.losses import LossOptions
from regcheck.rules.models import ONE_LAYER
from regcheck.trainers.numpy_optimizer import NumpyOptimizer
from regcheck.trainers.numpy_state import Decays, ForwardBackward, State, Update, Updates


class NumpyTrainer:
    """The training of a problem in NumPy. It holds the data in its dtype, and no state."""

    def __init__(self, problem: Problem) -> None:
        self.dtype = np.dtype(problem.scratch_dtype)
        self.X = problem.X.astype(self.dtype, copy=False)
        labels = problem.y.dtype.kind == "i"  # which are indices
        self.y = problem.y if labels else problem.y.astype(self.dtype, copy=False)
        self.model = model_of(problem.architecture or ONE_LAYER)
        self.layout = layout_of({name: w.shape for name, w in problem.initial.items()})
        self.follow(problem)

    def follow(self, problem: Problem) -> None:
        """Take over a problem's rule."""
        self.problem, self.optimizer = problem, NumpyOptimizer(problem, self.layout)
        self.settings = self.optimizer.settings
        self.decays: dict[int, Decays] = {}

    def by(self, problem: Problem) -> NumpyTrainer:
        """Train on the same data by another rule, that of a problem which differs in no more."""
        other = copy(self)
        other.follow(problem)
        return other

    def start(self) -> State:
        """Return the state before the first step."""
        parameters = self.in_dtype(self.problem.initial)
        return State(parameters, self.optimizer.init(parameters))

    def in_dtype(self, tensors: Parameters) -> Packed:
        """Return tensors in the trainer's dtype."""
        vector = self.layout.vector(tensors)
        if isinstance(tensors, Packed) and tensors.vector is vector and vector.dtype == self.dtype:
            return tensors
        return self.layout.split(vector.astype(self.dtype, copy=False))

    def step(self, state: State, batch: Batch, known: ForwardBackward | None = None) -> Update:
        """Take one update from a state, whose parameters may be the other side's.

        Args:
            state: the parameters, and what the optimizer remembers.
            batch: the step's rows and lr.
            known: the pass over the rows at these parameters, where it is known already.
        """
        # Overflow is an outcome of the training, judged by the comparison.
        before = self.in_dtype(state.parameters)
        batch = self.rescheduled(batch)
        there = self.forward_backward(before, batch) if known is None else known
        if before is not state.parameters:
            state = state._replace(parameters=before)
        gradients = self.layout.packed(self.gradients(there, state))
        decays = self.effective_decays(batch)
        state = self.optimizer.at_epoch(state, batch)
        if self.problem.convention.update_order == "bias-first":
            gradients, updates = self.update_bias_first(state, batch, gradients, decays)
        else:
            updates = self.optimizer.update(state, batch, gradients, decays, there.skipped)
        packed = self.layout.packed
        step = Step(
            before=before,
            outputs=there.outputs,
            loss=self.reported_loss(there.loss, before, decays),
            gradient=packed(gradients),
            penalty=packed(updates.penalty),
            memory=updates.memory,
            delta=packed(updates.delta),
            after=packed(updates.parameter),
            skipped=there.skipped,
        )
        unzeroed = gradients if self.problem.faults.zeroing == "never" else None
        missed = state.missed
        if there.skipped:
            missed = {**missed, **{name: missed.get(name, 0) + 1 for name in there.skipped}}
        state = State(step.after, step.memory, unzeroed, missed, state.steps_before)
        return Update(state, step, there)

    def rescheduled(self, batch: Batch) -> Batch:
        """Return the batch with the lr at which this rule takes it."""
        faults = self.problem.faults
        if faults.lr_factor == 1 and faults.lr_shift == 0 and not faults.lr_schedule:
            return batch
        lr = self.problem.faulty_schedule.lr_at(batch.step + faults.lr_shift)
        return batch._replace(lr=faults.lr_factor * lr)

    def forward_backward(self, parameters: Parameters, batch: Batch) -> ForwardBackward:
        """Return the loss and gradient of a step's rows: the means over its micro-batches.

        One micro-batch: L = c/B Σ ℓ_i, or c Σ ℓ_i where `loss_reduction` is sum, with c the
        `loss_factor`; ∂L/∂z_i = c/B ℓ_i′, or c ℓ_i′. B is the rows, or the sum of their weights.
        By faults the mean is over all rows of the step (B is theirs, and the parts are added up),
        or the gradient is the last micro-batch's.
        """
        outputs, rows, losses, gradients = [], [], [], []
        faults = self.problem.faults
        for index in batch.micro_batches:
            X, y = self.X[index], self.y[index]
            there = self.model.forward(X, parameters)
            row = self.row_losses(there.outputs, y)
            scale = self.problem.convention.loss_factor
            if faults.batch_divisor == "batch-size":
                scale /= self.problem.schedule.nominal_rows
            elif self.problem.convention.loss_reduction == "mean":
                together = faults.accumulation == "over-rows"
                of = batch.micro_batches if together else (index,)
                scale /= sum(divisor(self.problem, self.y[one]) for one in of)
            outputs.append(there.outputs)
            rows.append(row)
            losses.append(float(scale * row.values.sum()))
            gradients.append(self.model.backward(there, scale * row.dloss_dz, parameters))
        count = len(batch.micro_batches)
        if count == 1:
            return ForwardBackward(tuple(outputs), tuple(rows), losses[0], gradients[0])
        if faults.accumulation == "last":
            gradients = gradients[-1:]
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
        options = smoothed(problem.loss_options, problem.faults.target, z.shape[-1])
        of = loss_of((problem.architecture or ONE_LAYER).head, problem.loss, options)
        if problem.faults.bce_slope == "plain" and problem.loss == "bce":
            of = bce_plain
        if problem.faults.target != "batch-mean":
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
        if batch.size not in self.decays:
            self.decays[batch.size] = self.decays_of(batch)
        return self.decays[batch.size]

    def decays_of(self, batch: Batch) -> Decays:
        """Work out κ λ of each tensor, which depends on a step by its number of rows alone."""
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

    def update_bias_first(
        self, state: State, batch: Batch, gradients: Parameters, decays: Decays
    ) -> tuple[Parameters, Updates]:
        """Update the bias, and the rest by its gradient at the new bias; with both gradients."""
        first = self.optimizer.update(state, batch, gradients, decays)
        biases = [name for name in gradients if is_bias(name)]
        moved = {**state.parameters, **{name: first.parameter[name] for name in biases}}
        late = self.gradients(self.forward_backward(moved, batch), state)
        gradients = {**late, **{name: gradients[name] for name in biases}}
        rest = self.optimizer.update(state, batch, gradients, decays)
        return gradients, rest.replacing(first, biases)

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


def smoothed(options: LossOptions, target: str, classes: int) -> LossOptions:
    """Return a loss's options with the smoothing of a rule's targets.

    ε/(K − 1) for each of the other classes is ε K/(K − 1) of torch's, which has ε/K for all.
    """
    factors = {"unsmoothed": 0.0, "other-classes": classes / max(1, classes - 1)}
    return options._replace(label_smoothing=factors.get(target, 1.0) * options.label_smoothing)


def divisor(rule: Problem, y: Array) -> float:
    """Return what a rule's mean over some rows divides by: their class weights, or their number."""
    if rule.faults.batch_divisor == "unweighted":
        return len(y)
    return total_weight(y, rule.loss_options)
