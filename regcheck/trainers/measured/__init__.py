"""Rounding measured: passes with random rounding, and the bounds made of them."""
