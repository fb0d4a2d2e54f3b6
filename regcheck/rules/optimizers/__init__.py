"""The optimizers: each one file, with its options, its step and how that is written.

The steps take arrays of the array API standard: who only reads a formula loads no NumPy.
"""
