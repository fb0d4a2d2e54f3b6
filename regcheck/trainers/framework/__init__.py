"""The framework side: torch's model, loss and optimizer, or a user's, stepped one update a time."""
