"""Which trainings a cause concerns: those that have the settings that it is about.

Each takes a training, with torch's settings, and the scratch side's convention.
"""

from __future__ import annotations

from regcheck.rules.convention import Convention, differences, is_bias
from regcheck.rules.settings import Training

PENALTY_KEYS = frozenset(
    {"divide_penalty_by", "penalty_factor", "penalize_bias", "decay", "penalty_norm"}
    | {"penalty_in_loss"}
)
"""Keys of a convention that say something about the penalty."""


def always(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern every training."""
    return True


def penalized(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty, and specs whose convention says something about one."""
    decays = any(decay > 0 for decay in training.sgd.weight_decay.values())
    return decays or not PENALTY_KEYS.isdisjoint(differences(convention))


def with_bias(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings that have a bias."""
    return bool(bias_decays(training))


def bias_penalized(training: Training, convention: Convention) -> bool:
    """Concern trainings that have a bias which torch penalizes."""
    biases = bias_decays(training)
    return any(biases) or (bool(biases) and not convention.penalize_bias)


def bias_free(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose weights torch penalizes, and not the bias that they have."""
    weights = [decay for name, decay in training.sgd.weight_decay.items() if not is_bias(name)]
    biases = bias_decays(training)
    return any(weights) and bool(biases) and not any(biases)


def bias_decays(training: Training) -> list[float]:
    """List the weight decay of each bias."""
    return [decay for name, decay in training.sgd.weight_decay.items() if is_bias(name)]


def penalized_with_momentum(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty and momentum."""
    return training.sgd.momentum > 0 and penalized(training, convention)


def penalized_with_clipping(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty and clipping."""
    return training.clipped and penalized(training, convention)


def momentum(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum."""
    return training.sgd.momentum > 0


def dampened(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum and dampening."""
    return training.sgd.momentum > 0 and training.sgd.dampening != 0


def nesterov(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with Nesterov's momentum."""
    return training.sgd.momentum > 0 and training.sgd.nesterov


def plain_momentum(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum that is not Nesterov's."""
    return training.sgd.momentum > 0 and not training.sgd.nesterov


def momentum_with_schedule(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum whose lr changes."""
    return training.sgd.momentum > 0 and training.lr_varies


def scheduled(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose lr changes."""
    return training.lr_varies


def uneven(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with a smaller last batch."""
    return len(training.loss_rows) > 1


def in_batches(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose steps see some of the rows."""
    return training.batch_rows[0] < training.train_rows


def of_probabilities(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with torch.nn.BCELoss, which is taken of a sigmoid's output."""
    return training.loss == "bce"


def accumulating(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose steps have several micro-batches."""
    return bool(training.micro_rows)


def clipped_by_norm(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings that clip the norm of several tensors' gradients."""
    return training.clipped_by_norm and len(training.sgd.weight_decay) > 1
