"""Each rewrite of the deploy form against the train form, and the exported file against all that is promised of it."""

from __future__ import annotations

import copy
import dataclasses
import errno
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from helpers import ROOT, SIZE, TEMPERATURE, one_line
from torch import Tensor, nn

from enet_deploy import Runner, open_runner
from enet_deploy.activations import PReLU
from enet_deploy.artifacts import METADATA_KEY, Metadata
from enet_deploy.classes import CAMVID
from enet_deploy.data import open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, InputError, ParityError
from enet_deploy.export import cli
from enet_deploy.export import to_onnx as to_onnx_module
from enet_deploy.export.deploy import (
    MaxPReLU,
    drop_inactive,
    fold_batchnorm,
    head_at_half_size,
    interleave,
    rewrite_prelu,
    sum_in_downsampling,
    to_deploy,
)
from enet_deploy.export.to_onnx import to_onnx
from enet_deploy.export.unpool import with_exportable_unpooling
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array
from enet_deploy.model import DownsamplingBottleneck, ENet, Segmenter
from enet_deploy.weights import load_weights

METADATA = Metadata(CAMVID, mean=(110.0, 108.0, 105.0), std=(78.0, 79.0, 78.0), size=SIZE)
INT64 = onnx.TensorProto.INT64

# What TensorRT, OpenVINO and ONNX Runtime all take; another operation is let in here on purpose or not at all
OPERATIONS = {
    *("Cast", "Transpose", "Sub", "Div"),  # frames
    *("Conv", "Max", "LeakyRelu", "Relu", "Add", "MaxPool", "Concat", "ConvTranspose", "Mul"),  # the network
    *("Resize", "Equal"),  # unpooling
    *("ArgMax", "Reshape", "Squeeze", "Unsqueeze"),
    *("Exp", "Reciprocal", "ReduceMax", "ReduceSum"),  # confidences
}

# --- the deploy form -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> ENet:
    """A network that looks trained to every rewrite: no statistic, scale or slope is at its initial value.

    In float64, where rounding cannot hide a mistake.
    """
    torch.manual_seed(0)
    net = ENet(11).double().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)[::2] *= -1  # of the initial block's pooled channels, one
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.5)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return net


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Normalised, of 8-bit values: full of ties."""
    return torch.from_numpy(street_scene(0, SIZE)[0]).permute(2, 0, 1)[None].double() / 64 - 2


def kinds(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules()}


def test_folding_batchnorm_changes_nothing_but_rounding(net: ENet, image: Tensor) -> None:
    folded = fold_batchnorm(net)
    assert nn.BatchNorm2d not in kinds(folded)
    torch.testing.assert_close(folded(image), net(image), rtol=1e-9, atol=1e-9)


def test_dropping_inactive_layers_changes_nothing(net: ENet, image: Tensor) -> None:
    folded = fold_batchnorm(net)
    dropped = drop_inactive(folded)
    assert kinds(dropped) == kinds(folded) - {nn.Dropout2d, nn.Identity}
    assert torch.equal(dropped(image), folded(image))


def test_rewriting_prelu_changes_nothing(net: ENet, image: Tensor) -> None:
    steep, shared = copy.deepcopy(net), copy.deepcopy(net)
    nn.init.constant_(steep.initial.act.weight[:1], 1.5)  # of one channel, where the maximum would be wrong
    shared.share_slopes()
    shared.requires_grad_(False)
    nn.init.constant_(shared.initial.act.weight, 1.5)  # which a LeakyReLU may well have
    forms = {PReLU, nn.LeakyReLU, MaxPReLU}
    for original, expected in ((net, {MaxPReLU}), (steep, {MaxPReLU, PReLU}), (shared, {nn.LeakyReLU})):
        rewritten = rewrite_prelu(original)
        assert kinds(rewritten) & forms == expected
        assert torch.equal(rewritten(image), original(image))


def test_exportable_unpooling_changes_nothing(net: ENet, image: Tensor) -> None:
    exportable = with_exportable_unpooling(net)
    assert nn.MaxUnpool2d not in kinds(exportable)
    assert torch.equal(exportable(image), net(image))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_cuda_graph_of_the_deploy_form(weights: Path, half: bool) -> None:
    deployed = to_deploy(load_weights(weights)[0], METADATA, half).cuda()
    images = [torch.from_numpy(street_scene(seed, SIZE)[0][None]).cuda() for seed in range(3)]
    with torch.inference_mode():
        expected = [deployed(frames) for frames in images]
        frames, graph = images[0].clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            labels = deployed(frames)
        for given, wanted in zip(images, expected, strict=True):
            frames.copy_(given)
            graph.replay()
            assert torch.equal(labels, wanted)


def test_sums_in_downsampling_change_nothing(net: ENet, image: Tensor) -> None:
    summed = sum_in_downsampling(net)
    assert DownsamplingBottleneck not in kinds(summed)
    assert torch.equal(summed(image), net(image))


def test_head_at_half_size_gives_the_same_logits(net: ENet, image: Tensor) -> None:
    halved = head_at_half_size(net)(image)
    assert halved.shape == (1, 4, 11, SIZE[0] // 2, SIZE[1] // 2)
    torch.testing.assert_close(interleave(halved), net(image), rtol=1e-9, atol=1e-9)


def test_interleaving_is_pixel_shuffling() -> None:
    x = torch.arange(2 * 4 * 3 * 5).view(2, 4, 3, 5)
    assert torch.equal(interleave(x), torch.nn.functional.pixel_shuffle(x, 2)[:, 0])


def test_deploy_form_gives_the_labels_of_the_train_form(weights: Path) -> None:
    net, metadata = load_weights(weights)
    frames = torch.from_numpy(scenes_of(4))
    with torch.inference_mode():
        expected = Segmenter(net, metadata.mean, metadata.std).eval()(frames)
        labels = to_deploy(net, metadata)(frames)
    assert len(expected.unique()) > 1
    assert (labels == expected).float().mean() >= 0.9999


def deploy(net: ENet) -> nn.Module:
    return to_deploy(net, METADATA)


@pytest.mark.parametrize(
    "rewrite",
    [
        fold_batchnorm,
        drop_inactive,
        rewrite_prelu,
        sum_in_downsampling,
        head_at_half_size,
        with_exportable_unpooling,
        deploy,
    ],
)
def test_rewrites_leave_the_original_alone(net: ENet, rewrite: Callable[[ENet], nn.Module]) -> None:
    layers, state = str(net), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rewritten = rewrite(net)
    for parameter in rewritten.parameters():
        nn.init.zeros_(parameter)  # nothing may be shared either
    assert str(net) == layers
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("rewrite", [fold_batchnorm, deploy])
def test_train_mode_is_refused(rewrite: Callable[[ENet], nn.Module]) -> None:
    with pytest.raises(InputError, match=r"net\.eval\(\)"):
        rewrite(ENet(11))


# --- the exported file -----------------------------------------------------------------------------------------


def scenes_of(count: int) -> UInt8Array:
    return np.stack([street_scene(seed, SIZE)[0] for seed in range(count)])


@pytest.fixture(scope="module")
def model(exported: Path) -> onnx.ModelProto:
    """The exported graph, with the type of every tensor in it."""
    return onnx.shape_inference.infer_shapes(onnx.load(exported, load_external_data=False))


@pytest.fixture(scope="module")
def runner(exported: Path) -> Iterator[Runner]:
    with open_runner(exported) as runner:
        yield runner


@pytest.fixture(scope="module")
def reference(weights: Path) -> Iterator[Runner]:
    with open_runner(weights, size=SIZE) as runner:
        yield runner


def test_graph_is_of_deployable_operations(model: onnx.ModelProto) -> None:
    operations = Counter(node.op_type for node in model.graph.node)
    assert operations.keys() <= OPERATIONS
    assert operations["ArgMax"] == 1
    assert all(len(node.output) == 1 for node in model.graph.node)  # no MaxPool gives indices
    assert [opset.domain for opset in model.opset_import] == [""] and not model.functions


def test_no_bias_is_shared(model: onnx.ModelProto) -> None:
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert "fullconv.pixels.3.bias" in biases and len(set(biases)) == len(biases) > 50


def test_int64_is_nowhere_but_in_argmax_and_shapes(model: onnx.ModelProto) -> None:
    graph = model.graph
    computed = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == INT64}
    assert computed == {node.output[0] for node in graph.node if node.op_type == "ArgMax"}
    constants = {i.name for i in graph.initializer if i.data_type == INT64}
    takers = {node.op_type for node in graph.node if constants & set(node.input)}
    assert takers <= {"Reshape", "Squeeze", "Unsqueeze", "ReduceMax", "ReduceSum"}


def test_file_tells_nothing_of_the_machine_it_was_made_on(exported: Path) -> None:
    content = exported.read_bytes()
    for told in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", "stack_trace", "pkg.torch", "Traceback"):
        assert told.encode() not in content, told


def test_file_is_self_contained(exported: Path, model: onnx.ModelProto) -> None:
    assert list(exported.parent.iterdir()) == [exported]
    assert not any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer)
    used = {name for node in model.graph.node for name in node.input}
    assert {i.name for i in model.graph.initializer} <= used


def test_file_carries_the_metadata_of_its_weights(weights: Path, model: onnx.ModelProto) -> None:
    (entry,) = model.metadata_props
    assert entry.key == METADATA_KEY
    metadata = Metadata.from_text(entry.value, "the graph")
    versions = metadata.details.pop("versions")
    assert versions["torch"] == torch.__version__
    assert metadata.details.pop("confidence") == {"temperature": TEMPERATURE}
    verified = metadata.details.pop("verified")
    assert verified["agreement"] >= 0.9999 and (verified["frames"], verified["on"]) == (8, "drawn scenes")
    expected = dataclasses.replace(load_weights(weights)[1], size=SIZE, weights_sha256=sha256(weights))
    assert metadata == expected


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }


def test_any_batch(model: onnx.ModelProto, runner: Runner, reference: Runner) -> None:
    height, width = SIZE
    assert shapes(model) == {
        "frames": ("batch", height, width, 3),
        "labels": ("batch", height, width),
        "logits": ("batch", 11, height, width),
        "confidence": ("batch", height, width),
    }
    for batch in (1, 3):
        frames = scenes_of(batch)
        assert np.mean(runner.infer(frames) == reference.infer(frames)) >= 0.999


def test_logits(runner: Runner, reference: Runner) -> None:
    frames = scenes_of(2)
    logits = runner.logits(frames)
    # a rounding error may choose another winner of a pooling window, which moves a value by one pixel
    assert np.quantile(np.abs(logits - reference.logits(frames)), 0.99) < 1e-3
    np.testing.assert_array_equal(logits.argmax(axis=1), runner.infer(frames))


@pytest.mark.slow
def test_command_line_exports_a_fixed_batch_and_verifies_on_data(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder"
    arguments = ["--out", str(out), "--name", "robot", "--size", "64x96", "--batch", "2", "--data", str(scenes)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out / 'robot-fp32.onnx'}  ") and re.search(
        r"labels of 4 val images: (100|99\.9\d+)\.?\d*% as PyTorch's", printed
    )
    assert [file.name for file in out.iterdir()] == ["robot-fp32.onnx"]
    assert shapes(onnx.load(out / "robot-fp32.onnx")) == {"frames": (2, 64, 96, 3), "labels": (2, 64, 96)}


@pytest.mark.slow
def test_real_images_get_pytorchs_labels(tmp_path: Path, weights: Path, camvid: Path) -> None:
    data = open_data(camvid, "val")
    frames = np.stack([data[index][0] for index in np.linspace(0, len(data) - 1, 12, dtype=int)])
    path = to_onnx(weights, tmp_path / "enet.onnx", size=(360, 480), frames=frames[:1]).path
    with open_runner(path) as runner, open_runner(weights, size=(360, 480)) as reference:
        same = [np.mean(runner.infer(frame[None]) == reference.infer(frame[None])) for frame in frames]
    assert np.mean(same) >= 0.9999


@pytest.mark.slow
def test_only_equal_networks_share_an_export(net: ENet, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def export(*_: object) -> onnx.ModelProto:
        made.append(None)
        return onnx.ModelProto(producer_name=f"{len(made)}")

    monkeypatch.setattr(to_onnx_module, "_exported_by_torch", export)
    monkeypatch.setattr(to_onnx_module, "_exported", {})
    changed, moved = copy.deepcopy(net), dataclasses.replace(METADATA, mean=(1.0, 2.0, 3.0))
    changed.fullconv.bias.add_(1e-6)
    different: list[tuple[ENet, Metadata, bool, float | None, tuple[int, int], int | None]] = [
        (net, METADATA, False, None, SIZE, 1), (net, METADATA, False, None, SIZE, None),
        (net, METADATA, False, None, (96, 96), 1), (net, METADATA, True, None, SIZE, 1),
        (net, METADATA, False, 1.0, SIZE, 1), (net, METADATA, False, 1.5, SIZE, 1),
        (changed, METADATA, False, None, SIZE, 1), (net, moved, False, None, SIZE, 1),
    ]  # fmt: skip
    for each, metadata, logits, temperature, size, batch in different:
        names = []
        for _ in range(2):
            module = to_onnx_module._Outputs(to_deploy(each, metadata), logits, temperature)
            names.append(to_onnx_module._export(module, size, batch).producer_name)
        assert names[0] == names[1]
    assert len(made) == len(different)
    assert len(to_onnx_module._exported) == to_onnx_module.KEPT


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.fixture
def ready(exported: Path, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """Let the exporter return this graph at once, instead of building it."""
    model = onnx.load(exported)
    monkeypatch.setattr(sys.modules[to_onnx.__module__], "build_graph", lambda *_: model)
    return model


def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path: Path, weights: Path, ready: onnx.ModelProto
) -> None:
    bias = next(i for i in ready.graph.initializer if "fullconv" in i.name and "bias" in i.name)
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 100  # every pixel is sky
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    path = tmp_path / "enet.onnx"
    path.write_bytes(b"an earlier export")
    with pytest.raises(ParityError, match=r"enet\.onnx would give \d+\.\d+% .*enet-camvid.*fp32"):
        to_onnx(weights, path, size=SIZE, batch=None, frames=scenes_of(1))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"an earlier export"


class Fixed:
    """A runner that gives these labels (K, H, W) of frames that hold their own numbers."""

    spec = SimpleNamespace(batch=2)

    def __init__(self, labels: UInt8Array) -> None:
        self.labels = labels

    def infer(self, frames: UInt8Array) -> UInt8Array:
        return self.labels[frames]


def test_each_frame_counts_once_in_the_agreement() -> None:
    """Of three frames in batches of two the first is taken again, to fill the last batch."""
    other = np.zeros((3, 1, 4), np.uint8)
    other[0] = 1
    runners = (Fixed(other), Fixed(np.zeros_like(other)))
    assert to_onnx_module._agreement(*runners, np.arange(3, dtype=np.uint8)) == pytest.approx(2 / 3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("share", [float("nan"), -0.1, 5.0])
def test_impossible_share_that_may_differ(tmp_path: Path, weights: Path, share: float) -> None:
    with pytest.raises(InputError, match=f"{share}"):
        to_onnx(weights, tmp_path / "enet.onnx", size=SIZE, max_disagreement=share)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("shape", [(1, 128, 96, 3), (0, 96, 128, 3)])
def test_frames_to_compare_on_have_the_size(tmp_path: Path, weights: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=re.escape(f"frames has shape {shape}")):
        to_onnx(weights, tmp_path / "enet.onnx", frames=np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ready")
def test_full_disk_leaves_no_half_file(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(_model: onnx.ModelProto, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("enet_deploy.export.to_onnx.save_graph", save_half)
    with pytest.raises(ArtifactError, match=r"enet\.onnx: .*No space left on device"):
        to_onnx(weights, tmp_path / "enet.onnx", size=SIZE, batch=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ready")
def test_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert cli.main(["--size", "96x128", "--dynamic-batch", "--out", str(tmp_path / "file" / "folder")]) == 2
    assert f"{tmp_path}/file" in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_missing_weights_are_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--weights", str(tmp_path / "none.safetensors"), "--out", str(tmp_path)]) == 2
    assert one_line(capsys).startswith(f"enet-export: error: {tmp_path}/none.safetensors ")
    assert not list(tmp_path.iterdir())


def test_impossible_size_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--size", "360x482"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "360x482" in error and "360x480" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (100, 96)}, "size 100x96.*nearest is 96x96"),
        ({"size": (0, 96)}, "size 0x96.*nearest is 8x96"),
        ({"batch": 0}, "batch 0"),
        ({"precision": "int8"}, "precision 'int8', expected fp32 or fp16"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, weights: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        to_onnx(weights, tmp_path / "enet.onnx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
