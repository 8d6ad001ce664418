"""What other programs export: for each of them, how its records become usage events."""
