"""The outside check: Great Expectations over raw events and marts, by a connection of its own."""
