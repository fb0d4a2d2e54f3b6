"""The one-layer models: z = X wᵀ + b, and what a slope on z is as a gradient of w and b.

X is (B, d), `weight` (1, d) and `bias` (1,) as in torch.nn.Linear; z is (B,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Parameters = dict[str, Array]
"""Tensors by torch's names."""


def predict(X: Array, parameters: Parameters) -> Array:
    """Z = X wᵀ + b."""
    z: Array = X @ parameters["weight"][0] + parameters["bias"][0]
    return z


def gradient(X: Array, slopes: Array) -> Parameters:
    """∂L/∂w = slopesᵀ X, ∂L/∂b = Σ slopes, for slopes ∂L/∂z of shape (B,)."""
    return {"weight": (slopes @ X)[None, :], "bias": slopes.sum(keepdims=True)}


def accuracy(X: Array, y: Array, parameters: Parameters) -> float | None:
    """Share of rows on whose side of ½ the logistic model is right.

    σ(z) > ½ just where z > 0. None without rows, NaN where some z is no number.
    """
    if len(y) == 0:
        return None
    z = predict(X, parameters)
    return float("nan") if np.isnan(z).any() else float(np.mean((z > 0) == (y > 0.5)))
