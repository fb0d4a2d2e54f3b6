"""What a shell shows of the commands: help and completion."""
