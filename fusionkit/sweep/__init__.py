"""Sweeps: variants of a recipe by overrides, with seeds, at a matched budget, as one table with intervals."""
