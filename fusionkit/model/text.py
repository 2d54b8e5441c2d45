"""The tokenizer of a recipe: loaded from where the language model says, with fusionkit's tokens added."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from fusionkit.errors import BuildError
from fusionkit.plugin import BlockConfig
from fusionkit.recipe.plan import Plan

BUILTIN = "builtin:"


def load_tokenizer(plan: Plan) -> PreTrainedTokenizerBase:
    """The tokenizer of a plan's language model, with the plan's new tokens added as special tokens.

    Raises BuildError when it cannot be found, has no chat template, or does not fit the planned embedding rows.
    """
    node = plan.language_model_node
    if node is None:
        raise BuildError(f"recipe '{plan.recipe.name}' has no language_model, so it has no tokenizer")
    source, options = _source(node.config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise BuildError(
            f"language_model.tokenizer: cannot load '{source}': {str(error).splitlines()[0]} "
            "(give a local folder, or `tokenizer: builtin:tiny`)"
        ) from error
    if tokenizer.chat_template is None:
        raise BuildError(
            f"language_model.tokenizer: '{source}' has no chat template; use one that has, or add chat_template.jinja"
        )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in plan.new_tokens], special_tokens=True
    )
    if len(tokenizer) > plan.embedding_rows:
        raise BuildError(
            f"language_model.tokenizer: {len(tokenizer)} tokens do not fit the {plan.embedding_rows} planned embedding rows"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> list[int]:
    """Ids of tokens that must each be one id; raises BuildError for one the tokenizer does not know."""
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise BuildError(f"tokenizer lacks {', '.join(missing[:5])}: was it saved from another recipe?")
    return [known[token] for token in tokens]


def _source(config: BlockConfig) -> tuple[str, dict[str, Any]]:
    tokenizer = getattr(config, "tokenizer", None)
    options: dict[str, Any] = {}
    if (revision := getattr(config, "revision", None)) is not None:
        options["revision"] = revision
    if isinstance(tokenizer, str) and tokenizer.startswith(BUILTIN):
        folder = resources.files("fusionkit") / "assets" / f"{tokenizer.removeprefix(BUILTIN)}_tokenizer"
        return str(folder), {}
    source = tokenizer or getattr(config, "model", None)
    if source is None:
        raise BuildError("language_model: a model built from `config` needs a `tokenizer` (for example builtin:tiny)")
    path = Path(source)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return str(source), options
