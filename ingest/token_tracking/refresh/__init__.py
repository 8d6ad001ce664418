"""dbt builds inside one resident process, as often as there is something new."""
