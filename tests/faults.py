"""The planted faults, by the catalogue's causes, and the code that has them.

The table says in the reference trainer's own words what is wrong; it knows of no convention, change
or formula of regcheck. `Planted` has a fault in the place of `NumpyTrainer`, and a
`user_functions.Code` as users write it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from regcheck.numerics.losses import RowLosses
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.trainers.numpy_state import ForwardBackward, Update
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.user_code.problem_api import user_problem
from tests.reference import Training
from tests.rule import Kept, Pair, Reported, Rule, Wrong, keys_of


class Fault(NamedTuple):
    """Something wrong in the update.

    Attributes:
        needs: what a spec must have for it to act.
        changes: fields of the rule, and what they are then.
        key: the field that holds a factor which may be anything.
    """

    needs: frozenset[str]
    changes: dict[str, Any]
    key: str | None = None

    def rule(self, factor: float = 1.01) -> Rule:
        return Rule(**(self.changes | ({self.key: factor} if self.key else {})))


def fault(needs: str = "", key: str | None = None, **changes: Any) -> Fault:
    """Make a fault; needs are words."""
    return Fault(frozenset(needs.split()), changes, key)


FAULTS: dict[str, Fault] = {
    "accumulation-last-only": fault("micro-batches", micro_batches="last"),
    "accumulation-not-averaged": fault("micro-batches", micro_batches="sum"),
    "accumulation-over-rows": fault("micro-batches uneven-steps", micro_batches="by rows"),
    "adadelta-lr-inside": fault("averaged", average="lr d"),
    "adafactor-lr-uncapped": fault("capped", capped=False),
    "adagrad-accumulator-initial": fault("squares", start=0.1),
    "adagrad-lr-decay-early": fault("lr-decay", lr_decay="this too"),
    "adagrad-lr-decay-missing": fault("lr-decay", lr_decay="none"),
    "adam-amsgrad-added": fault("no-amsgrad", amsgrad="always"),
    "adam-amsgrad-corrected": fault("amsgrad", amsgrad="of corrected"),
    "adam-amsgrad-missing": fault("amsgrad", amsgrad="never"),
    "adam-betas-swapped": fault("betas", betas="swapped"),
    "adam-bias-correction-compounded": fault("corrected", correction="kept"),
    "adam-bias-correction-late": fault("counted", counted=2),
    "adam-bias-correction-missing": fault("corrected", correction="none"),
    "adam-bias-correction-partial": fault("corrected-apart", corrected="first"),
    "adam-bias-correction-swapped": fault("corrected-apart", corrected="swapped"),
    "adam-epsilon-inside": fault("corrected-root", epsilon="inside"),
    "adam-epsilon-uncorrected": fault("corrected-root", epsilon="uncorrected"),
    "adam-moments-reset": fault("counted epochs", state="set to 0"),
    "adam-steps-not-counted": fault("counted", counts="nothing"),
    "adam-steps-per-epoch": fault("counted batches", counts="epochs"),
    "adam-steps-per-tensor": fault("counted bias", counts="tensors"),
    "adamax-norm-stale": fault("norm", norm="old"),
    "bce-saturated": fault("saturated", slope="plain"),
    "bias-not-penalized": fault("bias-decay", bias="none"),
    "bias-penalized": fault("bias-free", bias="of weight"),
    "clip-per-tensor": fault("clip-norm", clip="each"),
    "dampening-on-first-step": fault("dampening", first="dampened"),
    "decay-after-momentum": fault("decay momentum", decay="velocity"),
    "decay-after-update": fault("decay", decay="late"),
    "decay-bias-corrected": fault("decay apart", decay_rate="corrected"),
    "decay-before-clipping": fault("decay clip", decay="clipped"),
    "decay-not-scaled-by-lr": fault("decay", decay="bare"),
    "epsilon-outside": fault("epsilon-inside", epsilon="outside"),
    "gradient-accumulated": fault("", zeroed=False),
    "gradient-scaled": fault("", "gradient"),
    "last-batch-divisor": fault("uneven", reduce="nominal"),
    "learning-rate-scaled": fault("", "rate"),
    "loss-halved": fault("", half=0.5),
    "loss-summed": fault("", reduce="sum"),
    "moments-not-averaged": fault("averaging", averages="sums"),
    "moments-stale": fault("root", moments="old"),
    "momentum-dampened": fault("momentum", velocity="dampened"),
    "momentum-lr-inside": fault("momentum schedule", velocity="lr inside"),
    "momentum-missing": fault("momentum", velocity="none"),
    "muon-bfloat16-missing": fault("matrices", cast=False),
    "nesterov-added": fault("plain-momentum", nesterov="always"),
    "nesterov-missing": fault("nesterov", nesterov="never"),
    "option-differs": fault("momentum", other=(("momentum", 0.77),)),
    "optimizer-state-reset": fault("remembering epochs", state="anew"),
    "penalty-constant": fault("decay", shape="constant"),
    "penalty-coupled": fault("decay apart", decay="gradient"),
    "penalty-decoupled": fault("decay remembered", decay="apart"),
    "penalty-divided-by-batch": fault("decay", divide="rows"),
    "penalty-divided-by-dataset": fault("decay", divide="all rows"),
    "penalty-doubled": fault("decay", penalty=2.0),
    "penalty-halved": fault("decay", penalty=0.5),
    "penalty-missing": fault("decay", penalty=0.0),
    "penalty-norm-not-squared": fault("decay", shape="unit"),
    "penalty-scaled": fault("decay", "penalty"),
    "penalty-sign-flipped": fault("decay", penalty=-1.0),
    "radam-rectified-early": fault("rectified", rectified=4),
    "rmsprop-centered-added": fault("not-centered", centered="always"),
    "rmsprop-centered-missing": fault("centered", centered="never"),
    "rmsprop-epsilon-inside": fault("uncorrected-root", epsilon="inside"),
    "rprop-sign-change-stepped": fault("reversal", reversal="step"),
    "rprop-step-taken-back": fault("reversal", reversal="undo"),
    "root-missing": fault("root", root=False),
    "schedule-shifted": fault("schedule", early=1),
    "target-broadcast": fault("", target="broadcast"),
    "update-sequential": fault("", order="bias first"),
}
"""By cause, what changes the rule."""

OPEN = frozenset(cause for cause, one in FAULTS.items() if one.key)
"""The causes with a factor that may be anything."""

OUTSIDE: dict[str, frozenset[str]] = {
    "initial-parameters": frozenset(),
    "row-order": frozenset({"shuffle", "batches"}),
    "precision": frozenset({"float64"}),
    "schedule-differs": frozenset({"schedule", "batches"}),
}
"""The causes of the update that change no rule of a step, and what a spec must have for each."""


# --- in the place of regcheck's own trainer -------------------------------------------------------


OTHER_UNIT = Rule(schedule=(("per", "other"),))
"""A schedule that goes by epochs in the place of steps, or the other way round."""


class State(NamedTuple):
    """Where a planted training is."""

    parameters: Parameters
    kept: Kept


class Planted:
    """The reference trainer in the place of `NumpyTrainer`."""

    def __init__(
        self,
        problem: Problem,
        rule: Rule = Rule(),  # noqa: B008 - never changed
        report: Reported = Reported(),  # noqa: B008
        *,
        start: float = 0.0,
        reversed_rows: bool = False,
        single: bool = False,
        wrong: Wrong | None = None,
    ) -> None:
        """Take the problem and what is wrong.

        Args:
            problem: regcheck's.
            rule: what each step does.
            report: the reported loss.
            start: what is added to weight[0, 1] before the first step.
            reversed_rows: whether the rows are read from the last one backwards.
            single: whether all is computed in float32, whatever the spec says.
            wrong: what spoils the gradient.
        """
        self.problem, self.rule, self.report, self.moved_start = problem, rule, report, start
        options: Any = SimpleNamespace(optimizer=problem.optimizer)
        given = user_problem(problem, options, framework=False)
        dtype = np.float32 if single else np.dtype(problem.scratch_dtype)
        self.training = Training(given, rule, self.lr_of, dtype, wrong=wrong)
        if reversed_rows:
            self.training.X, self.training.y = self.training.X[::-1], self.training.y[::-1]

    def lr_of(self, step: int) -> float:
        """Return the lr of a step, from 0 on."""
        schedule = self.problem.schedule
        if schedule.lr_schedule is not None:
            schedule = schedule.with_keys([*keys_of(self.rule, schedule.lr_schedule.per).items()])
        return schedule.lr_at(step + 1)

    def by(self, problem: Problem) -> NumpyTrainer:
        """Try causes with regcheck's own trainer, whatever is wrong with this one."""
        return NumpyTrainer(problem)

    def start(self) -> State:
        weight, bias = self.training.start()
        if self.moved_start:
            weight[1] += self.moved_start
        return State(self.named((weight, bias)), Kept())

    def named(self, pair: Pair) -> Parameters:
        """Write a pair as torch's tensors."""
        found = {"weight": np.array(pair[0])[None, :]}
        return found | {"bias": np.array([pair[1]])} if self.training.bias else found

    def step(self, state: State, batch: Batch, known: ForwardBackward | None = None) -> Update:
        before = self.training.pair(state.parameters["weight"], state.parameters.get("bias"))
        parts = self.training.micro_batches(batch.step - 1)
        taken = self.training.step(state.kept, before, batch.step - 1, parts)
        passed, pair = taken.passed, (taken.weight, taken.bias)
        remembered = dict(zip(("weight", "bias"), taken.kept.memory, strict=True))
        gradient = self.named(taken.gradient)
        step = Step(
            before=self.named(before),
            outputs=tuple(passed.outputs),
            loss=self.training.reported(self.report, taken, before, batch.step - 1, parts),
            gradient=gradient,
            penalty=self.named((pair[0].penalty, pair[1].penalty)),
            memory={
                name: {
                    key: np.reshape(value, g.shape if np.size(value) == g.size else ())
                    for key, value in remembered[name].items()
                }
                for name, g in gradient.items()
            },
            delta=self.named((pair[0].delta, pair[1].delta)),
            after=self.named(taken.after),
        )
        rows = tuple(RowLosses(*one) for one in passed.rows)
        own = ForwardBackward(
            tuple(passed.outputs), rows, passed.own_loss, self.named(passed.gradient)
        )
        after: Any = State(step.after, taken.kept)
        return Update(after, step, own)


Plant = Callable[[Problem], Planted]

OF_CLASSES = frozenset(
    {
        "class-weights-not-averaged",
        "label-smoothing-missing",
        "label-smoothing-over-others",
    }
)
"""Causes of models with classes, which `Planted` is none of: `test_class_losses` has them."""

SHIFTED = 1e-6
"""By how much another start is off."""


def penalty_reported(problem: Problem) -> Planted:
    """Add λ/2 Σw² of each tensor to the loss."""
    decay = problem.weight_decay
    strengths = (decay["weight"], decay.get("bias", 0.0))
    return Planted(problem, report=Reported(strengths=strengths))


BUGS: dict[str, tuple[Plant, ...]] = {
    **{cause: (partial(Planted, rule=one.rule()),) for cause, one in FAULTS.items()},
    "initial-parameters": (partial(Planted, start=SHIFTED),),
    "loss-after-update": (partial(Planted, report=Reported("after")),),
    "loss-epoch-mean": (partial(Planted, report=Reported("epoch")),),
    "loss-last-micro-batch": (partial(Planted, report=Reported("last")),),
    "penalty-in-loss": (penalty_reported,),
    "precision": (partial(Planted, single=True),),
    "reported-loss-scaled": (
        partial(Planted, report=Reported(times="rows")),
        partial(Planted, report=Reported(times=0.5)),
    ),
    "row-order": (partial(Planted, reversed_rows=True),),
    "adam-bias-correction-partial": tuple(
        partial(Planted, rule=Rule(corrected=which)) for which in ("first", "second")
    ),
    "schedule-differs": (partial(Planted, rule=OTHER_UNIT),),
    "schedule-shifted": tuple(partial(Planted, rule=Rule(early=early)) for early in (1, -1)),
    "rprop-sign-change-stepped": tuple(
        partial(Planted, rule=Rule(reversal=which)) for which in ("step", "step once")
    ),
    "adagrad-accumulator-initial": tuple(
        partial(Planted, rule=Rule(start=start)) for start in (0.1, 1.0, 0.0)
    ),
}
"""By cause: the trainers that have it, one for each way to get it wrong."""
