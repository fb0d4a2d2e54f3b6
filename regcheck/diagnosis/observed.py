"""What a run gives to its diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from regcheck.compare.history import History
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training
from regcheck.trainers.numpy_trainer import NumpyTrainer


class Observed(NamedTuple):
    """What a run gives to its diagnosis.

    Attributes:
        history: its steps.
        torch: torch's rule in NumPy, by the settings that the framework side really has.
        sees_rows: whether NumPy can pass over the rows itself.
        training: with those settings.
        convention: what the spec says of the scratch side.
        limits: bounds that each tensor, and the loss, may differ by.
        parted: whether the parameters and the reported losses parted.
        visible: the causes that the run could have shown; None where it is not known.
        fits_float32: whether the scratch side of a float64 run gave numbers of float32 alone.
        starts_apart: whether the sides started apart.
        leads: whether the scratch side leads, so that its start is not known.
        loss_at: gives torch's loss at any parameters.
        gradient: the scratch side's own gradient at the first divergence, where it tells one.
        first: the step of the first divergence of the parameters.
        dtypes_differ: whether the sides compute in different dtypes.
    """

    history: History
    torch: NumpyTrainer
    sees_rows: bool
    training: Training
    convention: Convention
    limits: Mapping[str, float]
    parted: bool
    loss_parted: bool
    visible: frozenset[str] | None
    fits_float32: bool
    starts_apart: bool
    leads: bool
    loss_at: Callable[[Parameters, Batch], float] | None
    gradient: Parameters | None
    gradient_bound: Parameters | None
    first: int | None
    dtypes_differ: bool
