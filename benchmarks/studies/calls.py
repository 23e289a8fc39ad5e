"""What `studies.speed` times: calls from uint8 frames to uint8 labels, with this project and without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from enet_deploy.artifacts import Metadata
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import UInt8Array
from enet_deploy.media.frames import Stop
from enet_deploy.media.pipeline import Pipeline
from enet_deploy.media.sinks import json_lines
from enet_deploy.media.video import VideoFile
from enet_deploy.runners import open_runner
from enet_deploy.weights import load_weights

from .networks import multiply_adds
from .unpool_forms import Graph, openvino_call

Size = tuple[int, int]  # (height, width)
Call = Callable[[], object]

CAMERA = (720, 1280)
FRAMES = 24  # of a video


def with_numpy(graph: Graph, metadata: Metadata, size: Size) -> Call:
    """A call of a graph that takes normalised images and gives logits."""
    frames = frames_of(size)
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))

    def call() -> UInt8Array:
        images = np.ascontiguousarray(((frames - mean) / std).transpose(0, 3, 1, 2))
        labels: UInt8Array = graph(images).argmax(axis=1).astype(np.uint8)
        return labels

    return call


def frames_of(size: Size) -> UInt8Array:
    """The input of every call: one synthetic scene, (1, H, W, 3) uint8 BGR."""
    return street_scene(0, size)[0][None]


def plain_pytorch(weights: Path, size: Size) -> Call:
    """The network as it was trained: eager and in the default layout."""
    net, metadata = load_weights(weights)

    def graph(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            logits: npt.NDArray[Any] = net(torch.from_numpy(images)).numpy()
        return logits

    return with_numpy(graph, metadata, size)


def plain_graph(load: Callable[[str], Graph], path: str, weights: Path, size: Size) -> Call:
    """An export of the network as it was trained."""
    return with_numpy(load(path), load_weights(weights)[1], size)


def in_openvino(path: str, size: Size) -> Call:
    """An export that takes frames."""
    return partial(openvino_call(path), frames_of(size))


def in_runner(path: Path, backend: str, size: Size, precision: str | None = None, times: int = 1) -> Call:
    """`Runner.infer`, which a robot calls; several times in one call, if asked."""
    options: dict[str, Any] = {"size": size} if backend == "torch" else {}
    infer = partial(open_runner(path, backend, precision=precision, **options).infer, frames_of(size))
    return infer if times == 1 else lambda: [infer() for _ in range(times)]


def matrix_product(weights: Path, size: Size) -> Call:
    """Return a call that multiplies two square matrices, with as many multiply-adds as the network."""
    side = round(multiply_adds(load_weights(weights)[0], size) ** (1 / 3))
    left, right = np.random.default_rng(0).random((2, side, side), np.float32)
    return partial(np.matmul, left, right)


def segmenting(path: Path) -> Call:
    """`Runner.segment`: a camera's frame in, labels of its size out."""
    return partial(open_runner(path, "openvino").segment, frames_of(CAMERA)[0])


def streaming(path: Path) -> Call:
    """The same through `Runner.stream`, one frame's labels per call, with the next frame in flight."""
    runner = open_runner(path, "openvino")
    batches = runner.stream(map(runner.preprocess, repeat(frames_of(CAMERA)[0])))
    return lambda: runner.postprocess(next(batches)[0], CAMERA)


def with_all_streams(path: Path, size: Size) -> Call:
    """One batch's labels per call, with twice as many batches in flight as there are cores."""
    runner = open_runner(path, "openvino", hint="throughput")
    labels = runner.stream(repeat(frames_of(size)), depth=2 * (os.cpu_count() or 1))
    return partial(next, labels)


def labelling_a_video(path: Path, video: Path) -> Call:
    """What `enet-segment VIDEO --json` does once the network is loaded."""
    runner = open_runner(path, "openvino")

    def call() -> int:
        with json_lines(f"{video}.jsonl", runner.spec.classes) as sink:
            return sum(sink(item) is None for item in Pipeline(VideoFile(video), runner.segment, Stop()).run())

    return call


def write_video(path: Path) -> Path:
    """Write `FRAMES` drawn scenes of a camera's size, in H.264."""
    import av

    images = [street_scene(seed, CAMERA)[0] for seed in range(6)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=CAMERA[1], height=CAMERA[0], pix_fmt="yuv420p")
        for number in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(images[number % 6], format="bgr24")))
        container.mux(stream.encode())
    return path
