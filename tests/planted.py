"""Planted bugs: trainers that are right but for one thing, written as a person gets it wrong.

`ByHand` is torch's SGD on a one-layer model. It shares no formula with regcheck, and knows of no
convention, cause or fault: `BUGS` has its own code for each cause, which must do what the catalogue
says of it. Put in the place of `regcheck.checking.NumpyTrainer`, or run by a user's function, each
must be caught.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from regcheck.numerics.losses import RowLosses
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer, Update
from regcheck.trainers.torch_model import Module, OfLink
from regcheck.trainers.torch_trainer import TorchTrainer

Array = NDArray[np.floating]


class Memory(NamedTuple):
    """What is kept from step to step.

    `total` is the sum of all gradients so far, `losses` those of the epoch's batches.
    """

    parameters: Parameters
    velocities: dict[str, Array | None]
    total: Parameters
    losses: tuple[float, ...] = ()


class Moved(NamedTuple):
    """What a step makes of one tensor, and what its penalty and all of it subtract."""

    after: Array
    velocity: Array | None
    penalty: Array
    delta: Array


class ByHand:
    """SGD as torch has it, without a bug."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dtype = np.dtype(problem.scratch_dtype)
        self.X, self.y = problem.X.astype(self.dtype), problem.y.astype(self.dtype)
        self.decay = problem.weight_decay
        options = problem.optimizer
        self.mu, self.tau, self.nesterov = options.momentum, options.dampening, options.nesterov

    def by(self, problem: Problem) -> NumpyTrainer:
        """Causes are tried with regcheck's own trainer, whatever is wrong with this one."""
        return NumpyTrainer(problem)

    def start(self) -> Memory:
        w = {name: tensor.astype(self.dtype) for name, tensor in self.problem.initial.items()}
        return Memory(w, dict.fromkeys(w), {name: 0 * tensor for name, tensor in w.items()})

    def step(self, memory: Memory, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        with np.errstate(all="ignore"):
            w = {name: tensor.astype(self.dtype) for name, tensor in memory.parameters.items()}
            return self.update(memory, batch, w, self.look(w, batch))

    def update(self, memory: Memory, batch: Batch, w: Parameters, seen: ForwardBackward) -> Update:
        lr, gradient = self.lr(batch), self.keep(seen.gradient, memory)
        clipped = self.clip(gradient, w, batch)
        moved = {
            name: self.move(name, batch, lr, w[name], clipped[name], memory.velocities[name])
            for name in w
        }
        step = Step(
            before=w,
            outputs=seen.outputs,
            loss=self.reported(seen.loss, w),
            gradient=gradient,
            penalty={name: one.penalty for name, one in moved.items()},
            velocity={n: one.velocity for n, one in moved.items() if one.velocity is not None},
            delta={name: one.delta for name, one in moved.items()},
            after={name: one.after for name, one in moved.items()},
        )
        velocities = {name: one.velocity for name, one in moved.items()}
        total = {name: memory.total[name] + seen.gradient[name] for name in w}
        return Update(Memory(step.after, velocities, total), step, seen)  # type: ignore[arg-type]

    def lr(self, batch: Batch) -> float:
        return batch.lr

    def look(self, w: Parameters, batch: Batch) -> ForwardBackward:
        """Take the mean over the micro-batches of each one's loss and gradient."""
        outputs, rows, losses, gradients = [], [], [], []
        for index in batch.micro_batches:
            z, found, loss, gradient = self.look_at(w, self.X[index], self.y[index])
            outputs.append(z)
            rows.append(found)
            losses.append(loss)
            gradients.append(gradient)
        mean = {
            name: self.together([gradient[name] for gradient in gradients]) for name in gradients[0]
        }
        return ForwardBackward(tuple(outputs), tuple(rows), sum(losses) / len(losses), mean)

    def together(self, gradients: list[Array]) -> Array:
        return np.asarray(sum(gradients) / len(gradients))

    def look_at(
        self, w: Parameters, X: Array, y: Array
    ) -> tuple[Array, RowLosses, float, Parameters]:
        z = X @ w["weight"][0] + w["bias"][0]
        loss, slopes = self.loss(z, y)
        B = self.rows(y)
        gradient = {
            "weight": (slopes @ X / B)[None, :],
            "bias": slopes.sum(keepdims=True) / B,
        }
        return z, RowLosses(loss, slopes), float(loss.sum() / B), gradient

    def rows(self, y: Array) -> float:
        return len(y)

    def loss(self, z: Array, y: Array) -> tuple[Array, Array]:
        """Give each row's loss and its derivative."""
        if self.problem.model == "linear":
            return (z - y) ** 2, 2 * (z - y)
        p = 1 / (1 + np.exp(-z))
        if self.problem.loss == "mse":
            return (p - y) ** 2, 2 * (p - y) * p * (1 - p)
        if self.problem.loss == "bce_with_logits":
            return np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))), p - y
        # torch.nn.BCELoss: logarithms stop at −100, and the derivative divides by at least 1e-12.
        yes, no = np.maximum(np.log(p), -100), np.maximum(np.log(1 - p), -100)
        q = p * (1 - p)
        return -(y * yes + (1 - y) * no), (p - y) * (q / np.maximum(q, float(np.float32(1e-12))))

    def keep(self, gradient: Parameters, memory: Memory) -> Parameters:
        return gradient

    def clip(self, g: Parameters, w: Parameters, batch: Batch) -> Parameters:
        if self.problem.clip_value is not None:
            limit = self.problem.clip_value
            return {name: np.clip(one, -limit, limit) for name, one in g.items()}
        if self.problem.clip_norm is None:
            return g
        return self.shrunk(g, self.problem.clip_norm)

    def shrunk(self, g: Parameters, limit: float) -> Parameters:
        norm = np.sqrt(sum((one * one).sum() for one in g.values()))
        if norm + 1e-6 > limit:
            return {name: one * (limit / (norm + 1e-6)) for name, one in g.items()}
        # NaN: torch multiplies by NaN too.
        return g if norm == norm else {name: one * norm for name, one in g.items()}

    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay[name] * w

    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        if self.mu == 0:
            return g, None
        v = g if v is None else self.mu * v + (1 - self.tau) * g
        return (g + self.mu * v if self.nesterov else v), v

    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        pull = self.penalty(name, w, batch)
        d, v = self.direction(g + pull, v)
        return Moved(w - lr * d, v, lr * pull, lr * d)

    def reported(self, loss: float, w: Parameters) -> float:
        return loss


# --- the penalty --------------------------------------------------------------------------------


class PenaltyDividedByBatch(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay[name] * w / batch.size


class PenaltyDividedByDataset(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay[name] * w / len(self.y)


class PenaltyDoubled(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return 2 * self.decay[name] * w


class PenaltyHalved(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay[name] / 2 * w


class PenaltyMissing(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return np.zeros_like(w)


class PenaltySignFlipped(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return -self.decay[name] * w


class PenaltyConstant(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return np.full_like(w, self.decay[name])


class PenaltyNormNotSquared(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        norm = np.linalg.norm(w)
        return self.decay[name] * w / norm if norm > 0 else 0 * w


class PenaltyNormNotGuarded(ByHand):
    """Divides by ‖w‖ = 0 at the start."""

    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay[name] * w / np.linalg.norm(w)


class PenaltyScaled(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return 1.01 * self.decay[name] * w


class BiasNotPenalized(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return 0 * w if name == "bias" else self.decay[name] * w


class BiasPenalized(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return self.decay["weight"] * w


class PenaltyInLoss(ByHand):
    def reported(self, loss: float, w: Parameters) -> float:
        return loss + sum(self.decay[name] / 2 * float((one**2).sum()) for name, one in w.items())


class PenaltyDecoupled(ByHand):
    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        decayed = lr * self.penalty(name, w, batch)
        d, v = self.direction(g, v)
        return Moved(w - decayed - lr * d, v, decayed, decayed + lr * d)


class DecayNotScaledByLr(ByHand):
    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        decayed = self.decay[name] * w
        d, v = self.direction(g, v)
        return Moved(w - decayed - lr * d, v, decayed, decayed + lr * d)


class DecayAfterUpdate(ByHand):
    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        d, v = self.direction(g, v)
        moved = w - lr * d
        decayed = lr * self.decay[name] * moved
        return Moved(moved - decayed, v, decayed, lr * d + decayed)


class DecayAfterMomentum(ByHand):
    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        d, v = self.direction(g, v)
        pull = self.decay[name] * w
        return Moved(w - lr * (d + pull), v, lr * pull, lr * (d + pull))


class DecayBeforeClipping(ByHand):
    def clip(self, g: Parameters, w: Parameters, batch: Batch) -> Parameters:
        return super().clip({name: g[name] + self.decay[name] * w[name] for name in g}, w, batch)

    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        d, v = self.direction(g, v)
        return Moved(w - lr * d, v, lr * (self.decay[name] * w), lr * d)


# --- the gradient -------------------------------------------------------------------------------


class LossSummed(ByHand):
    def rows(self, y: Array) -> float:
        return 1


class LossHalved(ByHand):
    def rows(self, y: Array) -> float:
        return 2 * len(y)


class LastBatchDivisor(ByHand):
    def rows(self, y: Array) -> float:
        return self.problem.schedule.batch_size


class GradientScaled(ByHand):
    FACTOR = 1.01

    def keep(self, gradient: Parameters, memory: Memory) -> Parameters:
        return {name: self.FACTOR * g for name, g in gradient.items()}


class GradientAccumulated(ByHand):
    def keep(self, gradient: Parameters, memory: Memory) -> Parameters:
        return {name: memory.total[name] + g for name, g in gradient.items()}


class AccumulationNotAveraged(ByHand):
    def together(self, gradients: list[Array]) -> Array:
        return np.asarray(sum(gradients))


class TargetBroadcast(ByHand):
    """(B, 1) against (B,) makes (B, B): each output against each target."""

    def loss(self, z: Array, y: Array) -> tuple[Array, Array]:
        loss, slopes = super().loss(z[:, None], y)
        return loss.mean(axis=1), slopes.mean(axis=1)


class BceSaturated(ByHand):
    """Writes p − y down, as the derivation on paper has it."""

    def loss(self, z: Array, y: Array) -> tuple[Array, Array]:
        return super().loss(z, y)[0], 1 / (1 + np.exp(-z)) - y


class UpdateSequential(ByHand):
    """Moves the bias, predicts again, then moves the weight."""

    def step(self, memory: Memory, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        first = super().step(memory, batch)
        before, bias = first.step.before, first.step.after["bias"]
        with np.errstate(all="ignore"):
            late = self.look(before | {"bias": bias}, batch).gradient["weight"]
            seen = first.forward_backward._replace(
                gradient=first.forward_backward.gradient | {"weight": late}
            )
            update = self.update(memory, batch, before, seen)
        # The bias has moved already, whatever clipping would make of it now.
        parts = {
            part: getattr(update.step, part) | only_bias(getattr(first.step, part))
            for part in ("after", "delta", "velocity")
        }
        velocities = update.state.velocities | only_bias(parts["velocity"])
        state = update.state._replace(parameters=parts["after"], velocities=velocities)
        return Update(state, update.step._replace(**parts), seen)


def only_bias(tensors: Parameters) -> Parameters:
    return {name: tensor for name, tensor in tensors.items() if name == "bias"}


class ClipPerTensor(ByHand):
    def shrunk(self, g: Parameters, limit: float) -> Parameters:
        return {name: super(ClipPerTensor, self).shrunk({name: g[name]}, limit)[name] for name in g}


# --- the optimizer ------------------------------------------------------------------------------


class MomentumMissing(ByHand):
    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        return g, None


class MomentumDampened(ByHand):
    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        v = self.mu * (np.zeros_like(g) if v is None else v) + (1 - self.mu) * g
        return (g + self.mu * v if self.nesterov else v), v


class MomentumLrInside(ByHand):
    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> Moved:
        pull = self.decay[name] * w
        d, v = self.direction(lr * (g + pull), v)
        return Moved(w - d, v, lr * pull, d)


class DampeningOnFirstStep(ByHand):
    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        v = (1 - self.tau) * g if v is None else self.mu * v + (1 - self.tau) * g
        return v, v


class NesterovMissing(ByHand):
    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        v = g if v is None else self.mu * v + g
        return v, v


class NesterovAdded(ByHand):
    def direction(self, g: Array, v: Array | None) -> tuple[Array, Array | None]:
        v = g if v is None else self.mu * v + (1 - self.tau) * g
        return g + self.mu * v, v


class LearningRateScaled(ByHand):
    def lr(self, batch: Batch) -> float:
        return 1.01 * batch.lr


class ScheduleEarly(ByHand):
    """Calls scheduler.step() before optimizer.step()."""

    def lr(self, batch: Batch) -> float:
        return self.problem.schedule.lr_at(batch.step + 1)


class ScheduleLate(ByHand):
    """Calls scheduler.step() one step late: the first lr holds for two steps."""

    def lr(self, batch: Batch) -> float:
        return self.problem.schedule.lr_at(batch.step - 1)


# --- causes that change no rule -----------------------------------------------------------------


class OtherStart(ByHand):
    """Starts one weight a millionth off."""

    def start(self) -> Memory:
        memory = super().start()
        memory.parameters["weight"][0, 1] += 1e-6
        return memory


class OtherRows(ByHand):
    """Reads the rows from the last one backwards."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.X, self.y = self.X[::-1].copy(), self.y[::-1].copy()


class InFloat32(ByHand):
    """Computes in float32, whatever the spec says."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(replace(problem, scratch_dtype="float32"))


# --- the reported loss ----------------------------------------------------------------------------


class ReportedLossSummed(ByHand):
    def update(self, memory: Memory, batch: Batch, w: Parameters, seen: ForwardBackward) -> Update:
        return super().update(memory, batch, w, seen._replace(loss=seen.loss * batch.size))


class ReportedLossHalved(ByHand):
    def reported(self, loss: float, w: Parameters) -> float:
        return loss / 2


class LossAfterUpdate(ByHand):
    def update(self, memory: Memory, batch: Batch, w: Parameters, seen: ForwardBackward) -> Update:
        done = super().update(memory, batch, w, seen)
        loss = self.look(done.step.after, batch).loss
        return done._replace(step=done.step._replace(loss=loss))


class LossEpochMean(ByHand):
    def update(self, memory: Memory, batch: Batch, w: Parameters, seen: ForwardBackward) -> Update:
        losses = (*(memory.losses if batch.batch > 1 else ()), seen.loss)
        done = super().update(memory, batch, w, seen)
        state = done.state._replace(losses=losses)  # type: ignore[call-arg]
        return Update(
            state, done.step._replace(loss=sum(losses) / len(losses)), done.forward_backward
        )


BUGS: dict[str, tuple[type[ByHand], ...]] = {
    "accumulation-not-averaged": (AccumulationNotAveraged,),
    "bce-saturated": (BceSaturated,),
    "bias-not-penalized": (BiasNotPenalized,),
    "bias-penalized": (BiasPenalized,),
    "clip-per-tensor": (ClipPerTensor,),
    "dampening-on-first-step": (DampeningOnFirstStep,),
    "decay-after-momentum": (DecayAfterMomentum,),
    "decay-after-update": (DecayAfterUpdate,),
    "decay-before-clipping": (DecayBeforeClipping,),
    "decay-not-scaled-by-lr": (DecayNotScaledByLr,),
    "gradient-accumulated": (GradientAccumulated,),
    "gradient-scaled": (GradientScaled,),
    "initial-parameters": (OtherStart,),
    "last-batch-divisor": (LastBatchDivisor,),
    "learning-rate-scaled": (LearningRateScaled,),
    "loss-after-update": (LossAfterUpdate,),
    "loss-epoch-mean": (LossEpochMean,),
    "loss-halved": (LossHalved,),
    "loss-summed": (LossSummed,),
    "momentum-dampened": (MomentumDampened,),
    "momentum-lr-inside": (MomentumLrInside,),
    "momentum-missing": (MomentumMissing,),
    "nesterov-added": (NesterovAdded,),
    "nesterov-missing": (NesterovMissing,),
    "penalty-constant": (PenaltyConstant,),
    "penalty-decoupled": (PenaltyDecoupled,),
    "penalty-divided-by-batch": (PenaltyDividedByBatch,),
    "penalty-divided-by-dataset": (PenaltyDividedByDataset,),
    "penalty-doubled": (PenaltyDoubled,),
    "penalty-halved": (PenaltyHalved,),
    "penalty-in-loss": (PenaltyInLoss,),
    "penalty-missing": (PenaltyMissing,),
    "penalty-norm-not-squared": (PenaltyNormNotSquared,),
    "penalty-scaled": (PenaltyScaled,),
    "penalty-sign-flipped": (PenaltySignFlipped,),
    "precision": (InFloat32,),
    "reported-loss-scaled": (ReportedLossSummed, ReportedLossHalved),
    "row-order": (OtherRows,),
    "schedule-shifted": (ScheduleEarly, ScheduleLate),
    "target-broadcast": (TargetBroadcast,),
    "update-sequential": (UpdateSequential,),
}
"""By cause: what is wrong code for it, one for each way to get it wrong."""


# --- torch's side -------------------------------------------------------------------------------


class ForgetsZeroGrad(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        self.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]


class DecaysBeforeClipping(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0

    def clip(self) -> bool:
        for name, tensor in self.tensors.items():
            assert tensor.grad is not None
            tensor.grad += self.problem.weight_decay[name] * tensor.detach()
        return super().clip()


class OneLrLate(TorchTrainer):
    """Sets the lr after the step, so that it holds from the next one on."""

    def move(self, batch: Batch) -> None:
        step = max(1, batch.step - 1)
        epoch = 1 + (step - 1) // self.problem.schedule.steps_per_epoch
        super().move(batch._replace(step=step, epoch=epoch))


class ForgetsTheBiasGroup(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        self.optimizer.param_groups[1]["weight_decay"] = 0


class SumsTheLoss(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        assert isinstance(self.module.loss, OfLink)
        self.module.loss.loss.reduction = "sum"  # type: ignore[assignment]


class ForgetsUnsqueeze(TorchTrainer):
    """Leaves the targets (B,) where the model gives (B, 1)."""

    def forward(self, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, on just this
            return super().forward(X, y[:, 0])


class SumsMicroBatches(TorchTrainer):
    def backward(self, batch: Batch) -> tuple[tuple[Array, ...] | None, float]:
        outputs, loss = super().backward(batch)
        for tensor in self.tensors.values():
            assert tensor.grad is not None
            tensor.grad *= len(batch.micro_batches)
        return outputs, loss


class NewOptimizerEachEpoch(TorchTrainer):
    """Makes the optimizer anew in each epoch, and loses its momentum."""

    def step(self, batch: Batch) -> Step:
        if batch.batch == 1:
            self.optimizer.state.clear()
        return super().step(batch)


class LoadsFloat32(TorchTrainer):
    """Had the rows in float32 before it made them float64."""

    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        self.X = self.X.float().double()
