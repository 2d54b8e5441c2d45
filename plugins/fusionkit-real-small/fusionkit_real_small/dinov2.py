"""`real.dinov2_small`: the backbone as a module, pruned after the deepest layer that is read.

Shapes: B crops, N patch tokens, T = N + 1 with the class token, D width, H heads of K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.plugin import BlockSite, EncoderInfo, Grid, ShapeError
from fusionkit_real_small.convert import SIDE, load_backbone
from fusionkit_real_small.features import FeatureStore, weights_digest
from fusionkit_real_small.specs import HEADS, HIDDEN, PATCH, WIDTH, Dinov2SmallConfig, describe_dinov2_small


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel and added.

    Equation: x += s1 * W_o attend(LN(x) W_qkv); x += s2 * W_down gelu(LN(x) W_up).
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.scale_attention = nn.Parameter(torch.ones(WIDTH))
        self.norm_mlp = nn.LayerNorm(WIDTH, eps=1e-6)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.scale_mlp = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.scale_attention * self.out(self._attend(self.qkv(self.norm_attention(x_BTD))))
        y_BTD: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x_BTD))))
        return x_BTD + self.scale_mlp * y_BTD

    def _attend(self, qkv_BTJ: Tensor) -> Tensor:
        B, T, _ = qkv_BTJ.shape
        q_BHTK, k_BHTK, v_BHTK = qkv_BTJ.view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, -1)


class Dinov2Small(nn.Module):
    """Patch projection, class token, learned positions, blocks; layers are read between them, before any final norm.

    Shapes: x_BCHW normalised with ImageNet statistics -> layers x_BND, class token stripped, row-major.

    On the meta device no weights are read. Raises BuildError when the weights' package is missing or another one.
    """

    parameter_roles = {"positions": "embedding", "class_token": "vector"}  # noqa: RUF012  (read as a plain mapping)

    def __init__(self, config: Dinov2SmallConfig, site: BlockSite) -> None:
        super().__init__()
        info = site.info if isinstance(site.info, EncoderInfo) else describe_dinov2_small(config)
        if not site.layers or not 0 <= min(site.layers) <= max(site.layers) <= info.depth:
            raise ShapeError(f"layers {list(site.layers)} are not some of 0..{info.depth}", field="select")
        self.info = info
        self.config = config
        self.layers = site.layers
        self.kept = max(site.layers)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.empty(WIDTH))
        self.positions = nn.Parameter(torch.empty(1 + info.grid.tokens, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(self.kept))
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self._store: FeatureStore | None = None
        if config.weights == "pretrained" and not self.positions.is_meta:
            self._load(load_backbone(), info.grid)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """The layers of the site, in its order."""
        return self.forward_layers(x_BCHW, self.layers)

    def forward_layers(self, x_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """One x_BND per entry of `layers`, in that order; raises ShapeError for wrong pixels or an absent layer."""
        # Scores are never read from disk: only training (frozen, so without a graph) uses what was kept.
        if self.config.cache != "none" and self.training and not torch.is_grad_enabled():
            return self.store(layers).layers(x_BCHW, lambda missing: self._compute(missing, layers))
        return self._compute(x_BCHW, layers)

    def tap(self, x_BCHW: Tensor, layers: Sequence[int], consume: Callable[[int, Tensor], None]) -> None:
        """Call `consume(layer, x_BND)` for each of `layers`, in rising order, as soon as it is computed."""
        expected = (3, *self.info.input_size)
        if x_BCHW.ndim != 4 or tuple(x_BCHW.shape[1:]) != expected:
            raise ShapeError(f"{self.info.name}: expected pixels of shape (B, *{expected}), got {tuple(x_BCHW.shape)}")
        wanted = frozenset(layers)
        if absent := sorted(layer for layer in wanted if not 0 <= layer <= self.kept):
            raise ShapeError(
                f"{self.info.name}: layers {absent} are not there; it was built with layers 0..{self.kept}"
            )
        x_BND = self.patches(x_BCHW).flatten(2).transpose(1, 2)
        class_B1D = self.class_token.expand(len(x_BND), 1, -1)
        x_BTD = torch.cat([class_B1D.to(x_BND.dtype), x_BND], dim=1) + self.positions
        if 0 in wanted:
            consume(0, x_BTD[:, 1:])
        for layer, block in enumerate(self.blocks[: max(wanted, default=0)], start=1):
            x_BTD = block(x_BTD)
            if layer in wanted:
                consume(layer, x_BTD[:, 1:])

    def store(self, layers: Sequence[int]) -> FeatureStore:
        """Where layers of pictures already seen are kept: one folder for these weights, layers and number format."""
        if self._store is None:
            shape = (len(layers), self.info.grid.tokens, WIDTH)
            self._store = FeatureStore(weights_digest(self.state_dict()), tuple(layers), shape, self.config.cache)
        return self._store

    def _compute(self, x_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        self.tap(x_BCHW, layers, found.__setitem__)
        return [found[layer] for layer in layers]

    def _load(self, backbone: Mapping[str, Tensor], grid: Grid) -> None:
        """Fill in the weights, positions resampled to the grid; every tensor of the kept blocks must be there and fit."""
        wanted = {name: backbone[name] for name in self.state_dict() if name != "positions"}
        self.load_state_dict({**wanted, "positions": resize_positions(backbone["positions"], grid)})


def resize_positions(positions_TD: Tensor, grid: Grid) -> Tensor:
    """Positions of the 37x37 training grid on another grid: bicubic, without antialiasing, class token's kept as it is."""
    if (grid.height, grid.width) == (SIDE, SIDE):
        return positions_TD
    plane_1Dhw = positions_TD[1:].T.reshape(1, WIDTH, SIDE, SIDE)
    resized_1Dhw = F.interpolate(plane_1Dhw, size=(grid.height, grid.width), mode="bicubic", align_corners=False)
    return torch.cat([positions_TD[:1], resized_1Dhw.flatten(2)[0].T])
