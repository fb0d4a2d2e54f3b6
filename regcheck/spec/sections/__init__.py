"""The sections of a spec: what each may hold, checked by itself."""
