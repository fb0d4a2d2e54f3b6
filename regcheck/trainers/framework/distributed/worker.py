"""What each rank runs: its share of every batch, in DistributedDataParallel.

`processes` has it started, gives it the problem, and asks it for one step after the other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem
from regcheck.trainers.framework.built_in import built_in
from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.framework.distributed.data_parallel import Answer, Moved
from regcheck.trainers.framework.distributed.launcher import KEY
from regcheck.trainers.framework.distributed.processes import receive, send
from regcheck.trainers.framework.torch_trainer import Taken, TorchTrainer


class RankTrainer(TorchTrainer):
    """One rank's end of a training.

    Of each micro-batch it has the rank's share, and its gradients are those of all ranks, averaged
    by DistributedDataParallel. Clipping and optimizer.step() are every rank's own.
    """

    def __init__(self, problem: Problem) -> None:
        """Make the built-in model; rank 0's start is that of all."""
        module = built_in(problem)
        self.averaging = DistributedDataParallel(module.model)
        super().__init__(problem, replace(module, model=self.averaging))
        self.loss_checked = True
        self.left = 0

    def take(self, batch: Batch) -> Taken:
        """Move the parameters by one update, by this rank's shares."""
        rank, count = distributed.get_rank(), distributed.get_world_size()
        return super().take(batch._replace(micro_batches=batch.micro_batches[rank::count]))

    def passes(self, *pairs: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        """Run this rank's shares forward and backward."""
        self.left = len(pairs) // 2
        return super().passes(*pairs)

    def forward(self, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a share's outputs and loss; the ranks' gradients meet at the last share's."""
        self.left -= 1
        self.averaging.require_backward_grad_sync = self.left == 0  # False is what no_sync() sets
        return super().forward(X, y)

    def answer(self, parameters: Sequence[Array] | None, batch: Batch) -> Answer:
        """Take a step, from other parameters than its own if there are any."""
        views = list(self.views.now().values())
        for view, other in zip(views, views if parameters is None else parameters, strict=True):
            np.copyto(view, other)
        taken = self.take(batch)
        digest = hashlib.blake2b(b"".join(view.tobytes() for view in views)).digest()
        moved = None
        if distributed.get_rank() == 0:
            state = [self.optimizer.state.get(w, {}) for w in self.tensors.values()]
            gradient, used = list(taken.gradient.values()), list(taken.used.values())
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            moved = Moved(gradient, used, taken.skipped, views, state, lrs)
        return Answer(taken.outputs, taken.loss, digest, moved)


def serve(parent: Connection) -> None:
    """Take the steps that the parent asks for, until it closes the connection."""
    problem, timeout = receive(parent)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=2 * timeout))
    with torch_settings(0), np.errstate(all="ignore"):
        trainers = {0: RankTrainer(problem)}  # what it imports belongs to the start
        send(parent, None)
        while True:
            number, parameters, batch = receive(parent)
            if number not in trainers:
                trainers[number] = RankTrainer(problem)
            send(parent, trainers[number].answer(parameters, batch))


def main(address: str) -> None:
    """Connect to the process that has started the launcher, and serve it."""
    key, rank, code = bytes.fromhex(os.environ.pop(KEY)), int(os.environ["RANK"]), 0
    try:
        parent = Client(address, "AF_UNIX", key)
        send(parent, (rank, os.getpid()))
        serve(parent)
    except (EOFError, ConnectionError):  # the training is over, or its process is gone
        if rank == 0:
            shutil.rmtree(Path(address).parent, ignore_errors=True)  # if that is left behind
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        code = 1
    os._exit(code)  # taking the process group down would wait for the other ranks


if __name__ == "__main__":
    main(sys.argv[1])
