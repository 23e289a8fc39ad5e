"""Exportable pooling and unpooling against PyTorch's own: equal, not close."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from enet_deploy.benchmarks.studies.unpool_forms import EQUALITY, FORMS, wrong_on_ties
from enet_deploy.errors import InputError
from enet_deploy.export.unpool import MaxPool2x2, MaxUnpool2x2, with_exportable_unpooling

INF = float("inf")
UNPOOLING = {"MaxPool", "Resize", "Equal", "Cast", "Mul"}  # all that the two modules become


def bits(x: Tensor) -> Tensor:
    """The floats as integers, so that 0.0 and -0.0 differ."""
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_as_torch(x: Tensor, y: Tensor) -> None:
    """Pool x and unpool y at the winners, both ways; the pooling equal to the sign of zero."""
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    ours, winners = MaxPool2x2()(x)
    assert torch.equal(bits(ours), bits(pooled))
    assert torch.equal(MaxUnpool2x2()(y, winners), F.max_unpool2d(y, indices, [2, 2]))


def quarters(*shape: int) -> Tensor:
    """Values on a coarse grid, as flat areas and quantisation give them: in a third of the windows the maximum ties."""
    return torch.randint(-2, 3, shape) / 4


INPUTS = {
    "random": lambda: torch.randn(1, 16, 12, 20),
    "tie-rich": lambda: quarters(1, 16, 12, 20),
    "constant": lambda: torch.full((1, 3, 8, 8), 0.7),
    "negative": lambda: -quarters(1, 4, 8, 8).abs() - 1,
    "zeros of ReLU": lambda: torch.randn(1, 8, 12, 20).relu(),
    "zeros of both signs": lambda: torch.zeros(1, 8, 12, 20) * torch.randn(1, 8, 12, 20).sign(),
    "infinities": lambda: torch.tensor([-INF, 0.0, INF])[torch.randint(3, (1, 4, 12, 20))],
    "odd channels, batch": lambda: quarters(3, 7, 6, 10),
    "one window": lambda: quarters(1, 1, 2, 2),
    "channels_last": lambda: quarters(2, 8, 6, 10).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_equals_torch(make: Callable[[], Tensor], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = make().to(dtype)
    assert_as_torch(x, torch.randn(x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2).to(dtype))


@settings(deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 6])),
        elements=st.sampled_from([-INF, -1.0, -0.0, 0.0, 0.25, 1.0, INF]),
    )
)
def test_equals_torch_on_any_small_input(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    assert_as_torch(x, x[..., ::2, 1::2].clamp(-4, 4))


@pytest.mark.parametrize("name", FORMS)
def test_of_the_forms_compared_only_the_equality_mask_is_wrong_on_ties(name: str) -> None:
    assert (wrong_on_ties(FORMS[name]) > 0) == (name == EQUALITY)


def test_nan_has_no_winner() -> None:
    """The one difference from PyTorch, which would put the value where the NaN is."""
    x = torch.tensor([[[[1.0, float("nan")], [2.0, 3.0]]]])
    pooled, winners = MaxPool2x2()(x)
    assert pooled.isnan().all() and winners.item() == 0
    assert not MaxUnpool2x2()(torch.ones(1, 1, 1, 1), winners).any()


def test_value_that_is_not_finite_changes_only_its_window() -> None:
    """PyTorch would leave the zeros beside it."""
    _, winners = MaxPool2x2()(quarters(1, 1, 4, 4))
    unpooled = MaxUnpool2x2()(torch.tensor([[[[INF, 1.0], [2.0, 3.0]]]]), winners)
    assert not unpooled[..., :2, :2].isfinite().any()
    assert (unpooled.nan_to_num(posinf=0.0).sum(), unpooled.isnan().sum()) == (6.0, 3)


class SegNet(nn.Module):
    """Two poolings and, in reverse order, their unpoolings: all that the rewrite may rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.decoder = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)])
        self.pool = nn.MaxPool2d(2, stride=2, return_indices=True)
        self.unpool = nn.MaxUnpool2d((2, 2))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for conv in self.encoder:
            x, indices = self.pool(conv(x).relu())
            kept.append(indices)
        for conv in self.decoder:
            x = conv(self.unpool(x, kept.pop()))
        return x


@pytest.fixture
def segnet() -> SegNet:
    """Weights of -1/4, 0 and 1/4: sums are then exact in whatever order a backend adds, and ties are many."""
    torch.manual_seed(0)
    net = SegNet().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape) / 4)
    return net


def test_ranks_are_a_buffer_that_moves_with_the_model_and_is_in_no_weights_file(segnet: SegNet) -> None:
    rewritten = with_exportable_unpooling(segnet)
    assert rewritten.state_dict().keys() == segnet.state_dict().keys()
    assert {name for name, _ in rewritten.named_buffers()} == {"pool.window", "unpool.window"}
    assert {buffer.dtype for buffer in rewritten.half().buffers()} == {torch.float16}
    elsewhere = with_exportable_unpooling(segnet.to("meta"))
    assert {buffer.device.type for buffer in elsewhere.buffers()} == {"meta"}


def test_forward_makes_no_tensor_of_pythons_numbers() -> None:
    """A CUDA graph cannot capture them. On a GPU, test_export.py captures a whole graph."""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func._schema.name.removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    pool, unpool, x = MaxPool2x2(), MaxUnpool2x2(), quarters(1, 3, 8, 8)
    called: set[str] = set()
    with Calls():
        unpool(*pool(x))
    assert {"max_pool2d_with_indices", "repeat", "eq"} <= called
    assert not called & {"lift_fresh", "scalar_tensor", "full", "empty.memory_format"}
    with Calls():
        torch.tensor([[4, 3], [2, 1]])
    assert "lift_fresh" in called


def test_rewriting_leaves_the_original_alone(segnet: SegNet) -> None:
    before = str(segnet)
    rewritten = with_exportable_unpooling(segnet)
    assert str(segnet) == before
    assert isinstance(rewritten.pool, MaxPool2x2) and isinstance(rewritten.unpool, MaxUnpool2x2)
    x = quarters(1, 3, 16, 16)
    assert torch.equal(rewritten(x), segnet(x))


@pytest.mark.slow
def test_any_network_exports_and_stays_exact_in_onnxruntime(segnet: SegNet) -> None:
    x = quarters(2, 3, 24, 32)
    rewritten = with_exportable_unpooling(segnet)
    program = torch.onnx.export(rewritten, (x,), dynamo=True, opset_version=18, input_names=["x"], verbose=False)
    assert program is not None
    model = onnx.shape_inference.infer_shapes(program.model_proto)
    assert {node.op_type for node in model.graph.node} == {"Conv", "Relu", *UNPOOLING}
    wide = [v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.INT64]
    wide += [i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT64]
    assert not wide
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.numpy()})
    with torch.inference_mode():
        expected = segnet(x)
    np.testing.assert_array_equal(y, expected.numpy())


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(3, return_indices=True),
        nn.MaxPool2d(2, stride=1, return_indices=True),
        nn.MaxPool2d(2, ceil_mode=True, return_indices=True),
        nn.MaxPool2d(2, padding=1, return_indices=True),
        nn.MaxPool2d(2, dilation=2, return_indices=True),
        nn.MaxUnpool2d(3),
        nn.MaxUnpool2d(2, stride=1),
        nn.MaxPool2d([2, 3], return_indices=True),  # type: ignore[arg-type]
        nn.AdaptiveMaxPool2d(2, return_indices=True),
        nn.MaxPool3d(2, return_indices=True),
    ],
    ids=str,
)
def test_other_poolings_are_refused(module: nn.Module) -> None:
    with pytest.raises(InputError, match=re.escape(str(module))):
        with_exportable_unpooling(nn.Sequential(module))


def test_pooling_without_indices_is_left_as_it_is() -> None:
    pools = [nn.MaxPool2d(3), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d([2, 2], return_indices=True)]  # type: ignore[arg-type]
    model = with_exportable_unpooling(nn.Sequential(*pools, nn.MaxUnpool2d(2)))
    assert [type(each) for each in model] == [nn.MaxPool2d, nn.AdaptiveMaxPool2d, MaxPool2x2, MaxUnpool2x2]
    with pytest.raises(InputError, match="Sequential"):
        with_exportable_unpooling(nn.Sequential(nn.MaxPool2d(3)))


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (1, 1, 4, 3)])
def test_odd_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=re.escape(str(shape))):
        MaxPool2x2()(torch.zeros(shape))
