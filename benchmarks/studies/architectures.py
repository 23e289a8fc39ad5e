"""ENet beside SegNet and U-Net, and a check of the claims of an earlier report.

That report says that ENet has "fewer parameters and better inference time than U-Net and SegNet" and is "up to 18 times
faster than SegNet".
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from enet_deploy import console
from enet_deploy.artifacts import save_graph, set_graph_metadata
from enet_deploy.commands import cli
from enet_deploy.commands.signals import interrupts_held
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import environment
from enet_deploy.files import require_outputs, write_json
from enet_deploy.runners import Runner, open_runner

from ..measure.machine import watched
from ..measure.processes import Processes
from ..measure.timing import times
from ..measure.worker import Worker, open_worker, try_out
from ..report.tables import new_table, print_table
from ..statistics import Speed, speed

ROUNDS, CALLS, DROPPED = 10, 2, 1  # few calls: one of the large networks takes seconds
BACKENDS = ("torch", "ort", "openvino")
DEPLOYED = "ENet, deploy form"
ORDER = ("ENet", "SegNet", "U-Net", DEPLOYED)


def timed(worker: Worker, frames: np.ndarray[Any, Any]) -> list[float]:
    """Milliseconds of the calls of a block."""
    return times(partial(worker.runner.infer, frames), CALLS, DROPPED)


def _export(name: str, size: tuple[int, int], path: Path) -> None:
    """Export the network as it is, except for the unpooling, which every backend then runs fast."""
    import onnx
    import torch

    from enet_deploy.export.unpool import with_exportable_unpooling
    from enet_deploy.model import Segmenter

    from .networks import untrained
    from .unpool_forms import export

    net, metadata = untrained(name, size)
    if name != "U-Net":
        net = with_exportable_unpooling(net)
    frames = torch.zeros(1, *size, 3, dtype=torch.uint8)
    export(Segmenter(net, metadata.mean, metadata.std).eval(), frames, str(path), ("frames", "labels"))
    model = onnx.load(path)
    set_graph_metadata(model, metadata)
    save_graph(model, path)


def _export_deployed(size: tuple[int, int], folder: Path, path: Path) -> None:
    from enet_deploy.export.to_onnx import to_onnx
    from enet_deploy.model import ENet
    from enet_deploy.weights import save_weights

    from .networks import untrained

    weights = folder / "enet.safetensors"
    net, metadata = untrained("ENet", size)
    assert isinstance(net, ENet)
    save_weights(weights, net, metadata)
    to_onnx(weights, path, size=size, max_disagreement=1.0)


def _measure(size: tuple[int, int], threads: int) -> tuple[list[dict[str, Any]], bool]:
    """The figures of each network, and whether all rounds ran: Ctrl-C ends them early."""
    from .networks import NETS, multiply_adds, open_untrained, parameters, untrained

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, Processes() as processes:
        folder = Path(name)
        for net in console.progress([*NETS, DEPLOYED], "exporting and opening"):
            plain, _ = untrained("ENet" if net == DEPLOYED else net, size)
            path = folder / f"{len(found)}.onnx"
            if net == DEPLOYED:
                _export_deployed(size, folder, path)
            else:
                _export(net, size, path)
            own = [backend for backend in BACKENDS if backend != "torch" or net != DEPLOYED]
            for backend in own:
                make: Callable[[], Runner] = partial(open_runner, path, backend, threads=threads)
                if backend == "torch":
                    make = partial(open_untrained, net, size)
                processes.start(f"{net} {backend}", partial(open_worker, make))
            found[net] = {
                "name": net,
                "parameters": parameters(plain),
                "multiply_adds": multiply_adds(plain, size),
                "model_bytes": path.stat().st_size,
                "peak_bytes": {backend: processes.ask(f"{net} {backend}", try_out, 1) for backend in own},
                "samples_ms": {backend: [] for backend in own},
            }
        nets, frames = list(found.values()), street_scene(0, size)[0][None]
        samples = {f"{net['name']} {backend}": ms for net in nets for backend, ms in net["samples_ms"].items()}
        try:
            for _ in console.progress(range(ROUNDS), "timing"):
                blocks = [processes.ask(name, timed, frames) for name in samples]
                with interrupts_held():  # a round counts whole or not at all
                    for own_samples, block in zip(samples.values(), blocks, strict=True):
                        own_samples.append(block)
        except KeyboardInterrupt:
            if not all(samples.values()):
                raise
            return nets, False
    return nets, True


def with_speeds(nets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each network's median times, and how many times faster the first network is, on each backend."""
    for net in nets:
        samples = net["samples_ms"]
        net["ms"] = {backend: float(np.median(np.concatenate(blocks))) for backend, blocks in samples.items()}
        net["enet_speed"] = {
            backend: asdict(speed(blocks, nets[0]["samples_ms"][backend], side_by_side=True))
            for backend, blocks in samples.items()
        }
    return nets


def claims(nets: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each claim of the report that says whether it holds."""
    enet, segnet, unet, deployed = (next(net for net in nets if net["name"] == name) for name in ORDER)
    lines = []
    fewer = [net["parameters"] / enet["parameters"] for net in (unet, segnet)]
    holds = "holds" if min(fewer) > 1 else "does not hold"
    lines.append(f'"fewer parameters than U-Net and SegNet": {holds}, {fewer[0]:.0f} and {fewer[1]:.0f} times fewer')
    for net in (unet, segnet):
        speeds = {backend: Speed(**found) for backend, found in net["enet_speed"].items()}
        holds = "holds" if min(each.low for each in speeds.values()) > 1 else "does not hold"
        by = ", ".join(f"{each.ratio:.1f}x in {backend}" for backend, each in speeds.items())
        lines.append(f'"better inference time than {net["name"]}": {holds}, {by}')
    most = max(segnet["enet_speed"].values(), key=lambda found: float(found["ratio"]))["ratio"]
    best = max(segnet["ms"][backend] / deployed["ms"][backend] for backend in deployed["ms"])
    text = "more than that here" if most > 18 else "not reached here"
    lines.append(
        f'"up to 18 times faster than SegNet": {text}, up to {most:.1f}x as trained, {best:.1f}x in deploy form'
    )
    return lines


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result."""
    nets, (height, width) = result["nets"], result["size"]
    table = new_table("parameters, M", "multiply-adds, G", "file MB", *(f"{b} ms" for b in BACKENDS), first="network")
    for net in nets:
        times = (f"{net['ms'][backend]:.0f}" if backend in net["ms"] else "" for backend in BACKENDS)
        millions, giga = f"{net['parameters'] / 1e6:.2f}", f"{net['multiply_adds'] / 1e9:.2f}"
        table.add_row(net["name"], millions, giga, f"{net['model_bytes'] / 1e6:.1f}", *times)
    print_table(f"{height}x{width}, 11 classes, untrained, fp32: median ms of a frame", table, console)
    table = new_table(*BACKENDS, *(f"MB, {backend}" for backend in BACKENDS), first="faster than")
    for net in nets:
        speeds = (
            f"{s['ratio']:.1f} ({s['low']:.1f}-{s['high']:.1f})" if (s := net["enet_speed"].get(backend)) else ""
            for backend in BACKENDS
        )
        peaks = (f"{net['peak_bytes'][b] / 1e6:.0f}" if b in net["peak_bytes"] else "" for b in BACKENDS)
        table.add_row(net["name"], *speeds, *peaks)
    print_table("How many times faster ENet is as trained (95 % CI), and the peak memory of a process", table, console)
    for line in claims(nets):
        console.print(line, highlight=False, soft_wrap=True)


def _architectures(args: argparse.Namespace) -> None:
    require_outputs([args.json], [])
    machine = environment()
    with watched() as load:
        nets, whole = _measure(args.size, args.threads)
        beside = asdict(load())
    result = {"schema": 1, "partial": not whole, "environment": machine, "load": beside, "size": list(args.size)}
    result["nets"] = with_speeds(nets)
    show(result, Console(width=132))
    if args.json is not None:
        write_json(args.json, result)
        print(f"wrote {args.json}")
    if not whole:
        raise KeyboardInterrupt("what is above and in the file is partial")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.studies.architectures",
        description="ENet beside SegNet and U-Net, untrained, on the same frames and classes: parameters, "
        "multiply-adds, size, latency, memory. It takes minutes: a call of a large network takes seconds on a CPU.",
    )
    parser.add_argument("--size", type=cli.size, default="360x480", metavar="HxW", help="frame size (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of ort and openvino (default: their choice)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result to FILE")
    return cli.run(parser, _architectures, argv)


if __name__ == "__main__":
    raise SystemExit(main())
