"""The built-in models: outputs of rows, and gradients, layer by layer.

With a_0 = X (B, d), and W_k (out, in) and b_k (out,) as in torch.nn.Linear,

    forward     z_k = a_{k−1} W_kᵀ + b_k           a_k = f(z_k), but for the last layer
    backward    δ_K = ∂L/∂z_K                      δ_{k−1} = (δ_k W_k) ∘ f′(z_{k−1})
                ∂L/∂W_k = δ_kᵀ a_{k−1}             ∂L/∂b_k = Σ_i δ_ki

The outputs are the last z: (B,) where it is one number a row, else (B, K). All is in the dtype of
the parameters; the loss is no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.losses import Array, sigmoid
from regcheck.rules.models import Architecture

Parameters = Mapping[str, Array]
"""Tensors by torch's names."""

Labels = NDArray[np.integer]


class Kept(NamedTuple):
    """What a layer keeps for the way back: the a that goes in, and the z that comes out."""

    a: Array
    z: Array


class Forward(NamedTuple):
    """Outputs of rows, and what the way back needs of each layer."""

    outputs: Array
    kept: tuple[Kept, ...]


class Model(NamedTuple):
    """A model as functions of its parameters.

    Attributes:
        forward: of X and the parameters.
        backward: of what `forward` gave, ∂L/∂outputs and the parameters: the gradients by name.
    """

    forward: Callable[[Array, Parameters], Forward]
    backward: Callable[[Forward, Array, Parameters], Parameters]


class Activation(NamedTuple):
    """a = f(z), and ∂L/∂z = ∂L/∂a ∘ f′(z) of ∂L/∂a, z and a."""

    value: Callable[[Array], Array]
    backward: Callable[[Array, Array, Array], Array]


def erf(z: Array) -> Array:
    """Return erf z = 2/√π ∫₀ᶻ e^(−t²) dt of each entry, in float64: the C library's."""
    return np.fromiter(map(math.erf, z.ravel().tolist()), np.float64, z.size).reshape(z.shape)


def normal_cdf(z: Array) -> Array:
    """Φ(z) = ½ (1 + erf(z/√2))."""
    found: Array = (0.5 * (1 + erf(z / math.sqrt(2)))).astype(z.dtype)
    return found


def normal_pdf(z: Array) -> Array:
    """φ(z) = e^(−z²/2)/√(2π)."""
    found: Array = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return found


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(
        lambda z: z * normal_cdf(z), lambda g, z, a: g * (normal_cdf(z) + z * normal_pdf(z))
    ),
    # Chosen, not multiplied: an infinite g is 0 where z is not above 0, in torch too.
    "relu": Activation(lambda z: np.maximum(z, 0), lambda g, z, a: np.where(z > 0, g, 0)),
    "sigmoid": Activation(sigmoid, lambda g, z, a: g * (a * (1 - a))),
    "tanh": Activation(np.tanh, lambda g, z, a: g * (1 - a * a)),
}


def predict(X: Array, parameters: Parameters) -> Array:
    """Z = X wᵀ + b, or X wᵀ where there is no bias, with one weight vector: (B,)."""
    z: Array = X @ parameters["weight"][0]
    return z + parameters["bias"][0] if "bias" in parameters else z


def gradient(X: Array, dL_dz: Array, *, bias: bool = True) -> Parameters:
    """∂L/∂w = (∂L/∂z)ᵀ X and ∂L/∂b = Σ ∂L/∂z_i, for ∂L/∂z of shape (B,)."""
    of_weight = {"weight": (dL_dz @ X)[None, :]}
    return of_weight | {"bias": dL_dz.sum(keepdims=True)} if bias else of_weight


def one_vector(architecture: Architecture) -> Model:
    """Return the model of one weight vector."""

    def forward(X: Array, parameters: Parameters) -> Forward:
        z = predict(X, parameters)
        return Forward(z, (Kept(X, z),))

    def backward(passed: Forward, dL_dz: Array, parameters: Parameters) -> Parameters:
        return gradient(passed.kept[0].a, dL_dz, bias=architecture.bias)

    return Model(forward, backward)


def layered(architecture: Architecture) -> Model:
    """Return the model of one layer after the other, with an activation between two."""
    prefixes = [architecture.prefix(layer) for layer in range(architecture.layers)]
    weights, biases = ([f"{prefix}{kind}" for prefix in prefixes] for kind in ("weight", "bias"))
    names, last = list(architecture.tensors()), architecture.layers - 1
    bias, numbers = architecture.bias, architecture.gives_numbers
    f = ACTIVATIONS.get(architecture.activation)

    def forward(X: Array, parameters: Parameters) -> Forward:
        a, kept = X, []
        for layer, weight in enumerate(weights):
            z = a @ parameters[weight].T
            if bias:
                z = z + parameters[biases[layer]]
            kept.append(Kept(a, z))
            if f is not None and layer != last:
                a = f.value(z)
        return Forward(z[:, 0] if numbers else z, tuple(kept))

    def backward(passed: Forward, dL_dz: Array, parameters: Parameters) -> Parameters:
        delta, found = dL_dz[:, None] if numbers else dL_dz, {}
        for layer in range(last, -1, -1):
            a = passed.kept[layer].a
            found[weights[layer]] = delta.T @ a
            if bias:
                found[biases[layer]] = delta.sum(axis=0)
            if f is not None and layer > 0:
                above = delta @ parameters[weights[layer]]
                delta = f.backward(above, passed.kept[layer - 1].z, a)
        return {name: found[name] for name in names}

    return Model(forward, backward)


MODELS: dict[str, Callable[[Architecture], Model]] = {
    "linear": one_vector,
    "logistic": one_vector,
    "mlp": layered,
    "softmax": layered,
}
"""By their names: what makes a model of its architecture."""


def model_of(architecture: Architecture) -> Model:
    """Return the model of an architecture."""
    return MODELS[architecture.name](architecture)


def outputs_of(architecture: Architecture, X: Array, parameters: Parameters) -> Array:
    """Return a model's outputs of rows: (B,), or (B, K)."""
    return model_of(architecture).forward(X, parameters).outputs


CHOICES: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "logistic": lambda z, y: (z > 0) == (y > 0.5),
    "softmax": lambda z, y: z.argmax(axis=1) == y,
}
"""By head: which rows are right. σ(z) > ½ just where z > 0, and p is largest where z is."""


def accuracy(
    architecture: Architecture, X: Array, y: Array, parameters: Parameters
) -> float | None:
    """Return the share of rows that a classifier is right about.

    None without rows, NaN where some z is no number.
    """
    if len(y) == 0:
        return None
    z = outputs_of(architecture, X, parameters)
    return float("nan") if np.isnan(z).any() else float(CHOICES[architecture.head](z, y).mean())
