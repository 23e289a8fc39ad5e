"""What the steps share: graphs, engines and runners of the bundled weights, and the timing of calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy.artifacts import BUNDLED_WEIGHTS, save_graph
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import BackendError, EnetError, missing
from enet_deploy.files import atomic_write, sha256
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, open_runner
from enet_deploy.runners.tensorrt.card import EngineCard

from ..measure.timing import times
from .contract import NotHere
from .findings import Findings, Settings, Size

if TYPE_CHECKING:
    import onnx

    from enet_deploy.runners.tensorrt.builder import Build

FRAMES = 8  # different scenes; the contract compares labels on them
NEEDS_CARD = "needs a card"  # the reason why a rehearsal skips something


def in_words(size: Size) -> str:
    """(360, 480) -> "360x480"."""
    return f"{size[0]}x{size[1]}"


def scenes(count: int, size: Size) -> UInt8Array:
    """(count, H, W, 3) uint8 BGR. After `FRAMES` scenes they repeat."""
    return np.resize(np.stack([street_scene(seed, size)[0] for seed in range(min(count, FRAMES))]), (count, *size, 3))


def _stem(precision: str, size: Size, dynamic: bool) -> str:
    return f"enet-{precision}-{in_words(size)}{'-dynamic' * dynamic}"


@dataclass(frozen=True)
class Session:
    """What a step works with.

    Attributes:
        settings: of the whole report.
        work: folder for graphs, engines and data, which all steps share.
        findings: where its figures go.
    """

    settings: Settings
    work: Path
    findings: Findings

    def require_card(self) -> None:
        """Raise NotHere in a rehearsal."""
        if self.settings.rehearsal:
            raise NotHere(NEEDS_CARD)

    def require(self, backend: str) -> None:
        """Raise NotHere unless a backend is available on the device of this run."""
        try:
            if backend == "trt":
                self.flavour()
            elif backend == "torch":
                from enet_deploy.runners.torch_runner import torch_device

                torch_device(self.settings.device)
            else:
                _require_onnxruntime(self.settings.device)
        except ModuleNotFoundError:
            raise NotHere(missing("torch" if backend == "torch" else "onnxruntime")) from None
        except BackendError as error:
            raise NotHere(str(error)) from None

    def require_compile(self) -> None:
        """Raise NotHere unless torch.compile works on the device: it needs Triton, which needs a C compiler."""
        if self.settings.rehearsal:
            raise NotHere(f"{NEEDS_CARD}: a CPU compiles for minutes")
        import torch

        try:
            torch.compile(lambda x: x + 1)(torch.zeros(2, device=self.settings.device))
        except Exception as error:  # noqa: BLE001  any part of the compiler may fail, in its own way
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise NotHere(f"torch.compile does not work here: {why}") from None

    def flavour(self) -> str:
        """The TensorRT to measure. Raises NotHere if none is available for the card in this machine."""
        from enet_deploy.runners.tensorrt.builder import BuildOptions, require_buildable
        from enet_deploy.runners.tensorrt.library import FLAVOURS

        self.require_card()
        reasons = []
        for flavour in (self.settings.flavour,) if self.settings.flavour else FLAVOURS:
            try:
                require_buildable(BuildOptions(flavour))
            except EnetError as error:
                reasons.append(str(error))
            else:
                return flavour
        raise NotHere("; ".join(reasons))

    def graph(self, precision: str, size: Size, dynamic: bool = False) -> Path:
        """Export the bundled weights for one frame per call, or for any number if `dynamic`. Done once in a run."""
        path = self.work / f"{_stem(precision, size, dynamic)}.onnx"
        if not path.exists():
            model = self._model(precision, size, dynamic)
            with atomic_write(path) as temporary:
                save_graph(model, temporary)
        return path

    def _model(self, precision: str, size: Size, dynamic: bool) -> onnx.ModelProto:
        import onnx

        from enet_deploy.export.int8 import quantize
        from enet_deploy.export.record import record_for
        from enet_deploy.export.to_onnx import build_graph

        if not dynamic:  # the same operations, with the batch fixed to one
            model = onnx.load(self.graph(precision, size, dynamic=True))
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 1
            del model.graph.value_info[:]  # they name the dynamic batch
            return model
        if "int8" in precision:
            plain = self.graph("fp16" if "fp16" in precision else "fp32", size, dynamic=True)
            return quantize(onnx.load(plain), record_for(sha256(BUNDLED_WEIGHTS)))
        return build_graph(BUNDLED_WEIGHTS, precision, size, batch=None)

    def engine(self, precision: str, size: Size, dynamic: bool = False) -> Path:
        """The engine of a graph for the card in this machine. Built once in a run."""
        flavour = self.flavour()
        path = self.work / EngineCard.engine_name(_stem(precision, size, dynamic), flavour)
        return path if path.exists() else self.build(flavour, precision, size, dynamic=dynamic).path

    def build(
        self, flavour: str, precision: str, size: Size, ahead: tuple[str, ...] = (), *, dynamic: bool = False
    ) -> Build:
        """Build an engine, for the compute capabilities `ahead` or for the card in this machine."""
        from enet_deploy.runners.tensorrt.builder import BuildOptions, to_engine

        graph = self.graph(precision, size, dynamic)
        options = BuildOptions(flavour, ahead, max_batch=self.settings.batches[-1])
        return to_engine(graph, self.work / EngineCard.engine_name(graph, flavour), options)

    def open(self, backend: str, precision: str, size: Size, dynamic: bool = True, **options: Any) -> Runner:
        """Open a runner of the bundled weights, for any number of frames or for one."""
        if backend == "torch":
            return open_runner(BUNDLED_WEIGHTS, "torch", self.settings.device, size=size)
        if backend == "trt":
            return open_runner(self.engine(precision, size, dynamic), "trt", **options)
        return open_runner(self.graph(precision, size, dynamic), "ort", self.settings.device)

    def reference(self) -> UInt8Array:
        """Labels of `FRAMES` scenes of the first size by PyTorch on the CPU, which computes float32 exactly."""
        path, size = self.work / "reference.npy", self.settings.sizes[0]
        if not path.exists():
            with open_runner(BUNDLED_WEIGHTS, "torch", size=size) as runner, atomic_write(path) as temporary:
                np.save(temporary, runner.infer(scenes(FRAMES, size)))
        labels: UInt8Array = np.load(path)
        return labels

    def calls(self, call: Callable[[], object]) -> int:
        """Warm up, and return how many calls fill the time of a measurement."""
        settings = self.settings
        once = statistics.median(times(call, 3, dropped=settings.warm_up))
        return min(max(round(1e3 * settings.seconds / once), settings.least), settings.most)

    def timed(self, call: Callable[[], object], frames: int) -> dict[str, object]:
        """Time a call that labels `frames` frames: its latency, and frames per second of calls back to back."""
        found = times(call, self.calls(call))
        p50, p99 = np.quantile(found, (0.5, 0.99)).tolist()
        return {"p50_ms": p50, "p99_ms": p99, "fps": 1e3 * frames / statistics.fmean(found), "calls": len(found)}

    def wait(self) -> None:
        """Wait until the device has done PyTorch's work."""
        if not self.settings.rehearsal:
            import torch

            torch.cuda.synchronize()

    def captured(self, call: Callable[[], object]) -> Callable[[], None]:
        """Capture a call as a CUDA graph; returns a function that replays it on the same memory."""
        from enet_deploy.training.captured import CudaRecorder

        self.require_card()
        return CudaRecorder()(call)[0]


def _require_onnxruntime(device: str) -> None:
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        remedy = "pip uninstall onnxruntime, then pip install 'enet-deploy[gpu]'"
        raise NotHere(f"onnxruntime {onnxruntime.__version__} without CUDA; {remedy}")
