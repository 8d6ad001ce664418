"""What waits on local disk while PostgreSQL cannot answer."""
