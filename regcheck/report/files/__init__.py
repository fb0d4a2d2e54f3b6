"""Report files, each written from the same records: a module for each format, by its suffix."""
