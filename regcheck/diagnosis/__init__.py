"""Why two trainings differ: causes replayed along the recorded steps, and the fix."""
