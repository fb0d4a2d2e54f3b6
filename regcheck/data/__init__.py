"""Data: files to columns of text (`tables`), to arrays (`sources`), to training rows (`preparation`)."""
