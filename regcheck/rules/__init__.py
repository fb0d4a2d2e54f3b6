"""The rules: what can differ from torch, the causes, and the formulas. Standard library only."""
