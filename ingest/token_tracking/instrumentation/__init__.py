"""Tracking of every call of a provider's client library, plain or streamed."""
