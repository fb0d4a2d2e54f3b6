"""Both sides: a problem in, one step at a time out."""
