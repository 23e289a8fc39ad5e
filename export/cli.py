"""`enet-export`: weights -> verified ONNX graph in any precision -> TensorRT engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from enet_deploy.artifacts import BUNDLED_WEIGHTS, PRECISIONS, QdqLayout, graph_metadata, read_artifact, require_file
from enet_deploy.classes import read_classes
from enet_deploy.commands import cli
from enet_deploy.data import files_of, find_images, require_same_classes, spread
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.files import require_outputs
from enet_deploy.fit import FITS, fit_image
from enet_deploy.images import UInt8Array, read_image
from enet_deploy.runners.onnx_file import read_metadata
from enet_deploy.runners.tensorrt.library import FLAVOURS

from . import engines, html, triton

if TYPE_CHECKING:
    from enet_deploy.artifacts import Metadata

    from .record import Record
    from .to_onnx import Export

MAX_FRAMES = 128  # images of --data to verify with, spread evenly


def _frames(args: argparse.Namespace, metadata: Metadata, size: tuple[int, int]) -> UInt8Array | None:
    """Return images of --data at the size of the graph, (K, H, W, 3) uint8. Raises DataError for other classes."""
    if args.data is None:
        return None
    if (Path(args.data) / "classes.json").exists():
        require_same_classes(metadata.classes, read_classes(args.data), args.data, "the weights know")
    images = spread(find_images(args.data, args.split), MAX_FRAMES)
    fit = args.fit or metadata.fit
    return np.stack([fit_image(read_image(image), size, fit) for image in images])


def suffix(args: argparse.Namespace) -> str:
    """Return the end of the graph's name: its precision and layout, such as "int8-ort"."""
    parts = {"fp16": args.fp16, "int8": args.int8, args.qdq_layout: args.qdq_layout != "all"}
    return "-".join(part for part, wanted in parts.items() if wanted) or "fp32"


def _from_weights(args: argparse.Namespace) -> Path:
    """Export weights to NAME-PRECISION.onnx."""
    name = args.name or "enet"
    if Path(name).name != name:
        raise InputError(f"--name '{name}', expected the beginning of a file's name; the folder is --out")
    path = Path(args.out) / f"{name}-{suffix(args)}.onnx"
    _require_outputs(args, path, args.weights or BUNDLED_WEIGHTS)

    from enet_deploy.weights import Weights

    from .int8 import quantize
    from .to_onnx import to_onnx

    weights = Weights.read(args.weights or BUNDLED_WEIGHTS)
    _note_slopes(args, weights.net.slopes == "channel")
    size = args.size or weights.metadata.size
    record = _record(args, weights.sha256)
    temperature = record.confidence.get("temperature") if record is not None else None
    if args.confidence and temperature is None:
        print(
            "no temperature of these weights is known, so confidences are the softmax as it was trained; "
            "enet-calibrate fits one on labelled images, and --calibration RECORD takes it"
        )
    record = record if args.int8 else None
    if record is not None:
        _note_size(record, size)
    done = to_onnx(
        weights,
        path,
        precision="fp16" if args.fp16 else "fp32",
        size=size,
        batch=None if args.dynamic_batch else args.batch or 1,
        logits=args.logits,
        confidence=(temperature or 1.0) if args.confidence else None,
        fit=args.fit,
        frames=_frames(args, weights.metadata, size),
        quantize=None if record is None else partial(quantize, record=record, qdq_layout=args.qdq_layout),
        max_disagreement=args.max_disagreement,
    )
    _report(done, args, "PyTorch")
    return path


def _record(args: argparse.Namespace, weights_sha256: str) -> Record | None:
    """Return the record that --int8 or --confidence needs; None if it has none, as confidences can do without."""
    from .record import bundled_record, record_for

    if args.int8 or (args.confidence and args.calibration is not None):
        return record_for(weights_sha256, args.calibration)
    return bundled_record(weights_sha256) if args.confidence else None


def _note_size(record: Record, size: tuple[int, int]) -> None:
    height, width = record.preprocessing["size"]
    if (height, width) != size:
        print(f"the record's ranges are of {height}x{width}; enet-calibrate --size {size[0]}x{size[1]} makes others")


def _note_slopes(args: argparse.Namespace, per_channel: bool) -> None:
    if args.qdq_layout == "ort" and per_channel:
        print(
            "the PReLUs have a slope per channel, and ONNX Runtime has no int8 kernel for it: enet-train --slopes layer"
        )


def _from_graph(args: argparse.Namespace) -> Path:
    """Quantise the graph MODEL with --int8; return the path of the new graph. Without --int8 return MODEL."""
    model: Path = args.model
    fixed = ("fp16", "size", "fit", "batch", "dynamic_batch", "logits", "confidence", "weights", "name")
    given = [name for name in fixed if getattr(args, name)]
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} with {model}, expected without: a graph keeps its name, "
            "precision, size, batch and outputs; export it again from weights"
        )
    if not args.int8:
        if args.data is not None or args.max_disagreement is not None:
            raise InputError("--data and --max-disagreement compare a new graph with the old one, expected --int8 too")
        if args.engine is None and args.html is None and args.triton is None:
            expected = f"--int8, --html FILE, --triton DIR or --engine {' or '.join(FLAVOURS)}"
            raise InputError(f"nothing to do with {model}, expected {expected}")
        _require_outputs(args, None, model)
        return model

    stem = model.stem.removesuffix("-fp32") + "-int8" + f"-{args.qdq_layout}" * (args.qdq_layout != "all")
    path = Path(args.out) / f"{stem}.onnx"
    _require_outputs(args, path, model)

    import onnx

    from enet_deploy.runners import open_runner

    from .int8 import quantize
    from .record import record_for
    from .to_onnx import save_verified

    with open_runner(model, "ort") as reference:  # its errors explain what is wrong with a damaged file
        graph = onnx.load(model)
        metadata = graph_metadata(graph, model)
        record = record_for(metadata.weights_sha256, args.calibration)
        quantized = quantize(graph, record, model, args.qdq_layout)
        _note_slopes(args, all(node.op_type != "LeakyRelu" for node in graph.graph.node))  # one slope per layer is that
        _note_size(record, metadata.size)
        frames = _frames(args, metadata, metadata.size)
        _report(save_verified(quantized, path, reference, frames, args.max_disagreement), args, str(model))
    return path


def _require_outputs(args: argparse.Namespace, graph: Path | None, source: Path) -> None:
    """Check what will be written, the new `graph` and engines, against `source`, from which it is made."""
    data = [] if args.data is None else files_of(args.data, args.split)
    require_outputs([graph, args.html, *engines.outputs(args, graph or source)], [source, args.calibration, *data])
    if args.engine:
        engines.require_all_listed(args, graph or source, args.engine)


def _report(done: Export, args: argparse.Namespace, reference: str) -> None:
    print(
        f"{done.path}  {done.bytes / 1e6:.2f} MB, {done.nodes} operations; labels of {done.frames} "
        f"{'street scenes' if args.data is None else args.split + ' images'}: {done.agreement:.4%} as {reference}'s",
        flush=True,
    )


def _settle_precision(args: argparse.Namespace) -> None:
    """Let --precision set --fp16 and --int8. Raises InputError if they, or the graph MODEL, say something else."""
    if args.precision is None:
        return
    parts = args.precision.split("-")
    for name in ("fp16", "int8"):
        if getattr(args, name) and name not in parts:
            raise InputError(f"--{name} with --precision {args.precision}, expected one of them")
    if args.model is not None:
        own = read_metadata(read_artifact(args.model), args.model).precision
        possible = [own, *({"fp32": "int8", "fp16": "fp16-int8"}.get(own, "").split())]
        if args.precision not in possible:
            raise InputError(
                f"--precision {args.precision} with {args.model}, expected {' or '.join(possible)}: export another "
                "precision from weights"
            )
        args.int8 = args.int8 or args.precision != own
        return
    for name in ("fp16", "int8"):
        setattr(args, name, name in parts)


def _export(args: argparse.Namespace) -> None:
    exported(args)


def _require_model(args: argparse.Namespace) -> None:
    if args.model is not None:
        expected = "a graph of enet-export (.onnx), or --weights WEIGHTS"
        if args.rewrite_unpool:
            expected = "a graph of any program (.onnx)"
        require_file(args.model, expected)
        if args.model.suffix != ".onnx":
            raise ArtifactError(f"{args.model} is no .onnx file; expected {expected}")


def _rewrite_unpool(args: argparse.Namespace) -> Path:
    """Rewrite the unpooling of the graph MODEL, of whatever program, to --out/STEM-exact.onnx."""
    from .rewrite import rewrite_unpool

    defaults = vars(make_parser().parse_args([])) | {"model": args.model, "rewrite_unpool": True, "out": args.out}
    given = [name for name, value in vars(args).items() if value != defaults[name]]
    if args.model is None or given:
        shown = f"--{given[0].replace('qdq_layout', 'target').replace('_', '-')}" if given else "no MODEL.onnx"
        raise InputError(f"--rewrite-unpool with {shown}, expected MODEL.onnx, and --out alone beside it")
    path = Path(args.out) / f"{args.model.stem}-exact.onnx"
    require_outputs([path], [args.model])
    done = rewrite_unpool(args.model, path)
    print(
        f"{done.path}: {len(done.pools)} poolings and {len(done.unpools)} unpoolings rewritten; all outputs as the "
        f"original's on {done.inputs} inputs, in which {done.ties:.0%} of the pooled windows tie"
    )
    return path


def exported(args: argparse.Namespace) -> Path:
    """Do what the command does. Returns the path of the graph."""
    _require_model(args)
    if args.rewrite_unpool:
        return _rewrite_unpool(args)
    _settle_precision(args)
    args.engine = None if args.engine == "onnx" else args.engine  # of --format: a graph is always written
    triton.check_options(args)
    options, web = engines.check_options(args), html.check_options(args)
    if args.calibration is not None and not (args.int8 or args.confidence):
        raise InputError(f"--calibration {args.calibration} without --int8 or --confidence, expected one of them too")
    if args.qdq_layout != "all" and not args.int8:
        raise InputError(f"--target {args.qdq_layout} without --int8, expected both: it is a layout of int8 graphs")
    if args.qdq_layout == "ort" and args.fp16:
        raise InputError("--target ort with --fp16, expected one of them: ONNX Runtime's int8 kernels need fp32 around")
    if args.qdq_layout != "all" and args.engine:
        raise InputError(
            f"--target {args.qdq_layout} with --engine, expected one of them: that layout is not for TensorRT"
        )
    if options is not None:
        from enet_deploy.runners.tensorrt.builder import read_graph, require_buildable

        if args.model is not None:
            read_graph(args.model)
        require_buildable(options)
    graph = _from_weights(args) if args.model is None else _from_graph(args)
    engine = None
    if options is not None:
        engine = engines.write(args, graph, options)
    elif args.qdq_layout == "all" and (args.fp16 or args.int8):
        engines.write_if_possible(args, graph)
    if args.triton is not None:
        triton.write(args, graph, engine)
    if web is not None:
        html.write(args, graph, web)
    return graph


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "enet-export",
        description="Export weights to ONNX (uint8 BGR in, uint8 labels out), compare with PyTorch, build engines.",
        examples=(
            "enet-export --weights best.safetensors --int8 --calibration mine.json",
            "enet-export enet-fp16.onnx --engine trt-rtx --compute-capability 8.6,8.9",
        ),
    )
    start = "start from this graph instead of weights"
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL.onnx", help=start)
    parser.add_argument("--weights", type=cli.weights, help=f"{cli.WEIGHTS} (default: enet-camvid)")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder to write to (default: here)")
    parser.add_argument("--name", help="beginning of the file name NAME-PRECISION.onnx (default: enet)")
    exact = "put the exact unpooling into MODEL.onnx, of whatever program, and compare: STEM-exact.onnx"
    parser.add_argument("--rewrite-unpool", action="store_true", help=exact)
    _add_graph_options(parser.add_argument_group("graph"))
    engines.add_options(parser.add_argument_group("engine"))
    triton.add_options(parser.add_argument_group("server"))
    html.add_options(parser.add_argument_group("page"))
    return parser


def _add_graph_options(group: argparse._ArgumentGroup) -> None:
    record = "file of enet-calibrate (default: of the bundled weights)"
    layout = "backend that --int8 is laid out for: openvino and ort are the fastest there, on a CPU; all (default) is "
    layout += "for TensorRT, and runs on every backend"
    limit = "share of pixels that may get another label (default: fp32 0.0001, fp16 0.001, int8 0.02)"
    group.add_argument("--fp16", action="store_true", help="half-precision weights and arithmetic")
    group.add_argument("--int8", action="store_true", help="int8 layers, the rest in fp32, or in half with --fp16")
    group.add_argument("--precision", choices=PRECISIONS, help="the same in one option (default: fp32)")
    group.add_argument("--calibration", type=Path, metavar="RECORD", help=record)
    group.add_argument("--target", dest="qdq_layout", choices=get_args(QdqLayout), default="all", help=layout)
    group.add_argument("--size", type=cli.size, metavar="HxW", help="frame size (default: as the weights were trained)")
    group.add_argument("--fit", choices=FITS, help="how runners make frames of images (default: as it was trained)")
    batch = group.add_mutually_exclusive_group()
    batch.add_argument("--batch", type=cli.positive, metavar="N", help="frames per call (default: 1)")
    batch.add_argument("--dynamic-batch", action="store_true", help="accept any number of frames per call")
    group.add_argument("--logits", action="store_true", help="the graph also returns the logits")
    confidence = "the graph also returns confidences: 255 times the softmax probability of the label, with the "
    confidence += "temperature in the calibration record"
    group.add_argument("--confidence", action="store_true", help=confidence)
    group.add_argument("--data", help="data set with images to verify on (default: synthetic street scenes)")
    group.add_argument("--split", default="val", help="split of --data (default: val)")
    group.add_argument("--max-disagreement", type=cli.share, metavar="SHARE", help=limit)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), _export, argv)


if __name__ == "__main__":
    raise SystemExit(main())
