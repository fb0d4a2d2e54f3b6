"""Reports: one to text for people (`terminal`), one to text for programs (`json`)."""
