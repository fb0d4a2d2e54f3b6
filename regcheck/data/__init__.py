"""Data: files to text cells (`tables`), to arrays (`sources`), to training rows (`preparation`)."""
