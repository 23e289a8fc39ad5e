"""`enet-calibrate`: images -> calibration record for int8 graphs, sensitivity per layer, TensorRT 10's cache."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata
from enet_deploy.commands import cli
from enet_deploy.data import DataSet, files_of, find_images, open_data, parts, require_same_classes, spread
from enet_deploy.errors import InputError
from enet_deploy.export.record import METHODS, Record, cache_header, record_for
from enet_deploy.files import atomic_write, require_outputs, require_writable, sha256
from enet_deploy.images import read_image
from enet_deploy.trained_on import in_words

if TYPE_CHECKING:
    import onnx

    from enet_deploy.artifacts import Metadata
    from enet_deploy.classes import ClassList

    from .scoring import Evaluator, Pair, Score
    from .sensitivity import LayerSensitivity

BUDGET = {"miou": 0.3, "agreement": 2.0}  # points that int8 may cost before a note is printed
OUTPUT_IMAGES = 25  # images for the tensors that only the layout "ort" quantises
_OF_DATA = ("method", "images", "split", "out", "size", "sensitivity", "max_drop")  # options that need DATA
UNLABELLED = 32  # images to compare labels on if the data set has no labels


def _pairs(data: str, classes: ClassList, sampled: list[Path], split: str) -> Sequence[Pair] | DataSet:
    """Return the images that graphs are scored on: val with its labels; without labels, images that were not sampled.

    If all images were sampled, they are scored on too.
    """
    of_images, of_labels = parts(data, "val")
    if of_labels.folder.is_dir():
        val = open_data(data, "val")
        require_same_classes(classes, val.classes, data, "the weights know")
        return val
    images = find_images(data, "val") if of_images.folder.is_dir() else find_images(data, split)
    others = [image for image in images if image not in set(sampled)] or sampled
    step = -(-len(others) // UNLABELLED)
    print(
        f"{data} has no labelled val split, so int8 is judged by its agreement with fp32, not by mIoU"
        + ("; on the images of the ranges, because there are no others" if others == sampled else "")
    )
    return [(read_image(image), None) for image in others[::step]]


def _measure(
    args: argparse.Namespace, model: onnx.ModelProto, sampled: list[Path], evaluator: Evaluator
) -> tuple[Record, Score]:
    """Measure ranges by --method, or by all methods and keep the best.

    Returns a record of them, with the default layers in float, and its score.
    """
    from enet_deploy.export.int8 import FLOAT_LAYERS, quantized_copy

    from . import ranges

    metadata = graph_metadata(model, args.weights)
    few = spread(sampled, OUTPUT_IMAGES)
    amax, outputs = _find_ranges(args.method, model, sampled, few, metadata)
    scores = {
        method: evaluator.score(quantized_copy(model, {**amax[method], **outputs}, FLOAT_LAYERS), method)
        for method in amax
    }
    merits = {method: round(evaluator.merit(score), 6) for method, score in scores.items()}
    best = max(merits, key=lambda method: merits[method])
    record = Record(
        weights_sha256=metadata.weights_sha256,
        method=best,
        images={
            "count": len(sampled),
            "split": args.split,
            "sha256": ranges.digest_of_files(sampled),
            "of_outputs": len(few),
            "frames": ranges.frame_range(sampled, metadata.size),
        },
        preprocessing={"size": list(metadata.size), "mean": list(metadata.mean), "std": list(metadata.std)},
        accuracy={"chosen_by": evaluator.choose_by, "tried": merits},
        float_layers=FLOAT_LAYERS,
        amax=amax[best],
        float_tensors=[],
        outputs=outputs,
        versions=metadata.details["versions"],
    )
    return record, scores[best]


def _find_ranges(
    method: str, model: onnx.ModelProto, sampled: list[Path], few: list[Path], metadata: Metadata
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return method -> tensor -> amax, and tensor -> amax of the tensors that only the layout "ort" needs.

    These are more than all others together: for them one method, on the images `few`.
    """
    from enet_deploy.export.int8 import activations, layers, output_tensors

    from .ranges import find_ranges

    methods = METHODS if method == "auto" else (method,)
    tensors = list(activations(model.graph, layers(model.graph).values()))
    size, fit, of_outputs = metadata.size, metadata.fit, output_tensors(model.graph)
    found = find_ranges(model, tensors, sampled, size, methods, console.progress, fit)
    outputs = find_ranges(model, of_outputs, few, size, ["percentile"], console.progress, fit)
    return {name: _rounded(values) for name, values in found.items()}, _rounded(outputs["percentile"])


def _rounded(amax: dict[str, float]) -> dict[str, float]:
    return {tensor: float(f"{value:.6g}") for tensor, value in amax.items()}


def _study(
    args: argparse.Namespace, model: onnx.ModelProto, record: Record, score: Score, evaluator: Evaluator
) -> tuple[dict[str, str], Score]:
    """Measure the sensitivity of each layer if --sensitivity or the budget needs it.

    Returns the layers that stay float to keep the budget -> reason, and the score with them.
    """
    from .sensitivity import keep_budget, measure_sensitivity

    folder = _study_folder(args)
    measured: list[LayerSensitivity] = []
    float_layers, ranges = record.float_layers, record.ranges

    def sensitivities() -> list[LayerSensitivity]:
        if not measured:
            state = folder / "sensitivity.json"
            measured.extend(measure_sensitivity(model, ranges, evaluator, state, console.progress))
        return measured

    if args.sensitivity:
        sensitivities()
    try:
        if args.max_drop is not None:
            float_layers, score = keep_budget(
                model, ranges, float_layers, score, evaluator, sensitivities, args.max_drop
            )
    finally:
        if measured:  # also if the budget is not kept: it shows why
            _show(measured, folder, model, float_layers, evaluator)
    return float_layers, score


def _show(
    sensitivities: list[LayerSensitivity],
    folder: Path,
    model: onnx.ModelProto,
    float_layers: dict[str, str],
    evaluator: Evaluator,
) -> None:
    from enet_deploy.export.int8 import layers, quantized_layers

    from .sensitivity import write_plot, write_table

    chosen, measure = quantized_layers(model.graph, float_layers), evaluator.measure
    weights_sha256 = graph_metadata(model, "the graph").weights_sha256
    write_table(folder / "sensitivity.md", sensitivities, chosen, evaluator, weights_sha256)
    write_plot(folder / "sensitivity.png", sensitivities, list(layers(model.graph)), chosen, measure)
    print(f"{folder}/sensitivity.md, .png and .json: each layer alone in int8; the most sensitive that are in int8:")
    for each in [each for each in sensitivities if each.layer in chosen][:5]:
        print(f"  {each.layer:<28}{-each.drop:+.3f} points of {measure}, logits at {each.snr:.1f} dB")


def _study_folder(args: argparse.Namespace) -> Path:
    return Path(args.sensitivity or args.out.with_name(f"{args.out.stem}-sensitivity"))


def _require(args: argparse.Namespace) -> None:
    """Refuse impossible arguments before minutes of measuring."""
    cli.require_weights(args.weights)
    if args.record and args.method != "auto":
        raise InputError(f"--method {args.method} with --record {args.record}, expected one: a record has its ranges")
    if args.max_drop is not None and not 0 <= args.max_drop < math.inf:
        raise InputError(f"--max-drop {args.max_drop}, expected points such as {BUDGET['miou']}")
    writes, reads = [args.trt_cache], [args.weights, args.record]
    if args.trt_cache:
        cache_header(args.trt_version)
    if args.data is not None:
        require_writable(args.out)  # before the study's folder takes its name
        writes.append(args.out)
        reads += files_of(args.data, args.split)
        if args.sensitivity or args.max_drop is not None:
            import matplotlib  # noqa: F401

            writes += [_study_folder(args) / f"sensitivity.{suffix}" for suffix in ("json", "md", "png")]
    require_outputs(writes, reads)


def run(args: argparse.Namespace) -> None:
    """Do what the command does."""
    _require(args)
    if args.data is None:
        _render(args)
        return
    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.to_onnx import build_graph
    from enet_deploy.weights import Weights

    from . import ranges
    from .scoring import Evaluator

    labelled = parts(args.data, "val")[1].folder.is_dir()
    sampled = [] if args.record and labelled else ranges.sample(find_images(args.data, args.split), args.images)
    weights = Weights.read(args.weights)
    earlier = record_for(weights.sha256, args.record) if args.record else None
    model = build_graph(weights, size=_size(args, earlier), logits=True)
    classes = weights.metadata.classes
    evaluator = Evaluator(model, _pairs(args.data, classes, sampled, args.split), classes, console.progress)
    if earlier is None:
        record, score = _measure(args, model, sampled, evaluator)
    else:
        record, score = earlier, evaluator.score(quantize(model, earlier), earlier.method)
    float_layers, score = _study(args, model, record, score, evaluator)
    record = dataclasses.replace(record, confidence=_fit_confidence(model, evaluator) or record.confidence)
    in_ort = _score_in_ort(model, record.ranges, float_layers, evaluator)
    record = _completed(record, model, float_layers, evaluator, score, in_ort)
    record.write(args.out)
    _write_cache(args, record)
    _report(args, model, record, evaluator, score)
    if in_ort is not None:
        print(
            f"in ONNX Runtime's layout (enet-export --int8 --target ort): {in_ort.value:.4f} "
            f"({-evaluator.drop(in_ort):+.2f} points), {in_ort.agreement:.2%}"
        )


def _size(args: argparse.Namespace, earlier: Record | None) -> tuple[int, int] | None:
    """Return (height, width) of the frames, None for those of the weights. Ranges of a record are of its own size."""
    size: tuple[int, int] | None = args.size
    if earlier is None:
        return size
    height, width = earlier.preprocessing["size"]
    if size is not None and size != (height, width):
        raise InputError(
            f"--size {size[0]}x{size[1]} with --record {args.record}, expected its own, {height}x{width}: "
            "calibrate without --record for ranges of another"
        )
    return height, width


def _fit_confidence(model: onnx.ModelProto, evaluator: Evaluator) -> dict[str, Any]:
    """Fit the temperature of the confidences on half of the labelled images, and print its effect on the others.

    Returns {} without labels, and if the weights were trained on any of these images.
    """
    from .temperature import fit_confidence

    if evaluator.measure != "miou" or evaluator.count < 2:
        return {}
    if evaluator.trained_on:
        print(
            f"confidences: no temperature is fitted, because {evaluator.trained_on} of the {evaluator.count} images "
            "were trained on: a network is too sure of itself there"
        )
        return {}
    found = fit_confidence(model, evaluator.pairs, console.progress)
    if found:
        print(
            f"confidences: temperature {found['temperature']:g}, fitted on {found['fitted_on']} images; expected "
            f"calibration error on {found['measured_on']} others {found['error_before']:.4f} without it, "
            f"{found['error_after']:.4f} with it"
        )
    return found


def _completed(
    record: Record,
    model: onnx.ModelProto,
    float_layers: dict[str, str],
    evaluator: Evaluator,
    score: Score,
    in_ort: Score | None,
) -> Record:
    """The record with these layers in float and these scores."""
    from enet_deploy.export.int8 import float_tensors

    ort = in_ort and {name: evaluator.to_json(in_ort)[name] for name in ("int8", "agreement")}
    return dataclasses.replace(
        record,
        accuracy={**record.accuracy, **evaluator.to_json(score), "ort": ort},
        float_layers=float_layers,
        float_tensors=float_tensors(model.graph, float_layers),
    )


def _score_in_ort(
    model: onnx.ModelProto, ranges: dict[str, float], float_layers: dict[str, str], evaluator: Evaluator
) -> Score | None:
    """Score the layout "ort"; None if it has no layer to quantise."""
    from enet_deploy.export.int8 import in_float, quantized_copy, quantized_layers

    if not quantized_layers(model.graph, in_float(float_layers, "ort")):
        return None
    return evaluator.score(quantized_copy(model, ranges, float_layers, "ort"), "in ONNX Runtime's layout")


def _report(
    args: argparse.Namespace, model: onnx.ModelProto, record: Record, evaluator: Evaluator, score: Score
) -> None:
    from enet_deploy.export.int8 import layers, quantized_layers

    inside, total = len(quantized_layers(model.graph, record.float_layers)), len(layers(model.graph))
    best = "" if args.record or args.method != "auto" else f", the best by {evaluator.choose_by},"
    print(
        f"{args.out}  {record.method} ranges{best} of {record.images['count']} images, "
        f"{inside} of {total} layers in int8; "
        f"{evaluator.measure} on {evaluator.count} images: fp32 {evaluator.float_value:.4f}, int8 {score.value:.4f} "
        f"({-evaluator.drop(score):+.2f} points); {score.agreement:.2%} of the labels are fp32's"
    )
    print(in_words(evaluator.trained_on, evaluator.count))
    if args.max_drop is not None and evaluator.trained_on and evaluator.measure == "miou":
        print(f"--max-drop {args.max_drop:g} was kept on images that were trained on, where int8 hardly costs mIoU")
    budget = BUDGET[evaluator.measure]
    if args.max_drop is None and evaluator.drop(score) > budget:
        print(f"int8 costs more than {budget} points: --max-drop {budget} leaves the worst layers in float")
    elif 100 * (1 - score.agreement) > BUDGET["agreement"]:
        print(
            f"fewer labels are fp32's than the {100 - BUDGET['agreement']:g} % that enet-export requires: a network "
            "that was not trained for long decides many pixels by small margins; train on, or export with another "
            "--max-disagreement"
        )


def _render(args: argparse.Namespace) -> None:
    """Write an existing record as TensorRT's calibration cache; needs no data."""
    if not args.trt_cache:
        raise InputError("no DATA to calibrate with, expected a data set, or --trt-cache to convert an existing record")
    defaults = vars(make_parser().parse_args([]))
    needed = [name for name in _OF_DATA if getattr(args, name) != defaults[name]]
    if needed:
        raise InputError(
            f"--{needed[0].replace('_', '-')} without DATA, expected both, or --trt-cache with --record alone"
        )
    _write_cache(args, record_for(sha256(args.weights), args.record))


def _write_cache(args: argparse.Namespace, record: Record) -> None:
    if args.trt_cache:
        text = record.to_trt_cache(args.trt_version)
        with atomic_write(args.trt_cache) as temporary:
            temporary.write_text(text, encoding="ascii")
        print(f"{args.trt_cache}  calibration cache of TensorRT {args.trt_version}, {text.count(chr(10)) - 1} tensors")


def make_parser() -> cli.Parser:
    text = "Measure the ranges for int8 and its cost in accuracy; write both to a readable record."
    examples = (
        "enet-calibrate DATA --weights runs/mine/best.safetensors --out mine.json",
        "enet-calibrate DATA --max-drop 0.3",
    )
    parser = cli.Parser("enet-calibrate", description=text, examples=examples)
    parser.add_argument("data", nargs="?", metavar="DATA", help="data set, or a folder of images without labels")
    weights = f"{cli.WEIGHTS} (default: enet-camvid)"
    parser.add_argument("--weights", type=cli.weights, default=BUNDLED_WEIGHTS, help=weights)
    methods = ("auto", *METHODS)
    best = "auto (default) tries all and keeps the best on val, by agreement with fp32 if val was trained on"
    parser.add_argument("--method", choices=methods, default="auto", help=best)
    images = "images, spread over the split (default: 100)"
    parser.add_argument("--images", type=cli.positive, default=100, metavar="N", help=images)
    parser.add_argument("--split", default="train", help="split of DATA to sample (default: train)")
    out, shown = Path("calibration.json"), "file to write (default: calibration.json)"
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument("--out", type=Path, default=out, metavar="RECORD", help=shown)
    parser.add_argument("--record", type=Path, help="take the ranges of this record instead of measuring them")
    size = "frame size (default: that of --record, or as the weights were trained)"
    parser.add_argument("--size", type=cli.size, metavar="HxW", help=size)
    outputs.add_argument("--sensitivity", metavar="DIR", help="quantise each layer alone; folder for table and plot")
    drop = "leave the most sensitive layers in float until int8 costs at most this (study in RECORD-sensitivity/)"
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=drop)
    outputs.add_argument("--trt-cache", type=Path, metavar="FILE", help="also write TensorRT 10's calibration cache")
    outputs.add_argument("--trt-version", default="10.3.0", help="TensorRT that reads the cache (default: 10.3.0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
