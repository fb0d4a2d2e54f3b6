"""Bounds on rounding, worked out: of a pass, of a loss, and of each optimizer's step."""
