"""A recipe with two streams as text, so that tests can change a line of it and expect that line in the error."""

from __future__ import annotations

from pathlib import Path

from fusionkit.recipe import Recipe, load_recipe

RECIPE = """\
schema: 1
name: pair
sequence_length: 512
cropper: {type: overlap_tiles, size: 48, patch: 6, max_crops: 4, margin_patches: [2, 2]}
streams:
  semantic:
    encoder: {type: small_vit, image_size: 48, patch: 6, width: 24, depth: 3, heads: 2}
    select: {type: all}
    steps:
      mix: {type: orthogonal}
  spatial:
    encoder: {type: small_conv, image_size: 32, widths: [4, 8, 16], strides: [2, 2, 2], depth: 2, heads: 2}
    select: {type: last, count: 2}
    steps:
      mix: {type: softmax_sum}
      widen: {type: linear, width: {like: semantic}}
fusion:
  align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}
  pool: {type: average_pool, window: [2, 2]}
  project: {type: mlp, hidden: 40}
injectors:
  visual: {type: replace}
language_model:
  type: causal
  tokenizer: builtin:tiny
  config: {model_type: qwen2, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 1024, vocab_size: 512, tie_word_embeddings: true}
box_tokenizer: {type: coordinate_bins, bins: 20}
"""


def changed(*changes: tuple[str, str]) -> str:
    """The recipe's text with each first string replaced by the second."""
    text = RECIPE
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the recipe"
        text = text.replace(old, new)
    return text


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The changed recipe as a file `pair.yaml`."""
    path = folder / "pair.yaml"
    path.write_text(changed(*changes))
    return path


def loaded(folder: Path, *changes: tuple[str, str]) -> Recipe:
    """The changed recipe, read from its file."""
    return load_recipe(written(folder, *changes))
