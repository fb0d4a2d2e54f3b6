"""A problem: all that both trainers share, which is what goes in, and nothing that is computed.

That is the data in float64, the rows and the lr of each step, the start, and the settings. Each
side casts the data and the start to its own dtype, and has its own code for all that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.problem.batches import Schedule, check_shares, schedule_of
from regcheck.problem.data.load import load_rows
from regcheck.problem.data.preprocess import prepare
from regcheck.problem.start import check_range, start
from regcheck.rules.causes.cause import Change, put_in
from regcheck.rules.convention import Convention, is_bias
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.losses import LOSSES_OF_HEAD, NO_OPTIONS, LossOptions
from regcheck.rules.models import ONE_LAYER, Architecture
from regcheck.rules.optimizers.update_rule import Memory, Own
from regcheck.rules.settings import Settings, with_faults
from regcheck.spec import LoadedSpec
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.spec.sections.training import Optimizer, TorchSettings

Array = NDArray[np.floating]
Parameters = Mapping[str, Array]
"""Tensors by torch's names."""


@dataclass(frozen=True)
class Problem:
    """One training, ready to be done twice.

    X is (n, d), y (n,), the test rows likewise; `initial` holds the tensors of the model, named and
    shaped as torch has them. All are float64, but for labels of classes, which are int64 from 0
    on; `classes` are their names, where they have any. `weight_decay` is λ of each tensor.
    `own` holds the lr and the options of tensors that have them of their own. Convention and faults
    are the scratch side's.

    Where the model is the user's own, there is no `architecture`, and X and y may be (n, ..) of any
    shape; where they hold integers, which are indices and labels, they are int64, and no side
    casts them.
    """

    architecture: Architecture | None
    loss: str
    X: Array
    y: Array
    X_test: Array
    y_test: Array
    features: tuple[str, ...]
    schedule: Schedule
    initial: Parameters
    optimizer: Optimizer
    weight_decay: dict[str, float]
    clip_norm: float | None
    clip_value: float | None
    convention: Convention
    scratch_dtype: str
    framework_dtype: str
    faults: Faults = NO_FAULTS
    own: Mapping[str, Own] = field(default_factory=dict)
    loss_options: LossOptions = NO_OPTIONS
    classes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The name of the model, as a spec has it, or that of the user's own."""
        return OWN_MODEL if self.architecture is None else self.architecture.name

    @cached_property
    def settings(self) -> Settings:
        """All settings of the optimizer."""
        settings = self.optimizer.settings(self.schedule.lr, self.weight_decay)
        return settings._replace(own=self.own)

    @cached_property
    def scratch_settings(self) -> Settings:
        """The settings by which the scratch side trains: with those faults that are others."""
        return with_faults(self.settings, self.faults)

    @property
    def faulty_schedule(self) -> Schedule:
        """The schedule with the faults in its keys; how early it is stands beside."""
        return self.schedule.with_keys(self.faults.lr_schedule)

    def with_change(self, change: Change) -> Problem:
        """Return the problem with a cause's change in the scratch side's rule."""
        convention, faults = put_in(change, self.convention, self.faults)
        return replace(self, convention=convention, faults=faults)

    def with_settings(self, settings: Settings) -> Problem:
        """Return the problem with other settings; a schedule's lrs keep their proportions."""
        return replace(
            self,
            optimizer=Optimizer.of(settings.optimizer, **settings.options),
            weight_decay=dict(settings.weight_decay),
            schedule=scaled(self.schedule, settings.lr),
            own=settings.own,
        )


OWN_MODEL = "module"
"""The model of a problem whose model, loss and optimizer are the user's own."""


def with_torch_settings(problem: Problem, settings: TorchSettings | None) -> Problem:
    """Return the problem as torch is to train it, where a spec has settings for torch alone."""
    if settings is None:
        return problem
    decays, schedule = problem.weight_decay, problem.schedule
    if settings.weight_decay is not None:
        decays = settings.weight_decay.of(decays)
    if settings.lr is not None:
        schedule = scaled(schedule, settings.lr)
    optimizer = settings.optimizer or problem.optimizer
    return replace(problem, optimizer=optimizer, weight_decay=decays, schedule=schedule)


def scaled(schedule: Schedule, lr: float) -> Schedule:
    """Return a schedule with another lr: a floor, and each lr of a list, go with it."""
    kind = schedule.lr_schedule
    if kind is not None and schedule.lr:
        times = lr / schedule.lr
        values, floor = kind.values, kind.floor
        changes = {
            "values": values and [times * value for value in values],
            "floor": floor and times * floor,
        }
        kind = kind.model_copy(update=changes)
    return replace(schedule, lr=lr, lr_schedule=kind)


class Step(NamedTuple):
    """What one update did, as either trainer reports it; None and {} where it does not.

    A user's code reports its parameters, and of the rest what it likes.

    Attributes:
        before, after: the parameters around the update.
        outputs: the model's output z of each micro-batch, (B,) each, or (B, K).
        loss: the loss as this side reports it.
        gradient: the data gradient, as the loss gives it: before clipping, without the penalty.
        penalty: what the penalty alone subtracts from each parameter, learning rate included.
        memory: what the optimizer remembers of each tensor after the update, in this side's form.
        delta: what the optimizer subtracts in all.
        skipped: tensors that the optimizer leaves as they are, whatever their decay: they are not
            trained, or nothing in this step's loss depends on them.
    """

    before: Parameters
    outputs: tuple[Array, ...] | None
    loss: float | None
    gradient: Parameters | None
    penalty: Parameters | None
    memory: Mapping[str, Memory]
    delta: Parameters | None
    after: Parameters
    skipped: frozenset[str] = frozenset()

    @property
    def velocity(self) -> Parameters:
        """The momentum buffer of each tensor that has one."""
        key = "momentum_buffer"
        return {name: known[key] for name, known in self.memory.items() if key in known}


def build_problem(loaded: LoadedSpec) -> Problem:
    """Load the data of a spec and make its problem.

    Raises:
        InputError: the data are not as the spec says, or the start does not fit them.
    """
    spec = loaded.spec
    rows = load_rows(loaded)
    split = prepare(loaded, rows)
    features = split.X[0].size
    shapes = (spec.architecture or ONE_LAYER).shapes(features, max(1, len(rows.classes)))
    initial = start(loaded, spec.init, shapes)
    check_range(loaded, split.X, split.y, initial)
    check_shares(loaded, len(split.y))
    return Problem(
        architecture=spec.architecture,
        loss=spec.loss_name,
        X=split.X,
        y=split.y,
        X_test=split.X_test,
        y_test=split.y_test,
        features=rows.features,
        schedule=schedule_of(spec, len(split.y)),
        initial=initial,
        optimizer=spec.optimizer,
        weight_decay=spec.decays,
        clip_norm=spec.clip_norm,
        clip_value=spec.clip_value,
        convention=spec.named_convention(),
        scratch_dtype=spec.dtype.scratch,
        framework_dtype=spec.dtype.framework,
        loss_options=spec.loss_options,
        classes=rows.classes,
    )


SMALL_ROWS = 12
"""Rows of a small problem; the epochs are half as many."""

AS_IT_IS = "as it is"
"""The small problem with a problem's own settings."""


def small_problems(problem: Problem) -> dict[str, Problem]:
    """Return problems of a few rows with a problem's settings: what is changed in them → each."""
    base = small_problem(problem)
    own = base.schedule
    lr_schedule = LrSchedule(kind="step", every=2, factor=0.5, per="step")
    momentum, options = base, base.optimizer.options
    own_momentum = options.get("momentum", 0.0)
    if "momentum" in options:
        other = {**options, "momentum": 0.5 * own_momentum} if own_momentum else {"momentum": 0.9}
        momentum = replace(base, optimizer=Optimizer.of(base.optimizer.name, **other))
    decays = base.weight_decay
    another = "another " if any(decays.values()) else ""
    if base.settings.rule.weight_decay:
        decays = {name: 1.7 * (decay or 0.1) for name, decay in decays.items()}
    varying = replace(own, lr_schedule=lr_schedule)
    return {
        AS_IT_IS: base,
        "mini-batches": replace(base, schedule=replace(own, batch_size=4)),
        "mini-batches with a smaller last one": replace(base, schedule=replace(own, batch_size=5)),
        "another lr": replace(base, schedule=replace(own, lr=0.7 * own.lr)),
        f"{another}weight_decay": replace(base, weight_decay=decays),
        "an lr schedule": replace(base, schedule=varying),
        (name := "another momentum" if own_momentum else "momentum"): momentum,
        f"{name} and an lr schedule": replace(momentum, schedule=varying),
    }


def small_problem(problem: Problem) -> Problem:
    """Make a problem of a few rows with a problem's settings, away from zero."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(SMALL_ROWS, 2))
    own, decay = problem.schedule, problem.weight_decay
    schedule = replace(
        own,
        rows=SMALL_ROWS,
        epochs=SMALL_ROWS // 2,
        batch_size=SMALL_ROWS if own.batch_size >= own.rows else 4,
        accumulate=min(own.accumulate, 2),
        processes=min(own.processes, 2),
        drop_last=False,
        shuffle_seed=None,
        lr=own.lr or 0.1,
    )
    bias = any(map(is_bias, decay)) and not problem.settings.rule.matrices
    architecture = problem.architecture or ONE_LAYER._replace(bias=bias)
    shapes = architecture.shapes(X.shape[1], max(1, len(problem.classes)))
    if problem.architecture is None:  # of its tensors, the formulas know a weight and a bias
        decay = {name: largest_decay(decay, bias=is_bias(name)) for name in shapes}
    return replace(
        problem,
        architecture=architecture,
        loss=problem.loss or LOSSES_OF_HEAD["linear"][0],
        X=X,
        y=small_targets(architecture.head, len(problem.classes)),
        schedule=schedule,
        initial={name: draw.normal(size=shape) for name, shape in shapes.items()},
        weight_decay=decay,
        own={},
        scratch_dtype="float64",
        framework_dtype="float64",
    )


def small_targets(head: str, classes: int) -> Array:
    """Return targets for a small problem."""
    numbers = np.arange(SMALL_ROWS)
    y: Array = numbers % 3 / 2.0
    of_head: dict[str, Array] = {"logistic": (y > 0.25).astype(np.float64), "linear": y}
    return of_head[head] if head in of_head else (numbers % classes).astype(np.int64)


def largest_decay(decays: Mapping[str, float], *, bias: bool) -> float:
    """Return the largest λ of the biases, or of the other tensors; of all where there is none."""
    own = [decay for name, decay in decays.items() if is_bias(name) == bias]
    return max(own or decays.values(), default=0.0)
