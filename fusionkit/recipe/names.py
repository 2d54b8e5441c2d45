"""Which names a recipe may give to streams, steps, injectors, stages and objectives. Torch-free.

A name becomes an attribute path in the model (`streams.spatial.steps.mix`), so it must be an identifier and must not
be one that modules and module containers already use. A test compares the list with torch's.
"""

from __future__ import annotations

import keyword
import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

# fmt: off
MODULE_ATTRIBUTES = frozenset((
    "add_module", "append", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear", "compile",
    "cpu", "cuda", "double", "dump_patches", "eval", "extend", "extra_repr", "float", "forward", "fromkeys",
    "get", "get_buffer", "get_extra_state", "get_parameter", "get_submodule", "half", "insert", "ipu", "items",
    "keys", "load_state_dict", "modules", "mtia", "named_buffers", "named_children", "named_modules",
    "named_parameters", "parameters", "pop", "popitem", "register_backward_hook", "register_buffer",
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter",
    "register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_", "set_extra_state",
    "set_submodule", "setdefault", "share_memory", "smart_apply", "state_dict", "to", "to_empty", "train", "training", "type",
    "update", "values", "xpu", "zero_grad",
))
# fmt: on
"""Public names of torch's Module, ModuleDict and ModuleList that would be legal names here."""

RESERVED = frozenset({"encoder", "image", "input", "language_model", "main"})
"""Words that already mean something where a step names what it reads, or whose width it takes."""

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


def fault_of(name: str) -> str | None:
    """Why `name` cannot be used, or None when it can."""
    if not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        return "must be a name: a lower-case letter, then lower-case letters, digits and underscores"
    if name in MODULE_ATTRIBUTES:
        return f"'{name}' is already an attribute of every module (choose another name)"
    if name in RESERVED:
        return f"'{name}' is reserved (choose another name)"
    return None


def _checked(name: str) -> str:
    if fault := fault_of(name):
        raise PydanticCustomError("name", "{message}", {"message": fault})
    return name


Name = Annotated[str, AfterValidator(_checked)]
