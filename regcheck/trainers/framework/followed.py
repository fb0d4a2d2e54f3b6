"""What of a user's model and optimizer regcheck cannot follow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from regcheck.errors import UserCodeError


def check_tensors(tensors: Mapping[str, nn.Parameter], optimizer: Optimizer, label: str) -> None:
    """Refuse parameters, and optimizers of them, that regcheck cannot follow.

    Raises:
        UserCodeError: it cannot.
    """
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise UserCodeError(
                f"{label}: {name} is on {tensor.device}; regcheck trains on the CPU: "
                "remove .to(device)"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise UserCodeError(
                f"{label}: {name} is {tensor.dtype}; it must be torch.float32 or torch.float64"
            )
    known = {id(tensor) for tensor in tensors.values()}
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    if not any(id(tensor) in known for tensor in trained):
        raise UserCodeError(
            f"{label}: the optimizer has none of the model's parameters; give it model.parameters()"
        )
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):  # by torch.optim.lr_scheduler
        raise UserCodeError(
            f"{label}: an lr scheduler is made for the optimizer, and nothing would step it: leave "
            "it out, and set `lr_schedule` in the spec, which regcheck steps"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserCodeError(
            f"{label}: torch.optim.LBFGS computes the loss several times per step; regcheck takes "
            "optimizers with one gradient per step, such as torch.optim.SGD"
        )
