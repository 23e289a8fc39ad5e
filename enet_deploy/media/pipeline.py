"""Decoding, labelling and what is done with the labels, at the same time."""

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
from .sources import NAP, TIMEOUT_MS, Frame, Source, Stop

T = TypeVar("T")

AHEAD = 4  # frames that wait, at most, before labelling and behind it


@dataclass(frozen=True)
class Segmented:
    """A frame with its labels.

    Attributes:
        frame: as it came.
        labels: (h, w) uint8 class ids, of the frame's size.
        latency_ms: that labelling took, resizing there and back included, waiting not.
        truth: what the labels should be, as `labels`, where somebody knows.
    """

    frame: Frame
    labels: UInt8Array
    latency_ms: float
    truth: UInt8Array | None = None


@dataclass(frozen=True)
class _End:
    """Nothing follows; where an error was the reason, it is to be raised by whom the items were for."""

    error: BaseException | None = None


class _Lane(Generic[T]):
    """Items on their way from one thread to the next.

    Args:
        stopped: set, neither thread waits for the other any more.
        newest_only: one item waits, and a newer one takes its place; else `AHEAD` do, and the next waits for room.

    Attributes:
        dropped: items whose place was taken.
    """

    def __init__(self, stopped: Stop, newest_only: bool) -> None:
        self.dropped = 0
        self._stopped, self._newest_only = stopped, newest_only
        self._items: queue.Queue[T | _End] = queue.Queue(1 if newest_only else AHEAD)

    def put(self, item: T) -> None:
        while self._newest_only and self._items.full():
            with suppress(queue.Empty):
                self._items.get_nowait()
                self.dropped += 1
        self._put_when_there_is_room(item)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """The end of the block is the end of the items, and what it raises is raised by whom they are for."""
        error = None
        try:
            yield
        except BaseException as fault:  # noqa: BLE001  raised again by `__iter__`
            error = fault
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
    """One thread decodes, one labels, and the caller's draws and encodes; bounded queues between them.

    Of a live source only the newest frame waits to be labelled, and only the newest of the labelled ones to be taken,
    so that what comes out is never late by more than the work in hand; of any other every frame comes out, in order.

    Args:
        source: of the frames; used by one thread.
        label: (h, w, 3) uint8 BGR -> (h, w) uint8, `Runner.segment` for example; used by one thread.
        stopped: set, from anywhere, it ends the frames soon.
        every: only every so manieth frame is labelled.

    Attributes:
        undecodable: frames that were skipped because they could not be decoded; `first_flaw` is why the first was.
    """

    def __init__(
        self, source: Source, label: Callable[[UInt8Array], UInt8Array], stopped: Stop, every: int = 1
    ) -> None:
        self.undecodable = 0
        self.first_flaw: DataError | None = None
        self._source, self._label, self._every, self._stopped = source, label, every, stopped
        self._decoded: _Lane[Frame] = _Lane(stopped, source.live)
        self._labelled: _Lane[Segmented] = _Lane(stopped, source.live)

    @property
    def dropped(self) -> int:
        """Frames of a live source that were left out for newer ones."""
        return self._decoded.dropped + self._labelled.dropped

    def run(self) -> Generator[Segmented, None, None]:
        """Each labelled frame. Raises what the source or `label` raises."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._decode, self._label_all)]
        for thread in threads:
            thread.start()
        try:
            yield from self._labelled
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(2 * TIMEOUT_MS / 1000)  # a camera that hangs longer is left behind

    def _decode(self) -> None:
        with self._decoded.filling(), closing(self._source.frames()) as frames:
            for index, frame in enumerate(frames):
                if self._stopped.is_set():
                    return
                if isinstance(frame, DataError):
                    self.undecodable += 1
                    self.first_flaw = self.first_flaw or frame
                elif index % self._every == 0:
                    self._decoded.put(frame)

    def _label_all(self) -> None:
        with self._labelled.filling():
            for frame in self._decoded:
                start = time.perf_counter()
                labels = self._label(frame.image)
                self._labelled.put(Segmented(frame, labels, (time.perf_counter() - start) * 1e3))
