"""The choices by which one implementation of a training differs from another.

A `Convention` is one set of such choices. Its defaults are torch's own, so that
`Convention()` is what `torch.optim.SGD` with a mean-reduced loss does; the scratch side trains by
the convention that the spec names. Adding a key here is adding a way to differ: the spec accepts
it, `explain` prints it, and the NumPy trainer must obey it.

For one parameter tensor w with data gradient g, penalty λ and learning rate lr, torch does
w ← w − lr (g + λ w)   (torch/optim/sgd.py, `_single_tensor_sgd`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

DividePenaltyBy = Literal["nothing", "batch", "dataset"]
Decay = Literal[
    "gradient",
    "after-momentum",
    "decoupled",
    "decoupled-unscaled",
    "after-update",
    "before-clipping",
]
PenaltyNorm = Literal["squared", "unsquared"]
LossReduction = Literal["mean", "sum"]
MomentumForm = Literal["torch", "dampened", "lr-inside"]
UpdateOrder = Literal["simultaneous", "bias-first"]
Epsilon = Literal["outside", "uncorrected", "inside"]
BiasCorrection = bool | Literal["compounded"]


class Convention(NamedTuple):
    """One set of choices; the defaults are torch's. `KEYS` says what each means."""

    divide_penalty_by: DividePenaltyBy = "nothing"
    penalty_factor: float = 1.0
    penalize_bias: bool = True
    decay: Decay = "gradient"
    penalty_norm: PenaltyNorm = "squared"
    penalty_in_loss: bool = False
    loss_reduction: LossReduction = "mean"
    loss_factor: float = 1.0
    momentum_form: MomentumForm = "torch"
    update_order: UpdateOrder = "simultaneous"
    epsilon: Epsilon = "outside"
    bias_correction: BiasCorrection = True
    accumulator_start: float = 0.0


class Key(NamedTuple):
    """One key of a convention: a line on what it chooses, and what each value does."""

    title: str
    values: dict[str, str]


KEYS: dict[str, Key] = {
    "accumulator_start": Key(
        "the start of the sum of squared gradients",
        {"0": "torch's initial_accumulator_value", "NUMBER": "Keras and optax start at 0.1"},
    ),
    "bias_correction": Key(
        "whether the moments are bias-corrected",
        {
            "true": "M̂ = M/(1 − β₁ᵗ), Ŝ = S/(1 − β₂ᵗ)",
            "false": "M and S, uncorrected",
            "compounded": "M̂ and Ŝ are stored in place of M and S",
        },
    ),
    "decay": Key(
        "where λ w enters the step",
        {
            "gradient": "added to the gradient, and so to the momentum: g ← g + λ w",
            "after-momentum": "added after the momentum buffer: w ← w − lr (v + λ w)",
            "decoupled": "w ← (1 − lr·λ) w before the update",
            "decoupled-unscaled": "w ← (1 − λ) w before the update, without the lr",
            "after-update": "w ← (1 − lr·λ) w after the update",
            "before-clipping": "added to the gradient before clipping, so that both are clipped",
        },
    ),
    "divide_penalty_by": Key(
        "what λ is divided by",
        {
            "nothing": "λ itself",
            "batch": "λ/B, with B the samples in this step's batch",
            "dataset": "λ/n, with n the training samples",
        },
    ),
    "epsilon": Key(
        "where ε is added",
        {
            "outside": "√Ŝ + ε",
            "uncorrected": "√S + ε, before the bias correction",
            "inside": "√(Ŝ + ε); torch's own for adadelta; adamax: max(β₂ u, |g| + ε)",
        },
    ),
    "loss_factor": Key(
        "a factor on the loss, and so on its gradient",
        {"1": "the loss itself", "NUMBER": "0.5 takes half the squared error"},
    ),
    "loss_reduction": Key(
        "how the samples' losses are reduced to one number",
        {"mean": "their mean over the batch", "sum": "their sum: the gradient is B times larger"},
    ),
    "momentum_form": Key(
        "how the velocity is computed",
        {
            "torch": "v ← μ v + g",
            "dampened": "v ← μ v + (1 − μ) g, also at step 1, in place of the dampening τ",
            "lr-inside": "v ← μ v + lr·g, then w ← w − v; differs from torch only where lr changes",
        },
    ),
    "penalize_bias": Key(
        "whether weight decay acts on the bias",
        {"true": "on weights and bias, as in torch", "false": "on the weights only"},
    ),
    "penalty_factor": Key(
        "a factor on λ w",
        {"1": "the weight-decay term is λ/2 Σw²", "NUMBER": "2 makes it λ Σw², without the ½"},
    ),
    "penalty_in_loss": Key(
        "whether the reported loss holds the weight-decay term; the training is the same",
        {"false": "the loss of the data alone, as torch reports it", "true": "with λ/2 Σw² added"},
    ),
    "penalty_norm": Key(
        "which norm the weight-decay term has",
        {
            "squared": "λ/2 ‖w‖², whose gradient is λ w",
            "unsquared": "λ ‖w‖, whose gradient is λ w/‖w‖",
        },
    ),
    "update_order": Key(
        "when each tensor's gradient is computed",
        {
            "simultaneous": "both at the old parameters",
            "bias-first": "the weight's after the bias is updated",
        },
    ),
}


class NamedConvention(NamedTuple):
    """A convention that has a name, with a line on who does it so."""

    title: str
    convention: Convention

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that it says something about; the others are torch's own, by the optimizer."""
        plain = Convention()
        return {k: x for k, x in self.convention._asdict().items() if x != getattr(plain, k)}


NAMED: dict[str, NamedConvention] = {
    "bias-free": NamedConvention(
        "as torch, but without weight decay on the bias", Convention(penalize_bias=False)
    ),
    "coursera": NamedConvention(
        "Ng's course: λ/(2n) Σw² in the loss, not for the bias",
        Convention(divide_penalty_by="dataset", penalize_bias=False, penalty_in_loss=True),
    ),
    "decoupled": NamedConvention(
        "AdamW's weight decay: lr·λ w is subtracted apart from the gradient",
        Convention(decay="decoupled"),
    ),
    "divided-by-batch": NamedConvention(
        "λ w added to the summed gradient, and all divided by the batch size",
        Convention(divide_penalty_by="batch", penalty_in_loss=True),
    ),
    "divided-by-dataset": NamedConvention(
        "λ divided by the number of training samples", Convention(divide_penalty_by="dataset")
    ),
    "doubled": NamedConvention(
        "the weight-decay term is λ Σw², without the ½", Convention(penalty_factor=2.0)
    ),
    "keras-l2": NamedConvention(
        "keras.regularizers.L2 as kernel_regularizer: l2 Σw² in the loss, not for the bias",
        Convention(penalty_factor=2.0, penalize_bias=False, penalty_in_loss=True),
    ),
    "pytorch": NamedConvention(
        "torch.optim.SGD(weight_decay=λ) with a mean-reduced loss", Convention()
    ),
    "sklearn-mlp": NamedConvention(
        "sklearn's MLPClassifier(alpha=λ): λ/(2B) Σw² in the loss, not for the bias",
        Convention(divide_penalty_by="batch", penalize_bias=False, penalty_in_loss=True),
    ),
}

TORCH = NAMED["pytorch"].convention


def is_bias(tensor: str) -> bool:
    """Whether a tensor is a bias, by the last part of its name.

    >>> is_bias("layers.0.bias"), is_bias("layers.0.weight")
    (True, False)
    """
    return tensor.rpartition(".")[2] == "bias"


def penalized(convention: Convention, tensor: str) -> bool:
    """Whether a convention's penalty acts on a tensor: always, but for a bias left out."""
    return convention.penalize_bias or not is_bias(tensor)


def differences(
    convention: Convention, torchs: Convention = TORCH, *, bias: bool = True
) -> dict[str, tuple[str, str]]:
    """Return the keys in which a convention differs from torch's: key → (its value, torch's).

    Without a bias, whether it is penalized is no difference.
    """
    return {
        key: (plain(here), plain(torch))
        for key, here, torch in zip(Convention._fields, convention, torchs, strict=True)
        if here != torch and (bias or key != "penalize_bias")
    }


def name_of(convention: Convention, torchs: Convention = TORCH) -> str | None:
    """Return the name of a convention, or None where it has none."""
    names = ("pytorch", *NAMED)
    return next((one for one in names if torchs._replace(**NAMED[one].keys) == convention), None)


def plain(value: object) -> str:
    """Write a key's value as a spec would: `true`, `batch`, `2`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
