"""The report as one HTML file that needs no network: words, plots, and a table of every step."""
