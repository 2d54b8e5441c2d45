"""Plan a recipe: every shape and cost, and every mismatch with its line, before any weight exists."""

from __future__ import annotations

from fusionkit.recipe.plan_types import ENCODER, Node, Plan, StreamPlan

__all__ = ["ENCODER", "Node", "Plan", "StreamPlan"]
