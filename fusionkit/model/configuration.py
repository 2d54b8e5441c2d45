"""FusionConfig: the transformers configuration of a fused model. It holds the locked recipe.

Only the lock is kept, not the recipe beside it: transformers sorts the keys of what it writes as JSON, and the order of
steps has a meaning. The lock writes ordered mappings as lists of pairs.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class FusionConfig(PretrainedConfig):
    """What `config.json` of a fused model says.

    `lock` is the recipe's three-part lock, `text_config` the decoder's own configuration and `new_tokens` the tokens
    that were added to its tokenizer, in order.
    """

    model_type = "fusionkit"
    keys_to_ignore_at_inference = ["past_key_values", "streams", "visual"]  # noqa: RUF012  (no tensors to gather)
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers reads it as a plain class attribute)

    def __init__(
        self,
        lock: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        new_tokens: list[str] | None = None,
        image_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.lock = lock
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.new_tokens = new_tokens or []
        self.image_token_id = image_token_id
        if text_config is not None:
            kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)
