"""Watch the input of the node, without ROS: rate, latency, missing frames, age, and pictures that show nothing new."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

import numpy as np

from enet_deploy.console import counted
from enet_deploy.images import UInt8Array

OK, WARN, ERROR = b"\0", b"\1", b"\2"  # levels of a diagnostic_msgs/DiagnosticStatus
_STAMPS = 30  # of the last frames, which say how many milliseconds there are between two
_GAP = 1.5  # periods without a frame until one is missing


@dataclass(frozen=True)
class Limits:
    """When the input is at fault.

    Attributes:
        dark_level: mean grey level, of 255, below which a picture is too dark.
        frozen_after: seconds of the same picture until the camera counts as frozen; 0 for never.
        stale_after: seconds without a frame until the camera counts as gone.
    """

    dark_level: float = 10.0
    frozen_after: float = 5.0
    stale_after: float = 2.0


@dataclass(frozen=True)
class Report:
    """The fields of a DiagnosticStatus: its level, why, and figures in words."""

    level: bytes
    message: str
    values: dict[str, str]


class Health:
    """Counts what arrives between two reports. One thread uses it; times are seconds of one monotonic clock.

    Args:
        limits: when to warn; may be replaced at any time.
        now: the time.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._reported = self._last = self._changed = now
        self._periods: deque[int] = deque(maxlen=_STAMPS)
        self._stamp = 0
        self._sample: UInt8Array | None = None
        self._last_busy = 0.0
        self.missing_total = 0
        self._start()

    def _start(self) -> None:
        self._latencies: list[float] = []
        self._busy: list[float] = []
        self._lost, self._replaced, self._level = 0, 0, 255.0
        self.errors: list[str] = []

    def arrived(self, stamp: int, now: float) -> int:
        """Note a message with this stamp in nanoseconds; return how many before it were lost on the way to the node.

        Images that are missing because the work on the last one took longer than the camera's period are not lost:
        newer ones replaced them.
        """
        self._last = now
        gap, self._stamp = stamp - self._stamp, stamp
        if gap <= 0 or gap == stamp:  # no stamp, the first one, or the camera's clock began again
            return 0
        self._periods.append(gap)
        # Not the median: with images missing, gaps are longer
        period = sorted(self._periods)[len(self._periods) // 4]
        missing = round(gap / period) - 1 if gap > _GAP * period else 0
        self.missing_total += missing
        if self._last_busy * 1e9 > period:
            self._replaced += missing
            return 0
        self._lost += missing
        return missing

    def labelled(self, image: UInt8Array, latency: float | None, busy: float, now: float) -> None:
        """Note a labelled image (h, w, 3), seconds since its stamp if it has one, and seconds of work on it."""
        sample = image[::8, ::8].copy()
        if self._sample is None or not np.array_equal(sample, self._sample):
            self._sample, self._changed = sample, now
        self._level = min(self._level, float(sample.mean()))
        self._busy.append(busy)
        self._last_busy = busy
        if latency is not None:
            self._latencies.append(latency)

    def report(self, now: float, range_warning: str = "", cameras: int = 0) -> Report:
        """Return what happened since the last report, and begin again. `cameras` publish on the topic of the images."""
        span, age, frozen = max(now - self._reported, 1e-3), now - self._last, now - self._changed
        flaws = list(dict.fromkeys(self.errors))
        if self._lost:
            flaws.append(f"lost on the way to the node, by the stamps: {counted(self._lost, 'image')}")
        if self._busy and self._level < self.limits.dark_level:
            flaws.append(f"too dark: mean grey level {self._level:.1f} of 255")
        if self._busy and 0 < self.limits.frozen_after <= frozen:
            flaws.append(f"frozen: the same picture for {frozen:.1f} s")
        flaws += [range_warning] if range_warning else []
        level = WARN if flaws else OK
        if age >= self.limits.stale_after:
            level = ERROR
            flaws.insert(0, f"no image for {age:.1f} s from {counted(cameras, 'publisher')}")
        values = {
            "rate (Hz)": f"{len(self._busy) / span:.1f}",
            "images lost on the way": f"{self._lost}",
            "images replaced by newer ones": f"{self._replaced}",
            "images missing since the start": f"{self.missing_total}",
            "age of the last image (s)": f"{age:.2f}",
            "images that could not be labelled": f"{len(self.errors)}",
        }
        if self._busy:
            values["work per image, median (ms)"] = f"{1e3 * statistics.median(self._busy):.1f}"
            values["mean grey level of the darkest"] = f"{self._level:.1f}"
        if self._latencies:
            values["latency from the stamp, median (ms)"] = f"{1e3 * statistics.median(self._latencies):.1f}"
            values["latency from the stamp, largest (ms)"] = f"{1e3 * max(self._latencies):.1f}"
        self._reported = now
        self._start()
        return Report(level, "; ".join(flaws) or "ok", values)
