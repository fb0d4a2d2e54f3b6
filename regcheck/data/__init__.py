"""Data: files to cells and numbers, to X and y (`sources`), to training rows (`preparation`)."""
