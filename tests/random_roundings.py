"""Functions run under random rounding: how far their results move, and whether they do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regcheck.trainers.measured.monte_carlo import RandomRounding

Function = Callable[[], Tensor]
U32, U64 = 2.0**-24, 2.0**-53


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(function: Function, u: float = U32, samples: int = 16) -> NDArray[np.float64]:
    """Run a function under random rounding; the largest deviation of each entry it returns."""
    plain, largest = function(), torch.zeros(())
    for seed in range(samples):
        with RandomRounding(u, random(seed)):
            moved = function()
        assert moved.dtype == plain.dtype
        largest = torch.maximum(largest, (moved.double() - plain.double()).abs())
    return largest.detach().double().numpy()


def unmoved(function: Function, samples: int = 6) -> bool:
    """Return whether a function returns the same bits under random rounding."""
    plain = function().detach()
    # Above the result's own ε, what float32 cannot hold would count as rounded.
    u = torch.finfo(plain.dtype).eps if plain.is_floating_point() else 0.5
    for seed in range(samples):
        with RandomRounding(u, random(seed)):
            moved = function()
        if moved.detach().numpy().tobytes() != plain.numpy().tobytes():
            return False
    return True
