"""How large a local difference rounding can make, measured: Monte Carlo arithmetic.

For models and optimizers that `rounding` has no bound for. Steps are repeated with random rounding
in their forward pass, their backward pass and their optimizer. With u the unit roundoff, each
number x that an operation of torch computes, or reads from elsewhere, becomes

    x (1 ± u)

and each sum of n terms, of which a share c of the pairs are so close that they round alike,

    Σ t_k ± u √(n + c n²) Σ |t_k|

for what it rounds on its way: nobody sees that from without, but likely it is less in any order
(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019; `RoundingModel.terms` says why c). The signs of
an operation's entries are independent or, as often, all the same, as where numbers that are nearly
equal are rounded. Random errors of results and operands are Parker's (Monte Carlo Arithmetic, UCLA
CSD TR 970002, 1997): there for each operation of the processor, here for each one of torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from regcheck.norms import chosen
from regcheck.rounding import FEW

Noise = dict[str, NDArray[np.float64]]
State = dict[Tensor, dict[str, Any]]
"""An optimizer's, by parameter."""

aten = torch.ops.aten
SUMS: dict[Any, tuple[int, ...]] = {
    aten.addmm: (1, 2), aten.addmv: (1, 2), aten.baddbmm: (1, 2), aten.bmm: (0, 1),
    aten.convolution: (0, 1), aten.convolution_backward: (0,), aten.dot: (0, 1),
    aten.embedding_dense_backward: (0,), aten.mean: (0,), aten.mm: (0, 1), aten.mv: (0, 1),
    aten.sum: (0,),
}  # fmt: skip
"""Operations that sum products of their operands; and which operands are factors of all terms."""


class NoiseMeter:
    """Measures the noise of a training's steps, in order.

    Every sample takes each step from the training's parameters, but with an optimizer's state of
    its own: what rounding did to a velocity is carried from step to step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        dtype: torch.dtype,
        *,
        seed: int,
        samples: int = 16,
    ) -> None:
        """Start from the optimizer's state as it is.

        Args:
            model: the model, on the CPU.
            optimizer: any optimizer.
            dtype: the coarser one of the two sides.
            seed: of the signs.
            samples: steps with random rounding. The largest of 16 normal deviations lies between
                0.5 and 4.5 of their standard deviation, but for one time in 9,000.
        """
        self.model, self.optimizer = model, optimizer
        self.info, self.random = torch.finfo(dtype), torch.Generator().manual_seed(seed)
        self.states: list[State | None] = [None] * samples

    def measure(self, step: Callable[[], object]) -> Noise:
        """Measure how far rounding can move each entry of each parameter in the next step.

        noise = max |w′ − w|, at least 2u |w|, where the step leads to w and its samples to w′. It
        is taken by nobody: parameters, buffers, gradients, the optimizer's state and groups, and
        torch's random numbers are as before afterwards, and at the start of every sample.

        Args:
            step: takes the step; nothing else that it changes may matter to it.

        Returns:
            By name, in the parameter's shape; inf where a result is not finite.
        """
        plain, _ = self.take(step, nullcontext(), None)
        noise = {name: self.info.eps * np.abs(w) + self.info.tiny for name, w in plain.items()}
        for k, state in enumerate(self.states):
            rounding = RandomRounding(self.info.eps / 2, self.random)
            moved, self.states[k] = self.take(step, rounding, state)
            for name, w in moved.items():
                with np.errstate(invalid="ignore"):
                    noise[name] = np.maximum(noise[name], np.abs(w - plain[name]))
        return {name: np.where(np.isfinite(size), size, np.inf) for name, size in noise.items()}

    def take(
        self,
        step: Callable[[], object],
        arithmetic: AbstractContextManager[object],
        state: State | None,
    ) -> tuple[Noise, State]:
        """Take a step in some arithmetic from some state; the parameters and the state after it."""
        with undone(self.model, self.optimizer):
            if state is not None:
                self.optimizer.state.update(state)
            with arithmetic:
                step()
            named = self.model.named_parameters()
            after = {name: w.detach().double().numpy().copy() for name, w in named}
            return after, dict(self.optimizer.state)


@contextmanager
def undone(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Undo afterwards what happens to a model, an optimizer and torch's random numbers."""
    groups, state = optimizer.param_groups, dict(optimizer.state)
    options = [copy.deepcopy(group | {"params": None}) for group in groups]
    trained = (w for group in groups for w in group["params"])
    grads = {x: x.grad for x in (*model.parameters(), *model.buffers(), *trained)}
    values = {x: x.detach().clone() for x in (*grads, *grads.values()) if x is not None}
    optimizer.state.update({w: copy.deepcopy(own) for w, own in state.items()})
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for x, grad in grads.items():
            x.grad = grad
        for x, value in values.items():
            x.detach().copy_(value)
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, kept in zip(groups, options, strict=True):
            group.update(kept | {"params": group["params"]})


class RandomRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Round every number at random, once: where it is computed or, if from elsewhere, read."""

    def __init__(self, u: float, random: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.u, self.random = u, random
        # By address, which stays theirs as long as they are kept.
        self.rounded: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Take an operation, with its operands rounded, and round what it gives or writes to."""
        schema, kwargs = func._schema, kwargs or {}
        if any(one.alias_info and not one.alias_info.is_write for one in schema.returns):
            return func(*args, **kwargs)  # a view of its operand
        named = dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
        written = floats([named.get(one.name) for one in schema.arguments if one.alias_info])
        self.keep(written)  # to be rounded when they are written
        args, kwargs = tree_map_only(Tensor, self.read, (args, kwargs))
        given = func(*args, **kwargs)
        if func.overloadpacket in SUMS and not written:
            for x, size in zip(floats(given), self.lost(func, args, kwargs), strict=True):
                x.add_(size * self.signs(x))
        results = {id(x): x for x in (*floats(given), *written)}.values()
        for x in results:
            x.copy_(self.round(x))
        self.keep(results)
        return given

    def signs(self, x: Tensor) -> Tensor:
        """Draw u or −u: for each entry or, as often, one for all."""
        own = torch.randint(2, (), generator=self.random).item()
        signs = torch.randint(2, x.shape if own else (), generator=self.random) * 2 - 1
        return signs.to(x) * self.u

    def round(self, x: Tensor) -> Tensor:
        """Give x (1 ± u), and ±1 at most if |x| ≤ 1: rounding is monotone.

        (BCELoss refuses a probability above 1.)
        """
        moved = x + x * self.signs(x)
        return torch.where(x.abs() <= 1, moved.clamp(-1, 1), moved)

    def read(self, x: Tensor) -> Tensor:
        """Round an operand from elsewhere."""
        known = not x.is_floating_point() or x.untyped_storage().data_ptr() in self.rounded
        return x if known else self.round(x)

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Keep the memory of tensors as rounded."""
        storages = (x.untyped_storage() for x in tensors)
        self.rounded.update((storage.data_ptr(), storage) for storage in storages)

    def lost(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Give √(n + c n²) Σ |t_k| of each result, from sums of the operands' sizes and of ones."""
        factors = {key: abs(x) if isinstance(x, int | float) else x for key, x in kwargs.items()}
        sizes = floats(func(*tree_map_only(Tensor, torch.abs, args), **factors))
        count = aten.sum if func.overloadpacket is aten.mean else func.overloadpacket
        terms = floats(count(*tree_map_only(Tensor, ones, args)))
        most = max((float(n.max()) for n in terms), default=0.0)
        operands = [args[place] for place in SUMS[func.overloadpacket]]
        alike = math.prod(share_alike(x, self.u * most / 4) for x in operands) if most >= FEW else 0
        return [size * (n + alike * n * n).sqrt() for size, n in zip(sizes, terms, strict=True)]


def floats(tree: object) -> list[Tensor]:
    """List the tensors that hold floating-point numbers."""
    tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor))
    return [x for x in tensors if x.is_floating_point() and x.numel() > 0]


def ones(x: Tensor) -> Tensor:
    """Put ones for floating-point numbers."""
    return torch.ones_like(x) if x.is_floating_point() else x


def share_alike(x: Tensor, tolerance: float) -> float:
    """Give the share of pairs of like size, among some entries that are not 0 and so round."""
    terms = x[x != 0].double().numpy()
    some = terms[chosen(len(terms))]
    near = np.abs(some[:, None] - some) <= tolerance * np.abs(some)
    return (np.count_nonzero(near) - len(some)) / max(1, len(some) * (len(some) - 1))
