"""The usage report: one month's figures, and why to trust them, as one HTML file."""
