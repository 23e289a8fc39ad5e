"""`enet-eval`: pixel accuracy, Dice and IoU of any artifact on any backend, also on corrupted frames."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import console, trained_on
from ..data import DataSet, files_of, open_data, require_same_classes
from ..data.corruptions import CORRUPTIONS
from ..environment import environment
from ..files import require_outputs, write_json
from ..metrics import ConfusionMatrix, Scores, evaluate
from ..plots import draw_confusion, require_plot
from ..runners import Runner, artifact_files, open_runner
from . import cli

SCHEMA = 1


def score(runner: Runner, data: DataSet, folder: str | Path, split: str) -> tuple[ConfusionMatrix, int | None]:
    """Label every image of a split of a data set, and count the pixels.

    Returns the counts, and how many of the images were trained on, as `trained_on.count`. Raises DataError unless the
    data set has the classes that the artifact was trained on.
    """
    require_same_classes(runner.spec.classes, data.classes, folder, f"{runner.artifact} knows")
    hashes: list[str] = []
    pairs = trained_on.hashing(console.progress(data, split), hashes)
    return evaluate(runner.segment, pairs, data.classes), trained_on.count(runner.spec.trained_on, hashes)


def as_text(scores: Scores) -> str:
    """Format scores as a table: a line per class, the means, and how void pixels count."""
    lines = [f"{'class':<16}{'IoU':>8}{'Dice':>8}{'precision':>11}{'recall':>8}"]
    for name, figures in scores.per_class.items():
        iou, dice, precision, recall = ("-" if value is None else f"{value:.4f}" for value in figures.values())
        line = "  absent, in no mean" if name in scores.absent else f"{iou:>8}{dice:>8}{precision:>11}{recall:>8}"
        lines.append(f"{name:<16}{line}")
    lines.append(f"{'mean':<16}{scores.miou:>8.4f}{scores.dice:>8.4f}")
    lines.append(f"pixel accuracy {scores.pixel_accuracy:.4f}   class average {scores.class_average:.4f}")
    lines.append("void pixels " + ("count as mistakes (--void-counts)" if scores.void_counts else "are left out"))
    return "\n".join(lines)


def score_corruptions(runner: Runner, data: DataSet, clean: Scores, told: str) -> list[dict[str, Any]]:
    """Score every corruption, with void pixels counted as in `clean`; print a line for each when it is done.

    Args:
        told: whether the images were trained on, in words.
    """
    print(f"\n{told}\n{'corruption':<12}{'severity':>10}{'mIoU':>8}{'points':>8}{'pixel accuracy':>16}")
    print(f"{'clean':<12}{'':>10}{clean.miou:>8.4f}{'':>8}{clean.pixel_accuracy:>16.4f}")
    results = []
    for (name, severity), corrupt in CORRUPTIONS.items():
        pairs = console.progress(data, f"{name} {severity:g}")
        corrupted = ((corrupt(image), labels) for image, labels in pairs)
        scores = evaluate(runner.segment, corrupted, data.classes).scores(clean.void_counts)
        points = 100 * (scores.miou - clean.miou)
        print(f"{name:<12}{severity:>10g}{scores.miou:>8.4f}{points:>+8.2f}{scores.pixel_accuracy:>16.4f}", flush=True)
        results.append(
            {"name": name, "severity": severity, "miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
        )
    print("severity: factor (brightness, contrast), sigma in pixels (blur) and in grey levels (noise), quality (jpeg)")
    return results


def _evaluate(args: argparse.Namespace) -> None:
    require_outputs([args.json, args.confusion], [*artifact_files(args.artifact), *files_of(args.data, args.split)])
    if args.confusion is not None:
        require_plot(args.confusion)
    machine = environment()
    data = open_data(args.data, args.split)
    with open_runner(args.artifact, args.backend, args.device, args.precision, fit=args.fit) as runner:
        precision, fit = runner.spec.precision, runner.spec.fit
        confusion, known = score(runner, data, args.data, args.split)
        scores = confusion.scores(args.void_counts)
        told = trained_on.in_words(known, len(data))
        title = f"{args.artifact} in {precision} on {runner.backend}, {len(data)} images of {args.split}, fit {fit}"
        print(f"{title}\n{told}\n{as_text(scores)}", flush=True)
        if args.confusion is not None:
            draw_confusion(args.confusion, confusion.counts[:-1, :-1], data.classes.names)
        corrupted = score_corruptions(runner, data, scores, told) if args.corruptions else None
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": machine,
        "artifact": str(args.artifact),
        "backend": runner.backend,
        "precision": precision,
        "fit": fit,
        "split": args.split,
        "images": len(data),
        "trained_on": known,
        "accuracy": scores.to_json(),
    }
    if corrupted is not None:
        result["corruptions"] = corrupted
    if args.json is not None:
        write_json(args.json, result)


def make_parser() -> cli.Parser:
    examples = (
        "enet-eval enet-camvid-train --data CAMVID",
        "enet-eval mine-int8.onnx --data DATA --split test --json scores.json",
    )
    parser = cli.Parser("enet-eval", description="Score an artifact on a split of a data set.", examples=examples)
    cli.add_artifact(parser)
    cli.add_precision(parser)
    parser.add_argument("--data", required=True, help="folder with SPLIT/ and SPLITannot/")
    parser.add_argument("--split", default="val", help="train, val or test (default: %(default)s)")
    parser.add_argument("--void-counts", action="store_true", help="count void pixels as mistakes, as some papers do")
    parser.add_argument(
        "--corruptions", action="store_true", help="also score darker, brighter, blurred, noisy and compressed frames"
    )
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument("--confusion", type=Path, metavar="FILE", help="draw the confusion matrix (.png or .svg)")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), _evaluate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
