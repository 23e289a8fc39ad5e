"""`enet-export --triton`: the configuration that it writes, and a real server that serves it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SIZE, one_line, write_graph

from enet_deploy import ArtifactError, InputError, open_runner
from enet_deploy.data.scenes import street_scene
from enet_deploy.export import cli
from enet_deploy.export.triton import write_repository

pytest.importorskip("tritonclient", reason="tritonclient is not installed; pip install 'enet-deploy[triton]'")
from google.protobuf import text_format
from triton_server import Server, serve
from tritonclient.grpc import model_config_pb2 as pb

MODEL = "enet-fp32"
FRAMES = np.stack([street_scene(seed, SIZE)[0] for seed in range(8)])
CLIENTS = 8


def read_config(repository: Path) -> Any:
    return text_format.Parse((repository / MODEL / "config.pbtxt").read_text(), pb.ModelConfig())


@pytest.mark.parametrize(
    "backend, file, kind", [("python", "model.onnx", "KIND_CPU"), ("onnxruntime", "model.onnx", "KIND_GPU")]
)
def test_repository(exported: Path, tmp_path: Path, backend: str, file: str, kind: str) -> None:
    """The configuration of the server's own backends can be parsed here, and not run: they are not in the wheel."""
    options = ["--triton", f"{tmp_path}", "--triton-backend", backend, "--max-batch", "4"]
    assert cli.main([f"{exported}", *options]) == 0
    config = read_config(tmp_path)
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, backend, 4)
    ports = {port.name: (pb.DataType.Name(port.data_type), [*port.dims]) for port in (*config.input, *config.output)}
    assert ports == {
        "frames": ("TYPE_UINT8", [*SIZE, 3]),
        "labels": ("TYPE_UINT8", [*SIZE]),
        "logits": ("TYPE_FP32", [11, *SIZE]),
        "confidence": ("TYPE_UINT8", [*SIZE]),
    }
    assert config.HasField("dynamic_batching") and config.version_policy.latest.num_versions == 1
    assert [pb.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == [kind]
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 4]
    assert (tmp_path / MODEL / "1" / file).read_bytes() == exported.read_bytes()
    assert (tmp_path / MODEL / "1/model.py").exists() == (backend == "python")
    labels = next(port.label_filename for port in config.output if port.name == "labels")
    names = json.loads(config.parameters["classes"].string_value)["names"]
    assert (tmp_path / MODEL / labels).read_text().splitlines() == names


def test_repository_of_an_engine(exported: Path, tmp_path: Path) -> None:
    """No engine of TensorRT itself can be built without a GPU: its file is copied, whatever is in it."""
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"engine")
    version = write_repository(tmp_path / "models", exported, "tensorrt", engine)
    assert [file.name for file in version.iterdir()] == ["model.plan"]
    assert (version / "model.plan").read_bytes() == b"engine"
    config = read_config(tmp_path / "models")
    assert config.backend == "tensorrt" and config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


def test_next_version_keeps_what_the_operator_tuned(exported: Path, tmp_path: Path) -> None:
    write_repository(tmp_path, exported)
    path = tmp_path / MODEL / "config.pbtxt"
    tuned = path.read_text().replace("count: 1", "count: 3")
    tuned += 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/env.tar.gz" } }\n'
    path.write_text(tuned)
    assert write_repository(tmp_path, exported).name == "2"
    assert path.read_text() == tuned and "count: 3" in tuned
    with pytest.raises(ArtifactError, match="max_batch_size"):
        write_repository(tmp_path, exported, max_batch=5)
    with pytest.raises(ArtifactError, match="backend"):
        write_repository(tmp_path, exported, "onnxruntime")
    path.write_text(tuned.replace("stretch", "crop"))
    with pytest.raises(ArtifactError, match="'fit'"):
        write_repository(tmp_path, exported)
    path.write_text("name: ?")
    with pytest.raises(ArtifactError, match=r"config\.pbtxt"):
        write_repository(tmp_path, exported)
    assert sorted(entry.name for entry in (tmp_path / MODEL).iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]


@pytest.mark.parametrize(
    "options, value",
    [
        (["--triton-backend", "python"], "--triton"),
        (["--triton", "models", "--triton-backend", "tensorrt"], "--engine trt"),
        (["--triton", "models", "--triton-backend", "tensorrt", "--engine", "trt-rtx"], "trt-rtx"),
        (["--triton", "models", "--batch", "4"], "--batch 4"),
        (["--triton", "file"], "file"),
        (["fixed.onnx", "--triton", "models"], "1 frame"),
    ],
)
def test_options_that_do_not_suit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    value: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_graph(tmp_path / "fixed.onnx")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    assert cli.main(options) == 2
    assert value in one_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_fixed_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fixed\.onnx"):
        write_repository(tmp_path / "models", write_graph(tmp_path / "fixed.onnx"))


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    python = os.environ.get("TRITON_PYTHON")
    if not python:
        pytest.skip("TRITON_PYTHON is not set; it names an interpreter with nvidia-pytriton and enet_deploy's [cpu]")
    folder = tmp_path_factory.mktemp("triton")
    write_repository(folder / "models", exported)
    with serve(python, folder / "models", folder) as server:
        yield server


def infer(client: Any, module: Any, frames: np.ndarray, *outputs: str) -> dict[str, np.ndarray]:
    """The outputs for a batch, by the client of a protocol."""
    given = module.InferInput("frames", [*frames.shape], "UINT8" if frames.dtype == np.uint8 else "FP32")
    given.set_data_from_numpy(frames)
    answer = client.infer(MODEL, [given], outputs=[module.InferRequestedOutput(name) for name in outputs])
    return {name: answer.as_numpy(name) for name in outputs}


def connect(server: Server, protocol: str) -> tuple[Any, Any]:
    """A client, and the module of tritonclient that it is from."""
    if protocol == "grpc":
        import tritonclient.grpc as module

        return module.InferenceServerClient(f"localhost:{server.grpc}"), module
    import tritonclient.http as module

    return module.InferenceServerClient(f"localhost:{server.http}"), module


def counts(server: Server) -> tuple[int, int]:
    """Frames that were labelled, and calls that it took."""
    (statistics,) = json.loads(server.get(f"models/{MODEL}/stats"))["model_stats"]
    return statistics["inference_count"], statistics["execution_count"]


@pytest.mark.slow
def test_clients_get_the_labels_of_the_runner(server: Server, exported: Path) -> None:
    def ask(number: int) -> list[np.ndarray]:
        client, module = connect(server, ["http", "grpc"][number % 2])
        labels = [infer(client, module, FRAMES[i : i + 1 + number % 3], "labels")["labels"] for i in range(6)]
        client.close()
        return labels

    frames, calls = counts(server)
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(ask, range(CLIENTS)))
    with open_runner(exported) as runner:
        expected = runner.infer(FRAMES)
    for number, answers in enumerate(found):
        for first, labels in enumerate(answers):
            assert np.array_equal(labels, expected[first : first + 1 + number % 3])
    frames, calls = counts(server)[0] - frames, counts(server)[1] - calls
    assert frames == 6 * sum(1 + number % 3 for number in range(CLIENTS))
    assert calls < 6 * CLIENTS  # requests of several clients were one call


@pytest.mark.slow
def test_confidences_and_logits(server: Server, exported: Path) -> None:
    client, module = connect(server, "grpc")
    found = infer(client, module, FRAMES[:2], "labels", "confidence", "logits")
    client.close()
    with open_runner(exported) as runner:
        labels, confidence = runner.infer_with_confidence(FRAMES[:2])
        assert np.array_equal(found["labels"], labels) and np.array_equal(found["confidence"], confidence)
        assert np.array_equal(found["logits"].argmax(1), labels)


@pytest.mark.slow
@pytest.mark.parametrize("protocol, status", [("http", "400"), ("grpc", "StatusCode.INVALID_ARGUMENT")])
@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((1, *SIZE, 3), np.float32),
        np.zeros((9, *SIZE, 3), np.uint8),
        np.zeros((*SIZE, 3), np.uint8),
    ],
    ids=["shape", "type", "batch", "without batch"],
)
def test_other_frames_are_refused(server: Server, protocol: str, status: str, frames: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    client, module = connect(server, protocol)
    with pytest.raises(InferenceServerException) as refusal:
        infer(client, module, frames, "labels")
    assert refusal.value.status() == status
    assert infer(client, module, FRAMES[:1], "labels")["labels"].shape == (1, *SIZE)  # it goes on
    client.close()


@pytest.mark.slow
def test_it_serves_the_classes_and_ends_with_0(server: Server) -> None:
    """The last test of the server."""
    config = json.loads(server.get(f"models/{MODEL}/config"))
    assert "road" in json.loads(config["parameters"]["classes"]["string_value"])["names"]
    assert server.end() == 0
