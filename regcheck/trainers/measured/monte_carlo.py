"""How far rounding can move a loss and its gradients, measured: Monte Carlo arithmetic.

For models that `rounding` has no bound for: the forward and the backward pass are repeated, and
with u the unit roundoff, each number x that an operation of torch rounds becomes

    x (1 ± u)

and each sum of n terms, of which a share c of the pairs are so close that they round alike,

    Σ t_k ± u √(n + c n²) Σ |t_k|

for what it likely rounds on its way, in any order (Higham and Mary, SIAM J. Sci. Comput. 41(5),
2019; `RoundingModel.terms` says why c). The signs of an operation's entries are independent or, as
often, all the same, as where numbers that are nearly equal are rounded.

Nothing else is moved. Data, targets, parameters and constants are the same numbers on both sides;
integers, masks, indices and comparisons are no results of rounding; and copies, selections, signs
and those sums, products and quotients that come out exactly have not been rounded. (An error of
the operands as well, as in Parker's Monte Carlo Arithmetic, UCLA CSD TR 970002, 1997, is kept for
operations that cancel within, such as a normalization, where only they read it.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, ValuesView
from contextlib import nullcontext
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from regcheck.errors import UserCodeError
from regcheck.numerics.bounds.rounding import FEW
from regcheck.numerics.norms import chosen, spread
from regcheck.numerics.packing import flat
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.measured.operations import (
    FUSED,
    INEXACT,
    MEAN_LOSSES,
    SATURATED,
    SUMS,
    WITHIN,
    aten,
    effect_of,
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
        operands = [] if effect.is_exact else floats((args, kwargs))
        if not operands:
            return func(*args, **kwargs)
        written = []
        if effect.written:
            by_name = dict(zip(effect.names, args, strict=False)) | kwargs
            written = floats([by_name.get(name) for name in effect.written])
        before = {id(x): x.clone() for x in written}
        read = [x for x in operands if id(x) not in before] + list(before.values())
        if kind in FUSED:
            args = tree_map_only(Tensor, self.rounded_operand, args)
        result = func(*args, **kwargs)
        given = {id(x): x for x in (*floats(result), *written)}.values()
        if kind in SUMS and not written:
            if not all(map(is_whole, (*given, *read))):
                for x, size in zip(floats(result), self.lost(func, args, kwargs), strict=True):
                    x.add_(size * self.signs(x))
            return result
        args_before = tuple(before.get(id(one), one) for one in args)
        try:
            for x in given:
                if not (is_whole(x) and all(map(is_whole, read))):
                    self.round_(x, kind, args_before)
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

    def rounded_operand(self, x: Tensor) -> Tensor:
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
        ones = [torch.ones_like(x) if floats(x) else x for x in args]
        terms = floats(count(*ones))
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


def is_whole(x: Tensor) -> bool:
    """Whether all numbers are whole, and so small that sums of them are exact."""
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


def share_alike(x: Tensor, tolerance: float) -> float:
    """Return the share of pairs of like size, among some entries that are not 0 and so round."""
    entries: NDArray[np.float64] = x.detach().numpy()
    wanted = len(chosen(entries.size))
    few = entries[np.unravel_index(spread(entries.size, 8 * wanted), entries.shape)]
    terms = few[few != 0]
    if len(terms) < wanted:  # most are 0
        terms = entries[entries != 0]
    some = terms[chosen(len(terms))].astype(np.float64)
    with np.errstate(invalid="ignore"):  # an infinite one is like none, itself included
        near = np.abs(some[:, None] - some) <= tolerance * np.abs(some)
    np.fill_diagonal(near, True)
    return (np.count_nonzero(near) - len(some)) / max(1, len(some) * (len(some) - 1))


class Sample(NamedTuple):
    """One pass's loss, and all entries of its gradients in float64, before and after clipping."""

    loss: float
    gradient: Array
    used: Array


def sample(
    trainer: TorchTrainer,
    parameters: Parameters,
    batch: Batch,
    rounding: RandomRounding | None,
    *,
    mixed: bool,
) -> Sample:
    """Take a step's gradients once more, with random rounding; the training goes on as it was.

    Args:
        trainer: whose step it is, its last one.
        parameters: where to take them.
        batch: the rows.
        rounding: rounds at random; without it, the pass is the step's own.
        mixed: whether the sides' dtypes differ, so that each has data and parameters that are
            rounded otherwise.
    """
    try:
        found: Sample = trainer.module.guard(
            lambda: sample_unguarded(trainer, parameters, batch, rounding, mixed=mixed)
        )
    except UserCodeError:
        if rounding is not None and rounding.failure is not None:
            raise rounding.failure from None
        raise
    return found


def sample_unguarded(
    trainer: TorchTrainer,
    parameters: Parameters,
    batch: Batch,
    rounding: RandomRounding | None,
    *,
    mixed: bool,
) -> Sample:
    """Take the sample, and put all back."""
    kept, X, y = trainer.parameters(), trainer.X, trainer.y
    grads = [w.grad for w in trainer.tensors.values()]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.buffers.kept():
            trainer.place(parameters)
            trainer.buffers.put(trainer.buffers_before)
            if mixed and rounding is not None:
                trainer.X, trainer.y = (recast(one, rounding) for one in (X, y))
                for tensor in trainer.tensors.values():
                    tensor.copy_(recast(tensor, rounding))
            trainer.forget_gradients()
            with rounding or nullcontext():
                _, loss = trainer.backward(batch)
            gradient = used = flat(trainer.gradients())
            if trainer.clip():
                used = flat(trainer.gradients())
            return Sample(loss, gradient, used)
    finally:
        trainer.X, trainer.y = X, y
        trainer.place(kept)
        for tensor, grad in zip(trainer.tensors.values(), grads, strict=True):
            tensor.grad = grad


def recast(x: Tensor, rounding: RandomRounding) -> Tensor:
    """Move those numbers that are no whole ones as a cast to another dtype may have rounded them.

    Whole numbers, labels among them, are the same in both dtypes.
    """
    if not x.is_floating_point():
        return x
    return torch.where(x == x.round(), x, x + x * rounding.signs(x))


def is_random(trainer: TorchTrainer) -> bool:
    """Whether two passes over the first rows give different outputs, or losses."""
    found = []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for batch in islice(trainer.problem.schedule.batches(), 1):
            X, y = trainer.pairs(batch)[:2]
            for _ in range(2):
                with trainer.buffers.kept():
                    both = trainer.module.guard(trainer.forward, X, y)
                tensors = [x for x in both if isinstance(x, Tensor)]
                found.append([x.detach().numpy().tobytes() for x in tensors])
    random.setstate(states[0])
    np.random.set_state(states[1])
    return len(found) == 2 and found[0] != found[1]
