"""Bounds on what rounding does in an optimizer's step, from the gradient's to the parameter's."""
