"""What joins a plan to its tokenizer: the configuration, token ids and the start values of new embedding rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionkit.model.configuration import FusionConfig
from fusionkit.model.new_rows import initialise_new_rows
from fusionkit.model.parts import build_object
from fusionkit.model.text import load_tokenizer, token_ids
from fusionkit.plugin import IMAGE_TOKEN
from fusionkit.recipe.lock import lock
from fusionkit.recipe.plan import Plan

if TYPE_CHECKING:
    from fusionkit.model.modeling import FusionVLM


def prepare_config(plan: Plan) -> FusionConfig:
    """The configuration of a model about to be built: the lock and the tokens to add."""
    return FusionConfig(lock=lock(plan.recipe), new_tokens=list(plan.new_tokens))


def prepare_text(model: FusionVLM, plan: Plan) -> None:
    """Set the model's token ids from its tokenizer and fill the embedding rows of the new tokens."""
    node = plan.language_model_node
    if node is None or model.language_model is None:
        return
    tokenizer = load_tokenizer(plan)
    set_token_ids(model, plan, tokenizer)
    new_ids = token_ids(tokenizer, plan.new_tokens)
    settings = getattr(node.config, "new_rows", None)
    coordinate_ids = token_ids(tokenizer, coordinate_tokens(plan))
    initialise_new_rows(
        model.language_model,
        new_ids,
        coordinate_ids,
        init=getattr(settings, "init", "mean"),
        std=getattr(settings, "std", None),
    )


def set_token_ids(model: FusionVLM, plan: Plan, tokenizer: Any) -> None:
    """Tell the model which token stands for a picture's vectors, and which begin, end and pad a sequence."""
    if IMAGE_TOKEN in plan.new_tokens:
        model.config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))


def coordinate_tokens(plan: Plan) -> tuple[str, ...]:
    """The coordinate tokens of the plan's box tokenizer, in rising order; empty without one."""
    config = plan.recipe.box_tokenizer
    return () if config is None else tuple(build_object("box_tokenizers", config).coordinates())
