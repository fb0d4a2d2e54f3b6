from __future__ import annotations

from typing import get_args

import pytest

from regcheck.rules.convention import (
    KEYS,
    NAMED,
    TORCH,
    Convention,
    Decay,
    DividePenaltyBy,
    LossReduction,
    MomentumForm,
    PenaltyNorm,
    UpdateOrder,
    differences,
    name_of,
)
from regcheck.spec.sections.training import ConventionKeys

CHOICES = {
    "decay": Decay,
    "divide_penalty_by": DividePenaltyBy,
    "loss_reduction": LossReduction,
    "momentum_form": MomentumForm,
    "penalty_norm": PenaltyNorm,
    "update_order": UpdateOrder,
}


def test_keys_are_those_of_the_convention_and_of_the_spec() -> None:
    names = list(Convention._fields)
    assert sorted(KEYS) == sorted(names)
    assert list(ConventionKeys.model_fields) == names
    assert Convention(**ConventionKeys().model_dump()) == Convention() == TORCH


@pytest.mark.parametrize("key", CHOICES)
def test_every_value_of_a_key_is_told_the_default_first(key: str) -> None:
    assert set(KEYS[key].values) == set(get_args(CHOICES[key]))
    assert next(iter(KEYS[key].values)) == getattr(TORCH, key)


def test_registries_are_sorted() -> None:
    assert list(KEYS) == sorted(KEYS)
    assert list(NAMED) == sorted(NAMED)


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        # The question, the courses and the libraries that each is named for.
        ("bias-free", {"penalize_bias": "false"}),
        (
            "coursera",
            {"divide_penalty_by": "dataset", "penalize_bias": "false", "penalty_in_loss": "true"},
        ),
        ("decoupled", {"decay": "decoupled"}),
        ("divided-by-batch", {"divide_penalty_by": "batch", "penalty_in_loss": "true"}),
        ("divided-by-dataset", {"divide_penalty_by": "dataset"}),
        ("doubled", {"penalty_factor": "2"}),
        (
            "keras-l2",
            {"penalty_factor": "2", "penalize_bias": "false", "penalty_in_loss": "true"},
        ),
        ("pytorch", {}),
        (
            "sklearn-mlp",
            {"divide_penalty_by": "batch", "penalize_bias": "false", "penalty_in_loss": "true"},
        ),
    ],
)
def test_named_convention_differs_from_torch_in(name: str, differing: dict[str, str]) -> None:
    found = differences(NAMED[name].convention)
    assert {key: here for key, (here, _) in found.items()} == differing
    assert name_of(NAMED[name].convention) == name


def test_a_mixture_has_no_name_but_differences() -> None:
    mixture = TORCH._replace(loss_factor=0.5, penalty_factor=2.0)
    assert name_of(mixture) is None
    assert differences(mixture) == {"loss_factor": ("0.5", "1"), "penalty_factor": ("2", "1")}
