"""Decoding, labelling and what is done with the labels, at the same time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from ..data import UInt8Array
from ..errors import DataError
from .sources import NAP, TIMEOUT_MS, Frame, Source

T = TypeVar("T")

AHEAD = 4  # frames that wait, at most, before labelling and behind it


@dataclass(frozen=True)
class Segmented:
    """A frame with its labels.

    Attributes:
        frame: as it came.
        labels: (h, w) uint8 class ids, of the frame's size.
        latency_ms: from the decoded frame to its labels.
        truth: what the labels should be, as `labels`, where somebody knows.
    """

    frame: Frame
    labels: UInt8Array
    latency_ms: float
    truth: UInt8Array | None = None


@dataclass(frozen=True)
class _End:
    """Nothing follows; where an error was the reason, it is to be raised by whom the frames were for."""

    error: BaseException | None = None


class Pipeline:
    """One thread decodes, one labels, and the caller's draws and encodes; bounded queues between them.

    From a live source only the newest frame waits, so that what comes out is never late by more than the work in
    hand; from any other every frame comes out, in order.

    Args:
        source: of the frames; used by one thread.
        label: (h, w, 3) uint8 BGR -> (h, w) uint8, `Runner.segment` for example; used by one thread.
        every: only every so manieth frame is labelled.
        stopped: set, from anywhere, it ends the frames soon.

    Attributes:
        undecodable: frames that were skipped because they could not be decoded; `first_flaw` is why the first was.
        dropped: frames of a live source that were left out for newer ones.
    """

    def __init__(
        self, source: Source, label: Callable[[UInt8Array], UInt8Array], stopped: threading.Event, every: int = 1
    ) -> None:
        self.undecodable = 0
        self.dropped = 0
        self.first_flaw: DataError | None = None
        self._source, self._label, self._every, self._stopped = source, label, every, stopped
        self._decoded: queue.Queue[Frame | _End] = queue.Queue(1 if source.live else AHEAD)
        self._labelled: queue.Queue[Segmented | _End] = queue.Queue(AHEAD)

    def run(self) -> Generator[Segmented, None, None]:
        """Each labelled frame. Raises what the source or `label` raises."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._decode, self._label_all)]
        for thread in threads:
            thread.start()
        try:
            while (item := self._get(self._labelled)) is not None and not isinstance(item, _End):
                yield item
            if item is not None and item.error is not None:
                raise item.error
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(2 * TIMEOUT_MS / 1000)  # a camera that hangs longer is left behind

    def _decode(self) -> None:
        error = None
        try:
            for index, frame in enumerate(self._source.frames()):
                if self._stopped.is_set():
                    return
                if isinstance(frame, DataError):
                    self.undecodable += 1
                    self.first_flaw = self.first_flaw or frame
                elif index % self._every == 0:
                    self._hand_on(frame)
        except BaseException as fault:  # noqa: BLE001  raised again by `run`
            error = fault
        self._put(self._decoded, _End(error))

    def _hand_on(self, frame: Frame) -> None:
        while self._source.live:
            with suppress(queue.Full):
                return self._decoded.put_nowait(frame)
            with suppress(queue.Empty):
                self._decoded.get_nowait()
                self.dropped += 1
        return self._put(self._decoded, frame)

    def _label_all(self) -> None:
        error = None
        try:
            while (frame := self._get(self._decoded)) is not None and not isinstance(frame, _End):
                start = time.perf_counter()
                labels = self._label(frame.image)
                self._put(self._labelled, Segmented(frame, labels, (time.perf_counter() - start) * 1e3))
            error = frame.error if frame is not None else None
        except BaseException as fault:  # noqa: BLE001  raised again by `run`
            error = fault
        self._put(self._labelled, _End(error))

    def _put(self, items: queue.Queue[T], item: T) -> None:
        """Wait for room, unless stopped."""
        while not self._stopped.is_set():
            with suppress(queue.Full):
                return items.put(item, timeout=NAP)
        return None

    def _get(self, items: queue.Queue[T]) -> T | None:
        """Wait for the next; None once stopped."""
        while not self._stopped.is_set():
            with suppress(queue.Empty):
                return items.get(timeout=NAP)
        return None
