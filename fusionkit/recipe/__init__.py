"""Recipes: safe YAML or a dict in, a checked and frozen `Recipe` out. Torch-free."""

from __future__ import annotations

from fusionkit.recipe.load import load_recipe
from fusionkit.recipe.schema import Recipe, Stream
from fusionkit.recipe.train_schema import Evaluate, Stage, Train

__all__ = ["Evaluate", "Recipe", "Stage", "Stream", "Train", "load_recipe"]
