"""Raises when it is imported."""

raise RuntimeError("no such driver\nsecond line of the message")
