"""A spec to a problem: files to X and y, which rows and which lr at which step, the start."""
