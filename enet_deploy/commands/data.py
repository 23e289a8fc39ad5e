"""`enet-data`: get a data set to train and evaluate on, and see what is wrong with one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..classes import CAMVID, is_cityscapes
from ..data import camvid, open_data
from ..errors import RequirementError
from ..files import require_writable, write_json
from . import cli


def _camvid(args: argparse.Namespace) -> None:
    counts = camvid.COUNTS
    print(f"fetching CamVid into {args.dir}: {sum(counts[s] for s in args.splits) * 2} files", flush=True)
    for split, fetched in camvid.fetch_camvid(args.dir, args.splits, args.source).items():
        data = open_data(args.dir, split)
        there = 2 * counts[split] - fetched
        print(
            f"{split}: {len(data)} images with label maps ({there} files were there, {fetched} fetched); "
            f"{camvid.verdict(split, camvid.pixel_digest(data))}",
            flush=True,
        )


def _scenes(args: argparse.Namespace) -> None:
    from ..data.scenes import write_scenes

    first = args.seed or {"train": 2000, "val": 3000}[args.split]
    write_scenes(args.dir, args.split, range(first, first + args.count), args.size)
    print(f"{args.dir}: {args.count} drawn scenes in {args.split}/, their labels in {args.split}annot/")


def _unzip(args: argparse.Namespace) -> None:
    from ..data.unzip import unzip

    count = unzip(args.zip, args.dir)
    root = Path(args.dir)
    inside = [path for path in root.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    is_root = len(inside) != 1 or is_cityscapes(root) or (root / "train").is_dir()
    folder = root if is_root else inside[0]  # many zip files hold one folder that holds all
    print(f"{args.dir}: files unpacked: {count}; see `enet-data check {folder}`")


def _check(args: argparse.Namespace) -> None:
    from ..data.check import check, draw_check
    from ..plots import require_plot

    if args.picture is not None:
        require_plot(args.picture)
    if args.json is not None:
        require_writable(args.json)
    report = check(args.dir)
    print("\n".join(report.lines()))
    if report.classes is CAMVID:
        print("its classes are taken to be CamVid's, as there is no classes.json")
    if args.json is not None:
        write_json(args.json, report.to_json())
    if args.picture is not None:
        draw_check(args.picture, report)
    if report.problems:
        raise RequirementError(f"{args.dir} has problems, {len(report.problems)} in all; mend what the lines above say")
    print("nothing is wrong" if not report.warnings else "nothing is wrong that a training would suffer from")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("enet-data", description="Get a data set to train and evaluate on; see what is wrong with one.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    fetch = commands.add_parser(
        "camvid",
        help="CamVid, 367 / 101 / 233 road scenes of 360x480 with 11 classes",
        description=f"Fetch CamVid in the SegNet layout. Files already there are kept; if it stops, {camvid.AGAIN}.",
    )
    fetch.add_argument("dir", metavar="DIR", help="folder to fetch into; gets train/ trainannot/ val/ valannot/ ...")
    fetch.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        default=camvid.SOURCE,
        help="web folder to fetch from (default: %(default)s)",
    )
    fetch.add_argument(
        "--splits",
        nargs="+",
        choices=tuple(camvid.COUNTS),
        default=tuple(camvid.COUNTS),
        help="default: train val test",
    )
    fetch.set_defaults(command=_camvid)
    scenes = commands.add_parser(
        "scenes",
        help="drawn street scenes of CamVid's classes: to try things with, or to train with beside CamVid",
        description="Draw street scenes with exact labels, beside what is in the folder. A seed is always one scene.",
    )
    scenes.add_argument("dir", metavar="DIR", help="folder to draw into")
    scenes.add_argument("--count", type=cli.positive, default=72, metavar="N", help="default: %(default)s")
    scenes.add_argument(
        "--seed", type=cli.positive, metavar="N", help="the first (default: 2000 for train, 3000 for val)"
    )
    scenes.add_argument("--split", choices=("train", "val"), default="train", help="default: %(default)s")
    scenes.add_argument("--size", type=cli.size, default=(360, 480), metavar="HxW", help="default: 360x480")
    scenes.set_defaults(command=_scenes)
    judge = commands.add_parser(
        "check",
        help="what is wrong with a data set, all at once",
        description="Read every image and label map, and say what is wrong; exit code 1 where there are problems.",
    )
    judge.add_argument("dir", metavar="DIR", help="data set with train/ trainannot/ val/ valannot/, or Cityscapes")
    judge.add_argument(
        "--picture", metavar="FILE", help="draw some images of each split, and its classes: .png or .svg"
    )
    judge.add_argument("--json", metavar="FILE", help="write counts, problems and warnings with all their files")
    judge.set_defaults(command=_check)
    unpack = commands.add_parser(
        "unzip",
        help="unpack a data set's zip file, without harm",
        description="Unpack a zip file into a new folder: the whole of it, or nothing where it could do harm.",
    )
    unpack.add_argument("zip", metavar="FILE.zip", help="what to unpack")
    unpack.add_argument("dir", metavar="DIR", help="folder to unpack into, which is made")
    unpack.set_defaults(command=_unzip)
    return cli.run(parser, lambda args: args.command(args), argv)


if __name__ == "__main__":
    raise SystemExit(main())
