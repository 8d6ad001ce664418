"""The private PostgreSQL server of the demo, the tests and `token-tracking db`."""
