"""Measurements beside peers: the same run, the same machine, durable commits."""
