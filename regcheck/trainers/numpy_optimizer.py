"""The optimizer of the scratch side: all tensors updated by a rule and a convention."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np

from regcheck.numerics.losses import Array
from regcheck.numerics.norms import clipped
from regcheck.numerics.packing import Layout, Packed
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem
from regcheck.rules.convention import is_bias
from regcheck.rules.optimizers.update import TensorUpdate, update
from regcheck.rules.optimizers.update_rule import Memory, Own, StepInput
from regcheck.trainers.numpy_state import Decays, PackedMemory, State, Updates


class NumpyOptimizer:
    """A problem's optimizer as a pair of functions, `init` and `update`. It holds no state.

    Where each entry is stepped by itself and all of them alike, they are one vector, which costs
    little more than one small tensor.
    """

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        self.settings = problem.scratch_settings
        alike = not self.settings.own and problem.faults.counted != "tensors"
        self.as_one = self.settings.rule.elementwise and alike
        self.epsilon = float(np.finfo(problem.framework_dtype).eps)

    def init(self, parameters: Packed) -> Mapping[str, Memory]:
        """Return what it remembers of each tensor before the first step."""
        init, settings = self.settings.rule.init, self.settings
        forms = self.problem.convention, self.problem.faults
        if self.as_one:
            return PackedMemory(self.layout, init(settings.options, *forms, parameters.vector))
        return {name: init(settings.of(name).options, *forms, w) for name, w in parameters.items()}

    def at_epoch(self, state: State, batch: Batch) -> State:
        """Return the state as it is kept into a new epoch: as it is, but for a fault."""
        kept = self.problem.faults.state
        if kept == "kept" or batch.batch > 1 or batch.step == 1:
            return state
        state = state._replace(
            memory=self.init(self.layout.split(self.layout.vector(state.parameters)))
        )
        return state if kept == "zeroed" else state._replace(missed={}, steps_before=batch.step - 1)

    def count(self, state: State, batch: Batch, name: str | None = None) -> int:
        """Return the number of a tensor's step, from 1; a correction may count it otherwise."""
        faults, t = self.problem.faults, batch.step - state.steps_before
        t -= 0 if name is None else state.missed.get(name, 0)
        if "counts_from" not in self.settings.rule.keys:
            return t
        if faults.counted == "tensors" and name is not None:
            places = list(self.layout.shapes)
            t = len(places) * (t - 1) + places.index(name) + 1
        elif faults.counted == "epochs":
            t = batch.epoch
        elif faults.counted == "nothing":
            return 1
        return t + faults.counts_from - 1

    def update(
        self,
        state: State,
        batch: Batch,
        gradients: Parameters,
        decays: Decays,
        skipped: Collection[str] = (),
    ) -> Updates:
        """Update all tensors by the optimizer's rule: as one where each is stepped alike."""
        if self.problem.convention.decay == "before-clipping":
            sign = -1 if self.settings.options.get("maximize", False) else 1
            gradients = {
                name: g + sign * self.penalty(decays[name], state.parameters[name])
                for name, g in gradients.items()
            }
        used, memory = self.clipped(gradients), state.memory
        if self.as_one and isinstance(memory, PackedMemory) and not skipped:
            w, g = self.layout.vector(state.parameters), self.layout.vector(used)
            own = Own(self.settings.lr, self.settings.options)
            at = self.input_of(own, batch.lr, self.count(state, batch), w, g, memory.whole)
            whole = update(self.settings.rule, at, partial(self.penalties, decays))
            return Updates.of_vector(self.layout, whole)
        found = {}
        for name, w in state.parameters.items():
            if name in skipped:
                found[name] = TensorUpdate(w, memory[name], np.zeros_like(w), np.zeros_like(w))
                continue
            own, t = self.settings.of(name), self.count(state, batch, name)
            at = self.input_of(own, batch.lr, t, w, used[name], memory[name])
            found[name] = update(self.settings.rule, at, partial(self.penalty, decays[name]))
        return Updates.of_each(found)

    def input_of(
        self, own: Own, lr: float, t: int, w: Array, g: Array, memory: Memory
    ) -> StepInput:
        """Return what step t is taken from; an lr of its own keeps its proportion to the common."""
        common = self.settings.lr
        return StepInput(
            self.settings.rule.resolved(own.options, self.epsilon),
            self.problem.convention,
            self.problem.faults,
            lr if own.lr == common else lr * (own.lr / common),
            t,
            w,
            g,
            memory,
        )

    def penalties(self, decays: Decays, w: Array) -> Array:
        """Return the penalty's gradient of all tensors' entries, each tensor's by its own κλ."""
        each = [decays[name] for name in self.layout.shapes]
        if self.problem.convention.penalty_norm == "unsquared":
            parts = zip(each, self.layout.split(w).values(), strict=True)
            return np.concatenate([self.penalty(decay, x).ravel() for decay, x in parts])
        if len(set(each)) == 1:
            return self.penalty(each[0], w)
        return self.penalty(np.repeat(np.array(each, w.dtype), self.layout.sizes), w)

    def penalty(self, decay: float | Array, w: Array) -> Array:
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
        """Clip over all tensors together; by a fault each by its own norm, or the weights alone."""
        problem, faults = self.problem, self.problem.faults
        if problem.clip_norm is None and problem.clip_value is None:
            return gradients
        limits = problem.clip_norm, problem.clip_value, faults.clip_epsilon
        if faults.clip_scope == "tensor":
            return {name: clipped({name: g}, *limits)[name] for name, g in gradients.items()}
        if faults.clip_scope == "weights":
            weights = {name: g for name, g in gradients.items() if not is_bias(name)}
            return {**gradients, **clipped(weights, *limits)}
        return clipped(gradients, *limits)
