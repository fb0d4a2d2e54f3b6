"""Data: files to rows of X and y, labels, and how they are prepared."""
