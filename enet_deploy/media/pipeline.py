"""Decode frames, label them, and hand them to their consumer, at the same time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import DataError
from ..images import UInt8Array
from .frames import NAP, TIMEOUT_MS, Frame, FrameSource, LabelledFrame, Stop

T = TypeVar("T")
Labels = UInt8Array | tuple[UInt8Array, UInt8Array]  # (h, w), without confidences or with them

AHEAD = 4  # frames that wait at most, before labelling and after it


@dataclass(frozen=True)
class _End:
    """The last item of a queue. The consumer raises `error`, if there is one."""

    error: BaseException | None = None


class _FrameQueue(Generic[T]):
    """Items on their way from one thread to the next.

    Args:
        stopped: once set, neither thread waits for the other.
        newest_only: one item waits, and a newer one replaces it; else `AHEAD` items wait, and the producer waits for
            room.

    Attributes:
        dropped: number of items that were replaced.
    """

    def __init__(self, stopped: Stop, newest_only: bool) -> None:
        self.dropped = 0
        self._stopped, self._newest_only = stopped, newest_only
        self._items: queue.Queue[T | _End] = queue.Queue(1 if newest_only else AHEAD)

    def put(self, item: T) -> None:
        while self._newest_only and self._items.full():  # here frames are dropped
            with suppress(queue.Empty):
                self._items.get_nowait()
                self.dropped += 1
        self._put_when_there_is_room(item)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """End the items when the block ends. The consumer raises what the block raises."""
        error = None
        try:
            yield
        except BaseException as raised:  # noqa: BLE001  `__iter__` raises it again
            error = raised
        self._put_when_there_is_room(_End(error))

    def _put_when_there_is_room(self, item: T | _End) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                return self._items.put(item, timeout=NAP)
        return None

    def __iter__(self) -> Iterator[T]:
        while not self._stopped.is_set():
            try:
                item = self._items.get(timeout=NAP)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                return


class Pipeline:
    """One thread decodes, one labels, and the caller's thread draws and encodes, with bounded queues between them.

    Every frame of a file comes out, in order. With a live source, at most one frame waits in each queue, and a newer
    frame replaces it. So the output lags behind only by the work in progress.

    Args:
        source: of the frames; one thread uses it.
        label: (h, w, 3) uint8 BGR -> labels (h, w) uint8, such as `Runner.segment`, or labels and confidences, such as
            `Runner.segment_with_confidence`; one thread uses it.
        stopped: any thread may set it to end the frames soon.
        every: label every N-th frame only.

    Attributes:
        undecodable: number of frames that were skipped because they could not be decoded.
        first_flaw: why the first of them could not.
    """

    def __init__(
        self, source: FrameSource, label: Callable[[UInt8Array], Labels], stopped: Stop, every: int = 1
    ) -> None:
        self.undecodable = 0
        self.first_flaw: DataError | None = None
        self._source, self._label, self._every, self._stopped = source, label, every, stopped
        self._decoded: _FrameQueue[Frame] = _FrameQueue(stopped, source.live)
        self._labelled: _FrameQueue[LabelledFrame] = _FrameQueue(stopped, source.live)

    @property
    def dropped(self) -> int:
        """Number of frames of a live source that newer ones replaced."""
        return self._decoded.dropped + self._labelled.dropped

    def run(self) -> Generator[LabelledFrame, None, None]:
        """Yield each labelled frame. Raises what the source or `label` raises; DataError for the source's OSError."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._decode, self._label_all)]
        for thread in threads:
            thread.start()
        try:
            yield from self._labelled
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(2 * TIMEOUT_MS / 1000)  # a camera may hang longer; do not wait for it

    def _decode(self) -> None:
        with self._decoded.filling(), self._named(), closing(self._source.frames()) as frames:
            for index, frame in enumerate(frames):
                if self._stopped.is_set():
                    return
                if isinstance(frame, DataError):
                    self.undecodable += 1
                    self.first_flaw = self.first_flaw or frame
                elif index % self._every == 0:
                    self._decoded.put(frame)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise DataError for an OSError, which the open output files would take for their own."""
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._source.name} cannot be read: {error}") from None

    def _label_all(self) -> None:
        with self._labelled.filling():
            for frame in self._decoded:
                start = time.perf_counter()
                found = self._label(frame.image)
                latency = (time.perf_counter() - start) * 1e3
                labels, confidence = found if isinstance(found, tuple) else (found, None)
                self._labelled.put(LabelledFrame(frame, labels, latency, confidence=confidence))
