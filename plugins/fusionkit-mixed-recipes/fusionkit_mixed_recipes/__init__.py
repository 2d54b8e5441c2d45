"""Recipes that combine blocks of several plugins; `mixed:NAME` in recipes and commands."""
