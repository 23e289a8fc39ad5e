"""A model of Triton's Python backend: `open_runner` behind it. `enet-export --triton` copies this file as model.py.

The server's Python needs enet_deploy with a backend: pip install 'enet-deploy[cpu]'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as server  # part of the server

from enet_deploy import EnetError, open_runner


class TritonPythonModel:
    """What the server calls: `initialize` once, `execute` per batch, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        self.runner = open_runner(version / "model.onnx")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Label the frames of all requests, each (N, H, W, 3) uint8 as the server has checked, in one call."""
        frames = [server.get_input_tensor_by_name(request, "frames").as_numpy() for request in requests]
        wanted = {name for request in requests for name in request.requested_output_names()}
        try:
            found = self._run(np.concatenate(frames), wanted)
        except EnetError as error:
            return [server.InferenceResponse(error=server.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(each) for each in frames])[:-1]
        parts = {name: np.split(values, ends) for name, values in found.items()}
        return [
            server.InferenceResponse([server.Tensor(name, parts[name][index]) for name in sorted(parts)])
            for index in range(len(requests))
        ]

    def _run(self, frames: Any, wanted: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "confidence" in wanted:
            found["labels"], found["confidence"] = self.runner.infer_with_confidence(frames)
        elif "labels" in wanted:
            found["labels"] = self.runner.infer(frames)
        if "logits" in wanted:
            found["logits"] = self.runner.logits(frames)
        return found

    def finalize(self) -> None:
        self.runner.close()
