"""Tracking where another library already tells of its model calls: one module a library.

Each module imports its library, so import it only where that library is used.
"""
