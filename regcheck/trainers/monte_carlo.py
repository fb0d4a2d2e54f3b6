"""How far rounding can move a loss and its gradients, measured: Monte Carlo arithmetic.

For models that `rounding` has no bound for. The forward and the backward pass are repeated with
random rounding. With u the unit roundoff, each number x that an operation of torch rounds becomes

    x (1 ± u)

and each sum of n terms, of which a share c of the pairs are so close that they round alike,

    Σ t_k ± u √(n + c n²) Σ |t_k|

for what it rounds on its way: nobody sees that from without, but likely it is less in any order
(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019; `RoundingModel.terms` says why c). The signs of
an operation's entries are independent or, as often, all the same, as where numbers that are nearly
equal are rounded.

Nothing else is moved. Data, targets, parameters and constants are the same numbers on both sides;
integers, masks, indices and comparisons are no results of rounding; and copies, selections, signs
and those sums, products and quotients that come out exactly have not been rounded. (An error of
the operands as well, as in Parker's Monte Carlo Arithmetic, UCLA CSD TR 970002, 1997, is kept for
operations that cancel within, such as a normalization, where only they read it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, ValuesView
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from regcheck.numerics.norms import chosen, spread
from regcheck.numerics.rounding import FEW

aten = torch.ops.aten

SUMS: dict[Any, tuple[int, ...]] = {
    aten.addmm: (1, 2), aten.addmv: (1, 2), aten.baddbmm: (1, 2), aten.bmm: (0, 1),
    aten.convolution: (0, 1), aten.convolution_backward: (0,), aten.dot: (0, 1),
    aten.embedding_dense_backward: (0,), aten.mean: (0,), aten.mm: (0, 1), aten.mv: (0, 1),
    aten.sum: (0,),
}  # fmt: skip
"""Operations that sum products of their operands; and which operands are factors of all terms."""

MEAN_LOSSES = frozenset(
    {aten.binary_cross_entropy, aten.huber_loss, aten.mse_loss, aten.nll_loss_forward,
     aten.nll_loss2d_forward, aten.smooth_l1_loss}
)  # fmt: skip
"""Losses that sum terms of one sign within: n of them round to √n u of the result."""

EXACT = frozenset(
    {aten._unsafe_view, aten.abs, aten.amax, aten.amin, aten.argmax, aten.argmin, aten.bernoulli,
     aten.bernoulli_, aten.cat, aten.ceil, aten.clamp, aten.clamp_, aten.clamp_max, aten.clamp_max_,
     aten.clamp_min, aten.clamp_min_, aten.clone, aten.constant_pad_nd, aten.copy,
     aten.copy_, aten.cummax, aten.cummin, aten.embedding, aten.empty_like, aten.eye, aten.fill,
     aten.fill_, aten.flip, aten.floor, aten.full_like, aten.gather, aten.hardtanh, aten.hardtanh_,
     aten.index, aten.index_select, aten.masked_fill, aten.masked_fill_, aten.masked_select,
     aten.max, aten.max_pool2d_with_indices, aten.maximum, aten.median, aten.min, aten.minimum,
     aten.neg, aten.neg_, aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros,
     aten.one_hot, aten.ones_like, aten.rand_like, aten.randn_like, aten.relu, aten.relu_,
     aten.repeat, aten.roll, aten.round, aten.scatter, aten.select_backward, aten.select_scatter,
     aten.sgn, aten.sign, aten.slice_backward, aten.slice_scatter, aten.sort, aten.stack,
     aten.threshold, aten.threshold_backward, aten.topk, aten.tril, aten.triu, aten.trunc,
     aten.where, aten.zero_, aten.zeros_like}
)  # fmt: skip
"""Operations that choose, copy or compare numbers, and compute none."""

FUSED = frozenset(
    {aten._native_batch_norm_legit, aten.native_batch_norm, aten.native_batch_norm_backward,
     aten.native_group_norm, aten.native_group_norm_backward, aten.native_layer_norm,
     aten.native_layer_norm_backward, aten.std, aten.var, aten.var_mean,
     aten._scaled_dot_product_flash_attention_for_cpu,
     aten._scaled_dot_product_flash_attention_for_cpu_backward,
     aten.gelu_backward, aten.linalg_vector_norm, aten.silu_backward,
     aten.tanh_backward}
)  # fmt: skip
"""Operations that subtract what they read within, so that they lose what rounding its operands
does. They take operands of their own that are rounded."""


class Effect(NamedTuple):
    """What an operation may do: by its schema, which torch builds anew whenever it is asked for.

    Attributes:
        moves_nothing: it returns views, or exact numbers.
        names: its operands'.
        written: those of the operands that it writes to.
    """

    moves_nothing: bool
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


class RandomRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Round at random whatever an operation rounds."""

    def __init__(self, u: float, random: torch.Generator, *, alike: bool = False) -> None:
        """Round by u; `alike` where both sides compute in one dtype, so that both give σ = 1."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.u, self.random, self.alike = u, random, alike
        self.failure: Exception | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Take an operation, and round what it returns or writes to."""
        kwargs, kind, effect = kwargs or {}, func.overloadpacket, effect_of(func)
        operands = [] if effect.moves_nothing else floats((args, kwargs))
        if not operands:
            return func(*args, **kwargs)
        written = []
        if effect.written:
            named = dict(zip(effect.names, args, strict=False)) | kwargs
            written = floats([named.get(name) for name in effect.written])
        before = [x.clone() for x in written]
        read = [x for x in operands if not any(x is one for one in written)] + before
        if kind in FUSED:
            args = tree_map_only(Tensor, self.read, args)
        result = func(*args, **kwargs)
        given = {id(x): x for x in (*floats(result), *written)}.values()
        if kind in SUMS and not written:
            if not all(map(is_whole, (*given, *read))):
                for x, size in zip(floats(result), self.lost(func, args, kwargs), strict=True):
                    x.add_(size * self.signs(x))
            return result
        try:
            for x in given:
                if not (is_whole(x) and all(map(is_whole, read))):
                    self.round_(x, kind, replaced(args, written, before))
        except Exception as error:
            self.failure = error  # regcheck's own, whatever the user's code makes of it
            raise
        return result

    def round_(self, x: Tensor, kind: Any, args: tuple[Any, ...]) -> None:
        """Round a result in place: relative to itself, and by what an operation loses within."""
        signs = self.signs(x)
        moved = x + x * signs
        if kind in MEAN_LOSSES and x.numel() == 1:
            moved = x + x * signs * math.sqrt(args[0].numel())
        within = WITHIN.get(kind)
        if within is not None:
            moved = moved + within(x, args) * self.signs(x)
        inexact = INEXACT.get(kind) or (SATURATED.get(kind) if self.alike else None)
        if inexact is not None and all(isinstance(one, Tensor | int | float) for one in args[:2]):
            # Where the coarser dtype is the other side's, all that it cannot hold is rounded.
            rounds = inexact(x, *args[:2])
            if self.u > float(torch.finfo(x.dtype).eps):
                rounds |= x != x.float().to(x.dtype)
            moved = torch.where(rounds, moved, x)
        # Rounding is monotone: what is at most 1 stays so. (BCELoss refuses p > 1.)
        x.copy_(torch.where(x.abs() <= 1, moved.clamp(-1, 1), moved))

    def signs(self, x: Tensor) -> Tensor:
        """Draw u or −u: for each entry or, as often, one for all."""
        own = torch.randint(2, (), generator=self.random).item()
        ups = x.new_empty(x.shape if own else ()).bernoulli_(0.5, generator=self.random)
        signs: Tensor = ups.mul_(2 * self.u).sub_(self.u)
        return signs

    def read(self, x: Tensor) -> Tensor:
        """Return an operand rounded, for the one operation that reads it."""
        return x + x * self.signs(x) if x.is_floating_point() else x

    def lost(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return √(n + c n²) Σ |t_k| of each result, from sums of the operands' sizes and of ones.

        A single term is a product, and rounds as a result does.
        """
        factors = {key: abs(x) if isinstance(x, int | float) else x for key, x in kwargs.items()}
        sizes = floats(func(*(x.abs() if isinstance(x, Tensor) else x for x in args), **factors))
        plain = number_of_terms(func.overloadpacket, args, sizes)
        if plain is not None and plain < FEW:
            return [sizes[0] * math.sqrt(plain)]
        operands = [args[place] for place in SUMS[func.overloadpacket]]
        if plain is not None:
            return [sizes[0] * math.sqrt(plain + self.share(operands, plain) * plain**2)]
        count = aten.sum if func.overloadpacket is aten.mean else func.overloadpacket
        terms = floats(count(*tree_map_only(Tensor, ones, args)))
        most = max((float(n.max()) for n in terms), default=0.0)
        alike = self.share(operands, most) if most >= FEW else 0
        return [size * (n + alike * n * n).sqrt() for size, n in zip(sizes, terms, strict=True)]

    def share(self, factors: Iterable[Tensor], terms: float) -> float:
        """Return the share of pairs of a sum's terms that round alike."""
        return math.prod(share_alike(x, self.u * terms / 4) for x in factors)


def number_of_terms(kind: Any, args: tuple[Any, ...], results: list[Tensor]) -> int | None:
    """Return how many terms each entry of a plain sum or product has; None where it must be asked.

    (A bias counts as one, also where it is multiplied by 0.)
    """
    if len(results) != 1:
        return None
    if kind in (aten.mm, aten.bmm, aten.mv, aten.dot):
        return int(args[0].shape[-1])
    if kind in (aten.addmm, aten.addmv, aten.baddbmm):
        return int(args[1].shape[-1]) + 1
    if kind in (aten.sum, aten.mean):
        return int(args[0].numel() // max(1, results[0].numel()))
    return None


def replaced(
    args: tuple[Any, ...], written: Iterable[Tensor], before: Iterable[Tensor]
) -> tuple[Any, ...]:
    """Put what operands held before an operation wrote to them in their places."""
    held_before = {id(x): old for x, old in zip(written, before, strict=True)}
    return tuple(held_before.get(id(one), one) for one in args)


def of_log_softmax(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """Log Σ e^(z − max) is between 0 and log n: its sum's relative error is its absolute one."""
    return torch.ones_like(x)


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


def of_one(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """Where e^z − 1 or log(1 + e^z) is computed as it is written, it loses 1."""
    return torch.ones_like(x)


def of_input(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """Φ(z) as ½ (1 + erf z/√2) loses 1, and z Φ(z) loses |z|."""
    size: Tensor = args[0].abs()
    return size


def of_slope(x: Tensor, args: tuple[Any, ...]) -> Tensor:  # noqa: ARG001
    """A slope between 0 and 1, such as 1 − a² or a + 1, loses 1, times the gradient from above."""
    size: Tensor = args[0].abs()
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
    numbers = [one for one in args if isinstance(one, int)]
    return rows.sum() if numbers == [2] else rows.mean()


WITHIN: dict[Any, Callable[[Tensor, tuple[Any, ...]], Tensor]] = {
    aten._log_softmax: of_log_softmax,
    aten._log_softmax_backward_data: of_log_softmax_backward,
    aten._softmax_backward_data: of_softmax_backward,
    aten.binary_cross_entropy: of_bce,
    aten.binary_cross_entropy_with_logits: of_bce_with_logits,
    aten.elu: of_one,
    aten.elu_backward: of_slope,
    aten.gelu: of_input,
    aten.gelu_backward: of_slope,
    aten.mish_backward: of_slope,
    aten.silu_backward: of_slope,
    aten.softplus: of_one,
    aten.softplus_backward: of_slope,
    aten.tanh_backward: of_slope,
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


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split float64 numbers into halves of at most 26 bits (Veltkamp)."""
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


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


def is_whole(x: Tensor) -> bool:
    """Return whether all numbers are whole, and so small that sums of them are exact."""
    first = x[(0,) * x.ndim].item()
    if first != first // 1:  # most are not, and one number tells
        return False
    return bool(((x == x.round()) & (x.abs() < 2**20)).all())


def floats(tree: object) -> list[Tensor]:
    """List the tensors that hold floating-point numbers, in tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() and tree.numel() > 0 else []
    if isinstance(tree, dict):
        tree = tree.values()
    if isinstance(tree, tuple | list | ValuesView):
        return [x for one in tree for x in floats(one)]
    return []


def ones(x: Tensor) -> Tensor:
    """Put ones for floating-point numbers."""
    return torch.ones_like(x) if x.is_floating_point() else x


def share_alike(x: Tensor, tolerance: float) -> float:
    """Return the share of pairs of like size, among some entries that are not 0 and so round."""
    entries: NDArray[np.float64] = x.detach().numpy()
    wanted = len(chosen(entries.size))
    few = entries[np.unravel_index(spread(entries.size, 8 * wanted), entries.shape)]
    terms = few[few != 0]
    if len(terms) < wanted:  # most are 0
        terms = entries[entries != 0]
    some = terms[chosen(len(terms))].astype(np.float64)
    near = np.abs(some[:, None] - some) <= tolerance * np.abs(some)
    return (np.count_nonzero(near) - len(some)) / max(1, len(some) * (len(some) - 1))
