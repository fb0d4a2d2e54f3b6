"""Your torch side: the model, the loss and the optimizer; regcheck runs the loop."""

import torch


def build(problem):
    """Return the model, the loss function and the optimizer."""
    model = torch.nn.Linear(problem.X.shape[1], 1, dtype=torch.float64)
    with torch.no_grad():  # start where the NumPy side starts
        model.weight.copy_(torch.as_tensor(problem.initial["weight"]).reshape(1, -1))
        model.bias.copy_(torch.as_tensor(problem.initial["bias"]))

    def loss(output, y):  # (B, 1) and (B,): without squeeze, each output would meet every target
        return torch.nn.functional.binary_cross_entropy_with_logits(output.squeeze(1), y)

    # Try torch.optim.AdamW, or another weight_decay, to see how it is found.
    optimizer = torch.optim.SGD(
        model.parameters(), lr=problem.lr, weight_decay=problem.weight_decay
    )
    return model, loss, optimizer
