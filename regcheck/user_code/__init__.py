"""A user's own code: imported, guarded and called; what it is passed, and what it yields."""
