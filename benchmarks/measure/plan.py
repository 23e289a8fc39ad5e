"""What a run times and what it times it with: artifacts on backends, at frame sizes and batches; images or a video."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from enet_deploy import console
from enet_deploy.data import DataSet, open_data, require_same_classes
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import InputError
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Spec, backends_for, open_runner

from .processes import Processes
from .timing import Source, Stills, Video, open_subject, spec_of, try_out

CAMERA = (720, 1280)  # size of the drawn scenes: an ordinary camera's
SCENES = 8
APART = 10  # frames of a video that are looked at; its neighbours are nearly the same

# What an artifact runs on where nothing was asked for -> its package. Not trt, which first builds for minutes
_UNASKED = {"torch": "torch", "ort": "onnxruntime", "openvino": "openvino"}

Point = tuple[tuple[int, int] | None, int | None]  # frame size and frames per call; None: the artifact's own
Artifact = tuple[Path, str, Sequence[Point]]  # file, its name for the reader, points to time it at


@dataclass
class Entry:
    """An artifact on a backend, at a point.

    Attributes:
        shown: the artifact's name for the reader.
        swept: whether it is there for the sweep alone, and only timed.
        name: of its process.
        options: that the runner is opened with.
        spec, peak_bytes, batch: known once it is open.
    """

    artifact: Path
    shown: str
    backend: str
    point: Point
    swept: bool
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    spec: Spec = field(init=False)
    peak_bytes: int = 0
    batch: int = 1


def points(args: argparse.Namespace) -> list[Point]:
    """Every frame size with every batch. The first is what all is measured at, the others are the sweep."""
    return list(product(args.size or [None], args.batch or [None]))


def named(args: argparse.Namespace) -> Iterator[Artifact]:
    """The artifacts of the command line."""
    for path in args.artifacts:
        if path.suffix != ".safetensors" and len(args.size or ()) > 1:
            raise InputError(
                f"{path} has one frame size and --size names several, expected no ARTIFACT but weights: --precision "
                "exports them at each size"
            )
        yield path, str(path), points(args)


def entries(artifacts: Iterable[Artifact], args: argparse.Namespace) -> list[Entry]:
    """What to run: each artifact on each backend that it fits and that was asked for. Raises InputError for none."""
    artifacts = list(artifacts)
    (main, *_) = points(args)
    found = [
        Entry(path, shown, backend, point, point != main, "")
        for path, shown, own in artifacts
        for backend in backends(path, args)
        for point in own
    ]
    missing = sorted(set(args.backend or ()) - {entry.backend for entry in found})
    if missing:
        shown = ", ".join(dict.fromkeys(shown for _, shown, _ in artifacts))
        raise InputError(f"--backend {missing[0]}, but none of the artifacts runs on it: {shown}")
    for number, entry in enumerate(found, start=1):
        entry.name = f"{number}: {Path(entry.shown).name} on {entry.backend}"
    return found


def backends(artifact: Path, args: argparse.Namespace) -> list[str]:
    """What to run an artifact on: all that was asked for and fits, else all that fits and is installed."""
    fitting = backends_for(artifact)
    if args.backend is not None:
        return [backend for backend in fitting if backend in args.backend]
    found = [backend for backend in fitting if backend in _UNASKED and find_spec(_UNASKED[backend])]
    if args.device not in (None, "cpu"):
        found = [backend for backend in found if backend != "openvino"]  # which has no other device
    return found or [fitting[0]]


def start(chosen: Sequence[Entry], args: argparse.Namespace, processes: Processes) -> None:
    """Open each in a process of its own. Raises what opening raises, and InputError where they do not fit together."""
    # graphs have a size of their own and come first; weights run at any size, so they follow it
    for entry in console.progress(sorted(chosen, key=lambda entry: entry.backend == "torch"), "opening"):
        size = entry.point[0]
        if entry.backend == "torch":
            opened = (other.spec for other in chosen if other.backend != "torch" and not other.swept)
            size = size or next((spec.size for spec in opened), None)
            entry.options = {} if size is None else {"size": size}
        elif entry.backend in ("ort", "openvino"):
            entry.options = {"threads": args.threads}
        make = partial(open_runner, entry.artifact, entry.backend, args.device, **entry.options)
        processes.start(entry.name, partial(open_subject, make))
        entry.spec = processes.ask(entry.name, spec_of)
    for entry in chosen:
        entry.batch = _fitting_batch(entry, chosen)
        entry.peak_bytes = processes.ask(entry.name, try_out, entry.batch)


def _fitting_batch(entry: Entry, chosen: Sequence[Entry]) -> int:
    """The batch of an entry's point: as asked, or as the graphs have it. Raises InputError for what does not fit in."""
    spec, first = entry.spec, chosen[0]
    together = [other.spec for other in chosen if other.point == entry.point]
    size = entry.point[0] or together[0].size
    batch = entry.point[1] or next((other.batch for other in together if other.batch), 1)
    if spec.classes.names != first.spec.classes.names:
        raise InputError(
            f"{entry.shown} knows the classes {', '.join(spec.classes.names)}, but {first.shown} "
            f"{', '.join(first.spec.classes.names)}: one run has one class list"
        )
    if spec.size != size:
        raise InputError(
            f"{entry.shown} takes frames of {spec.size[0]}x{spec.size[1]}, expected {size[0]}x{size[1]}; export it "
            f"with --size {size[0]}x{size[1]}"
        )
    if spec.batch not in (None, batch):
        raise InputError(
            f"{entry.shown} takes {spec.batch} frames at a time, expected {batch}: one run has one batch size; export "
            f"it with --batch {batch}, or with --dynamic-batch"
        )
    return batch


@dataclass(frozen=True)
class Material:
    """What the runners see.

    Attributes:
        source: makes what they are timed with.
        images: some of that, (h, w, 3) uint8 BGR.
        pairs: (image, truth or None) to compare on.
        described: for the JSON.
    """

    source: Callable[[], Source]
    images: list[UInt8Array]
    pairs: Sequence[tuple[UInt8Array, UInt8Array | None]] | DataSet
    described: dict[str, Any]

    def require_classes(self, spec: Spec, folder: str) -> None:
        """Raise DataError unless the data set, where it is one, has the classes of the artifact."""
        if isinstance(self.pairs, DataSet):
            require_same_classes(spec.classes, self.pairs.classes, folder, f"{spec.artifact} knows")


def material(video: Path | None, data: str | None, split: str) -> Material:
    """A video is what is timed, a data set what is compared on, and either serves for both; else drawn scenes do."""
    dataset = None if data is None else open_data(data, split)
    if video is not None:
        frames = Video(video)
        images = [frames.read()[0] for _ in range(SCENES * APART)][::APART]
    elif dataset is not None:
        images = [dataset[index][0] for index in range(min(SCENES, len(dataset)))]
    else:
        images = [street_scene(seed, CAMERA)[0] for seed in range(SCENES)]
    pairs = [(image, None) for image in images] if dataset is None else dataset
    described = {
        "count": len(pairs),
        "size": list(images[0].shape[:2]),
        "data": None if data is None else Path(data).resolve().name,
        "split": None if data is None else split,
        "video": None if video is None else video.name,
    }
    return Material(partial(Stills, images) if video is None else partial(Video, video), images, pairs, described)
