"""Who runs in a case: the block twice, its unfolded or plain-step form, its peers, and other blocks asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusionkit.bench.case import Case
from fusionkit.bench.peers import PEERS, Peer, UnsuitableError, peers_of
from fusionkit.bench.subject import build_awake, make_arguments
from fusionkit.bench.work import Work
from fusionkit.errors import UsageError
from fusionkit.ops.maps import OrthogonalMaps

REFERENCE = "fusionkit"
CONTROL = "fusionkit_again"
UNFOLDED = "fusionkit_unfolded"
PLAIN_STEP = "fusionkit_without_step"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("fwd", "fwdbwd", "step")


@dataclass(frozen=True, slots=True)
class Setting:
    """How all variants of a run are executed."""

    mode: str = "fwd"
    dtype: str = "fp32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Variant:
    """One row to be: `peer` computes the block's function another way; `case` differs for another block."""

    name: str
    case: Case
    peer: Peer | None = None

    @property
    def peer_of(self) -> str:
        return self.peer.block if self.peer is not None else ""


def variants_of(case: Case, setting: Setting, against: Sequence[str] = ()) -> list[Variant]:
    """The variants of a case, the reference first.

    `against` names peers, `none`, or other blocks as `family/name`; all peers if empty. A peer that another block has
    is left out here. Raises UsageError for names that nobody has.
    """
    known = {peer.name for peer in PEERS}
    if wrong := [name for name in against if name not in known and name != "none" and "/" not in name]:
        mine = ", ".join(peer.name for peer in peers_of(case.spec.address)) or "none"
        raise UsageError(
            f"--against {wrong[0]}: no such peer; {case.spec.address} has {mine}; "
            "or name another block as family/name, or `none`"
        )
    block = build_awake(case)
    found = [Variant(REFERENCE, case), Variant(CONTROL, case)]
    if setting.mode == "fwd" and callable(getattr(block, "unfold", None)):
        found.append(Variant(UNFOLDED, case))
    if setting.mode == "step" and any(isinstance(part, OrthogonalMaps) for part in block.modules()):
        found.append(Variant(PLAIN_STEP, case))
    found += [
        Variant(peer.name, case, peer) for peer in peers_of(case.spec.address) if not against or peer.name in against
    ]
    found += [Variant(name, case.instead(name)) for name in against if "/" in name]
    return found


def prepare(variant: Variant, setting: Setting) -> Work:
    """Build a variant and its data on the device. Raises UnsuitableError where it cannot do this."""
    dtype, device = DTYPES[setting.dtype], torch.device(setting.device)
    if variant.peer is not None and setting.mode not in variant.peer.modes:
        raise UnsuitableError(f"has no mode {setting.mode}: {variant.peer.summary}")
    module = build_awake(variant.case)
    autocast = None
    if variant.peer is not None:
        # Peers keep fp32 weights and run under autocast: what people do whose parametrisation has no half precision.
        rounded = copy.deepcopy(module).to(dtype).to(torch.float32)
        module = variant.peer.make(rounded.to(device), variant.case.config)
        autocast = None if dtype is torch.float32 else dtype
    else:
        module = module.to(device, dtype)
    in_step = setting.mode == "step" and variant.peer is None and variant.name != PLAIN_STEP
    return Work(
        module,
        make_arguments(variant.case, dtype, device),
        setting.mode,
        in_step=in_step,
        unfold=variant.name == UNFOLDED,
        autocast=autocast,
    )
