"""The network against the paper's table 1 and the authors' Lua code, and weights files good and bad."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from enet_deploy.artifacts import METADATA_KEY, Metadata
from enet_deploy.classes import CAMVID, ClassList
from enet_deploy.errors import ArtifactError
from enet_deploy.model import DownsamplingBottleneck, ENet, RegularBottleneck, Segmenter, UpsamplingBottleneck
from enet_deploy.weights import load_weights, save_weights

METADATA = Metadata(CAMVID, mean=(110.0, 108.0, 105.0), std=(78.0, 79.0, 78.0), size=(64, 96), details={"epochs": 3})

SIZES = {
    "initial": (16, 256, 256),
    "bottleneck1_0": (64, 128, 128),
    **{f"stage1.{i}": (64, 128, 128) for i in range(4)},
    "bottleneck2_0": (128, 64, 64),
    **{f"stage2.{i}": (128, 64, 64) for i in range(8)},
    **{f"stage3.{i}": (128, 64, 64) for i in range(8)},
    "bottleneck4_0": (64, 128, 128),
    **{f"stage4.{i}": (64, 128, 128) for i in range(2)},
    "bottleneck5_0": (16, 256, 256),
    "stage5.0": (16, 256, 256),
    "fullconv": (11, 512, 512),
}

# bottlenecks 2.1 to 2.8, and 3.1 to 3.8
CONTEXT = ["3x3", "dilated 2", "asymmetric 5", "dilated 4", "3x3", "dilated 8", "asymmetric 5", "dilated 16"]


@pytest.fixture(scope="module")
def net() -> ENet:
    torch.manual_seed(0)
    return ENet(11).eval()


@pytest.mark.parametrize(("classes", "parameters"), [(11, 363_791), (12, 363_856)])
def test_parameter_count(classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in ENet(classes).parameters()) == parameters


def test_output_size_of_every_block(net: ENet) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
            seen[name] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(note(name)) for name in SIZES]
    with torch.inference_mode():
        net(torch.zeros(1, 3, 512, 512))
    for hook in hooks:
        hook.remove()
    assert seen == SIZES


@pytest.mark.parametrize("size", [(8, 8), (72, 104), (88, 40)])
def test_any_size_divisible_by_8(net: ENet, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert net(torch.zeros(2, 3, *size)).shape == (2, 11, *size)


def kind(block: nn.Module) -> str:
    """What the middle convolution of a regular bottleneck is."""
    assert isinstance(block, RegularBottleneck)
    middle = block.branch[3]
    if isinstance(middle, nn.Sequential):
        assert [conv.kernel_size for conv in middle] == [(1, 5), (5, 1)]
        return "asymmetric 5"
    assert middle.kernel_size == (3, 3)
    return "3x3" if middle.dilation == (1, 1) else f"dilated {middle.dilation[0]}"


def test_kinds_of_bottleneck(net: ENet) -> None:
    assert [kind(block) for block in net.stage2] == CONTEXT
    assert [kind(block) for block in net.stage3] == CONTEXT
    assert {kind(block) for block in (*net.stage1, *net.stage4, *net.stage5)} == {"3x3"}


def test_dropout_is_weak_in_stage_1_strong_in_2_and_3_absent_in_the_decoder(net: ENet) -> None:
    rates = {name: m.p for name, m in net.named_modules() if isinstance(m, nn.Dropout2d) and m.p}
    early = [name for name in rates if name.startswith(("bottleneck1", "stage1"))]
    assert len(early) == 5 and all(rates.pop(name) == 0.01 for name in early)
    assert len(rates) == 17 and set(rates.values()) == {0.1}
    assert all(name.startswith(("bottleneck2", "stage2", "stage3")) for name in rates)


def test_encoder_has_a_prelu_slope_per_channel_and_the_decoder_relu(net: ENet) -> None:
    for name, module in net.named_modules():
        in_decoder = name.startswith(("bottleneck4", "stage4", "bottleneck5", "stage5"))
        assert not isinstance(module, nn.PReLU if in_decoder else nn.ReLU), name
    assert net.initial.act.num_parameters == 16
    assert [net.stage2[0].branch[2].num_parameters, net.stage2[0].act.num_parameters] == [32, 128]


def test_shared_slopes_are_their_mean() -> None:
    net = ENet(2)
    with torch.no_grad():
        net.initial.act.weight.copy_(torch.arange(16.0))
    net.share_slopes()
    assert net.initial.act.weight.tolist() == [7.5]
    assert {m.num_parameters for m in net.modules() if isinstance(m, nn.PReLU)} == {1}
    assert ENet(2, slopes="layer").state_dict().keys() == net.state_dict().keys() == ENet(2).state_dict().keys()


def test_batchnorm_epsilon_is_torch7s(net: ENet) -> None:
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_biases_are_where_the_lua_code_has_them(net: ENet) -> None:
    """1x1 and 2x2 projections and the first half of an asymmetric pair have none; the rest has one."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            bare = module.kernel_size in {(1, 1), (1, 5)} or (module.kernel_size == (2, 2) and name != "fullconv")
            assert (module.bias is None) == bare, name


def silence_branch(block: RegularBottleneck | DownsamplingBottleneck | UpsamplingBottleneck) -> None:
    """Make the branch give zeros, whatever it is given: only the shortcut is left."""
    norm = [layer for layer in block.branch if isinstance(layer, nn.BatchNorm2d)][-1]
    nn.init.zeros_(norm.weight)


def test_shortcuts() -> None:
    """Each bottleneck without its branch: the activation follows the sum and nothing else is on the way."""
    regular, down = RegularBottleneck(16).eval(), DownsamplingBottleneck(8, 16, dropout=0.1).eval()
    up = UpsamplingBottleneck(16, 8).eval()
    for block in (regular, down, up):
        silence_branch(block)
    x = torch.randn(2, 16, 8, 8)
    prelu = torch.where(x > 0, x, x * 0.25)
    assert torch.equal(regular(x), prelu)
    halved, indices = down(x[:, :8])
    pooled = nn.functional.max_pool2d(x[:, :8], 2)
    assert torch.equal(halved[:, :8], torch.where(pooled > 0, pooled, pooled * 0.25))
    assert not halved[:, 8:].any()  # the shortcut's new channels are zeros, after those pooled
    doubled = up(halved, indices)
    expected = nn.functional.max_unpool2d(up.shortcut(halved), indices, 2).relu()
    assert torch.equal(doubled, expected)


def test_segmenter_normalises_bgr_and_gives_labels() -> None:
    """With a network that does nothing, the label is the brightest channel after normalisation."""
    segmenter = Segmenter(nn.Identity(), mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0))
    frames = torch.tensor([[[[12, 20, 30], [10, 28, 30], [10, 20, 255]]]], dtype=torch.uint8)
    labels = segmenter(frames)
    assert segmenter.logits(frames)[0, :, 0].T.tolist() == [[2, 0, 0], [0, 4, 0], [0, 0, 56.25]]
    assert labels.dtype == torch.uint8 and labels.tolist() == [[[0, 1, 2]]]


def test_weights_round_trip(tmp_path: Path, net: ENet) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(path, net, METADATA)
    loaded, metadata = load_weights(path)
    assert metadata == METADATA
    assert not loaded.training
    assert loaded.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


State = dict[str, Tensor]


def without_fullconv_bias(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "fullconv.bias"}


def with_another_head(state: State) -> State:
    return {**state, "head.weight": torch.zeros(1)}


def with_wider_fullconv(state: State) -> State:
    return {**state, "fullconv.weight": torch.zeros(16, 12, 2, 2)}


def in_half(state: State) -> State:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_fullconv_bias, r"no tensor named 'fullconv.bias' \(1 in all\)"),
        (with_another_head, r"a foreign tensor named 'head.weight' \(1 in all\)"),
        (with_wider_fullconv, r"fullconv.weight as \(16, 12, 2, 2\) torch.float32, expected \(16, 11, 2, 2\)"),
        (in_half, r"torch.float16, expected .* torch.float32"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, net: ENet, change: Callable[[State], State], message: str
) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(change(dict(net.state_dict())), path, {METADATA_KEY: METADATA.to_text()})
    with pytest.raises(ArtifactError, match=message):
        load_weights(path)


def test_weights_whose_classes_do_not_match_are_refused(tmp_path: Path, net: ENet) -> None:
    two = ClassList(("floor", "wall"), ((0, 90, 200), (200, 200, 0)), 255)
    save_weights(tmp_path / "net.safetensors", net, dataclasses.replace(METADATA, classes=two))
    with pytest.raises(ArtifactError, match=r"fullconv.weight as \(16, 11, 2, 2\) .* expected \(16, 2, 2, 2\)"):
        load_weights(tmp_path / "net.safetensors")


def write_pickle(path: Path, net: ENet) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))


def write_torch_checkpoint(path: Path, net: ENet) -> None:
    torch.save(net.state_dict(), path)


def write_truncated(path: Path, net: ENet) -> None:
    save_weights(path, net, METADATA)
    path.write_bytes(path.read_bytes()[:-100])


def write_without_metadata(path: Path, net: ENet) -> None:
    safetensors.torch.save_file(net.state_dict(), path)


def write_nothing(path: Path, net: ENet) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_nothing, "does not exist; expected weights"),
        (write_pickle, "is not a whole safetensors file"),
        (write_torch_checkpoint, "is not a whole safetensors file"),
        (write_truncated, "is not a whole safetensors file"),
        (write_without_metadata, "carries no 'enet_deploy' metadata"),
    ],
)
def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, net: ENet, write: Callable[[Path, ENet], None], message: str
) -> None:
    path = tmp_path / "net.safetensors"
    write(path, net)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
