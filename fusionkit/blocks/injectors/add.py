"""Visual vectors added to the `<image>` embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from fusionkit.blocks.injectors.placing import check_placing
from fusionkit.blocks.injectors.specs import AddConfig
from fusionkit.plugin import BlockSite


class Add(nn.Module):
    """Injection that keeps what the `<image>` token's own embedding says.

    Shapes: embeds_BTE, visual_VE, mask_BT (True at V positions, row-major) -> embeds_BTE.

    Equation: e_t = e_t + v_{k(t)} where mask is True, k counting the True positions.
    """

    def __init__(self, config: AddConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address

    def forward(self, embeds_BTE: Tensor, visual_VE: Tensor, mask_BT: Tensor) -> Tensor:
        check_placing(embeds_BTE, visual_VE, mask_BT, self.address)
        spread_BTE = embeds_BTE.new_zeros(embeds_BTE.shape)
        return embeds_BTE + spread_BTE.masked_scatter(mask_BT[..., None], visual_VE.to(embeds_BTE.dtype))
