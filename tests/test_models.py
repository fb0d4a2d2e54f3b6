"""The built-in models and the cross entropy: their formulas against torch, and as specs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.numerics import losses
from regcheck.numerics.losses import cross_entropy, log_softmax, total_weight
from regcheck.numerics.models import ACTIVATIONS, Parameters, erf, model_of
from regcheck.problem.problem import Array, Problem, build_problem
from regcheck.rules import models
from regcheck.rules.losses import LOSSES_OF_HEAD, LossOptions
from regcheck.rules.models import HEADS, MODELS, Architecture
from regcheck.spec import from_mapping
from regcheck.trainers.framework.built_in import built_in
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told

SpecDict = dict[str, Any]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
RANDOM = np.random.default_rng(11)
X = RANDOM.normal(size=(9, 3))
LABELS = [0, 1, 2, 1, 0, 2, 2, 1, 0]
TARGETS: dict[str, list[Any]] = {
    "linear": RANDOM.normal(size=9).tolist(),
    "logistic": [0.0, 1.0, 0.3, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
    "softmax": LABELS,
}
OPTIONS = [
    LossOptions(),
    LossOptions(0.1),
    LossOptions(0.0, (1.0, 0.2, 3.0)),
    LossOptions(0.3, (1.0, 0.0, 3.0)),
    LossOptions(1.0),
]


def spec_of(head: str, **more: Any) -> SpecDict:
    """A spec of an mlp, or with `model` of another model."""
    return {
        "data": {"X": X.tolist(), "y": TARGETS[head]},
        "model": {"mlp": {"hidden": [5, 4], "head": head}},
        "init": {"normal": {"std": 0.5, "seed": 3}},
        "lr": 0.1,
        "weight_decay": 0.01,
        "epochs": 12,
        "batch_size": 4,
        **more,
    }


def problem_of(spec: SpecDict) -> Problem:
    return build_problem(from_mapping(spec))


# --- the cross entropy ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("options", OPTIONS)
def test_cross_entropy_is_torchs(options: LossOptions, dtype: str) -> None:
    z = (3 * RANDOM.normal(size=(9, 3))).astype(dtype)
    y = np.array(LABELS)
    ours = cross_entropy(z, y, options)
    weight = None if options.weight is None else torch.tensor(options.weight, dtype=TYPES[dtype])
    theirs = torch.tensor(z, requires_grad=True)
    for reduction, divisor in {"mean": total_weight(y, options), "sum": 1.0}.items():
        measure = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=options[0])
        loss = measure(theirs, torch.tensor(y))
        (slope,) = torch.autograd.grad(loss, theirs)
        tolerance, found = 32 * EPS[dtype], ours.dloss_dz / divisor
        assert float(ours.values.sum()) / divisor == pytest.approx(loss.item(), rel=tolerance)
        np.testing.assert_allclose(found, slope.numpy(), rtol=0, atol=3 * tolerance)
    assert ours.values.dtype == ours.dloss_dz.dtype == z.dtype


TYPES = {"float32": torch.float32, "float64": torch.float64}


def test_cross_entropy_by_hand() -> None:
    """Of two equal logits p is ½; with label smoothing 0.2, t is (0.9, 0.1)."""
    z, y = np.array([[1.0, 1.0]]), np.array([0])
    plain = cross_entropy(z, y)
    assert plain.values.tolist() == [math.log(2)]
    assert plain.dloss_dz.tolist() == [[-0.5, 0.5]]
    smoothed = cross_entropy(z, y, LossOptions(0.2))
    assert smoothed.dloss_dz == pytest.approx(np.array([[-0.4, 0.4]]))
    weighted = cross_entropy(z, y, LossOptions(0.0, (3.0, 5.0)))
    assert weighted.values.tolist() == [3 * math.log(2)]
    assert weighted.dloss_dz.tolist() == [[-1.5, 1.5]]


@pytest.mark.parametrize("options", OPTIONS)
def test_slope_of_the_cross_entropy_is_its_derivative(options: LossOptions) -> None:
    z, y, h = RANDOM.normal(size=(9, 3)), np.array(LABELS), 1e-6
    for j in range(3):
        step = h * (np.arange(3) == j)
        above, below = (cross_entropy(z + s, y, options).values for s in (step, -step))
        slope = cross_entropy(z, y, options).dloss_dz[:, j]
        np.testing.assert_allclose((above - below) / (2 * h), slope, rtol=0, atol=1e-8)


def test_log_softmax_does_not_overflow_and_is_the_same_for_shifted_logits() -> None:
    z = np.array([[1000.0, 0.0, -1000.0]])
    assert log_softmax(z).tolist() == [[0.0, -1000.0, -2000.0]]
    np.testing.assert_allclose(log_softmax(z + 5), log_softmax(z), rtol=0, atol=1e-12)


# --- forward and backward -------------------------------------------------------------------------

ARCHITECTURES = [
    *(Architecture(name, name, bias) for name in HEADS for bias in (True, False)),
    Architecture("mlp", "linear", True, (4,), "relu"),
    Architecture("mlp", "logistic", False, (6, 3), "sigmoid"),
    Architecture("mlp", "softmax", True, (5, 4, 3), "tanh"),
    Architecture("mlp", "softmax", True, (5, 2), "gelu"),
    Architecture("mlp", "linear", False, (1,), "gelu"),
]


def start_of(architecture: Architecture, dtype: str) -> Parameters:
    shapes = architecture.shapes(3, 1 if architecture.gives_numbers else 3)
    assert list(shapes) == list(architecture.tensors())
    return {name: RANDOM.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def torchs_outputs(architecture: Architecture, w: dict[str, torch.Tensor], x: Array) -> Any:
    """Take the outputs by torch's functions, layer by layer."""
    a = torch.tensor(x)
    for layer in range(architecture.layers):
        prefix = architecture.prefix(layer)
        a = nn.functional.linear(a, w[f"{prefix}weight"], w.get(f"{prefix}bias"))
        if layer + 1 < architecture.layers:
            a = getattr(nn, models.ACTIVATIONS[architecture.activation].torch)()(a)
    return a[:, 0] if architecture.gives_numbers else a


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_outputs_and_gradients_are_torchs(architecture: Architecture, dtype: str) -> None:
    parameters, x = start_of(architecture, dtype), X.astype(dtype)
    model = model_of(architecture)
    there = model.forward(x, parameters)
    above = RANDOM.normal(size=there.outputs.shape).astype(dtype)
    ours = model.backward(there, above, parameters)
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in parameters.items()}
    outputs = torchs_outputs(architecture, tensors, x)
    (torch.tensor(above) * outputs).sum().backward()
    atol = 500 * EPS[dtype]  # sums of some dozens of terms up to 10, through up to 4 layers
    np.testing.assert_allclose(there.outputs, outputs.detach(), rtol=0, atol=atol)
    assert list(ours) == list(parameters)
    for name, g in ours.items():
        assert g.dtype == np.dtype(dtype)
        theirs = tensors[name].grad
        assert theirs is not None
        np.testing.assert_allclose(g, theirs.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_gradients_are_derivatives(architecture: Architecture) -> None:
    """By central differences of Σ c z, for each entry of each tensor."""
    parameters, model, h = start_of(architecture, "float64"), model_of(architecture), 1e-6
    there = model.forward(X, parameters)
    above = RANDOM.normal(size=there.outputs.shape)
    ours = model.backward(there, above, parameters)
    for name, w in parameters.items():
        for index in np.ndindex(w.shape):
            sides = []
            for step in (h, -h):
                moved = w.copy()
                moved[index] += step
                outputs = model.forward(X, {**parameters, name: moved}).outputs
                sides.append(float((above * outputs).sum()))
            slope = (sides[0] - sides[1]) / (2 * h)
            assert slope == pytest.approx(float(ours[name][index]), abs=2e-7), (name, index)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name: str, dtype: str) -> None:
    z = np.concatenate([np.linspace(-40, 40, 401), [0.0, -0.0, 1e-30, -1e-30]]).astype(dtype)
    theirs = torch.tensor(z, requires_grad=True)
    value = getattr(nn, models.ACTIVATIONS[name].torch)()(theirs)
    (slope,) = torch.autograd.grad(value.sum(), theirs)
    f = ACTIVATIONS[name]
    a = f.value(z)
    atol = 8 * EPS[dtype] * np.maximum(1, np.abs(z))
    assert (np.abs(a - value.detach().numpy()) <= atol).all()
    ours = f.backward(np.ones_like(z), z, a)
    assert (np.abs(ours - slope.numpy()) <= atol).all()
    assert a.dtype == ours.dtype == z.dtype


def test_relu_passes_nothing_of_an_infinite_gradient_where_it_is_off() -> None:
    z, g = np.array([-1.0, 0.0, 1.0]), np.full(3, math.inf)
    f = ACTIVATIONS["relu"]
    assert f.backward(g, z, f.value(z)).tolist() == [0.0, 0.0, math.inf]
    theirs = torch.tensor(z, requires_grad=True)
    torch.relu(theirs).backward(torch.tensor(g))  # type: ignore[no-untyped-call]
    assert told(theirs.grad).tolist() == [0.0, 0.0, math.inf]


def test_erf_is_the_c_librarys() -> None:
    z = np.array([[-1.0, 0.0], [0.3, 9.0]])
    assert erf(z).tolist() == [[math.erf(one) for one in row] for row in z]


def test_every_model_activation_and_loss_is_on_both_sides() -> None:
    from regcheck.numerics import models as own

    assert list(own.MODELS) == list(MODELS)
    assert set(own.ACTIVATIONS) == set(models.ACTIVATIONS)
    pairs = {(head, loss) for head, known in LOSSES_OF_HEAD.items() for loss in known}
    assert set(losses.LOSSES) == pairs


# --- both sides of a spec -------------------------------------------------------------------------

SPECS: list[SpecDict] = [
    spec_of("softmax", model="softmax"),
    spec_of("softmax", model="softmax", bias=False, init="zeros"),
    spec_of("softmax", loss={"cross_entropy": {"label_smoothing": 0.1, "weight": [1, 2, 0.5]}}),
    spec_of("softmax", optimizer="adamw", clip_norm=0.1, dtype="float32"),
    spec_of("logistic", loss="bce", accumulate=2),
    spec_of("logistic", loss="bce_with_logits", bias=False),
    spec_of("logistic", loss="mse"),
    spec_of("linear", optimizer={"name": "sgd", "momentum": 0.9}, shuffle={"seed": 1}),
]


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_both_sides_agree(spec: SpecDict) -> None:
    assert check(spec).verdict == "equivalent"


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_numpy_side_makes_torchs_steps(spec: SpecDict) -> None:
    """Against a plain loop of torch's own, which shares nothing with regcheck but the module."""
    problem = problem_of({**spec, "dtype": "float64"})
    module, trainer = built_in(problem), NumpyTrainer(problem)
    state = trainer.start()
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state, total = update.state, 0.0
        module.optimizer.zero_grad()
        for rows in batch.micro_batches:
            y = torch.tensor(problem.y[rows])
            y = y[:, None] if module.column else y
            loss = module.loss(module.model(torch.tensor(problem.X[rows])), y)
            (loss / len(batch.micro_batches)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(batch.micro_batches)
        if problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.model.parameters(), problem.clip_norm)
        module.optimizer.step()
        assert update.step.loss == pytest.approx(total, rel=1e-12)
    for name, w in module.tensors.items():
        np.testing.assert_allclose(state.parameters[name], w.detach(), rtol=0, atol=1e-12)
