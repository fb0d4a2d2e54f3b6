"""Data: files to cells (`tables`, `npz`), to numbers (`columns`), to X and y (`sources`), to rows to
train on (`preparation`).
"""
