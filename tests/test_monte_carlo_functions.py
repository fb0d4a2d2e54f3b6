"""Functions that lose more than their result says: norms, softmax, and derivatives by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regcheck.trainers.framework.determinism import torch_settings
from tests.conftest import told
from tests.random_roundings import U32, noise_of, random


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_normalization_loses_what_it_subtracts_within(norm: str) -> None:
    far = torch.randn(64, 6, generator=random(), dtype=torch.float64) + 1000

    def of(x: Tensor) -> Tensor:
        if norm == "layer":
            return functional.layer_norm(x, (6,))
        return functional.batch_norm(x, None, None, training=True)

    # How data are rounded is for the sides, so that both have the float32 numbers.
    same = far.float()
    real = (of(same).double() - of(same.double())).abs().max().item()
    noise = noise_of(lambda: of(same)).max()

    assert noise > 20 * U32  # the result is of the size 1, so that without it it would be 3 u
    assert real < noise < 1e-2


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.BatchNorm1d(6)], ids=["layer", "batch"])
def test_so_do_their_gradients(norm: nn.Module) -> None:
    far = torch.randn(64, 6, generator=random(), dtype=torch.float64) + 1000
    weights = torch.randn(64, 6, generator=random(5), dtype=torch.float64)

    def gradient(dtype: torch.dtype) -> Tensor:
        x = far.float().clone().to(dtype).requires_grad_()
        (norm.to(dtype)(x) * weights.float().to(dtype)).sum().backward()
        assert x.grad is not None
        return x.grad

    real = np.abs(gradient(torch.float32).double().numpy() - gradient(torch.float64).numpy())
    noise = noise_of(lambda: gradient(torch.float32))
    norm.to(torch.float32)

    assert real.max() < noise.max() < 1e-1


def test_log_softmax_where_p_is_near_1() -> None:
    # −log p is 2e-9 and is computed as log(Σ e^z) − z, which loses u of 1, and not of 2e-9.
    z = torch.tensor([[20.0, 0.0]], dtype=torch.float64)
    noise = noise_of(lambda: functional.log_softmax(z, dim=1))[0, 0]

    assert noise == pytest.approx(U32, rel=0.01)


def test_a_cross_entropys_gradient_where_p_is_near_1() -> None:
    # p − 1 is −2e-9; by hand it is a difference from 1.
    z = torch.tensor([[20.0, 0.0]], dtype=torch.float64, requires_grad=True)

    def gradient() -> Tensor:
        z.grad = None
        functional.cross_entropy(z, torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
        return told(z.grad).clone()

    noise = noise_of(gradient)
    assert U32 <= noise[0, 0] < 4 * U32


def slope_by_hand(name: str, z: Tensor) -> Tensor:
    """Take a derivative as it is written, with a difference in it."""
    a = ACTIVATIONS[name](z)
    if name == "tanh":
        return 1 - a * a
    if name == "sigmoid":
        return a * (1 - a)
    if name == "elu":
        return torch.where(z > 0, torch.ones_like(z), a + 1)
    if name == "softplus":
        return 1 - torch.exp(-a)
    cdf = (1 + torch.erf(z / math.sqrt(2))) / 2
    if name == "gelu":
        return cdf + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    p = torch.sigmoid(z)
    return p + a * (1 - p)  # silu


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 8.0])
def test_derivatives_by_hand_in_float32_are_within_the_noise(name: str, scale: float) -> None:
    single = scale * torch.randn(400, generator=random())

    def gradient(dtype: torch.dtype) -> Tensor:
        z = single.clone().to(dtype).requires_grad_()
        ACTIVATIONS[name](z).sum().backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return z.grad

    noise = noise_of(lambda: gradient(torch.float32))
    exact = gradient(torch.float64).numpy()
    by_torch = np.abs(gradient(torch.float32).double().numpy() - exact)
    by_hand = np.abs(slope_by_hand(name, single).double().numpy() - exact)

    assert (by_torch <= 8 * noise + 1e-30).all()
    assert (by_hand <= 8 * noise + 1e-30).all()
    assert noise.max() < 40 * U32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_by_hand_are_within_the_noise(name: str) -> None:
    single = 3 * torch.randn(400, generator=random())
    by_hand: Callable[[Tensor], Tensor] = {
        "elu": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
        "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
        "sigmoid": lambda z: torch.exp(z) / (1 + torch.exp(z)),
        "silu": lambda z: z / (1 + torch.exp(-z)),
        "softplus": lambda z: torch.log(1 + torch.exp(z)),
        "tanh": lambda z: 2 / (1 + torch.exp(-2 * z)) - 1,
    }[name]
    noise = noise_of(lambda: ACTIVATIONS[name](single))
    off = np.abs((by_hand(single) - ACTIVATIONS[name](single)).double().numpy())
    near = np.abs(single.numpy()) > 0.3  # tanh by e^z loses 1 where z is near 0

    assert (off <= 8 * noise + 1e-30)[near].all()
