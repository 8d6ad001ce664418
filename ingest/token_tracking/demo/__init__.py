"""The demo: its fictitious usage (`usage`), its steps (`demo`) and its output (`tables`)."""
