"""What each operation of torch's loses by rounding: which are exact, sums, or lose more within."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


def named(names: str) -> frozenset[Any]:
    """Return torch's operations of these names."""
    return frozenset(getattr(aten, name) for name in names.split())


SUMS: dict[Any, tuple[int, ...]] = {
    aten.addmm: (1, 2), aten.addmv: (1, 2), aten.baddbmm: (1, 2), aten.bmm: (0, 1),
    aten.convolution: (0, 1), aten.convolution_backward: (0,), aten.dot: (0, 1),
    aten.embedding_dense_backward: (0,), aten.mean: (0,), aten.mm: (0, 1), aten.mv: (0, 1),
    aten.sum: (0,),
}  # fmt: skip
"""Operations that sum products of their operands; and which operands are factors of all terms."""

MEAN_LOSSES = named("""
    binary_cross_entropy huber_loss mse_loss nll_loss_forward nll_loss2d_forward smooth_l1_loss
""")
"""Losses that sum terms of one sign within: n of them round to √n u of the result."""

EXACT = named("""
    _unsafe_view abs amax amin argmax argmin bernoulli bernoulli_ cat ceil clamp clamp_ clamp_max
    clamp_max_ clamp_min clamp_min_ clone constant_pad_nd copy copy_ cummax cummin embedding
    empty_like eye fill fill_ flip floor full_like gather hardtanh hardtanh_ index index_select
    masked_fill masked_fill_ masked_select max max_pool2d_with_indices maximum median min minimum
    neg neg_ new_empty new_full new_ones new_zeros one_hot ones_like rand_like randn_like relu relu_
    repeat roll round scatter select_backward select_scatter sgn sign slice_backward slice_scatter
    sort stack threshold threshold_backward topk tril triu trunc where zero_ zeros_like
""")
"""Operations that choose, copy or compare numbers, and compute none."""

FUSED = named("""
    _native_batch_norm_legit native_batch_norm native_batch_norm_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward std var var_mean
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
    gelu_backward linalg_vector_norm silu_backward tanh_backward
""")
"""Operations that subtract what they read within, so that they lose what rounding its operands
does. They take operands of their own that are rounded."""


class Effect(NamedTuple):
    """What an operation may do: by its schema, which torch builds anew whenever it is asked for.

    Attributes:
        is_exact: it returns views, or exact numbers.
        names: its operands'.
        written: those of the operands that it writes to.
    """

    is_exact: bool
    names: tuple[str, ...]
    written: tuple[str, ...]


@cache
def effect_of(operation: Any) -> Effect:
    """Read an operation's schema."""
    schema = operation._schema
    views = any(one.alias_info and not one.alias_info.is_write for one in schema.returns)
    return Effect(
        views or operation.overloadpacket in EXACT,
        tuple(one.name for one in schema.arguments),
        tuple(one.name for one in schema.arguments if one.alias_info),
    )


def of_one(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """e^z − 1 and log(1 + e^z), computed as they are written, lose 1.

    So does log Σ e^(z − max), which is between 0 and log n: its sum's relative error is its own
    absolute one.
    """
    return torch.ones_like(x)


def of_input(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """Z Φ(z) loses |z|, where Φ(z) = ½ (1 + erf z/√2) loses 1.

    A derivative between 0 and 1, such as 1 − a² or a + 1, loses 1, times the gradient from above.
    """
    size: Tensor = args[0].abs()
    return size


def of_log_softmax_backward(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """G − p Σ g loses |g| + p |Σ g|."""
    grad, output, dim = args[:3]
    size: Tensor = grad.abs() + output.exp() * grad.sum(dim, keepdim=True).abs()
    return size


def of_softmax_backward(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """P g − p Σ p g loses p |g| + p Σ p |g|."""
    grad, output, dim = args[:3]
    size: Tensor = output * (grad.abs() + (grad * output).abs().sum(dim, keepdim=True))
    return size


def of_bce(x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """−y log p − (1 − y) log(1 − p) loses 1 for log p, and 1/(1 − p) where 1 − p is subtracted.

    torch itself takes log1p; a formula of p, as it is written, does not.
    """
    p, y = args[:2]
    return reduced(y + (1 - y) * (1 + capped(1 / (1 - p))), x, args)


def of_bce_with_logits(x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The same where p = σ(z): 1/(1 − p) = 1 + e^z. By z alone it loses |z|."""
    z, y = args[:2]
    return reduced(1 + z.abs() + (1 - y) * capped(z.exp()), x, args)


def capped(size: Tensor) -> Tensor:
    """Cap what a logarithm loses: BCELoss takes none below −100."""
    return size.clamp(max=200 / torch.finfo(size.dtype).eps)


def reduced(rows: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Reduce the rows' sizes as a loss does: 1 is torch's number of the mean, and 2 of the sum."""
    if x.ndim:
        return rows
    return rows.sum() if [one for one in args if isinstance(one, int)] == [2] else rows.mean()


WITHIN: dict[Any, Callable[[Tensor, tuple[Any, ...]], Tensor]] = {
    aten._log_softmax: of_one,
    aten._log_softmax_backward_data: of_log_softmax_backward,
    aten._softmax_backward_data: of_softmax_backward,
    aten.binary_cross_entropy: of_bce,
    aten.binary_cross_entropy_with_logits: of_bce_with_logits,
    aten.elu: of_one,
    aten.elu_backward: of_input,
    aten.gelu: of_input,
    aten.gelu_backward: of_input,
    aten.mish_backward: of_input,
    aten.silu_backward: of_input,
    aten.softplus: of_one,
    aten.softplus_backward: of_input,
    aten.tanh_backward: of_input,
}
"""What an operation loses besides u of its result, in units of u: here, or on the other side, whose
formula of it may be another."""


def sum_rounds(x: Tensor, a: Any, b: Any) -> Tensor:
    """Find where fl(a + b) is not a + b, by Knuth's TwoSum (the operands of a − b likewise)."""
    a, b = torch.as_tensor(a, dtype=x.dtype), torch.as_tensor(b, dtype=x.dtype)
    exact = torch.zeros_like(x, dtype=torch.bool)
    for one, other in ((a, b), (a, -b), (-a, b)):
        part = x - one
        error = (one - (x - part)) + (other - part)
        exact |= (one + other == x) & (error == 0)
    return ~exact


def product_rounds(x: Tensor, a: Any, b: Any) -> Tensor:
    """Find where fl(a b) is not a b, by Dekker's product of split factors."""
    a, b = torch.as_tensor(a, dtype=x.dtype), torch.as_tensor(b, dtype=x.dtype)
    if x.dtype == torch.float32:
        rounds: Tensor = x.double() != a.double() * b.double()
        return rounds
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    error = ((a_high * b_high - x) + a_high * b_low + a_low * b_high) + a_low * b_low
    lost: Tensor = error != 0
    return lost


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split float64 numbers into halves of at most 26 bits (Veltkamp)."""
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def quotient_rounds(x: Tensor, a: Any, b: Any) -> Tensor:
    """Find where fl(a/b) is not a/b: where its product with b is not a."""
    a, b = torch.as_tensor(a, dtype=x.dtype), torch.as_tensor(b, dtype=x.dtype)
    product = x * b
    rounds: Tensor = product_rounds(product, x, b) | (product != a)
    return rounds


def cast_rounds(x: Tensor, a: Any) -> Tensor:
    """Find where a cast to another dtype is not the number itself."""
    rounds: Tensor = x.double() != a.double()
    return rounds


def sigmoid_rounds(x: Tensor, z: Tensor) -> Tensor:
    """Find where σ(z) is rounded: not where it is 1 and e^(−z) < ε/e², of 1's last digit ε.

    There every formula gives 1. It matters to BCELoss, which has lost all of 1 − p.
    """
    certain: Tensor = (x == 1) & (z > 2 - math.log(torch.finfo(x.dtype).eps))
    return ~certain


INEXACT: dict[Any, Callable[..., Tensor]] = {
    aten._to_copy: cast_rounds, aten.add: sum_rounds, aten.add_: sum_rounds,
    aten.div: quotient_rounds, aten.div_: quotient_rounds, aten.mul: product_rounds,
    aten.mul_: product_rounds, aten.rsub: sum_rounds, aten.sub: sum_rounds, aten.sub_: sum_rounds,
}  # fmt: skip
"""Where a cast, or an operation of two operands, rounds. (With an alpha they are taken to.)"""

SATURATED: dict[Any, Callable[..., Tensor]] = {
    aten.sigmoid: sigmoid_rounds, aten.sigmoid_: sigmoid_rounds,
}  # fmt: skip
"""Where a function rounds that is exact at its end, if the other side's dtype has the same end."""
