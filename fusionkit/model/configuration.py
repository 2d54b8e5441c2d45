"""FusionConfig: the transformers configuration of a fused model. It holds the locked recipe."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class FusionConfig(PretrainedConfig):
    """What `config.json` of a fused model says.

    `recipe` is the canonical recipe (a mapping, defaults filled), `lock` its three-part lock, `text_config` the
    decoder's own configuration and `new_tokens` the tokens that were added to its tokenizer, in order.
    """

    model_type = "fusionkit"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers reads it as a plain class attribute)

    def __init__(
        self,
        recipe: dict[str, Any] | None = None,
        lock: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        new_tokens: list[str] | None = None,
        image_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.recipe = recipe
        self.lock = lock
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.new_tokens = new_tokens or []
        self.image_token_id = image_token_id
        if text_config is not None:
            kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)
