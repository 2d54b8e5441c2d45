"""The vision side of a recipe at full size, with random weights: does it run here, how long, and in how much memory?

    python benchmarks/full_size_vision.py --out benchmarks/results/cpu/full_size_vision.json
    python benchmarks/full_size_vision.py come_vl_released --dtype bf16

Builds the streams and the fusion of a recipe (its language model is left out), runs one crop, and measures per stream what
one forward pass allocates at most above weights and input: the encoder alone, with every layer let go as it comes;
encoder and mixer with the layers streamed, as inference does; and with all layers kept first. Peaks are sums of the
allocator's own events, so they do not depend on what else the machine does; seconds do.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

import fusionkit
from fusionkit.bench.counting import count
from fusionkit.bench.machine import facts
from fusionkit.bench.work import Work
from fusionkit.model.runtime import Runtime
from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def vision_of(recipe: str) -> dict[str, Any]:
    """The recipe without language model and training, all weights random, as a mapping.

    The last step keeps the width that the language model asked for.
    """
    loaded = load_recipe(recipe)
    canonical, width = loaded.canonical(), plan(loaded).visual.width
    fusion = dict(canonical["fusion"])
    if fusion and "width" in (step := list(fusion.values())[-1]):
        fusion[list(fusion)[-1]] = {**step, "width": width}
    streams = {
        name: {**stream, "encoder": {**stream["encoder"], **_random(stream["encoder"])}}
        for name, stream in canonical["streams"].items()
    }
    kept = {key: canonical[key] for key in ("schema", "name", "summary", "sequence_length", "cropper")}
    return {**kept, "streams": streams, "fusion": fusion}


def _random(encoder: dict[str, Any]) -> dict[str, str]:
    return {"weights": "random"} if "weights" in encoder else {}


def measure(recipe: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Seconds and peaks of one crop; peaks in bytes and in hidden states of the stream's own encoder."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model: Any = fusionkit.build(recipe, dtype=dtype).eval()
    built = time.perf_counter() - start
    generator = torch.Generator().manual_seed(1)
    pixels = {
        name: torch.randn(1, 3, *stream.info.input_size, generator=generator).to(dtype)
        for name, stream in model.plan.streams.items()
    }
    found: dict[str, Any] = {"recipe": recipe["name"], "seconds": {"build": round(built, 2)}, "streams": {}}
    with torch.no_grad():
        # The first pass makes the orthogonal maps and keeps them: the cost of starting, not of a crop.
        found["seconds"]["first_crop"] = _seconds(lambda: model.fuse(model.encode_streams(pixels)))
        found["seconds"]["crop"] = _seconds(lambda: model.fuse(model.encode_streams(pixels)))
        fused = model.fuse(model.encode_streams(pixels))
        for name, stream in model.streams.items():
            found["streams"][name] = _stream(stream, pixels[name])
        found["peak_bytes"] = _peak(lambda: model.fuse(model.encode_streams(pixels)))
    nodes = {node.address: node.params for node in model.plan.nodes}
    found["parameters"] = {"total": sum(parameter.numel() for parameter in model.parameters()), **nodes}
    found["output"] = {"shape": list(fused.x_BND.shape), "finite": bool(fused.x_BND.isfinite().all())}
    found["process_peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return found


def _stream(stream: Any, pixels_BCHW: torch.Tensor) -> dict[str, Any]:
    plan = stream.plan
    state = plan.stack.grid.tokens * plan.stack.width * pixels_BCHW.element_size()

    def bare() -> None:
        stream.encoder.tap(pixels_BCHW, plan.layers, lambda layer, x_BND: None)

    bare_bytes = _peak(bare)
    streamed = _peak(lambda: stream(pixels_BCHW, Runtime()))
    kept = _peak(lambda: stream(pixels_BCHW, Runtime(stream_layers=False)))
    return {
        "encoder": plan.info.name,
        "layers": len(plan.layers),
        "hidden_state_bytes": state,
        "peak_bytes": {"encoder_alone": bare_bytes, "streamed": streamed, "all_layers_kept": kept},
        "extra_hidden_states": {
            "streamed": round((streamed - bare_bytes) / state, 3),
            "all_layers_kept": round((kept - bare_bytes) / state, 3),
        },
    }


def _peak(call: Callable[[], object]) -> int:
    return count(cast(Work, SimpleNamespace(prepare=lambda: None, call=call, device=torch.device("cpu")))).peak_bytes


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="come_vl", help="a shipped recipe by name, or a file")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--out", type=Path, help="file to write as JSON")
    chosen = parser.parse_args()
    name = chosen.recipe
    recipe = vision_of(name if Path(name).suffix or ":" in name else f"builtin:{name}")
    found = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "dtype": chosen.dtype,
        **facts("cpu"),
        **measure(recipe, DTYPES[chosen.dtype]),
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
