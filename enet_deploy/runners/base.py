"""The runner contract: camera frames in, labels out, identical on every backend."""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..arrays import check_count, check_image, check_label_map
from ..artifacts import Metadata, require_file
from ..errors import ArtifactError, BackendError, InputError, is_out_of_memory
from ..fit import Fit, fit_image, unfit_labels
from ..images import UInt8Array
from .spec import Operation, Spec, check_frames, check_out

if TYPE_CHECKING:
    from concurrent.futures import Future

R = TypeVar("R", bound="Runner")

WARM_UP = 3  # calls at the start of a profile that are not counted

UNWRITTEN = 255  # never a class id: what an array for labels holds until a backend writes them
_LIBRARIES = ("onnxruntime", "openvino", "torch", "cv2")  # which raise errors of types of their own


class Runner(ABC):
    """One network on one device.

    The constructor is cheap. `open` (or `with`) loads the artifact onto the device, `close` frees it. Several runners
    may be open at the same time. A runner serves one call at a time; calls from other threads wait. After a fork the
    child process has none of the backend's threads: it cannot use the parent's runner and must open its own.

    A backend is a subclass with four methods: `_open`, `_run`, `_run_logits`, `_close`. They receive checked arrays.
    It may also override `_run_confidence`, `_stream` and `_profile`.
    """

    backend: str

    def __init__(self, artifact: str | Path, device: str = "cpu") -> None:
        self.artifact = Path(artifact)
        self.device = check_device(device)
        self.fit: Fit | None = None  # in place of the artifact's own
        self._spec: Spec | None = None
        self._process = 0  # id of the process that opened it
        self._class_count = 0  # also known after close(), under a stream
        # Reentrant, because the garbage collector may close an abandoned stream in the middle of a call
        self._lock = threading.RLock()

    @property
    def spec(self) -> Spec:
        """Facts about the open runner. Raises BackendError unless this process has opened it."""
        return self._require_open()

    def _require_open(self) -> Spec:
        """Return the spec. Raises BackendError unless this process has opened the runner."""
        if self._spec is None:
            raise BackendError(f"the runner of {self.artifact} is not open; call open(), or use it in a with block")
        if self._is_foreign():
            raise BackendError(
                f"the runner of {self.artifact} was opened by process {self._process}, and this is {os.getpid()}, "
                "forked from it; open a runner in each process"
            )
        return self._spec

    def _is_foreign(self) -> bool:
        return self._spec is not None and self._process != os.getpid()

    def open(self: R) -> R:
        """Load the artifact onto the device. Does nothing if the runner is open already.

        Raises ArtifactError if the file is missing, damaged or foreign, BackendError if the device is not available.
        """
        if self._is_foreign():
            self._require_open()  # raises; without the lock, which a thread of the parent may have held at the fork
        with self._lock:
            if self._spec is None:
                require_file(self.artifact)
                with self._failures():
                    spec = self._open()
                self._spec = spec if self.fit is None else replace(spec, fit=self.fit)
                self._class_count = len(self._spec.classes)
                self._process = os.getpid()
        return self

    def close(self) -> None:
        """Free the device. May be called twice; the runner can be opened again. Does nothing in a forked process."""
        if self._is_foreign():
            return
        with self._lock:
            if self._spec is not None:
                self._spec = None
                self._close()

    def __enter__(self: R) -> R:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, frames: UInt8Array, out: UInt8Array | None = None) -> UInt8Array:
        """Label a batch.

        Args:
            frames: (N, H, W, 3) uint8 BGR in [0, 255], H and W as in `spec.size`; may be read-only or strided.
            out: (N, H, W) uint8, C-contiguous, writable, apart from the memory of `frames`: is filled and returned.
                Without it a new array is returned. It belongs to the caller; no later call changes it.

        Returns labels (N, H, W) uint8, class ids, all written by this call. Raises InputError for any other array,
        BackendError if the backend fails, as without memory. `out` then holds anything, and nothing writes to it later.
        """
        frames = self._checked(frames)
        labels = unwritten(frames.shape[:3]) if out is None else self._checked_out(out, frames)
        with self._lock:
            self._require_open()  # again: another thread may have closed it since the check
            with self._failures():
                self._run(frames, labels)
            self._require_written(labels)
        return labels if out is None else out

    def infer_with_confidence(self, frames: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        """Label a batch, and say how sure the network is of each label.

        Returns labels as `infer`, and confidences (N, H, W) uint8: 255 times the softmax probability of the label. The
        softmax is that of logits divided by the temperature that the artifact was exported with. Both are new arrays
        that belong to the caller. Raises ArtifactError if the artifact was exported without confidences, else as
        `infer`.
        """
        frames = self._checked(frames)
        if not self.spec.has_confidence:
            raise ArtifactError(f"{self.artifact} has no output 'confidence'; make one with enet-export --confidence")
        labels = unwritten(frames.shape[:3])
        confidence = np.zeros(frames.shape[:3], np.uint8)
        with self._lock:
            self._require_open()
            with self._failures():
                self._run_confidence(frames, labels, confidence)
            self._require_written(labels)
        if not confidence.all():  # the label has the largest of at most 255 probabilities
            raise BackendError(f"{self.backend} left confidences of {self.artifact} unwritten; export it again")
        return labels, confidence

    def logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        """Return the scores behind `infer`'s labels: (N, C, H, W) float32, a new array that belongs to the caller.

        Raises ArtifactError if the artifact was exported without them, InputError as `infer`.
        """
        frames = self._checked(frames)
        if not self.spec.has_logits:
            raise ArtifactError(f"{self.artifact} has no output 'logits'; export it with --logits")
        with self._lock:
            self._require_open()
            with self._failures():
                scores = self._run_logits(frames)
        if np.isnan(scores.min()):
            raise BackendError(f"{self.backend} gave logits of {self.artifact} that are no numbers; export it again")
        return scores

    def profile(self, frames: UInt8Array, calls: int = 20) -> list[Operation]:
        """Measure the median time of each operation, in order of execution.

        Profiling adds overhead, so the total exceeds the time of `infer`. Operations below the resolution of the
        backend's clock are left out.

        Args:
            frames: a batch as for `infer`.
            calls: number of measured calls, after a few for warm-up.

        Raises BackendError if the backend cannot measure its operations, InputError as `infer`.
        """
        check_count("calls", calls)
        frames = self._checked(frames)
        with self._lock:
            self._require_open()
            with self._failures():
                counted = list(self._profile(frames, WARM_UP + calls))[WARM_UP:]
        if len({len(call) for call in counted}) != 1 or not counted[0]:
            raise BackendError(
                f"{self.backend} reported different operations in each call of {self.artifact}, or none at all"
            )
        operations = [
            replace(same[0], ms=float(np.median([o.ms for o in same]))) for same in zip(*counted, strict=True)
        ]
        return [operation for operation in operations if operation.ms > 0]

    def segment(self, image: UInt8Array) -> UInt8Array:
        """Label one camera image of any size.

        Args:
            image: (h, w, 3) uint8 BGR.

        Returns labels (h, w) uint8. The image is resized to the network's size as `spec.fit` says (bilinear), the
        labels are resized back (nearest); what "crop" leaves out has the label `spec.classes.void`. Raises InputError
        for any other array, or if the artifact takes several frames per call.
        """
        check_image(image)
        self._require_single()
        return self.postprocess(self.infer(self.preprocess(image))[0], (image.shape[0], image.shape[1]))

    def segment_with_confidence(self, image: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        """Label one camera image as `segment`, and say how sure the network is as `infer_with_confidence`.

        Returns labels and confidences, both (h, w) uint8; what "crop" leaves out has confidence 0. Raises as these two.
        """
        check_image(image)
        self._require_single()
        labels, confidence = self.infer_with_confidence(self.preprocess(image))
        size = (image.shape[0], image.shape[1])
        return self.postprocess(labels[0], size), unfit_labels(confidence[0], size, self.spec.fit, 0)

    def _require_single(self) -> None:
        if self.spec.batch not in (None, 1):
            raise InputError(
                f"segment takes one image and {self.artifact} takes {self.spec.batch} at a time; "
                "use infer, or export with --batch 1"
            )

    def preprocess(self, image: UInt8Array) -> UInt8Array:
        """Run the first step of `segment`: (h, w, 3) -> (1, H, W, 3) at the network's size. Raises as `segment`."""
        return fit_image(image, self.spec.size, self.spec.fit)[None]

    def postprocess(self, labels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
        """Run the last step of `segment`: (H, W) uint8 -> (h, w). Raises InputError for other labels or sizes."""
        check_label_map(labels, self.spec.size)
        return unfit_labels(labels, size, self.spec.fit, self.spec.classes.void)

    def stream(self, frames: Iterable[UInt8Array], depth: int = 2) -> Generator[UInt8Array, None, None]:
        """Label batches in order, while the caller fetches the next one and uses the last labels.

        Args:
            frames: batches as for `infer`. A batch must not change before its labels are yielded.
            depth: number of batches in flight; with 1 nothing overlaps.

        Yields what `infer` returns. If `frames` raises, or if the iterator is closed early or forgotten, labels in
        flight are lost.
        """
        check_count("depth", depth)
        self._require_open()  # here and not at the first next()
        return self._stream(iter(frames), depth)

    def _stream(self, frames: Iterator[UInt8Array], depth: int) -> Generator[UInt8Array, None, None]:
        from concurrent.futures import ThreadPoolExecutor

        pending: deque[Future[UInt8Array]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix=f"enet-{self.backend}")
        try:
            for batch in frames:
                pending.append(pool.submit(self.infer, batch))
                if len(pending) >= depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Wait for nothing: the garbage collector may end a forgotten stream in any thread, also in one that holds
            # the lock for which the pool's thread waits
            for future in pending:
                future.cancel()
            pool.shutdown(wait=False)

    def _require_written(self, labels: Any) -> None:
        """Raise BackendError unless every label is a class id. The backend got the array from `unwritten`.

        A library that fails without an error, as OpenVINO's CPU plugin does without memory, leaves it as it was. Arrays
        on a GPU are not looked at.
        """
        largest = labels.max() if isinstance(labels, np.ndarray) else 0
        if largest >= self._class_count:
            raise BackendError(
                f"{self.backend} left labels of {self.artifact} unwritten, or gave one the id {largest} of "
                f"{self._class_count} classes; there may be too little memory, else export the graph again"
            )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise BackendError in place of an error of the backend's library; others, as of a signal's handler, pass."""
        try:
            yield
        except Exception as error:
            library = type(error).__module__.split(".")[0]
            if type(error) not in (RuntimeError, MemoryError) and library not in _LIBRARIES:
                raise
            if is_out_of_memory(error):
                remedy = "close other programs, or take fewer frames at a time"
                raise BackendError(f"{self.backend} has too little memory for {self.artifact}; {remedy}") from error
            reason = " ".join(str(error).split())
            raise BackendError(f"{self.backend} failed on {self.artifact}: {reason}") from error

    def _checked(self, frames: Any) -> UInt8Array:
        """Check `frames` and return what `_run` gets. Override it only to accept more than numpy arrays."""
        check_frames(frames, self.spec)
        return np.ascontiguousarray(frames)

    def _checked_out(self, out: Any, frames: Any) -> UInt8Array:
        """Check `out` and return what `_run` gets for checked frames, without labels in it; see `_checked`."""
        check_out(out, frames.shape[:3])
        labels: UInt8Array = out
        if not (labels.flags.c_contiguous and labels.flags.writeable):
            raise InputError("out is strided or read-only, expected a C-contiguous, writable array")
        if isinstance(frames, np.ndarray) and np.may_share_memory(labels, frames):
            raise InputError("out shares memory with frames, expected an array of its own")
        labels.fill(UNWRITTEN)
        return labels

    @abstractmethod
    def _open(self) -> Spec:
        """Load the artifact. After an error nothing may stay open."""

    @abstractmethod
    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        """Fill `out` (N, H, W) with the labels of `frames` (N, H, W, 3); both are C-contiguous."""

    @abstractmethod
    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        """Return the logits (N, C, H, W) of `frames`. Called only if `spec.has_logits`."""

    def _run_confidence(self, frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        """Fill `labels` and `confidence`, both (N, H, W). Called only if `spec.has_confidence`."""
        raise BackendError(f"backend '{self.backend}' gives no confidences of {self.artifact}; take another backend")

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        """Yield the operations of each call, one list per call."""
        raise BackendError(f"backend '{self.backend}' does not measure single operations; profile with another backend")

    @abstractmethod
    def _close(self) -> None:
        """Free what `_open` allocated."""

    def _make_spec(
        self,
        metadata: Metadata,
        batch: int | None,
        has_logits: bool,
        runtime: str = "",
        precision: str = "",
        has_confidence: bool = False,
    ) -> Spec:
        return Spec(
            artifact=self.artifact,
            backend=self.backend,
            device=self.device,
            precision=precision or metadata.precision,
            size=metadata.size,
            batch=batch,
            classes=metadata.classes,
            has_logits=has_logits,
            weights_sha256=metadata.weights_sha256,
            runtime=runtime,
            qdq_layout=metadata.qdq_layout,
            calibrated_on=metadata.calibrated_on,
            has_confidence=has_confidence,
            fit=metadata.fit,
            trained_on=metadata.trained_on,
        )


def unwritten(shape: tuple[int, ...]) -> UInt8Array:
    """Return an array for labels that holds no class id yet, see `Runner._require_written`."""
    return np.full(shape, UNWRITTEN, np.uint8)


def check_device(device: Any) -> str:
    """Return `device`. Raises InputError unless it is a text; each backend knows which texts name devices."""
    if not isinstance(device, str) or not device:
        raise InputError(f"device {device!r:.40}, expected 'cpu', 'cuda' or 'cuda:N'")
    return device


def cuda_index(device: str) -> int | None:
    """Return N of "cuda:N", 0 of "cuda", and None of any other name."""
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    return None if match is None else int(match[1] or 0)
