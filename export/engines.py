"""The engine of `enet-export --engine`: its options, whether it can be built, and the build."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from enet_deploy.cache import cache_folder
from enet_deploy.commands import cli
from enet_deploy.errors import BackendError, EnetError, InputError
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.library import FLAVOURS
from enet_deploy.runners.tensorrt.manifest import add_to_manifest, capability_number, manifest_path, read_manifest

if TYPE_CHECKING:
    from enet_deploy.runners.tensorrt.builder import BuildOptions

NEED_ENGINE = (
    "compute_capability", "version_compatible", "hardware_compatible", "workspace", "optimization_level", "max_batch",
)  # fmt: skip


def add_options(group: argparse._ArgumentGroup) -> None:
    flavours = "trt: for the GPU in this machine; trt-rtx: also ahead of time (default: none for fp32; fp16 and int8 "
    flavours += "graphs are also built for this machine's GPU if it has TensorRT)"
    gpus = "GPUs of trt-rtx, such as 8.6,8.9"
    timings = "kernel timings of earlier builds (default: the user's cache)"
    group.add_argument("--engine", choices=FLAVOURS, help=flavours)
    group.add_argument("--format", dest="engine", choices=("onnx", *FLAVOURS), help=argparse.SUPPRESS)  # others' word
    group.add_argument("--compute-capability", type=_capabilities, default=(), metavar="LIST", help=gpus)
    group.add_argument("--version-compatible", action="store_true", help="later versions of TensorRT may load it")
    group.add_argument("--hardware-compatible", action="store_true", help="other GPUs, Ampere and later, may load it")
    group.add_argument("--workspace", type=cli.positive, metavar="MIB", help="scratch memory that a layer may use")
    group.add_argument("--optimization-level", type=int, metavar="N", help="0 fast to build, to 5 fast to run")
    frames = "frames of a --dynamic-batch graph (default: 8)"
    group.add_argument("--max-batch", type=cli.positive, metavar="N", help=frames)
    timing = group.add_mutually_exclusive_group()
    timing.add_argument("--timing-cache", type=Path, metavar="DIR", help=timings)
    timing.add_argument("--no-timing-cache", action="store_true", help="measure all kernels again")


def _capabilities(text: str) -> tuple[str, ...]:
    """argparse type: "8.6,8.9" -> ("8.6", "8.9"). TensorRT knows which of them exist."""
    return tuple(part.strip() for part in text.split(","))


def check_options(args: argparse.Namespace) -> BuildOptions | None:
    """Return the engine to build, None without --engine. Called before the export, to refuse bad options at once."""
    if args.engine is not None:
        return _build_options(args, args.engine)
    for name in NEED_ENGINE:
        value = getattr(args, name)
        if name == "max_batch" and args.triton is not None:
            continue
        if value not in (None, ()) and value is not False:
            raise InputError(f"--{name.replace('_', '-')} without an engine to build, expected --engine too")
    return None


def _build_options(args: argparse.Namespace, flavour: str) -> BuildOptions:
    from enet_deploy.runners.tensorrt.builder import BuildOptions

    return BuildOptions(
        flavour,
        compute_capabilities=args.compute_capability,
        version_compatible=args.version_compatible,
        hardware_compatible=args.hardware_compatible,
        workspace_mb=args.workspace,
        optimization_level=args.optimization_level,
        max_batch=args.max_batch or BuildOptions.max_batch,
        timing_cache=None if args.no_timing_cache else args.timing_cache or cache_folder(),
    )


def outputs(args: argparse.Namespace, graph: Path) -> list[Path]:
    """Return the files that may be written for the engine of a graph, which need not exist yet."""
    flavours = [args.engine] if args.engine else FLAVOURS if args.fp16 or args.int8 else ()
    engines = [Path(args.out) / EngineCard.engine_name(graph, flavour) for flavour in flavours]
    manifest = [manifest_path(args.out)] if engines and _is_listed(args) else []
    return [*engines, *map(EngineCard.path, engines), *manifest]


def require_all_listed(args: argparse.Namespace, graph: Path, flavour: str) -> None:
    """Raise InputError if the engine would replace one in fleet.json that serves further GPUs.

    BackendError if it would be for the GPU of this machine, and there is none.
    """
    from enet_deploy.runners.tensorrt.cuda import find_gpu

    name = EngineCard.engine_name(graph, flavour)
    listed = read_manifest(args.out) if manifest_path(args.out).exists() else ()
    earlier = {gpu for engine in listed if engine.file == name for gpu in engine.compute_capabilities}
    if not earlier:
        return
    served = {*args.compute_capability} or {find_gpu().compute_capability}
    if lost := earlier - served:
        every = ",".join(sorted(earlier | served, key=capability_number))
        all_of_it = f"all of them, --compute-capability {every}, or " if flavour == "trt-rtx" else ""
        raise InputError(
            f"{Path(args.out) / name} serves compute capability {', '.join(sorted(lost))} too and would be replaced; "
            f"name {all_of_it}another --out"
        )


def _is_listed(args: argparse.Namespace) -> bool:
    """Whether the engine gets an entry in fleet.json. Raises ArtifactError if one is there and damaged."""
    if manifest_path(args.out).exists():
        read_manifest(args.out)
        return True
    return bool(args.compute_capability)


def write(args: argparse.Namespace, graph: Path, options: BuildOptions) -> Path:
    """Build GRAPH.engine, or GRAPH-rtx.engine, in --out; return its path."""
    from enet_deploy.runners.tensorrt.builder import to_engine

    path = Path(args.out) / EngineCard.engine_name(graph, options.flavour)
    build = to_engine(graph, path, options)
    card = build.card
    shares = card.precision_shares
    layers = "the inspector reported no types" if build.inspected else "not inspected, no such GPU here"
    if shares is not None:
        layers = ", ".join(f"{share:.0%} {precision}" for precision, share in shares.items())
    print(
        f"{path}  {build.bytes / 1e6:.2f} MB in {build.seconds:.1f} s, {FLAVOURS[card.flavour]} {card.version} for "
        f"compute capability {', '.join(card.compute_capabilities)}; layers: {layers}"
    )
    if _is_listed(args):
        print(f"{add_to_manifest(path)}  says which engine is for which GPU; open_runner takes the folder")
    return path


def write_if_possible(args: argparse.Namespace, graph: Path) -> None:
    """Build an engine if this machine has a GPU and TensorRT; print a line if the build fails."""
    from enet_deploy.runners.tensorrt.cuda import find_gpu
    from enet_deploy.runners.tensorrt.library import import_tensorrt

    with suppress(BackendError):
        find_gpu()
        for flavour in FLAVOURS:
            with suppress(BackendError):
                import_tensorrt(flavour)
                break
        else:
            return
        try:
            require_all_listed(args, graph, flavour)
            write(args, graph, _build_options(args, flavour))
        except EnetError as error:
            print(f"no engine was built: {error}; --engine {flavour} makes this an error")
