"""Recipes shipped with fusionkit, found as `builtin:NAME`. Data only: nothing here is executed."""
