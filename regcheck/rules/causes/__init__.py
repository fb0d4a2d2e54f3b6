"""The catalogue of causes, each one entry: of the penalty, of the optimizer's step, and others."""
