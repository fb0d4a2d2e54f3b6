"""The built-in models: layers z_k = a_{k−1} W_kᵀ + b_k, an activation between them, and a head.

The head is what a loss takes the last z for: a number, the logit of a probability, or the logits
of classes. The one-layer models are the heads alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Shape = tuple[int, ...]

HEADS = ("linear", "logistic", "softmax")
"""What the last z may be taken for; each alone is a model of one layer."""


class Activation(NamedTuple):
    """What stands between two layers: its class in torch.nn, and the formula of a = f(z)."""

    torch: str
    formula: str


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation("GELU", "a = z Φ(z), Φ(z) = ½ (1 + erf(z/√2))"),
    "relu": Activation("ReLU", "a = max(z, 0), of slope 0 at 0"),
    "sigmoid": Activation("Sigmoid", "a = σ(z) = 1/(1 + e^(−z))"),
    "tanh": Activation("Tanh", "a = tanh z"),
}


class Architecture(NamedTuple):
    """What a built-in model is made of.

    Attributes:
        name: of the model, as a spec has it.
        head: what its outputs are taken for, of `HEADS`.
        bias: whether its layers have one.
        hidden: the units of each layer but the last.
        activation: between two layers, of `ACTIVATIONS`.
    """

    name: str
    head: str
    bias: bool = True
    hidden: tuple[int, ...] = ()
    activation: str = ""

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.hidden) + 1

    @property
    def gives_numbers(self) -> bool:
        """Whether the model's output is one number a row, and not one for each class."""
        return self.head != "softmax"

    @property
    def is_one_vector(self) -> bool:
        """Whether z = X wᵀ + b with one weight vector w, which has bounds worked out."""
        return not self.hidden and self.gives_numbers

    def prefix(self, layer: int) -> str:
        """Return what the names of a layer's tensors begin with; layers count from 0."""
        return f"layers.{layer}." if self.name == "mlp" else ""

    def tensors(self) -> Iterator[str]:
        """Yield the names of the tensors, layer by layer."""
        for layer in range(self.layers):
            yield f"{self.prefix(layer)}weight"
            if self.bias:
                yield f"{self.prefix(layer)}bias"

    def shapes(self, features: int, outputs: int) -> dict[str, Shape]:
        """Return the tensors' shapes, as torch.nn.Linear has them: (out, in), and (out,)."""
        sizes = (features, *self.hidden, outputs)
        found: dict[str, Shape] = {}
        for layer in range(self.layers):
            wide, high = sizes[layer], sizes[layer + 1]
            found[f"{self.prefix(layer)}weight"] = (high, wide)
            if self.bias:
                found[f"{self.prefix(layer)}bias"] = (high,)
        return found


ONE_LAYER = Architecture("linear", "linear")
"""What stands for a model where it is the user's own: a weight and a bias."""


class ModelText(NamedTuple):
    """What `explain` writes of a model: its title and formulas."""

    title: str
    formulas: list[str]


MODELS: dict[str, ModelText] = {
    "linear": ModelText("torch.nn.Linear with one output", ["z = X wᵀ + b"]),
    "logistic": ModelText(
        "torch.nn.Linear with one output, the logit of a probability", ["z = X wᵀ + b, p = σ(z)"]
    ),
    "mlp": ModelText(
        "torch.nn.Linear layers with an activation between two",
        [
            "forward   z_k = a_(k−1) W_kᵀ + b_k,  a_0 = X,  a_k = f(z_k)",
            "          the last z goes to the head: linear, logistic or softmax",
            "backward  δ_(k−1) = (δ_k W_k) ∘ f′(z_(k−1)),  from the last δ = ∂L/∂z",
            "          ∂L/∂W_k = δ_kᵀ a_(k−1),  ∂L/∂b_k = Σ δ_k over the samples",
            *(f"{name:<9} {one.formula}" for name, one in ACTIVATIONS.items()),
        ],
    ),
    "softmax": ModelText(
        "torch.nn.Linear with an output for each of K classes",
        ["z = X Wᵀ + b, W (K, d), b (K,),  p = e^z/Σ e^z"],
    ),
}
"""The built-in models."""
