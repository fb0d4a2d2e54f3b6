"""NumPy mathematics: losses, SGD, norms, and the rounding bounds. Each function is its formula."""
