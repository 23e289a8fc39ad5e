"""`enet-inspect`: what weights, a graph, an engine or a fleet of them is, on one screen, without opening a backend."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Metadata, check_digest, graph_metadata, read_artifact, require_file
from ..bundled import graph_file
from ..console import counted, hanging, printable
from ..errors import ArtifactError
from ..files import digest, is_folder, sha256
from ..runners.graph import parse_graph, reading_text
from ..runners.tensorrt.card import EngineCard
from ..runners.tensorrt.library import FLAVOURS
from ..runners.tensorrt.manifest import ListedEngine, read_manifest
from . import cli

Lines = dict[str, str]


BROKEN = "would not load"


def describe(path: Path) -> Lines:
    """Return title -> what to say of an artifact.

    Raises ArtifactError if the file is missing, damaged, or no artifact of this package.
    """
    if is_folder(path):
        return _fleet(path)
    require_file(path, "weights (.safetensors), a graph (.onnx), an engine (.engine) or a folder with fleet.json")
    if path.suffix == ".safetensors":
        own, metadata = _weights(path)
    elif path.suffix == ".onnx":
        own, metadata = _graph(path)
    elif path.suffix == ".engine":
        own, metadata = _engine(path)
    else:
        raise ArtifactError(f"{path} has the suffix '{path.suffix}', expected .safetensors, .onnx or .engine")
    size = {"file": f"{path.stat().st_size / 1e6:.2f} MB, SHA-256 {sha256(path)}"}
    return {**own, **size, **_common(metadata)}


def _weights(path: Path) -> tuple[Lines, Metadata]:
    from ..weights import Weights

    weights = Weights.read(path)
    count = sum(parameter.numel() for parameter in weights.net.parameters())
    what = f"weights of ENet: {count:,} parameters, width {weights.net.width}, a PReLU slope per {weights.net.slopes}"
    return {"what": what}, weights.metadata


def _graph(path: Path) -> tuple[Lines, Metadata]:
    content = read_artifact(path)
    check_digest(content, path)
    model = parse_graph(content, path)
    with reading_text(path):
        metadata = graph_metadata(model, path)
    kinds = Counter(node.op_type for node in model.graph.node)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
    ports = (*model.graph.input, *model.graph.output)
    lines = {
        "what": f"ONNX graph, {metadata.precision}"
        + (f", layout {metadata.qdq_layout}" if metadata.qdq_layout else ""),
        "layers compute in": _precision_shares(model.graph, metadata.precision),
        "operations": f"{sum(kinds.values())}: {shown}, ...",
        "inputs and outputs": ", ".join(map(_port, ports)),
    }
    return lines, metadata


def _precision_shares(graph: Any, precision: str) -> str:
    """How many convolutions take int8 weights, and how many float ones."""
    restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    quantized = sum(node.input[1] in restored for node in layers)
    int8 = f"{quantized} in int8, " if quantized else ""
    rest = "fp16" if precision.startswith("fp16") else "fp32"
    return f"{counted(len(layers), 'convolution')}: {int8}{len(layers) - quantized} in {rest}"


def _port(port: Any) -> str:
    import onnx

    type_ = port.type.tensor_type
    sides = ", ".join(str(side.dim_value) if side.HasField("dim_value") else "any" for side in type_.shape.dim)
    return f"{port.name} {onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type)} ({sides})"


def _engine(path: Path) -> tuple[Lines, Metadata]:
    card = EngineCard.read(path)
    shares = card.precision_shares
    compatible = [name for name in ("version", "hardware") if getattr(card, f"{name}_compatible")]
    lines = {
        "what": f"engine of {FLAVOURS[card.flavour]} {card.version}, from a graph in {card.metadata.precision}",
        "for": f"compute capability {', '.join(card.compute_capabilities)}"
        + (f", built on {card.gpu}" if card.gpu else ", built ahead of time")
        + "".join(f", {name} compatible" for name in compatible),
        "layers compute in": "not inspected"
        if shares is None
        else ", ".join(f"{precision} {share:.0%}" for precision, share in shares.items()),
        "graph": f"SHA-256 {card.onnx_sha256}",
    }
    return lines, card.metadata


def _fleet(folder: Path) -> Lines:
    engines = read_manifest(folder)
    lines = {"what": f"fleet of {counted(len(engines), 'engine')}, as fleet.json says"}
    damages = [_damage(folder, engine) for engine in engines]
    for index, (engine, damage) in enumerate(zip(engines, damages, strict=True), 1):
        height, width = engine.size
        lines[f"engine {index}"] = f"{engine.file}, {engine.bytes / 1e6:.2f} MB{damage}"
        lines[f"  {index} for"] = f"compute capability {', '.join(engine.compute_capabilities)}"
        lines[f"  {index} is"] = f"{engine.precision}, {height}x{width}, {FLAVOURS[engine.flavour]} {engine.version}"
        lines[f"  {index} engine, graph"] = f"SHA-256 {engine.engine_sha256[:16]}..., {engine.onnx_sha256[:16]}..."
    broken = sum(map(bool, damages))
    return lines | ({BROKEN: f"{broken} of {counted(len(engines), 'engine')}"} if broken else {})


def _damage(folder: Path, engine: ListedEngine) -> str:
    """What is wrong with a file of a fleet, in words; "" if it is the one that the manifest lists."""
    path = folder / engine.file
    if not path.is_file():
        return ": MISSING"
    if digest(read_artifact(path)) != engine.engine_sha256:
        return ": ANOTHER FILE than fleet.json lists, so it is not loaded"
    return "" if EngineCard.path(path).is_file() else ": its card is MISSING, so it is not loaded"


def _common(metadata: Metadata) -> Lines:
    details = metadata.details
    height, width = metadata.size
    normalised = f"mean {_numbers(metadata.mean)}, std {_numbers(metadata.std)}"
    lines = {"frames": f"{height}x{width} (height x width), BGR; {normalised}; fit: {metadata.fit}"}
    if metadata.weights_sha256:
        lines["from weights"] = f"SHA-256 {metadata.weights_sha256}"
    void = "" if metadata.classes.ignore_id is None else f"; void is {metadata.classes.ignore_id}"
    lines["classes"] = f"{len(metadata.classes)}: {', '.join(metadata.classes.names)}{void}"
    images = details.get("images")
    if isinstance(images, dict) and isinstance(images.get("train"), int):
        lines["trained on"] = f"{counted(images['train'], 'image')} of {details.get('split', 'an unnamed split')}"
    known = metadata.trained_on
    lines["recognises"] = (
        "no image that it was trained on: the weights do not say"
        if known is None
        else f"{counted(len(known.hashes), 'image')} by their pixels: of its training, and of what it started from"
        + ("" if known.is_complete else "; the weights that it started from do not say theirs")
    )
    figures = details.get("figures")
    if isinstance(figures, dict) and isinstance(figures.get("val_miou"), float):
        split = str(details.get("split", ""))
        fit = ", which it was trained on: fit, not accuracy" if "val" in split and "without" not in split else ""
        lines["scored on val"] = f"mIoU {figures['val_miou']:.4f} at the end of its training{fit}"
    calibration = details.get("calibration")
    if isinstance(calibration, dict):
        lines["calibrated by"] = f"{calibration.get('method', 'an unnamed method')}, {calibration.get('images')} images"
    verified = details.get("verified")
    if isinstance(verified, dict) and isinstance(verified.get("agreement"), float):
        share, frames = verified["agreement"], f"{verified.get('frames')} {verified.get('on')}"
        lines["verified"] = f"{share:.4%} of the labels are PyTorch fp32's, in ONNX Runtime on {frames}"
    if "commit" in details:
        lines["commit"] = str(details["commit"])
    return lines


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _inspect(args: argparse.Namespace) -> None:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a line per title for a program
    for path in map(graph_file, args.artifacts):
        lines = describe(path)
        print(printable(str(path)))
        for title, text in lines.items():
            print(hanging(f"  {title:<19}", printable(text), columns))
        if BROKEN in lines:
            raise ArtifactError(f"{path}: {lines[BROKEN]} would not be loaded; build or copy them again")


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "enet-inspect",
        description="Say what weights, a graph or an engine is.",
        examples=("enet-inspect enet-camvid", "enet-inspect mine-int8.onnx mine-int8-rtx.engine"),
    )
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="FILE", help=cli.ARTIFACT)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), _inspect, argv)


if __name__ == "__main__":
    raise SystemExit(main())
