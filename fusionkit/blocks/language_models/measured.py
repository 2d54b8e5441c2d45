"""Shape and costs of any decoder of transformers, measured on a copy without storage.

For model types whose costs `counts` does not know. It needs torch and transformers, so it serves `plan --meta` and
building; a quick plan names the types it can do without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class MeasuredDecoder:
    """As `counts.Decoder`, from the library's own module."""

    model_type: str
    width: int
    depth: int
    context_length: int
    tied: bool
    base_params: int
    """Parameters with no embedding row."""
    row_params: int
    model: Any = field(repr=False, compare=False)

    @property
    def state(self) -> str:
        """What besides attention hands something on from token to token, in words, as far as it shows."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None) or ()
        others = [kind for kind in dict.fromkeys(kinds) if not str(kind).endswith("_attention") or "linear" in kind]
        if others:
            return f"layers of type {', '.join(others)}"
        return "convolutions over tokens" if any(isinstance(m, nn.Conv1d) for m in self.model.modules()) else ""

    def params(self, rows: int) -> int:
        """Parameters with `rows` embedding rows."""
        return self.base_params + rows * self.row_params

    def flops(self, tokens: int, vocab_size: int) -> int:
        """Counted FLOPs of one sequence of `tokens`, the output head for the last token only."""
        embeds = torch.empty(1, tokens, self.width, device="meta", dtype=self.model.dtype)
        # With a mask of its own shape, transformers looks at no values, of which there are none.
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model(inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1, use_cache=False)
        head = self.model.get_output_embeddings().weight.shape[0]
        return int(counter.get_total_flops() + 2 * self.width * (vocab_size - head))


def measure(facts: dict[str, Any]) -> MeasuredDecoder:
    """Build the decoder of a transformers config on meta and look at it.

    Raises ValueError when transformers has no such decoder, or it is not one of the usual kind.
    """
    described = dict(facts)
    model_type = described.pop("model_type")
    try:
        config: Any = AutoConfig.for_model(model_type, **described)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model_type {model_type!r}: transformers builds no decoder from it: {reason}") from error
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(f"model_type {model_type!r}: expected an embedding table and a linear output head")
    tied = head.weight is embedding.weight
    rows, width = embedding.weight.shape
    row_params = width + (0 if tied else width) + (0 if head.bias is None else 1)
    text = config.get_text_config()
    return MeasuredDecoder(
        model_type=model_type,
        width=width,
        depth=int(text.num_hidden_layers),
        context_length=int(text.max_position_embeddings),
        tied=tied,
        base_params=sum(parameter.numel() for parameter in model.parameters()) - rows * row_params,
        row_params=row_params,
        model=model.eval(),
    )
