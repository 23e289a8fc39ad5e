"""`enet-calibrate`: images -> the record that int8 graphs are made from, sensitivity per layer, TensorRT 10's cache."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata
from enet_deploy.commands import cli
from enet_deploy.data import DataSet, files_of, find_images, open_data, parts, require_same_classes, spread
from enet_deploy.errors import InputError
from enet_deploy.export.record import METHODS, Record, cache_header, record_for
from enet_deploy.files import atomic_write, require_outputs, sha256
from enet_deploy.images import read_image

if TYPE_CHECKING:
    import onnx

    from enet_deploy.artifacts import Metadata

    from .scoring import Judge, Pair, Score
    from .sensitivity import Damage

BUDGET = {"miou": 0.3, "agreement": 2.0}  # points that int8 may cost before it is remarked upon
OUTPUT_IMAGES = 25  # of the sampled ones, for the tensors that ONNX Runtime's layout has besides
UNLABELLED = 32  # images to compare labels on where none has a true label


def _pairs(data: str, metadata: Metadata, sampled: list[Path], split: str) -> Sequence[Pair] | DataSet:
    """What graphs are judged on: val with its labels, else images without, as far as can be not those sampled."""
    of_images, of_labels = parts(data, "val")
    if of_labels.folder.is_dir():
        val = open_data(data, "val")
        require_same_classes(metadata.classes, val.classes, data, "the weights know")
        return val
    images = find_images(data, "val") if of_images.folder.is_dir() else find_images(data, split)
    others = [image for image in images if image not in set(sampled)] or sampled
    step = -(-len(others) // UNLABELLED)
    print(
        f"{data} has no labelled val split, so int8 is judged by its agreement with fp32, not by mIoU"
        + ("; on the very images that the ranges come from, as there are no others" if others == sampled else "")
    )
    return [(read_image(image), None) for image in others[::step]]


def _float_graph(args: argparse.Namespace) -> tuple[onnx.ModelProto, Metadata]:
    from enet_deploy.export.to_onnx import build_graph

    model = build_graph(args.weights, size=args.size, logits=True)
    return model, graph_metadata(model, args.weights)


def _measure(
    args: argparse.Namespace, model: onnx.ModelProto, sampled: list[Path], judge: Judge
) -> tuple[Record, Score]:
    """Ranges by the method asked for, or by all with the best kept; what the choice scores."""
    from enet_deploy.export.int8 import FLOAT_LAYERS, activations, float_tensors, layers, output_tensors, quantize

    from . import ranges

    metadata = graph_metadata(model, args.weights)
    tensors = list(activations(model.graph, layers(model.graph).values()))
    methods = METHODS if args.method == "auto" else (args.method,)
    found = ranges.find_ranges(model, tensors, sampled, metadata.size, methods, console.progress)
    # more tensors than the others together, for one backend's layout: by one method, on fewer images
    few = spread(sampled, OUTPUT_IMAGES)
    outputs = ranges.find_ranges(
        model, output_tensors(model.graph), few, metadata.size, ["percentile"], console.progress
    )["percentile"]
    common = Record(
        weights_sha256=metadata.weights_sha256,
        method="",
        images={
            "count": len(sampled),
            "split": args.split,
            "sha256": ranges.digest(sampled),
            "of_outputs": len(few),
        },
        preprocessing={"size": list(metadata.size), "mean": list(metadata.mean), "std": list(metadata.std)},
        accuracy={},
        float_layers=FLOAT_LAYERS,
        amax={},
        float_tensors=float_tensors(model.graph, FLOAT_LAYERS),
        outputs=_rounded(outputs),
        versions=metadata.details["versions"],
    )
    tried: dict[str, tuple[Record, Score]] = {}
    for method, amax in found.items():
        record = dataclasses.replace(common, method=method, amax=_rounded(amax))
        tried[method] = record, judge.score(quantize(model, record), method)
    best = max(tried, key=lambda method: tried[method][1].value)
    record, score = tried[best]
    values = {method: round(score.value, 6) for method, (_, score) in tried.items()}
    return dataclasses.replace(record, accuracy={"tried": values}), score


def _rounded(amax: dict[str, float]) -> dict[str, float]:
    return {tensor: float(f"{value:.6g}") for tensor, value in amax.items()}


def _study(
    args: argparse.Namespace, model: onnx.ModelProto, record: Record, score: Score, judge: Judge
) -> tuple[Record, Score]:
    """Sensitivity per layer where it was asked for or the budget needs it; the record that keeps the budget."""
    from .sensitivity import keep_budget, measure_damage

    folder = _study_folder(args)
    found: list[Damage] = []

    def damages() -> list[Damage]:
        if not found:
            found.extend(measure_damage(model, record, judge, folder / "sensitivity.json", console.progress))
        return found

    kept = record, score
    if args.sensitivity:
        damages()
    try:
        if args.max_drop is not None:
            kept = keep_budget(model, record, score, judge, damages, args.max_drop)
    finally:
        if found:  # also where no choice of layers keeps the budget: it shows why
            _show(found, folder, model, kept[0], judge)
    return kept


def _show(found: list[Damage], folder: Path, model: onnx.ModelProto, record: Record, judge: Judge) -> None:
    from enet_deploy.export.int8 import layers, quantized_layers

    from .sensitivity import write_plot, write_table

    chosen = quantized_layers(model.graph, record.float_layers)
    write_table(folder / "sensitivity.md", found, chosen, judge.measure)
    write_plot(folder / "sensitivity.png", found, list(layers(model.graph)), chosen, judge.measure)
    print(f"{folder}/sensitivity.md, .png and .json: each layer alone in int8; the worst that are:")
    for damage in [damage for damage in found if damage.layer in chosen][:5]:
        print(f"  {damage.layer:<28}{-damage.drop:+.3f} points of {judge.measure}, logits at {damage.snr:.1f} dB")


def _study_folder(args: argparse.Namespace) -> Path:
    return Path(args.sensitivity or args.out.with_name(f"{args.out.stem}-sensitivity"))


def _require(args: argparse.Namespace) -> None:
    """Refuse what would only be found after minutes of measuring."""
    cli.require_weights(args.weights)
    if args.record and args.method != "auto":
        raise InputError(f"--method {args.method} with --record {args.record}, whose ranges are settled; drop one")
    if args.max_drop is not None and not 0 <= args.max_drop < math.inf:
        raise InputError(f"--max-drop {args.max_drop}, expected points such as {BUDGET['miou']}")
    writes, reads = [args.trt_cache], [args.weights, args.record]
    if args.trt_cache:
        cache_header(args.trt_version)
    if args.data is not None:
        writes.append(args.out)
        reads += files_of(args.data, args.split)
        if args.sensitivity or args.max_drop is not None:
            import matplotlib  # noqa: F401

            writes += [_study_folder(args) / f"sensitivity.{suffix}" for suffix in ("json", "md", "png")]
    require_outputs(writes, reads)


def _calibrate(args: argparse.Namespace) -> None:
    _require(args)
    if args.data is None:
        _render(args)
        return
    from enet_deploy.export.int8 import float_layers, float_tensors, quantize, quantized_layers

    from . import ranges
    from .scoring import Judge

    sampled = ranges.sample(find_images(args.data, args.split), args.images)
    earlier = record_for(sha256(args.weights), args.record) if args.record else None
    model, metadata = _float_graph(args)
    judge = Judge(model, _pairs(args.data, metadata, sampled, args.split), metadata.classes, console.progress)
    if earlier is None:
        record, score = _measure(args, model, sampled, judge)
    else:
        record, score = earlier, judge.score(quantize(model, earlier), earlier.method)
    record, score = _study(args, model, record, score, judge)
    in_ort = None
    if quantized_layers(model.graph, float_layers(record, "ort")):
        in_ort = judge.score(quantize(model, record, target="ort"), "in ONNX Runtime's layout")
    ort = in_ort and {name: judge.to_json(in_ort)[name] for name in ("int8", "agreement")}
    record = dataclasses.replace(
        record,
        accuracy={**record.accuracy, **judge.to_json(score), "ort": ort},
        float_tensors=float_tensors(model.graph, record.float_layers),
    )
    record.write(args.out)
    _write_cache(args, record)
    _report(args, model, record, judge, score)
    if in_ort is not None:
        print(
            f"in ONNX Runtime's layout (enet-export --int8 --target ort): {in_ort.value:.4f} "
            f"({-judge.drop(in_ort):+.2f} points), {in_ort.agreement:.2%}"
        )


def _report(args: argparse.Namespace, model: onnx.ModelProto, record: Record, judge: Judge, score: Score) -> None:
    from enet_deploy.export.int8 import layers, quantized_layers

    inside, total = len(quantized_layers(model.graph, record.float_layers)), len(layers(model.graph))
    print(
        f"{args.out}  {record.method} ranges of {record.images['count']} images, {inside} of {total} layers in int8; "
        f"{judge.measure} on {judge.count} images: fp32 {judge.float_value:.4f}, int8 {score.value:.4f} "
        f"({-judge.drop(score):+.2f} points); {score.agreement:.2%} of the labels are fp32's"
    )
    budget = BUDGET[judge.measure]
    if args.max_drop is None and judge.drop(score) > budget:
        print(f"int8 costs more than {budget} points: --max-drop {budget} leaves the worst layers in float")
    elif 100 * (1 - score.agreement) > BUDGET["agreement"]:
        print(
            f"fewer labels are fp32's than the {100 - BUDGET['agreement']:g} % that enet-export asks for: a network "
            "that has not learnt for long decides by little; train on, or export with another --max-disagreement"
        )


def _render(args: argparse.Namespace) -> None:
    """No data: a record that is there already, as TensorRT's cache."""
    if args.max_drop is not None or args.sensitivity or args.method != "auto":
        raise InputError("--method, --sensitivity and --max-drop measure on images, expected DATA too")
    if not args.trt_cache:
        raise InputError(
            "no DATA to calibrate with, expected a data set, or --trt-cache to render a record that is there"
        )
    _write_cache(args, record_for(sha256(args.weights), args.record))


def _write_cache(args: argparse.Namespace, record: Record) -> None:
    if args.trt_cache:
        text = record.to_trt_cache(args.trt_version)
        with atomic_write(args.trt_cache) as temporary:
            temporary.write_text(text, encoding="ascii")
        print(f"{args.trt_cache}  calibration cache of TensorRT {args.trt_version}, {text.count(chr(10)) - 1} tensors")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "enet-calibrate",
        description="Measure the ranges that int8 needs, and what it costs, and keep both as a readable record.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="data set, or a folder of images without labels")
    parser.add_argument(
        "--weights", type=Path, default=BUNDLED_WEIGHTS, help="a .safetensors file of enet-train (default: the bundled)"
    )
    parser.add_argument(
        "--method",
        choices=("auto", *METHODS),
        default="auto",
        help="auto, the default, tries all and keeps the best on val",
    )
    parser.add_argument(
        "--images", type=cli.positive, default=100, metavar="N", help="sampled, spread over the split (default: 100)"
    )
    parser.add_argument("--split", default="train", help="of DATA to sample (default: train)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("calibration.json"),
        metavar="RECORD",
        help="file to write (default: calibration.json)",
    )
    parser.add_argument("--record", type=Path, help="take the ranges of this record in place of measuring any")
    parser.add_argument("--size", type=cli.size, metavar="HxW", help="frame size (default: what the weights are for)")
    parser.add_argument("--sensitivity", metavar="DIR", help="quantise each layer alone; table and plot go there")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="leave the worst layers in float until int8 costs no more (study in RECORD-sensitivity/)",
    )
    parser.add_argument("--trt-cache", type=Path, metavar="FILE", help="write the record as TensorRT 10's cache too")
    parser.add_argument("--trt-version", default="10.3.0", help="that reads the cache (default: 10.3.0)")
    return cli.run(parser, _calibrate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
