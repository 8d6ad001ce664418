"""Loads files into the raw tables: lines (`source`), `rows`, values (`cells`), `plan`, `sender`."""
