"""A checkpoint with the names and shapes of the released CoME-VL, at any width; and what that code computes from it.

Names and shapes are those of its instantiated modules; the forward pass is written anew from their equations, in
float64, with nothing of fusionkit's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """The widths and depths of a checkpoint; as released by default."""

    semantic: int = 1152
    semantic_hidden: int = 4304
    semantic_heads: int = 16
    semantic_patches: int = 576
    patch: int = 16
    spatial: int = 1024
    spatial_hidden: int = 4096
    model: int = 3584
    model_hidden: int = 18944
    key_values: int = 512
    blocks: int = 28
    rows: int = 152064
    heads: int = 8
    pool_heads: int = 16

    @property
    def axis(self) -> int:
        """Channels of a head for y, and for x."""
        return 2 * (self.model // self.heads // 6)


RELEASED = Sizes()
SMALL = replace(
    RELEASED,
    semantic=32,
    semantic_hidden=48,
    semantic_heads=2,
    semantic_patches=64,
    patch=4,
    spatial=24,
    spatial_hidden=40,
    model=96,
    model_hidden=80,
    key_values=48,
    blocks=2,
    rows=512,
    pool_heads=2,
)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint, dead ones included."""
    one, two, out = sizes.semantic, sizes.spatial, sizes.model
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    vision = "vision_backbone"
    linear(f"{vision}.image_vit.patch_embedding", one, 3 * sizes.patch**2)
    found[f"{vision}.image_vit.positional_embedding"] = (sizes.semantic_patches, one)
    for block in range(27):
        place = f"{vision}.image_vit.transformer.resblocks.{block}"
        for part in "qkvo":
            linear(f"{place}.attention.w{part}", one, one)
        linear(f"{place}.feed_forward.w1", sizes.semantic_hidden, one)
        linear(f"{place}.feed_forward.w2", one, sizes.semantic_hidden)
        norm(f"{place}.attention_norm", one)
        norm(f"{place}.ffn_norm", one)
    dino = f"{vision}.image_vit2.transformer"
    found[f"{dino}.embeddings.cls_token"] = found[f"{dino}.embeddings.mask_token"] = (1, 1, two)
    found[f"{dino}.embeddings.register_tokens"] = (1, 4, two)
    found[f"{dino}.embeddings.patch_embeddings.weight"] = (two, 3, sizes.patch, sizes.patch)
    found[f"{dino}.embeddings.patch_embeddings.bias"] = (two,)
    for block in range(24):
        place = f"{dino}.layer.{block}"
        for part in "qkvo":
            linear(f"{place}.attention.{part}_proj", two, two, bias=part != "k")
        linear(f"{place}.mlp.up_proj", sizes.spatial_hidden, two)
        linear(f"{place}.mlp.down_proj", two, sizes.spatial_hidden)
        for number in "12":
            norm(f"{place}.norm{number}", two)
            found[f"{place}.layer_scale{number}.lambda1"] = (two,)
    norm(f"{dino}.norm", two)

    found[f"{vision}.alpha_logits"], found[f"{vision}.beta_logits"] = (28,), (14,)
    for pool, width in (("pool1", one), ("pool2", two)):
        norm(f"{vision}.{pool}.ln", width)
        for stage in ("fc1", "fc2"):
            found[f"{vision}.{pool}.{stage}.parametrizations.weight.original"] = (width, width)
            found[f"{vision}.{pool}.{stage}.parametrizations.weight.0.base"] = (width, width)
    norm(f"{vision}.mlp_after_v2.ln", two)
    linear(f"{vision}.mlp_after_v2.geglu.proj", 8 * two, two)
    linear(f"{vision}.mlp_after_v2.fc_out", two, 4 * two)
    found[f"{vision}.pad_embed"], found[f"{vision}.pad_embed2"] = (2, one), (2, two)
    for name, width in (("image_pooling_2d", one), ("image_pooling_2d_2", two)):
        for part in "qkvo":
            linear(f"{vision}.{name}.w{part}", width, width)
    cross = f"{vision}.cross_rope"
    found[f"{cross}.gate_sig"] = (1,)
    linear(f"{cross}.proj_sig", out, one)
    linear(f"{cross}.proj_din", out, two)
    norm(f"{cross}.ln_sig", out)
    norm(f"{cross}.ln_din", out)
    attention = f"{cross}.cross_sig_from_dino"
    for part in ("q", "k", "v", "out"):
        linear(f"{attention}.{part}_proj", out, out)
    still = out // sizes.heads - 2 * sizes.axis
    for number, channels in enumerate((still, sizes.axis, sizes.axis)):
        found[f"{attention}.rope.freqs.{number}"] = (1, 1, channels // 2)
    found[f"{attention}.alpha"] = (sizes.heads,)
    for name, width in (("image_projector", one), ("image_projector2", two)):
        for part, shape in (("w1", (sizes.model_hidden, width)), ("w2", (out, sizes.model_hidden))):
            found[f"{vision}.{name}.{part}.weight"] = shape
        found[f"{vision}.{name}.w3.weight"] = (sizes.model_hidden, width)
    linear(f"{vision}.merger.proj1", two, 2 * two + 256)
    linear(f"{vision}.merger.proj2", two, two)
    linear(f"{vision}.pool_sig.attn.q_proj", one, one)
    linear(f"{vision}.pool_din.attn.q_proj", two, two)

    found["transformer.wte.embedding"] = (sizes.rows, out)
    found["transformer.wte.new_embedding"] = (128, out)
    for block in range(sizes.blocks):
        place = f"transformer.blocks.{block}"
        linear(f"{place}.att_proj", out + 2 * sizes.key_values, out)
        linear(f"{place}.attn_out", out, out, bias=False)
        linear(f"{place}.ff_proj", 2 * sizes.model_hidden, out, bias=False)
        linear(f"{place}.ff_out", out, sizes.model_hidden, bias=False)
        found[f"{place}.attn_norm.weight"] = found[f"{place}.ff_norm.weight"] = (out,)
    found["transformer.ln_f.weight"] = (out,)
    found["transformer.ff_out.weight"] = (sizes.rows, out)
    return found


def checkpoint(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors in float64; bases are orthogonal, as the parametrisation keeps them."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(sizes).items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith(".base"):
            value = torch.linalg.qr(value).Q.contiguous()
        elif len(shape) > 1 and "original" not in name:
            value = value / math.sqrt(shape[-1])
        elif name.endswith("original"):
            value = 0.3 * value
        elif name.endswith("gate_sig"):
            value = torch.full_like(value, 0.7)  # open, so that the attention behind it counts
        found[name] = value
    return found


# ------------------------------------------------------------------------------------------- what the code computes
def semantic_layers(state: Mapping[str, Tensor], pixels_BCHW: Tensor, sizes: Sizes) -> list[Tensor]:
    """The outputs of the 27 blocks of the first encoder."""
    patch = sizes.patch
    rows, columns = pixels_BCHW.shape[2] // patch, pixels_BCHW.shape[3] // patch
    x = pixels_BCHW.unfold(2, patch, patch).unfold(3, patch, patch)  # B c rows columns ph pw
    x = x.permute(0, 2, 3, 4, 5, 1).reshape(len(x), rows * columns, -1)  # (ph pw c)
    place = "vision_backbone.image_vit"
    x = _linear(state, f"{place}.patch_embedding", x) + state[f"{place}.positional_embedding"]
    layers = []
    for block in range(27):
        part = f"{place}.transformer.resblocks.{block}"
        y = _norm(state, f"{part}.attention_norm", x, 1e-6)
        y = _attend(*(_linear(state, f"{part}.attention.w{name}", y) for name in "qkv"), sizes.semantic_heads)
        x = x + _linear(state, f"{part}.attention.wo", y)
        y = F.gelu(
            _linear(state, f"{part}.feed_forward.w1", _norm(state, f"{part}.ffn_norm", x, 1e-6)), approximate="tanh"
        )
        x = x + _linear(state, f"{part}.feed_forward.w2", y)
        layers.append(x)
    return layers


def fused(
    state: Mapping[str, Tensor],
    semantic: list[Tensor],
    spatial: list[Tensor],
    grids: tuple[tuple[int, int], tuple[int, int]],
    sizes: Sizes,
) -> Tensor:
    """Steps 6 to 12: from the layers of both encoders (27 and 24 of them) to tokens of the language model's width."""
    one = _mixed(state, "pool1", state["vision_backbone.alpha_logits"], [semantic[(k - 1) % 27] for k in range(28)])
    two = _mixed(state, "pool2", state["vision_backbone.beta_logits"], [spatial[k - 1] for k in range(10, 24)])
    y = _linear(state, "vision_backbone.mlp_after_v2.geglu.proj", _norm(state, "vision_backbone.mlp_after_v2.ln", two))
    a, b = y.chunk(2, dim=-1)
    two = two + _linear(state, "vision_backbone.mlp_after_v2.fc_out", a * F.gelu(b))
    pooled_one, grid_one = _pooled(state, "image_pooling_2d", one, grids[0], sizes.pool_heads)
    pooled_two, grid_two = _pooled(state, "image_pooling_2d_2", two, grids[1], sizes.pool_heads)
    cross = "vision_backbone.cross_rope"
    asks = _norm(state, f"{cross}.ln_sig", _linear(state, f"{cross}.proj_sig", pooled_one))
    holds = _norm(state, f"{cross}.ln_din", _linear(state, f"{cross}.proj_din", pooled_two))
    attention = f"{cross}.cross_sig_from_dino"
    places_one, places_two = _places(*grid_one), _places(*grid_two)
    q, k, v = (
        _linear(state, f"{attention}.{name}_proj", x).unflatten(-1, (sizes.heads, -1)).transpose(1, 2)
        for name, x in (("q", asks), ("k", holds), ("v", holds))
    )
    q, k = _rotated(state, attention, q, places_one), _rotated(state, attention, k, places_two)
    far = torch.cdist(places_one, places_two, compute_mode="donot_use_mm_for_euclid_dist") > 0.25
    logits = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(far, torch.finfo(torch.float64).min / 2)
    update = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return asks + torch.tanh(state[f"{cross}.gate_sig"]) * _linear(state, f"{attention}.out_proj", update)


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
    weights = ((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(-2, -3).flatten(-2)


def _mixed(state: Mapping[str, Tensor], pool: str, logits: Tensor, layers: list[Tensor]) -> Tensor:
    """Weighted sum of normalised, rotated layers; then the same norm again and a second rotation."""
    place = f"vision_backbone.{pool}"
    weights = logits.softmax(0)
    total = sum(
        w * (_norm(state, f"{place}.ln", x) @ _rotation(state, f"{place}.fc1").T)
        for w, x in zip(weights, layers, strict=True)
    )
    assert isinstance(total, Tensor)
    return _norm(state, f"{place}.ln", total) @ _rotation(state, f"{place}.fc2").T


def _rotation(state: Mapping[str, Tensor], name: str) -> Tensor:
    lower = state[f"{name}.parametrizations.weight.original"].tril(-1)
    return state[f"{name}.parametrizations.weight.0.base"] @ torch.linalg.matrix_exp(lower - lower.T)


def _pooled(
    state: Mapping[str, Tensor], name: str, x: Tensor, grid: tuple[int, int], heads: int
) -> tuple[Tensor, tuple[int, int]]:
    """Attention in 2x2 windows, asked by their mean."""
    rows, columns = grid[0] // 2, grid[1] // 2
    windows = x.unflatten(1, (rows, 2, columns, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    place = f"vision_backbone.{name}"
    query = windows.mean(2, keepdim=True)
    y = _attend(
        _linear(state, f"{place}.wq", query),
        _linear(state, f"{place}.wk", windows),
        _linear(state, f"{place}.wv", windows),
        heads,
    )
    return _linear(state, f"{place}.wo", y).squeeze(2), (rows, columns)


def _places(rows: int, columns: int) -> Tensor:
    y, x = torch.linspace(0, 1, rows, dtype=torch.float64), torch.linspace(0, 1, columns, dtype=torch.float64)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)


def _rotated(state: Mapping[str, Tensor], attention: str, x: Tensor, places_N2: Tensor) -> Tensor:
    """Neighbouring channels turn together; the channels of time, which is 0, come first and stay."""
    still, turns = [state[f"{attention}.rope.freqs.0"].shape[-1]], []
    for axis in (0, 1):
        turns.append(math.pi / 2 * places_N2[:, axis, None] * state[f"{attention}.rope.freqs.{axis + 1}"][0])
    angle = torch.cat([places_N2.new_zeros(len(places_N2), still[0]), *turns], dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1).flatten(-2)
