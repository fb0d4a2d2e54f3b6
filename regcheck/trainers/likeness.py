"""Whether a user's model and loss function are those that the spec names."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch

from regcheck.numerics.losses import UNSATURATED
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer


def is_the_specs(probe: TorchTrainer, rule: NumpyTrainer) -> bool:
    """Whether a user's pass over the first rows is that of the spec's model and loss in NumPy.

    Else what is known of the spec's loss says nothing about the user's: its formula, its gradient
    at other parameters, its rounding. The loss and the gradient are compared to √ε of the coarser
    dtype: what differs by less is rounding, or is known to no more digits. They are taken at the
    start, or so far towards 0 that no p rounds to 0 or 1, where a σ by hand has another slope.

    Args:
        probe: the user's side, at its start, where it stays.
        rule: torch's rule in NumPy, by the spec's model and loss.
    """
    batches = islice(probe.problem.schedule.batches(), 1)
    close = math.sqrt(np.finfo(probe.problem.framework_dtype).eps)
    for batch in batches:
        start = probe.parameters()
        z = rule.forward_backward(start, batch).outputs
        far = 2 * max(float(np.abs(one).max()) for one in z) / UNSATURATED
        if far > 1:
            probe.place({name: w / far for name, w in start.items()})
        parameters = probe.parameters()
        with torch.random.fork_rng(devices=[]), probe.buffers.kept():
            _, loss = probe.backward(batch)
            own = probe.gradients()
        probe.forget_gradients()
        probe.place(start)
        there = rule.forward_backward(parameters, batch)
        # A gradient that nearly cancels is rounded as its rows' terms are.
        slope = max(float(np.abs(row.dloss_dz).max()) for row in there.rows)
        term = slope * max(1.0, float(np.abs(probe.problem.X).max()))
        sizes = {name: max(term, float(np.abs(g).max())) for name, g in there.gradient.items()}
        off = [float(np.abs(own[name] - there.gradient[name]).max()) for name in sizes]
        pairs = [
            (abs(loss - there.loss), abs(there.loss)),
            *zip(off, sizes.values(), strict=True),
        ]
        if any(difference > close * size for difference, size in pairs):
            return False
    return True
