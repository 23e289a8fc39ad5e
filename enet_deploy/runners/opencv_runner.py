"""OpenCV's own engine, on the CPU: it runs graphs with nothing but what this package always installs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..artifacts import check_digest, read_artifact
from ..errors import ArtifactError, BackendError, is_out_of_memory
from ..images import UInt8Array
from .base import Runner
from .graph import check_signature, check_threads
from .onnx_file import read_metadata, read_signature
from .spec import Operation, Spec

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_ADDED = "trlayout."  # begins the names of its changes of layout


class OpenCvRunner(Runner):
    """Runs an exported graph (.onnx) in fp32 or fp16 in the engine that OpenCV has since version 5.

    Args:
        artifact: a file that enet-export or `save_graph` wrote, not an int8 graph. Others may be damaged, and OpenCV's
            reader crashes on some of those.
        device: "cpu".
        threads: the number of threads that OpenCV may use, in all that this process does with it: OpenCV has one number
            for the whole process. 0 leaves it as it is.
    """

    backend = "opencv"

    def __init__(self, artifact: str | Path, device: str = "cpu", threads: int = 0) -> None:
        super().__init__(artifact, device)
        self._threads = check_threads(threads)

    def _open(self) -> Spec:
        import cv2

        if self.device != "cpu":
            raise BackendError(f"device '{self.device}' for opencv, expected cpu")
        if not hasattr(cv2.dnn, "ENGINE_NEW"):
            raise BackendError(
                f"opencv {cv2.__version__} lacks the engine that runs these graphs, expected version 5 or later; "
                "pip install 'opencv-python>=5', or use backend 'openvino' or 'ort'"
            )
        content = read_artifact(self.artifact)
        has_digest = check_digest(content, self.artifact)
        metadata = read_metadata(content, self.artifact)
        if "int8" in metadata.precision:
            raise BackendError(
                f"{self.artifact} is an {metadata.precision} graph, which opencv does not run; use backend 'openvino' "
                "or 'ort', or the fp32 graph"
            )
        signature = read_signature(content, self.artifact)
        batch = check_signature(signature, metadata, self.artifact)
        if not has_digest:
            raise ArtifactError(
                f"{self.artifact} has no digest of its content, expected one, because damaged graphs crash opencv; "
                "export it again, or save your edit of it with enet_deploy.artifacts.save_graph"
            )
        net = self._read_net(content)
        if self._threads:
            cv2.setNumThreads(self._threads)
            log.info("OpenCV uses %d threads in this process from now on", self._threads)
        self._net = net
        self._outputs = [name for name in signature if name != "frames"]
        return self._make_spec(metadata, batch, "logits" in signature, has_confidence="confidence" in signature)

    def _read_net(self, content: bytes) -> Any:
        """Read the bytes that were checked, and not the file, which may have changed. Raises ArtifactError."""
        import cv2

        try:
            net = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8), engine=cv2.dnn.ENGINE_NEW)
        except cv2.error as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that opencv {cv2.__version__} can load: {reason}"
            ) from None
        # It tries the engine of OpenCV 4 on graphs that the new one cannot load, whose first layer has this name
        if net.empty() or net.getLayer(0).name == "_input":
            raise ArtifactError(
                f"{self.artifact} has operations that opencv {cv2.__version__} lacks; use backend 'openvino' or 'ort'"
            )
        return net

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        np.copyto(out, self._forward("labels", frames, out.shape, out.dtype))

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        shape = (len(frames), len(self.spec.classes), *self.spec.size)
        logits: npt.NDArray[np.float32] = self._forward("logits", frames, shape, np.dtype(np.float32)).copy()
        return logits

    def _run_confidence(self, frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        self._net.setInput(frames, "frames")
        found = dict(zip(self._outputs, self._net.forward(self._outputs), strict=True))  # OpenCV gives all or one
        for name, out in (("labels", labels), ("confidence", confidence)):
            np.copyto(out, self._checked_output(name, found[name], out.shape, out.dtype))

    def _forward(
        self, output: str, frames: UInt8Array, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Return an output, in memory that may be OpenCV's. Raises BackendError unless it has this shape and dtype."""
        self._net.setInput(frames, "frames")
        return self._checked_output(output, self._net.forward(output), shape, dtype)

    def _checked_output(
        self, output: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        found = getattr(array, "dtype", None), getattr(array, "shape", None)  # it may return None
        if found != (dtype, shape):
            raise BackendError(
                f"opencv gave {output} of {self.artifact} as {found[0]} of shape {found[1]}, expected {dtype} of shape "
                f"{shape}; export the graph again"
            )
        return array

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        layers = [(name, self._net.getLayer(number).type) for number, name in enumerate(self._net.getLayerNames())]
        for _ in range(calls):
            self._forward("labels", frames, frames.shape[:3], frames.dtype)
            _, nanoseconds = self._net.getPerfProfile()
            yield [
                Operation(() if name.startswith(_ADDED) else (name,), kind, float(time) / 1e6)
                for (name, kind), time in zip(layers, nanoseconds, strict=True)
            ]

    def _close(self) -> None:
        del self._net
