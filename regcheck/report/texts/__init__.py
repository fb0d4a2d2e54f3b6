"""The texts of a report, part by part. They take a Report, and print nothing."""
