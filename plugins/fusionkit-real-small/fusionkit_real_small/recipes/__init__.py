"""Recipes on real weights, found as `real:NAME`. Data only: nothing here is executed."""
