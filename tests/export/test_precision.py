"""One network, one ONNX file per precision: typed as asked, named alike, and with PyTorch's labels."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import SIZE, made_once, one_line
from onnx import TensorProto, numpy_helper

from enet_deploy import ArtifactError, BackendError, open_runner
from enet_deploy.artifacts import Metadata, graph_metadata, set_graph_metadata
from enet_deploy.cache import cache_folder
from enet_deploy.data import open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.export import cli, engines
from enet_deploy.export.graph import clean
from enet_deploy.export.int8 import activations, layers, quantize
from enet_deploy.export.record import BUNDLED_RECORD, Record, record_for
from enet_deploy.export.to_onnx import to_onnx
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import evaluate
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.cuda import Gpu
from enet_deploy.weights import load_weights, save_weights

# share of pixels with PyTorch's label, on street scenes as drawn for 360x480
AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.98, "int8-openvino": 0.98, "int8-ort": 0.98, "fp16-int8": 0.98}
BACKENDS = ("ort", "openvino")


@pytest.fixture(scope="module")
def street_graphs(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> graph at 360x480, written by the command line: floats from the weights, int8 from these."""

    def write(folder: Path) -> None:
        for arguments in (
            [],
            ["--fp16"],
            [f"{folder}/enet-fp32.onnx", "--int8"],
            [f"{folder}/enet-fp32.onnx", "--int8", "--target", "openvino"],
            [f"{folder}/enet-fp32.onnx", "--int8", "--target", "ort"],
            [f"{folder}/enet-fp16.onnx", "--int8"],
        ):
            assert cli.main([*arguments, "--out", str(folder)]) == 0

    folder = made_once(tmp_path_factory, "street", write)
    return {precision: folder / f"enet-{precision}.onnx" for precision in AGREEMENT}


@pytest.fixture(scope="module")
def street(weights: Path) -> list[tuple[UInt8Array, UInt8Array]]:
    """Scenes that no export was held against, each with PyTorch's labels."""
    frames = [street_scene(seed)[0][None] for seed in range(100, 104)]
    with open_runner(weights) as runner:
        return [(frame, runner.infer(frame)) for frame in frames]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", AGREEMENT)
def test_street_scenes_get_pytorchs_labels(
    street_graphs: dict[str, Path], street: list[tuple[UInt8Array, UInt8Array]], precision: str, backend: str
) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    with open_runner(street_graphs[precision], backend) as runner:
        assert runner.spec.precision == precision.removesuffix("-ort").removesuffix("-openvino")
        same = [np.mean(runner.infer(frame) == labels) for frame, labels in street]
    assert np.mean(same) >= AGREEMENT[precision]


@pytest.mark.slow
def test_camvid_gets_pytorchs_labels_in_half(street_graphs: dict[str, Path], weights: Path, camvid: Path) -> None:
    data = open_data(camvid, "val")
    with open_runner(street_graphs["fp16"]) as half, open_runner(weights) as reference:
        frames = [data[index][0][None] for index in range(0, len(data), 10)]
        assert np.mean([np.mean(half.infer(frame) == reference.infer(frame)) for frame in frames]) >= 0.999


@pytest.mark.slow
def test_int8_costs_at_most_three_tenths_of_a_point(street_graphs: dict[str, Path], camvid: Path) -> None:
    data = open_data(camvid, "val")
    data = dataclasses.replace(data, pairs=data.pairs[::5])
    miou = {}
    for precision in ("fp32", "int8", "int8-openvino", "int8-ort"):
        with open_runner(street_graphs[precision]) as runner:
            miou[precision] = evaluate(runner.segment, data, data.classes).scores().miou
    assert min(miou.values()) >= miou["fp32"] - 0.003


@pytest.mark.slow
def test_openvino_computes_the_sums_of_its_layout_with_the_convolutions(street_graphs: dict[str, Path]) -> None:
    openvino = pytest.importorskip("openvino")
    apart = {}
    for precision in ("int8", "int8-openvino"):
        facts = [
            node.get_rt_info()
            for node in openvino.compile_model(street_graphs[precision], "CPU").get_runtime_model().get_ops()
        ]
        computed = [fact["originalLayersNames"].value for fact in facts if fact["layerType"].value != "Convolution"]
        apart[precision] = [name for names in computed for name in names.split(",") if name.endswith("/Add")]
    assert len(apart["int8"]) > 20 and apart["int8-openvino"] == ["stage1.3/Add"]  # which decides the second pooling


# --- half --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_graph_is_half_from_normalisation_to_argmax(graphs: dict[str, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs["fp16"]), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    computed = {
        node.name: types[node.output[0]]
        for node in model.graph.node
        if node.op_type not in ("Cast", "Equal", "ArgMax") and node.output[0] in types
    }
    floats = {name for name, type_ in computed.items() if type_ == TensorProto.FLOAT}
    assert floats == {"Transpose", "Sub", "Div", "ReduceMax", "ReduceSum"}  # of the frames, and of confidences
    weights = {i.data_type for i in model.graph.initializer if i.name.endswith(("weight", "bias", "slope"))}
    assert weights == {TensorProto.FLOAT16}
    for node in model.graph.node:  # the winners are found on the very tensor that is pooled
        if node.op_type == "Equal":
            assert {types.get(name, TensorProto.FLOAT16) for name in node.input} == {TensorProto.FLOAT16}


@pytest.mark.slow
def test_half_and_float_graphs_name_their_tensors_alike(graphs: dict[str, Path]) -> None:
    names = []
    for precision in ("fp32", "fp16"):
        graph = onnx.load(graphs[precision]).graph
        names.append(list(activations(graph, layers(graph).values())))
    assert names[0] == names[1]
    assert {"normalised", "initial.act/LeakyRelu", "stage2.3.branch.1/LeakyRelu", "bottleneck4_0.unpool/Mul"} <= set(
        names[0]
    )


@pytest.mark.slow
def test_half_logits_are_float_outside(graphs: dict[str, Path]) -> None:
    frame = street_scene(0, SIZE)[0][None]
    with open_runner(graphs["fp16"]) as half, open_runner(graphs["fp32"]) as full:
        logits = half.logits(frame)
        assert logits.dtype == np.float32 and 0 < np.abs(logits - full.logits(frame)).mean() < 0.1


# --- the command line --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fp16_and_int8_and_an_engine_ahead_of_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = "--fp16 --int8 --size 96x128 --max-disagreement 1 --engine trt-rtx --compute-capability 8.6 --out"
    assert cli.main([*options.split(), str(tmp_path)]) == 0
    note, graph, engine, manifest = capsys.readouterr().out.splitlines()
    assert "360x480" in note and "enet-calibrate --size 96x128" in note
    assert graph.startswith(f"{tmp_path}/enet-fp16-int8.onnx  ")
    assert "for compute capability 8.6; layers: not inspected, no such GPU here" in engine
    assert manifest.startswith(f"{tmp_path}/fleet.json  ")
    card = EngineCard.read(tmp_path / "enet-fp16-int8-rtx.engine")
    assert card.onnx_sha256 == sha256(tmp_path / "enet-fp16-int8.onnx")
    calibration = card.metadata.details["calibration"]
    assert calibration["sha256"] == record_for(card.metadata.weights_sha256).sha256


@pytest.mark.slow
def test_no_engine_without_tensorrt(
    graphs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr("enet_deploy.runners.tensorrt.cuda.find_gpu", lambda: Gpu("Orin", "8.7"))
    assert cli.main([str(graphs["fp16"]), "--int8", "--max-disagreement", "1", "--out", str(tmp_path)]) == 0
    note, graph = capsys.readouterr().out.splitlines()
    assert "enet-calibrate --size 96x128" in note and "enet-fp16-int8.onnx" in graph
    assert [file.name for file in tmp_path.iterdir()] == ["enet-fp16-int8.onnx"]


def test_no_engine_without_a_gpu(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> Gpu:
        raise BackendError("no NVIDIA driver")

    monkeypatch.setattr("enet_deploy.runners.tensorrt.cuda.find_gpu", no_driver)
    options = ["--int8", "--max-disagreement", "1", "--out", str(tmp_path)]
    assert cli.main([str(exported), *options]) == 0
    note, graph = capsys.readouterr().out.splitlines()
    assert "enet-calibrate --size 96x128" in note and "enet-int8.onnx" in graph


def test_an_engine_that_cannot_be_built_for_this_gpu_is_a_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BackendError("sm_53")

    monkeypatch.setattr("enet_deploy.runners.tensorrt.cuda.find_gpu", lambda: Gpu("Nano", "5.3"))
    monkeypatch.setattr("enet_deploy.runners.tensorrt.library.import_tensorrt", lambda _: None)
    monkeypatch.setattr(engines, "write", fail)
    assert cli.main([str(exported), "--int8", "--max-disagreement", "1", "--out", str(tmp_path)]) == 0
    assert "sm_53" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_equal_weights_in_two_layers_have_each_their_own_int8(exported: Path) -> None:
    """The exporter stores them once; see also `graph.clean`."""
    model = onnx.load(exported)
    tensors = {i.name: i for i in model.graph.initializer}
    first, second = (layers(model.graph)[f"stage1.{i}.branch.2"] for i in (0, 1))
    for taken, other in zip(second.input[1:], first.input[1:], strict=True):
        tensors[taken].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[other]), taken))
    metadata = graph_metadata(model, exported)
    clean(model)  # also of metadata
    set_graph_metadata(model, metadata)
    assert second.input[1] == first.input[1] and second.input[2] != first.input[2]
    onnx.checker.check_model(quantize(model, Record.read(BUNDLED_RECORD)), full_check=True)


@pytest.mark.slow
def test_int8_of_a_graph_without_its_weights(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(exported), "--int8", "--out", str(tmp_path), "--max-disagreement", "1"]) == 0
    assert f"as {exported}'s" in capsys.readouterr().out
    with open_runner(tmp_path / "enet-int8.onnx") as runner:
        assert runner.spec.precision == "int8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["INT8", "--int8"], "enet-int8.onnx is int8"),
        (["FP32"], "enet-fp32.onnx.*--int8.* or --engine"),
        (["FP32", "--fp16"], "--fp16 with .*enet-fp32.onnx"),
        (["INT8", "--precision", "fp32", "--engine", "trt"], "--precision fp32 with .*enet-int8.onnx.* int8:"),
        (["FP32", "--precision", "fp32"], "enet-fp32.onnx.*--int8.* or --engine"),
        (["FP32", "--precision", "fp16-int8"], "--precision fp16-int8 with .*enet-fp32.onnx, expected fp32 or int8"),
        (["FP32", "--int8", "--dynamic-batch"], "--dynamic-batch with .*enet-fp32.onnx"),
        (["FP32", "--int8", "--weights", "w.safetensors"], "--weights with .*enet-fp32.onnx"),
        (["FP32", "--engine", "trt-rtx", "--compute-capability", "8.6", "--data", "d"], "--data .*expected --int8"),
        (["none.onnx", "--int8"], "none.onnx does not exist"),
        (["r.json", "--int8"], "r.json does not exist"),
        (["--calibration", "r.json"], "--calibration r.json without --int8"),
        (["--target", "ort"], "--target ort without --int8"),
        (["--target", "openvino"], "--target openvino without --int8"),
        (["--int8", "--fp16", "--target", "ort"], "--target ort with --fp16"),
        (["--int8", "--target", "ort", "--engine", "trt"], "--target ort with --engine"),
        (["--int8", "--target", "openvino", "--engine", "trt"], "--target openvino with --engine"),
        (["--int8", "--calibration", "r.json"], "r.json does not exist"),
        (["--compute-capability", "8.6"], "--compute-capability .*--engine"),
        (["--engine", "trt", "--compute-capability", "8.6"], "8.6 with engine 'trt'"),
        (["--fp16", "--optimization-level", "3"], "--optimization-level .*--engine"),
    ],
)
def test_what_does_not_go_together(
    exported: Path,
    quantized_graph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    if "trt-rtx" in arguments:
        pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    named = {"INT8": str(quantized_graph), "FP32": str(exported)}
    assert cli.main([named.get(argument, argument) for argument in arguments]) == 2
    assert re.search(message, one_line(capsys))
    assert not list(tmp_path.iterdir())


def test_record_of_other_weights_is_refused(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, metadata = load_weights(weights)
    with torch.no_grad():
        net.fullconv.bias += 1
    save_weights(tmp_path / "mine.safetensors", net, metadata)
    assert cli.main(["--weights", str(tmp_path / "mine.safetensors"), "--int8", "--out", str(tmp_path)]) == 2
    line = one_line(capsys)
    assert str(BUNDLED_RECORD) in line and sha256(tmp_path / "mine.safetensors")[:12] in line
    assert "enet-calibrate" in line
    assert [file.name for file in tmp_path.iterdir()] == ["mine.safetensors"]


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, weights: Path) -> None:
    net, metadata = load_weights(weights)
    with torch.no_grad():
        net.stage2[3].branch[0].weight[0] = float("nan")
    save_weights(tmp_path / "nan.safetensors", net, metadata)
    with pytest.raises(ArtifactError, match=r"nan\.safetensors .*stage2\.3\.branch\.0\.weight"):
        to_onnx(tmp_path / "nan.safetensors", tmp_path / "enet.onnx")


@pytest.mark.slow
def test_metadata_says_the_precision(graphs: dict[str, Path]) -> None:
    for precision, path in graphs.items():
        props = {p.key: p.value for p in onnx.load(path).metadata_props}
        metadata = Metadata.from_text(props["enet_deploy"], path)
        assert metadata.precision == precision and ("calibration" in metadata.details) == ("int8" in precision)


def test_data_of_other_classes_is_refused(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val").symlink_to(scenes / "val")
    (tmp_path / "classes.json").write_text('{"names": ["floor", "wall"], "colors": [[0, 0, 0], [9, 9, 9]]}')
    out = tmp_path / "out"
    assert cli.main(["--fp16", "--size", "96x128", "--data", str(tmp_path), "--out", str(out)]) == 2
    line = one_line(capsys)
    assert "floor, wall" in line and "sky, building" in line
    assert not out.exists()


def test_help_for_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder().name.startswith("enet_deploy-")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0 and "--timing-cache" in capsys.readouterr().out
