"""Your training in NumPy: put your own loop here, and keep the `yield` after each update."""

import numpy as np


def train(problem):
    """Train a logistic regression, and yield the parameters after each update."""
    w = problem.initial["weight"]  # (d,): the start, the same as torch's
    b = problem.initial["bias"]  # (1,)
    for rows in problem.batches:  # the rows of each step, in order
        X, y = problem.X[rows], problem.y[rows]  # (B, d) and (B,)
        z = X @ w + b
        loss = np.mean(np.logaddexp(0, z) - y * z)
        error = 1 / (1 + np.exp(-z)) - y
        gradient_w = X.T @ error / len(y)
        gradient_b = error.mean()
        # As in torch, λ w is added to the mean gradient. To see it found, divide λ w by len(y).
        w = w - problem.lr * (gradient_w + problem.weight_decay * w)
        b = b - problem.lr * (gradient_b + problem.weight_decay * b)
        yield {"weight": w, "bias": b, "loss": loss}  # all that regcheck needs to see
