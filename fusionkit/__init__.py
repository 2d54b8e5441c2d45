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
    from fusionkit.model import build, load
    from fusionkit.model.create import create
    from fusionkit.model.runtime import Runtime
    from fusionkit.ops.orthogonal import step
    from fusionkit.recipe import load_recipe
    from fusionkit.recipe.plan import plan
    from fusionkit.registry import override

    __version__: str

__all__ = ["Runtime", "__version__", "build", "create", "load", "load_recipe", "override", "plan", "step"]

_HOMES = {
    "Runtime": "fusionkit.model.runtime",
    "build": "fusionkit.model",
    "create": "fusionkit.model.create",
    "load": "fusionkit.model",
    "load_recipe": "fusionkit.recipe",
    "override": "fusionkit.registry",
    "plan": "fusionkit.recipe.plan",
    "step": "fusionkit.ops.orthogonal",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fusionkit")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'fusionkit' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
