"""Who runs in a case: the block twice, its other forms and backends, its peers, and other blocks asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from fusionkit.bench.backends import WORKS, check_backends, put_under
from fusionkit.bench.callers import VisionCall
from fusionkit.bench.case import HOST_FAMILIES, AnyCase, Case, Whole
from fusionkit.bench.cases import instead
from fusionkit.bench.host import HostWork, host_work
from fusionkit.bench.peers import PEERS, Peer, UnsuitableError, peers_of
from fusionkit.bench.subject import build_awake, make_arguments
from fusionkit.bench.work import Work
from fusionkit.errors import UsageError
from fusionkit.model.runtime import Runtime
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.plugin import STEP_FAMILIES

REFERENCE = "fusionkit"
CONTROL = "fusionkit_again"
UNFOLDED = "fusionkit_unfolded"
PLAIN_STEP = "fusionkit_without_step"
RUNTIMES = {
    "fusionkit_layers_kept": Runtime(stream_layers=False),
    "fusionkit_mix_chunk_4": Runtime(mix_chunk=4),
    "fusionkit_one_crop": Runtime(crop_chunk=1),
    "fusionkit_cuda_graphs": Runtime(cuda_graphs=True),
    "fusionkit_parallel_encoders": Runtime(parallel_encoders=True),
}
"""Other ways to execute a whole vision side; the reference is the default `Runtime`."""

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
    case: AnyCase
    peer: Peer | None = None
    backend: str = ""

    @property
    def peer_of(self) -> str:
        return self.peer.block if self.peer is not None else ""


def variants_of(
    case: AnyCase, setting: Setting, against: Sequence[str] = (), backends: Sequence[str] = ()
) -> list[Variant]:
    """The variants of a case, the reference first.

    `against` names peers, `none`, or other blocks as `family/name`; all peers if empty. A peer that another block has
    is left out here. Raises UsageError for names that nobody has.
    """
    known = {peer.name for peer in PEERS}
    if wrong := [name for name in against if name not in known and name != "none" and "/" not in name]:
        mine = ", ".join(peer.name for peer in peers_of(case.address)) or "none"
        raise UsageError(
            f"--against {wrong[0]}: no such peer; {case.address} has {mine}; "
            "or name another block as family/name, or `none`"
        )
    check_backends(tuple(backends))
    found = [Variant(REFERENCE, case), Variant(CONTROL, case)]
    if isinstance(case, Whole):
        if setting.mode == "fwd":
            found += [Variant(name, case) for name, runtime in RUNTIMES.items() if _differs(runtime, case)]
    elif case.spec.family in STEP_FAMILIES:
        block = build_awake(case)
        if setting.mode == "fwd" and callable(getattr(block, "unfold", None)):
            found.append(Variant(UNFOLDED, case))
        if setting.mode == "step" and any(isinstance(part, OrthogonalMaps) for part in block.modules()):
            found.append(Variant(PLAIN_STEP, case))
    found += [Variant(f"fusionkit[{name}]", case, backend=name) for name in backends]
    found += [Variant(peer.name, case, peer) for peer in peers_of(case.address) if not against or peer.name in against]
    found += [Variant(name, instead(case, name)) for name in against if "/" in name]
    return found


def _differs(runtime: Runtime, case: Whole) -> bool:
    """Whether a way to execute a vision side is another one for so many crops and encoders."""
    return (case.crops > 1 or runtime.crop_chunk is None) and (len(case.streams) > 1 or not runtime.parallel_encoders)


def is_host(case: AnyCase) -> bool:
    """Whether a case is no module: timed as plain Python, without a float64 reference."""
    return isinstance(case, Case) and case.spec.family in HOST_FAMILIES


def prepare(variant: Variant, setting: Setting, built: nn.Module | None = None) -> Work | HostWork:
    """Build a variant and its data on the device. Raises UnsuitableError where it cannot do this.

    `built` is the reference's module, on the device and in the dtype already: what is large is not built twice.
    """
    case = variant.case
    if isinstance(case, Case) and is_host(case):
        return host_work(case, setting.device)
    dtype, device = DTYPES[setting.dtype], torch.device(setting.device)
    if variant.peer is not None and setting.mode not in variant.peer.modes:
        raise UnsuitableError(f"has no mode {setting.mode}: {variant.peer.summary}")
    shared = built if isinstance(built, VisionCall) and not variant.backend else None
    # What is large is built where it runs: a billion random numbers take a CPU longer than a GPU all its rounds.
    large = isinstance(case, Whole) or case.site.info is not None
    with device if large else nullcontext():
        module = build_awake(case) if shared is None else _under(shared, variant)
    autocast = None
    if variant.peer is not None:
        # Peers keep fp32 weights and run under autocast: what people do whose parametrisation has no half precision.
        rounded = copy.deepcopy(module).to(dtype).to(torch.float32)
        module = variant.peer.make(rounded.to(device), variant.case.config)  # type: ignore[union-attr]  # steps only
        autocast = None if dtype is torch.float32 else dtype
    elif shared is None:  # even a move to where it is would make it fold and capture again
        module = module.to(device, dtype)
    module, around = put_under(module, variant.backend, setting.mode)
    in_step = setting.mode == "step" and variant.peer is None and variant.name != PLAIN_STEP
    return WORKS.get(variant.backend, Work)(
        module,
        make_arguments(case, dtype, device),
        setting.mode,
        in_step=in_step,
        unfold=variant.name == UNFOLDED,
        autocast=autocast,
        around=around,
    )


def _under(built: VisionCall, variant: Variant) -> VisionCall:
    try:
        return built.under(RUNTIMES.get(variant.name, Runtime()))
    except UsageError as error:
        raise UnsuitableError(str(error)) from error
