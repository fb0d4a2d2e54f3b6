"""The memory of a model: its parameters as NumPy views, its buffers as copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regcheck.errors import UserCodeError
from regcheck.problem.problem import Array


class Views:
    """Tensors' entries as NumPy views of their memory: reading those costs no call into torch.

    Code may put other memory in the place of a tensor's own, as `p.data = p.data - lr * p.grad`
    does. The old memory is kept until that is seen, so that no new one has its address.
    """

    def __init__(self) -> None:
        self.at: list[int] = []
        self.views: list[Array] = []

    def of(self, tensors: Collection[Tensor]) -> list[Array]:
        """Return the entries of tensors where they are now: the same list where they were there."""
        at = [x.data_ptr() for x in tensors]
        if at != self.at:
            self.at, self.views = at, [x.detach().numpy() for x in tensors]
        return self.views


class ParameterViews:
    """A model's parameters as NumPy views."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors by name."""
        self.tensors, self.views = dict(tensors), Views()
        self.kinds = [(x.shape, x.dtype) for x in self.tensors.values()]
        self.each: list[Array] = []
        self.named: dict[str, Array] = {}

    def now(self) -> dict[str, Array]:
        """Return the tensors' entries where they are now, in each tensor's shape and dtype.

        Raises:
            UserCodeError: a tensor has another shape or dtype than it had.
        """
        each = self.views.of(self.tensors.values())
        if each is not self.each:
            for (name, x), (shape, dtype) in zip(self.tensors.items(), self.kinds, strict=True):
                if (x.shape, x.dtype) != (shape, dtype):
                    raise UserCodeError(
                        f"framework: a step made {name}, {tuple(shape)} {named(dtype)}, one of "
                        f"{tuple(x.shape)} {named(x.dtype)}\n  Keep the shape and the dtype: "
                        "change it in place, as `p.sub_(lr * g)` does under torch.no_grad()."
                    )
            self.each, self.named = each, dict(zip(self.tensors, each, strict=True))
        return self.named


def named(dtype: torch.dtype) -> str:
    """Return a dtype as NumPy calls it."""
    return str(dtype).removeprefix("torch.")


class Buffers:
    """A model's buffers, which its passes change in place or put others in the place of."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model; one that has none now is taken to have none."""
        self.model, self.are_any = model, any(True for _ in model.buffers())

    def copy(self) -> dict[str, Tensor]:
        """Copy the buffers as they are now."""
        if not self.are_any:
            return {}
        return {name: x.detach().clone() for name, x in self.model.named_buffers()}

    def put(self, copies: Mapping[str, Tensor]) -> None:
        """Put other values in the place of the buffers'."""
        with torch.no_grad():
            for name, x in copies.items():
                self.model.get_buffer(name).copy_(x)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the buffers back as they were, after passes that are no step of the model."""
        copies = self.copy()
        try:
            yield
        finally:
            self.put(copies)
