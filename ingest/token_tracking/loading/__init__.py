"""Files into the raw tables: lines (`source`), `rows`, their values (`cells`), `plan`, `sender`."""
