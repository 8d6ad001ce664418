"""The local spool: requests kept on disk while PostgreSQL is not available."""
