"""What a run times and with what: artifacts on backends, at frame sizes and batches; images or a video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from enet_deploy import console
from enet_deploy.bundled import artifact_file, graph_file
from enet_deploy.data import DataSet, open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import InputError
from enet_deploy.fit import Fit
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Spec, backends_for, installed_backends, open_runner

from ..run import Images
from .feeds import CameraFeed, StillsFeed, VideoFeed
from .processes import Processes
from .worker import open_worker, spec_of, try_out

CAMERA = (720, 1280)  # size of the synthetic scenes: an ordinary camera's
SCENES = 8
APART = 10  # every tenth frame of a video is compared; its neighbours are nearly the same

Point = tuple[tuple[int, int] | None, int | None]  # frame size and frames per call; None: the artifact's own


class Artifact(NamedTuple):
    """What to run.

    Attributes:
        path: the file.
        shown: its name for the reader.
        points: to time it at.
        precision: what to compute it in, as `open_runner` takes it; None: the file's own.
        export: options of the `enet-export` that makes the file; None for a file that was there before.
    """

    path: Path
    shown: str
    points: Sequence[Point]
    precision: str | None = None
    export: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BenchOptions:
    """What `enet-bench` is asked to measure.

    Attributes:
        artifacts: the first is the baseline; empty: `weights` and their exports.
        weights: parity is measured against these.
        precisions: of the exports; empty: fp32. With artifacts: what to compute graphs in, beside their own precision.
        calibration: record for int8; None: the bundled one.
        backends: None: all that are installed, except trt.
        device: None: the backend's own.
        fit: None: each artifact's own.
        threads: of ort, openvino and opencv; 0: their choice.
        sizes, batches: empty: the artifact's own. The first of each is the main point, the others are the sweep.
        frames, seconds: the least that is timed of each runner.
        data, split: data set; None without one.
        video: None without one.
        profile: whether to profile too.
    """

    artifacts: Sequence[Path]
    weights: Path
    precisions: Sequence[str]
    calibration: Path | None
    backends: Sequence[str] | None
    device: str | None
    fit: Fit | None
    threads: int
    sizes: Sequence[tuple[int, int]]
    batches: Sequence[int]
    frames: int
    seconds: float
    data: str | None
    split: str
    video: Path | None
    profile: bool

    @property
    def points(self) -> list[Point]:
        """Every frame size with every batch, the main point first."""
        return list(product(self.sizes or (None,), self.batches or (None,)))

    @property
    def runs_graphs(self) -> bool:
        """Whether any of the backends runs .onnx files."""
        return self.backends is None or bool(set(self.backends) & set(backends_for("enet.onnx")))


@dataclass(frozen=True)
class Case:
    """An artifact on a backend, at a point.

    Attributes:
        shown: the artifact's name for the reader.
        precision: what to compute it in; None: the artifact's own.
        export: options of the `enet-export` that makes the artifact; None if it was there before.
        swept: whether it belongs to the sweep, and is only timed.
        name: of its process.
    """

    artifact: Path
    shown: str
    backend: str
    precision: str | None
    export: tuple[str, ...] | None
    point: Point
    swept: bool
    name: str


@dataclass(frozen=True)
class OpenCase(Case):
    """A case whose runner is open, in a process of its own.

    Attributes:
        options: the runner's options.
        batch: frames per call.
        peak_bytes: peak memory of its process.
    """

    options: dict[str, Any]
    spec: Spec
    batch: int
    peak_bytes: int


def named_artifacts(options: BenchOptions) -> Iterator[Artifact]:
    """The artifacts of the command line. Raises InputError if a graph should run at several sizes."""
    for path in options.artifacts:
        if path.suffix != ".safetensors" and len(options.sizes) > 1:
            raise InputError(
                f"{path} has one frame size and --size names several, expected no ARTIFACT but weights: --precision "
                "exports them at each size"
            )
        yield Artifact(path, str(path), options.points)
        for precision in options.precisions if graph_file(path).suffix != ".engine" else ():
            yield Artifact(path, str(path), options.points, precision)


def plan_cases(artifacts: Iterable[Artifact], options: BenchOptions) -> list[Case]:
    """Each artifact on each backend that fits it and was asked for.

    Raises InputError if a backend has no artifact, or a precision no backend.
    """
    artifacts = list(artifacts)
    main = options.points[0]
    planned = [
        (artifact, backend, point)
        for artifact in artifacts
        for backend in choose_backends(artifact.path, options.backends, options.device, artifact.precision)
        for point in artifact.points
    ]
    missing = sorted(set(options.backends or ()) - {backend for _, backend, _ in planned})
    if missing:
        shown = ", ".join(dict.fromkeys(artifact.shown for artifact in artifacts))
        raise InputError(f"--backend {missing[0]}, but none of the artifacts runs on it: {shown}")
    met = {artifact.precision for artifact, _, _ in planned}
    unmet = [artifact for artifact in artifacts if artifact.precision not in met]
    if unmet:
        able = ", ".join(dict.fromkeys(name for each in unmet for name in backends_for(each.path, each.precision)))
        raise InputError(f"--precision {unmet[0].precision} without a --backend that can, expected one of {able}")
    return [
        Case(
            artifact=artifact_file(path, backend),
            shown=shown,
            backend=backend,
            precision=precision,
            export=export,
            point=point,
            swept=point != main,
            name=f"{number}: {Path(shown).name} on {backend}",
        )
        for number, ((path, shown, _, precision, export), backend, point) in enumerate(planned, start=1)
    ]


def choose_backends(
    artifact: Path, asked: Sequence[str] | None, device: str | None, precision: str | None = None
) -> list[str]:
    """The backends to run an artifact on: those asked for that fit it; by default those that fit and are installed.

    By default not trt, which builds for minutes first, unless nothing else fits.
    """
    fitting = backends_for(artifact, precision)
    if asked is not None:
        return [backend for backend in fitting if backend in asked]
    installed = installed_backends(artifact, device)
    return [backend for backend in fitting if backend in installed and backend != "trt"] or [fitting[0]]


def open_cases(cases: Sequence[Case], options: BenchOptions, processes: Processes) -> list[OpenCase]:
    """Open each case in a process of its own. Raises what opening raises, and InputError if cases do not fit together.

    The order is that of `cases`.
    """
    specs: dict[str, Spec] = {}
    runner_options: dict[str, dict[str, Any]] = {}
    # graphs have a size of their own and come first; weights run at any size, so they follow the graphs
    for case in console.progress(sorted(cases, key=lambda case: case.backend == "torch"), "opening"):
        graphs = (specs[other.name] for other in cases if other.name in specs and not other.swept)
        size = case.point[0] or next((spec.size for spec in graphs if spec.backend != "torch"), None)
        own = runner_options[case.name] = _runner_options(case, size, options.threads)
        own |= {} if options.fit is None else {"fit": options.fit}
        make = partial(open_runner, case.artifact, case.backend, options.device, **own)
        processes.start(case.name, partial(open_worker, make))
        specs[case.name] = processes.ask(case.name, spec_of)
    opened = []
    for case in cases:
        batch = _fitting_batch(case, cases, specs)
        peak = processes.ask(case.name, try_out, batch)
        options_of, spec = runner_options[case.name], specs[case.name]
        opened.append(OpenCase(**vars(case), options=options_of, spec=spec, batch=batch, peak_bytes=peak))
    return opened


def _runner_options(case: Case, size: tuple[int, int] | None, threads: int) -> dict[str, Any]:
    own: dict[str, Any] = {} if case.precision is None else {"precision": case.precision}
    if case.backend == "torch":
        return own if size is None else own | {"size": size}
    return own | ({"threads": threads} if case.backend in ("ort", "openvino", "opencv") else {})


def _fitting_batch(case: Case, cases: Sequence[Case], specs: dict[str, Spec]) -> int:
    """The batch at a case's point: as asked, or as the graphs have it. Raises InputError if the case does not fit."""
    spec, first = specs[case.name], cases[0]
    together = [specs[other.name] for other in cases if other.point == case.point]
    size = case.point[0] or together[0].size
    batch = case.point[1] or next((other.batch for other in together if other.batch), 1)
    names, names_of_first = spec.classes.names, specs[first.name].classes.names
    if names != names_of_first:
        raise InputError(
            f"{case.shown} knows the classes {', '.join(names)}, but {first.shown} {', '.join(names_of_first)}: one "
            "run has one class list"
        )
    if spec.fit != specs[first.name].fit:
        raise InputError(
            f"{case.shown} has fit {spec.fit}, but {first.shown} {specs[first.name].fit}: one run shows the same "
            "frames to all; give --fit"
        )
    if spec.size != size:
        raise InputError(
            f"{case.shown} takes frames of {spec.size[0]}x{spec.size[1]}, expected {size[0]}x{size[1]}; export it "
            f"with --size {size[0]}x{size[1]}"
        )
    if spec.batch not in (None, batch):
        raise InputError(
            f"{case.shown} takes {spec.batch} frames at a time, expected {batch}: one run has one batch size; export "
            f"it with --batch {batch}, or with --dynamic-batch"
        )
    return batch


@dataclass(frozen=True)
class BenchInputs:
    """The camera images that the runners of a run are timed and compared on.

    Attributes:
        make_feed: makes the images that they are timed with.
        images: some of them, (h, w, 3) uint8 BGR.
        pairs: (image, truth or None) to compare labels on.
        described: the same in the JSON of the run.
    """

    make_feed: Callable[[], CameraFeed]
    images: list[UInt8Array]
    pairs: Sequence[tuple[UInt8Array, UInt8Array | None]] | DataSet
    described: Images


def open_inputs(options: BenchOptions) -> BenchInputs:
    """Runners are timed on the video and compared on the data set; one serves for both, else synthetic scenes do."""
    video, data = options.video, options.data
    dataset = None if data is None else open_data(data, options.split)
    if video is not None:
        feed = VideoFeed(video)
        frames = (feed.read()[0] for _ in range(SCENES * APART))
        once = takewhile(lambda _: not feed.rewinding, frames)  # a short video has fewer: it would start again
        images = [*islice(once, 0, None, APART)]
    elif dataset is not None:
        images = [dataset[index][0] for index in range(min(SCENES, len(dataset)))]
    else:
        images = [street_scene(seed, CAMERA)[0] for seed in range(SCENES)]
    pairs = [(image, None) for image in images] if dataset is None else dataset
    described = Images(
        count=len(pairs),
        size=(images[0].shape[0], images[0].shape[1]),
        data=None if data is None else Path(data).resolve().name,
        split=None if data is None else options.split,
        video=None if video is None else video.name,
    )
    make_feed = partial(StillsFeed, images) if video is None else partial(VideoFeed, video)
    return BenchInputs(make_feed, images, pairs, described)
