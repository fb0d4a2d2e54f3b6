"""Data: files to cells (`tables`, `npz`), to arrays (`sources`), to rows (`preparation`)."""
