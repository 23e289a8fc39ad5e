"""OpenCV's engine, and the reader of ONNX files that it needs: what they take, what they refuse."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers import least_graph, write_graph

from enet_deploy import ArtifactError, BackendError, InputError, open_runner
from enet_deploy.artifacts import graph_metadata, save_graph
from enet_deploy.runners.onnx_file import read_metadata, read_signature


def sealed_graph(path: Path, precision: str = "fp32", unknown_operation: bool = False) -> Path:
    """`write_graph` with a digest."""
    save_graph(onnx.load(write_graph(path, precision, unknown_operation)), path)
    return path


needs_engine = pytest.mark.skipif(
    not hasattr(cv2.dnn, "ENGINE_NEW"), reason=f"OpenCV {cv2.__version__} is older than version 5"
)


def test_reader_says_what_onnx_says(exported: Path, tmp_path: Path) -> None:
    onnx.save(least_graph(), tmp_path / "least.onnx")
    for path in (exported, tmp_path / "least.onnx", write_graph(tmp_path / "half.onnx", "fp16")):
        model = onnx.load(path)
        content = path.read_bytes()
        assert read_metadata(content, path) == graph_metadata(model, path)
        ports = {}
        for port in (*model.graph.input, *model.graph.output):
            kind = port.type.tensor_type
            sides = [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]
            ports[port.name] = (str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), sides)
        assert read_signature(content, path) == ports


def test_reader_refuses_what_is_damaged(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx")
    content = path.read_bytes()
    cut_off = [content[:size] for size in range(0, len(content), 97)]
    for damaged in (
        *cut_off,
        b"\xff" * 40,
        b"\x0b" + content,
        b"\x3a\x85\x80\x80\x80\x10",
        content.replace(b"e", b"\xff"),
    ):
        for read in (read_metadata, read_signature):
            try:
                read(damaged, path)
            except ArtifactError as error:
                assert "a.onnx" in str(error)
            else:
                pytest.fail(f"{read.__name__} took {damaged[:20]!r}")


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    """OpenCV would read any file that such a graph names."""
    model = onnx.load(write_graph(tmp_path / "a.onnx"))
    constant = onnx.helper.make_node(
        "Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.zeros(4096, np.uint8))
    )
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    branches = {"then_branch": inner, "else_branch": inner}
    for name, node in (("outer", constant), ("inner", onnx.helper.make_node("If", ["x"], ["y"], **branches))):
        changed, path = onnx.ModelProto(), tmp_path / f"{name}.onnx"
        changed.CopyFrom(model)
        changed.graph.node.append(node)
        assert read_signature(changed.SerializeToString(), path)
        text = changed.SerializeToString()
        for tensor in onnx.external_data_helper._get_all_tensors(changed):
            if len(tensor.raw_data) == 4096:
                tensor.data_location = onnx.TensorProto.EXTERNAL
        assert changed.SerializeToString() != text
        with pytest.raises(ArtifactError, match=path.name):
            read_signature(changed.SerializeToString(), path)


@needs_engine
def test_opencv_refuses_int8_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="int8") as refused:
        open_runner(write_graph(tmp_path / "a.onnx", "int8"), "opencv")
    assert "openvino" in str(refused.value) and "\n" not in str(refused.value)


@needs_engine
def test_opencv_refuses_a_graph_with_operations_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.onnx"):
        open_runner(sealed_graph(tmp_path / "a.onnx", unknown_operation=True), "opencv")


@pytest.mark.slow
@needs_engine
def test_opencv_agrees_in_half_precision(graphs: dict[str, Path], tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    save_graph(onnx.load(graphs["fp16"]), half)
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    with open_runner(half, "opencv") as runner, open_runner(half, "ort") as other:
        assert runner.spec.precision == "fp16"
        assert (runner.infer(frames) == other.infer(frames)).mean() > 0.99


@needs_engine
def test_graph_without_a_digest_is_refused(tmp_path: Path) -> None:
    """OpenCV's reader crashes on some graphs that are damaged."""
    with pytest.raises(ArtifactError, match=r"a\.onnx.*save_graph"):
        open_runner(write_graph(tmp_path / "a.onnx"), "opencv")
    open_runner(sealed_graph(tmp_path / "a.onnx"), "opencv").close()


@needs_engine
def test_threads_are_opencvs(tmp_path: Path) -> None:
    graph, before = sealed_graph(tmp_path / "a.onnx"), cv2.getNumThreads()
    try:
        with open_runner(graph, "opencv"):
            assert cv2.getNumThreads() == before
        with open_runner(graph, "opencv", threads=1):
            assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
    with pytest.raises(InputError, match="threads -1"):
        open_runner(graph, "opencv", threads=-1)


def test_opencv_4_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2.dnn, "ENGINE_NEW", raising=False)
    with pytest.raises(BackendError, match=f"opencv {cv2.__version__}.*version 5"):
        open_runner(write_graph(tmp_path / "a.onnx"), "opencv")
