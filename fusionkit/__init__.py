"""fusionkit: compose, train, ask and measure multi-encoder vision-language models.

Everything public is here and is imported when it is first used, so that `import fusionkit` costs nothing:

    import fusionkit

    recipe = fusionkit.load_recipe("builtin:tiny")
    print(fusionkit.plan(recipe).parameters)
    model, processor = fusionkit.load("checkpoint:tiny")
    mixer = fusionkit.create("mixers/orthogonal", stack)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionkit.model.build import build
    from fusionkit.model.checkpoint import load_checkpoint as load
    from fusionkit.model.create import create
    from fusionkit.model.runtime import Runtime
    from fusionkit.ops.step import step
    from fusionkit.recipe import load_recipe
    from fusionkit.recipe.plan import plan
    from fusionkit.registry import override

    __version__: str

__all__ = ["Runtime", "__version__", "build", "create", "load", "load_recipe", "override", "plan", "step"]

_HOMES = {
    "Runtime": ("fusionkit.model.runtime", "Runtime"),
    "build": ("fusionkit.model.build", "build"),
    "create": ("fusionkit.model.create", "create"),
    "load": ("fusionkit.model.checkpoint", "load_checkpoint"),
    "load_recipe": ("fusionkit.recipe", "load_recipe"),
    "override": ("fusionkit.registry", "override"),
    "plan": ("fusionkit.recipe.plan", "plan"),
    "step": ("fusionkit.ops.step", "step"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fusionkit")
    elif name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module 'fusionkit' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
