"""The demo: what it makes up (`usage`), how it goes (`demo`) and what it shows (`tables`)."""
