"""Reading the totals that dbt has built."""
