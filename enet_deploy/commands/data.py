"""`enet-data`: get a data set to train and evaluate on, and check one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import console
from ..classes import CAMVID, is_cityscapes
from ..data import camvid, files_of, open_data
from ..errors import RequirementError
from ..files import require_outputs, write_json
from . import cli


def _camvid(args: argparse.Namespace) -> None:
    counts = camvid.COUNTS
    print(f"fetching CamVid into {args.dir}: {sum(counts[s] for s in args.splits) * 2} files", flush=True)
    for split, fetched in camvid.fetch_camvid(args.dir, args.splits, args.source).items():
        data = open_data(args.dir, split)
        kept = 2 * counts[split] - fetched
        print(
            f"{split}: {len(data)} images with label maps ({kept} files kept, {fetched} fetched); "
            f"{camvid.verdict(split, camvid.pixel_digest(data))}",
            flush=True,
        )


def _scenes(args: argparse.Namespace) -> None:
    from ..data.scenes import write_scenes

    first = args.seed or {"train": 2000, "val": 3000}[args.split]
    write_scenes(args.dir, args.split, range(first, first + args.count), args.size)
    print(f"{args.dir}: {args.count} scenes in {args.split}/, their labels in {args.split}annot/")


def _unzip(args: argparse.Namespace) -> None:
    from ..data.unzip import unzip

    count = unzip(args.zip, args.dir)
    root = Path(args.dir)
    inside = [path for path in root.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    is_root = len(inside) != 1 or is_cityscapes(root) or (root / "train").is_dir()
    folder = root if is_root else inside[0]  # many zip files hold a single folder with the data set
    print(f"{args.dir}: files unpacked: {count}; next: `enet-data check {folder}`")


def _check(args: argparse.Namespace) -> None:
    from ..data.check import check, draw_check
    from ..plots import require_plot

    require_outputs([args.picture, args.json], files_of(args.dir))
    if args.picture is not None:
        require_plot(args.picture)
    report = check(args.dir)
    print("\n".join(report.lines()))
    if report.classes is CAMVID:
        print(
            f"there is no classes.json, so the classes are CamVid's; `enet-data init {args.dir}` drafts one for others"
        )
    if args.json is not None:
        write_json(args.json, report.to_json())
    if args.picture is not None:
        draw_check(args.picture, report)
    if report.problems:
        count = console.counted(len(report.problems), "problem")
        raise RequirementError(f"{args.dir} has {count}, expected none; correct those listed above")
    print("no problems" if not report.warnings else "no problems; the warnings do not prevent training")


def _init(args: argparse.Namespace) -> None:
    from ..data.draft import draft

    path = Path(args.dir) / "classes.json"
    found = draft(args.dir)
    write_json(path, found.declared)
    width = max(map(len, found.shares))
    print("label maps: " + ", ".join(f"{count} in {split}" for split, count in found.splits.items()))
    for value, share in found.shares.items():
        print(f"  {value:>{width}}  {share:>7.2%} of the pixels: {found.named[value] or 'void'}")
    for split in ("train", "val"):
        if split not in found.splits:
            print(f"there is no {split}annot/, and enet-train needs it: move some images and their label maps there")
    print(f"wrote {path}; next: put the classes' names in place of these, then `enet-data check {args.dir}`")


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "enet-data",
        description="Get a data set to train and evaluate on, or check one.",
        examples=(
            "enet-data scenes SCENES --count 24",
            "enet-data init DATA",
            "enet-data check DATA --picture check.png",
        ),
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    fetch = commands.add_parser(
        "camvid",
        help="CamVid, 367 / 101 / 233 road scenes of 360x480 with 11 classes",
        description=f"Fetch CamVid in the SegNet layout. Complete files are kept; if it stops, {camvid.AGAIN}.",
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
        help="synthetic street scenes of CamVid's classes, for experiments or as more training data",
        description="Draw street scenes with exact labels. Other files are kept. A seed always gives the same scene.",
    )
    scenes.add_argument("dir", metavar="DIR", help="folder to draw into")
    scenes.add_argument("--count", type=cli.positive, default=72, metavar="N", help="default: %(default)s")
    scenes.add_argument(
        "--seed", type=cli.positive, metavar="N", help="of the first scene (default: 2000 for train, 3000 for val)"
    )
    scenes.add_argument("--split", choices=("train", "val"), default="train", help="default: %(default)s")
    scenes.add_argument("--size", type=cli.size, default=(360, 480), metavar="HxW", help="default: 360x480")
    scenes.set_defaults(command=_scenes)
    init = commands.add_parser(
        "init",
        help="draft classes.json from the values in a data set's label maps",
        description="Read all label maps and write DIR/classes.json: a class for each id, palette index or colour, "
        "which are red, green, blue. An existing file is kept. Then put the classes' names in.",
    )
    init.add_argument("dir", metavar="DIR", help="data set with train/ trainannot/ val/ valannot/")
    init.set_defaults(command=_init)
    check = commands.add_parser(
        "check",
        help="find all that is wrong with a data set",
        description="Read every image and label map and say what is wrong. The exit code is 1 if there are problems.",
    )
    check.add_argument("dir", metavar="DIR", help="data set with train/ trainannot/ val/ valannot/, or Cityscapes")
    check.add_argument(
        "--picture", metavar="FILE", help="draw some images of each split, and its classes: .png or .svg"
    )
    check.add_argument("--json", metavar="FILE", help="write counts, problems and warnings with all their files")
    check.set_defaults(command=_check)
    unpack = commands.add_parser(
        "unzip",
        help="unpack a data set's zip file safely",
        description="Unpack a zip file into a new folder: all of it, or nothing if any member is unsafe.",
    )
    unpack.add_argument("zip", metavar="FILE.zip", help="zip file to unpack")
    unpack.add_argument("dir", metavar="DIR", help="folder to create and unpack into")
    unpack.set_defaults(command=_unzip)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), lambda args: args.command(args), argv)


if __name__ == "__main__":
    raise SystemExit(main())
