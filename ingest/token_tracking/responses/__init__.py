"""Reads the usage out of providers' responses; imports no provider's library."""
