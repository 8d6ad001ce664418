"""Runs dbt builds inside one resident process whenever something has changed."""
