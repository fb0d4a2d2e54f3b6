"""What a cause is: a named difference of the scratch side from torch, and what can hide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.settings import Training

Change = Mapping[str, object]
"""Keys of `Convention` and `Faults`, and the values that a cause gives them."""

Stage = Literal["initial", "forward", "gradient", "penalty", "optimizer", "update", "loss"]
"""The stages of a step in their order, and the loss that is reported beside it."""

ONE_PERCENT = 1.01
"""What a factor that may be anything is tried with: a run that misses one percent shows none."""

HIDING: dict[str, str] = {
    "bias-zero": "the bias stays 0",
    "even-micro-batches": "the micro-batches of each step have the same weight",
    "equal-targets": "all targets of each batch are equal",
    "lr-below-cap": "no lr is above 1/√t",
    "lr-unchanged": "the lr does not change in these steps",
    "lr-zero": "the lr is 0",
    "never-clipped": "no gradient is large enough to be clipped",
    "never-saturated": "no output saturates",
    "no-bias-decay": "the bias has no weight_decay",
    "no-decay": "weight_decay is 0",
    "no-step-between": "no step has 4 < N ≤ 5",
    "one-epoch": "only one epoch is compared",
    "one-micro-batch": "each step has one micro-batch",
    "one-plain-step": "only one step is compared, in which the velocity is the gradient",
    "one-row-batches": "each step has one sample",
    "one-row-losses": "each loss is that of one sample",
    "one-step": "only one step is compared",
    "one-step-epochs": "each epoch has one step",
    "one-training-row": "there is one training sample",
    "penalized-zero": "all parameters with weight_decay stay 0",
    "zero-gradient": "the gradient stays 0",
}
"""What can hide a cause from a run; `compare.not_distinguished` tests each, and lr 0 for all."""

AT_ONCE = "from step 1 on"


def always(training: Training, convention: Convention) -> bool:
    """Concern every training."""
    return True


class Cause(NamedTuple):
    """One entry of the catalogue; both sides' formulas are made from its changes.

    Attributes:
        title: what the scratch side does, where torch does not.
        changes: what makes torch's rule the cause's; each alone. A family has several, or one
            that stands for the rest. One that changes no rule, as another start, has none.
        concerns: whether a training, with torch's settings and the scratch side's convention, has
            what the cause is about.
        stage: the first at which the sides differ. What changes the lr differs in the optimizer;
            where there is a penalty too, its lr·λ w shows that first.
        since: when it shows, to follow "it shows".
        fix: what to change in the scratch code, as a request.
        fix_apart: the same where torch keeps the penalty apart from the gradient, if it is another.
        fix_by_entry: the same where only some entries differ, which are named with their numbers.
        hidden_by: what can hide it from a run, of `HIDING`, the plainest first.
        fitted: whether the change is a factor that may be anything, and is fitted.
        rare: whether it seldom comes with others, beside which it is looked for late.
        same_as: causes that together make the same numbers.
        reports: the reported loss where no change makes it, with {} for torch's.
    """

    title: str
    stage: Stage
    since: str
    fix: str
    changes: tuple[Change, ...] = ()
    concerns: Callable[[Training, Convention], bool] = always
    fix_apart: str = ""
    fix_by_entry: str = ""
    hidden_by: tuple[str, ...] = ()
    fitted: bool = False
    rare: bool = False
    same_as: tuple[str, ...] = ()
    reports: str = ""

    @property
    def kind(self) -> Literal["update", "reporting"]:
        """Whether the training differs, or only the loss that is reported."""
        return "reporting" if self.stage == "loss" else "update"

    def changing(self, torchs: Convention) -> tuple[Change, ...]:
        """Return the changes that make another rule of torch's."""
        own = torchs._asdict() | NO_FAULTS._asdict()
        return tuple(
            change
            for change in self.changes
            if any(own[key] != value for key, value in change.items())
        )

    @property
    def factor_key(self) -> str | None:
        """The key of the factor that is fitted."""
        return next(iter(self.changes[0])) if self.fitted else None


def put_in(change: Change, convention: Convention, faults: Faults) -> tuple[Convention, Faults]:
    """Return a rule with a cause's change in it."""
    chosen = {key: value for key, value in change.items() if key in Convention._fields}
    faulty = {key: value for key, value in change.items() if key in Faults._fields}
    return convention._replace(**chosen), faults._replace(**faulty)  # type: ignore[arg-type]


class Named(NamedTuple):
    """A factor that has a name of its own: in letters, and the cause that stands for it."""

    text: str
    cause: str | None = None


def named_factors(cause: str, training: Training) -> dict[float, Named]:
    """Return the factors with names that a cause's open factor may turn out to be."""
    rows, train_rows, mu = training.loss_rows[0], training.train_rows, training.settings.momentum
    found: dict[float, Named] = {}
    if cause == "penalty-scaled":
        found = {
            2.0: Named("2", "penalty-doubled"),
            0.5: Named("½", "penalty-halved"),
            0.0: Named("0", "penalty-missing"),
            -1.0: Named("−1", "penalty-sign-flipped"),
            1 / training.batch_rows[0]: Named("1/B", "penalty-divided-by-batch"),
            1 / train_rows: Named("1/n", "penalty-divided-by-dataset"),
        }
    if cause == "gradient-scaled":
        found = {0.5: Named("½", "loss-halved")}
    if cause == "learning-rate-scaled":
        found = {0.5: Named("½"), 2.0: Named("2")}
        beta1 = training.settings.options.get("betas", (0.0,))[0]
        found |= {1 / (1 - beta1): Named("1/(1 − β₁)")} if 0 < beta1 < 1 else {}
    if cause != "penalty-scaled":
        letter = "m" if training.micro_rows else "B"
        found |= {float(train_rows): Named("n"), 1 / train_rows: Named("1/n")}
        found |= {float(rows): Named(letter), 1 / rows: Named(f"1/{letter}")}
        found |= {1 - mu: Named("1 − μ"), 1 / (1 - mu): Named("1/(1 − μ)")} if 0 < mu < 1 else {}
    found.pop(1.0, None)
    return found


def in_batches(training: Training, convention: Convention) -> bool:
    """Whether a step sees some of the rows."""
    return training.batch_rows[0] < training.train_rows
