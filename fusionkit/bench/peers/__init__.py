"""What blocks are compared with: the same function, with the same weights, as others write it; or what others do instead.

A peer is made from a block that is ready, so that its outputs can be checked against the block's float64 result. A new
one is a `Peer` in a module of this folder and a line in `PEERS`.
"""

from __future__ import annotations

from fusionkit.bench.peers.attention_pool import MULTIHEAD_ATTENTION, X_TRANSFORMERS_POOL
from fusionkit.bench.peers.cross_attention import CROSS_ATTENTION_FORMULA
from fusionkit.bench.peers.cross_attention_libraries import VIT_PYTORCH, X_TRANSFORMERS
from fusionkit.bench.peers.geotorch import GEOTORCH
from fusionkit.bench.peers.orthogonal import FORMULA, FORMULA_CACHED, TORCH_ORTHOGONAL, TORCH_ORTHOGONAL_CACHED
from fusionkit.bench.peers.other_fusion import CONCAT_LINEAR, GATED_LAYER
from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.bench.peers.released_connector import RELEASED_CONNECTOR
from fusionkit.bench.peers.resamplers import TIMM_POOL, VIT_PYTORCH_RESAMPLER, X_TRANSFORMERS_RESAMPLER
from fusionkit.bench.peers.two_stage import RELEASED_FORM, RELEASED_FORM_CACHED

__all__ = ["PEERS", "Peer", "UnsuitableError", "peers_of"]

PEERS: tuple[Peer, ...] = (
    TORCH_ORTHOGONAL,
    TORCH_ORTHOGONAL_CACHED,
    FORMULA,
    FORMULA_CACHED,
    RELEASED_FORM,
    RELEASED_FORM_CACHED,
    GEOTORCH,
    CROSS_ATTENTION_FORMULA,
    X_TRANSFORMERS,
    VIT_PYTORCH,
    GATED_LAYER,
    CONCAT_LINEAR,
    RELEASED_CONNECTOR,
    MULTIHEAD_ATTENTION,
    X_TRANSFORMERS_POOL,
    TIMM_POOL,
    VIT_PYTORCH_RESAMPLER,
    X_TRANSFORMERS_RESAMPLER,
)


def peers_of(address: str) -> tuple[Peer, ...]:
    """The peers of a block, by its `family/name`."""
    return tuple(peer for peer in PEERS if peer.block == address)
