"""What is known where no cause explains a difference: a module for each kind of evidence.

Each piece is a `record.Evidence`; `without_cause` asks for one after the other. What is known of
reported losses is found where these are: in `loss_logarithms` and `reported_loss`.
"""
