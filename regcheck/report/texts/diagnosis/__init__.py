"""The texts on a diagnosis: its causes, the reported losses, and the fixes."""
