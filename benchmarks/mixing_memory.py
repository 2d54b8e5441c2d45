"""What mixing needs beside one hidden state: streamed, from a list of states, and from a stack of them.

    python benchmarks/mixing_memory.py --out benchmarks/results/cpu/mixing_memory.json

An encoder is played by a loop that makes one random state after the other; each way of mixing them runs once, and the
peak is the most bytes the allocator held at a time, by its own events, less the one state that every encoder holds.
Weights are folded in a call before and not counted; counts do not depend on what else the machine does.

- streamed: the mixer is handed each state as it comes, and lets go of it.
- list: the states are kept, then summed one by one as the released code does for SigLIP (weights cached).
- stack: the states are kept and stacked, normalised and weighted as one tensor, as it does for DINO.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusionkit
from fusionkit.bench.counting import count
from fusionkit.bench.machine import facts
from fusionkit.bench.work import Work
from fusionkit.geometry import Grid, LayerStackSpec


class Mixing(nn.Module):
    """Makes states and mixes them in one of the three ways; the first argument says how large a state is."""

    def __init__(self, mixer: Any, way: str) -> None:
        super().__init__()
        self.mixer, self.way = mixer, way
        self.states = mixer.layers

    def forward(self, inputs: list[Tensor]) -> Tensor:
        def states() -> Any:
            for _ in range(self.states):
                yield torch.rand_like(inputs[0])

        if self.way == "alone":
            for state in states():
                del state
            return inputs[0]
        if self.way == "streamed":
            running = self.mixer.begin()
            for index, state in enumerate(states()):
                running = self.mixer.accumulate(running, index, state)
                del state
            return self.mixer.finish(running)
        kept = list(states())
        terms = self.mixer._ready_terms()
        matrices = [terms.matrices[index % len(terms.matrices)] for index in range(len(kept))]
        if self.way == "list":
            total = torch.zeros_like(kept[0])
            for index, state in enumerate(kept):
                normed = nn.functional.layer_norm(state, state.shape[-1:], terms.gain_LD[index], terms.shift_LD[index])
                total = total + nn.functional.linear(normed, matrices[index])
            return total
        stacked = torch.stack(kept)
        gain, shift = terms.gain_LD[:, None, None], terms.shift_LD[:, None, None]
        normed = nn.functional.layer_norm(stacked, stacked.shape[-1:]) * gain + shift
        if len(terms.matrices) == 1:
            return nn.functional.linear(normed.sum(0), matrices[0])
        return torch.stack([nn.functional.linear(part, q) for part, q in zip(normed, matrices, strict=True)]).sum(0)


def measure(share: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    side = options.grid
    stack = LayerStackSpec(tuple(range(1, options.layers + 1)), Grid(side, side), options.width)
    mixer = fusionkit.create("mixers/orthogonal", stack, share=share)
    one = torch.rand(options.crops, side * side, options.width)
    peaks = {}
    for way in ("alone", "streamed", "list", "stack"):
        work = Work(Mixing(mixer, way), {"input": [one]}, "fwd")
        work.call()  # folds; what that takes is not part of mixing
        peaks[way] = count(work).peak_bytes
        print(f"{share} {way}: {peaks[way] / 2**20:.1f} MiB", file=sys.stderr)
    state = one.numel() * one.element_size()
    extra: Callable[[str], int] = lambda way: peaks[way] - peaks["alone"]  # noqa: E731
    return [
        {
            "share": share,
            "way": way,
            "peak_mib": round(peaks[way] / 2**20, 1),
            "states": round(peaks[way] / state, 2),
            "extra_states": round(extra(way) / state, 2),
            "peak_over_streamed": round(peaks[way] / peaks["streamed"], 1),
        }
        for way in peaks
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 27), ("crops", 13), ("grid", 24), ("width", 1152)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch's profiler loads; it is chatty
    rows = [row for share in ("layer", "encoder") for row in measure(share, options)]
    shape = {name: getattr(options, name) for name in ("layers", "crops", "grid", "width")}
    command = shlex.join(["python", *sys.argv])
    stored = {"command": command, "date": time.strftime("%Y-%m-%d"), **facts("cpu"), "shape": shape, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
