"""Blocks that misbehave, one module each, so that asking for one meets its fault alone."""
