"""The one-layer models: z = X wᵀ + b, and what a slope on z is as a gradient of w and b.

X is (B, d), `weight` (1, d) and `bias` (1,) as in torch.nn.Linear; z is (B,). Without a `bias`,
z = X wᵀ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Parameters = dict[str, Array]
"""Tensors by torch's names."""


def predict(X: Array, parameters: Parameters) -> Array:
    """Z = X wᵀ + b, or X wᵀ where there is no bias."""
    z: Array = X @ parameters["weight"][0]
    return z + parameters["bias"][0] if "bias" in parameters else z


def gradient(X: Array, slopes: Array, *, bias: bool = True) -> Parameters:
    """∂L/∂w = slopesᵀ X, ∂L/∂b = Σ slopes, for slopes ∂L/∂z of shape (B,)."""
    of_weight: Parameters = {"weight": (slopes @ X)[None, :]}
    return of_weight | {"bias": slopes.sum(keepdims=True)} if bias else of_weight


def accuracy(X: Array, y: Array, parameters: Parameters) -> float | None:
    """Share of rows on whose side of ½ the logistic model is right.

    σ(z) > ½ just where z > 0. None without rows, NaN where some z is no number.
    """
    if len(y) == 0:
        return None
    z = predict(X, parameters)
    return float("nan") if np.isnan(z).any() else float(np.mean((z > 0) == (y > 0.5)))
