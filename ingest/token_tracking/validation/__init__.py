"""The check from outside dbt: Great Expectations over raw events and marts."""
