"""Exact unpooling in graphs of other programs: equal to the original in ONNX Runtime, and TensorRT takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import pooling
from onnx import TensorProto, helper, numpy_helper
from test_unpool import SegNet

from enet_deploy.errors import ArtifactError, InputError, ParityError
from enet_deploy.export import cli
from enet_deploy.export.rewrite import rewrite_unpool
from enet_deploy.export.to_onnx import quiet

UNDEPLOYABLE = {"MaxUnpool", "ScatterND", "ScatterElements"}


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(y)


def operations(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def tie_rich(*shape: int) -> np.ndarray:
    return (np.random.default_rng(7).integers(-2, 3, shape) / 4).astype(np.float32)


def test_max_unpool_as_legacy_exporters_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(pooling([2, 2], []), tmp_path / "segnet.onnx")
    assert cli.main([str(tmp_path / "segnet.onnx"), "--rewrite-unpool", "--out", str(tmp_path)]) == 0
    assert "1 unpoolings rewritten" in capsys.readouterr().out
    exact = tmp_path / "segnet-exact.onnx"
    assert not operations(exact) & UNDEPLOYABLE
    assert all(len(node.output) == 1 for node in onnx.load(exact).graph.node)
    x = tie_rich(2, 3, 12, 12)
    y = run(exact, x)
    assert np.array_equal(y, run(tmp_path / "segnet.onnx", x)) and (y != 0).mean() > 0.05


def test_weights_in_a_file_beside_the_graph(tmp_path: Path) -> None:
    """PyTorch's exporter writes them so. The new file holds them itself."""
    model = pooling([2, 2], [])
    onnx.save(model, tmp_path / "whole.onnx")
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="a.data")
    rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (tmp_path / "a.data").unlink()
    x = tie_rich(2, 3, 12, 12)
    assert np.array_equal(run(tmp_path / "b.onnx", x), run(tmp_path / "whole.onnx", x))
    with pytest.raises(ArtifactError, match=r"a\.onnx .*a\.data"):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")


@pytest.fixture(scope="module")
def scattering(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A SegNet of two levels by PyTorch's exporter, which makes ScatterND of the unpooling; and the network."""
    torch.manual_seed(0)
    net = SegNet().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape) / 4)
    path = tmp_path_factory.mktemp("scattering") / "segnet.onnx"
    with quiet():
        program = torch.onnx.export(net, (torch.zeros(1, 3, 16, 24),), dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    onnx.save(program.model_proto, path)
    return path, net


@pytest.mark.slow
def test_scatters_as_the_current_exporter_writes_them(scattering: tuple[Path, Any], tmp_path: Path) -> None:
    path, net = scattering
    assert operations(path) & UNDEPLOYABLE
    done = rewrite_unpool(path, tmp_path / "exact.onnx")
    assert (len(done.pools), len(done.unpools)) == (2, 2) and done.ties > 0.2
    assert not operations(tmp_path / "exact.onnx") & (UNDEPLOYABLE | {"Unsqueeze", "ConstantOfShape"})
    x = tie_rich(1, 3, 16, 24)
    y = run(tmp_path / "exact.onnx", x)
    assert np.array_equal(y, run(path, x))
    with torch.inference_mode():
        assert np.array_equal(y, net(torch.from_numpy(x)).numpy())


@pytest.mark.slow
def test_tensorrt_takes_what_it_refused(scattering: tuple[Path, Any], tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    rewrite_unpool(scattering[0], tmp_path / "exact.onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse((tmp_path / "exact.onnx").read_bytes()), parser.get_error(0)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    quiet_logger, empty = trt.Logger(trt.Logger.INTERNAL_ERROR), builder.create_network(0)
    refused = trt.OnnxParser(empty, quiet_logger)
    assert not refused.parse(pooling([2, 2], []).SerializeToString())


@pytest.mark.parametrize(
    ("kernel", "opset", "named"),
    [([3, 3], 11, "encoder/pool"), ([2, 3], 11, "decoder/unpool"), ([2, 2], 10, "opset 10")],
)
def test_what_cannot_be_rewritten_is_named(kernel: list[int], opset: int, named: str, tmp_path: Path) -> None:
    onnx.save(pooling(kernel, [], opset), tmp_path / "a.onnx")
    with pytest.raises(InputError, match=named):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_other_results_than_the_originals_are_refused(tmp_path: Path) -> None:
    """Indices relative to each plane, as an exporter makes them for itself: MaxUnpool reads them otherwise."""
    nodes = [helper.make_node("Mod", ["indices", "plane"], ["relative"])]
    model = pooling([2, 2], nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(144), "plane"))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ParityError, match="'y'"):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def spoiled(changes: Sequence[onnx.NodeProto] = (), sizes: int = 0, **attributes: Any) -> onnx.ModelProto:
    """The graph of `pooling` with attributes of its pooling, further nodes at its end, and sizes for its unpooling."""
    model = pooling([2, 2], [])
    pool, unpool = (node for node in model.graph.node if node.op_type.startswith("Max"))
    pool.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4, sizes, sizes]), "sizes"))
    unpool.input.extend(["sizes"] * bool(sizes))
    for node in changes:
        model.graph.node.append(node)
        shape = {"Cast": (2, 4, 6, 6), "Gather": (1, 4, 12, 12), "Reshape": (1, 3, 12, 12)}
        model.graph.output.append(
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape.get(node.op_type, (2, 4, 12, 12)))
        )
    return model


def a_sequence() -> onnx.ModelProto:
    model = spoiled([helper.make_node("SequenceConstruct", ["y"], ["z"])])
    model.graph.output[-1].CopyFrom(helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, None))
    return model


def a_choice() -> onnx.ModelProto:
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["y"], [name])], name, [], [tensor(name)])
        for name, kind in (("then", "Identity"), ("else", "Neg"))
    }
    model = spoiled([helper.make_node("If", ["flag"], ["z"], "choose", **branches)])
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, ()))
    return model


def an_index() -> onnx.ModelProto:
    model = spoiled([helper.make_node("Gather", ["y", "which"], ["z"])])
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.INT64, (1,)))
    return model


def one_frame_only() -> onnx.ModelProto:
    model = spoiled([helper.make_node("Reshape", ["x", "one"], ["z"])])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 12, 12]), "one"))
    for port in (model.graph.input[0], model.graph.output[0]):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def test_max_unpool_that_states_its_size(tmp_path: Path) -> None:
    onnx.save(spoiled(sizes=12), tmp_path / "a.onnx")
    rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    x = tie_rich(2, 3, 12, 12)
    assert np.array_equal(run(tmp_path / "b.onnx", x), run(tmp_path / "a.onnx", x))


def tensor(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4, 12, 12))


@pytest.mark.parametrize(
    ("model", "error", "named"),
    [
        (spoiled(dilations=[2, 2]), InputError, r"encoder/pool .*dilations \[2, 2\]"),
        (spoiled(sizes=14), InputError, r"decoder/unpool .*\[2, 4, 14, 14\]"),
        (spoiled([helper.make_node("Cast", ["indices"], ["z"], to=TensorProto.FLOAT)]), InputError, "encoder/pool"),
        (a_sequence(), InputError, "z is a sequence_type"),
        (a_choice(), InputError, "choose"),
        (an_index(), ArtifactError, r"a\.onnx .*\(1,\)"),
        (one_frame_only(), ArtifactError, r"a\.onnx .*\(2, 3, 12, 12\)"),
    ],
    ids=["dilations", "sizes", "other use of indices", "sequence", "branches", "index", "one frame"],
)
def test_what_else_is_not_rewritten(model: onnx.ModelProto, error: type[Exception], named: str, tmp_path: Path) -> None:
    """Valid ONNX: each was a traceback, or a file that TensorRT refuses."""
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(error, match=named):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_operations_that_onnx_runtime_lacks(tmp_path: Path) -> None:
    model = pooling([2, 2], [])
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    model.graph.node.append(helper.make_node("Foo", ["y"], ["z"], domain="elsewhere"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 4, 12, 12)))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match=r"a\.onnx .*elsewhere:Foo"):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_files_without_unpooling(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="MaxUnpool"):
        rewrite_unpool(exported, tmp_path / "b.onnx")
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"a\.onnx"):
        rewrite_unpool(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert cli.main(["--rewrite-unpool"]) == 2 and "MODEL.onnx" in capsys.readouterr().err
    for option in (["--fp16"], ["--target", "ort"]):
        assert cli.main([str(exported), "--rewrite-unpool", *option]) == 2 and option[0] in capsys.readouterr().err
    (tmp_path / "seg.txt").touch()
    assert cli.main([f"{tmp_path}/seg.txt", "--rewrite-unpool"]) == 2 and "--weights" not in capsys.readouterr().err
