"""`enet-data`: get a data set to train and evaluate on, and check one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import console
from ..classes import CAMVID, is_cityscapes
from ..data import camvid, files_of, open_data
from ..errors import InputError, RequirementError
from ..files import require_outputs, write_json
from . import cli

SEEDS = {"train": 2000, "val": 3000}  # of the first drawn scene


def _camvid(args: argparse.Namespace) -> None:
    counts = camvid.COUNTS
    print(f"fetching CamVid into {args.dir}: {sum(counts[s] for s in args.splits) * 2} files", flush=True)
    for split, fetched in camvid.fetch_camvid(args.dir, args.splits, args.source).items():
        data = open_data(args.dir, split)
        kept = 2 * counts[split] - fetched
        print(
            f"{split}: {len(data)} images with label maps ({kept} files kept, {fetched} fetched); "
            f"{camvid.compare_digest(split, camvid.pixel_digest(data))}",
            flush=True,
        )


def _scenes(args: argparse.Namespace) -> None:
    from ..data.scenes import write_scenes

    first = args.seed or SEEDS[args.split]
    if args.split == "train" and not args.seed and args.count > (most := SEEDS["val"] - first):
        raise InputError(
            f"--count {args.count} from seed {first}, the default, would draw val's scenes too, which start at "
            f"{SEEDS['val']}; expected at most {most}, or another --seed"
        )
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
    from ..data.check import check
    from ..data.check_picture import draw_check
    from ..plots import require_plot

    require_outputs([args.picture, args.json], files_of(args.dir))
    if args.picture is not None:
        require_plot(args.picture)
    report = check(args.dir)
    print("\n".join(report.lines()))
    if report.classes is CAMVID:
        print(f"there is no classes.json, so the classes are CamVid's; `enet-data init {args.dir}` drafts one")
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


def _add_camvid(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    help_ = "CamVid, 367 / 101 / 233 road scenes of 360x480 with 11 classes"
    text = f"Fetch CamVid in the SegNet layout. Complete files are kept; if it stops, {camvid.AGAIN}."
    parser = commands.add_parser("camvid", help=help_, description=text)
    parser.set_defaults(command=_camvid)
    parser.add_argument("dir", metavar="DIR", help="folder to fetch into; gets train/ trainannot/ val/ valannot/ ...")
    source = "web folder to fetch from (default: %(default)s)"
    parser.add_argument("--from", dest="source", metavar="URL", default=camvid.SOURCE, help=source)
    splits = tuple(camvid.COUNTS)
    parser.add_argument("--splits", nargs="+", choices=splits, default=splits, help="default: train val test")


def _add_scenes(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    help_ = "synthetic street scenes of CamVid's classes, for experiments or as more training data"
    text = "Draw street scenes with exact labels. Other files are kept. A seed always gives the same scene."
    parser = commands.add_parser("scenes", help=help_, description=text)
    parser.set_defaults(command=_scenes)
    parser.add_argument("dir", metavar="DIR", help="folder to draw into")
    parser.add_argument("--count", type=cli.positive, default=72, metavar="N", help="default: %(default)s")
    seed = f"of the first scene (default: {SEEDS['train']} for train, {SEEDS['val']} for val)"
    parser.add_argument("--seed", type=cli.positive, metavar="N", help=seed)
    parser.add_argument("--split", choices=("train", "val"), default="train", help="default: %(default)s")
    parser.add_argument("--size", type=cli.size, default=(360, 480), metavar="HxW", help="default: 360x480")


def _add_init(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    text = "Read all label maps and write DIR/classes.json: a class for each id, palette index or colour, which are "
    text += "red, green, blue. An existing file is kept. Then put the classes' names in."
    parser = commands.add_parser("init", help="draft classes.json from a data set's label maps", description=text)
    parser.set_defaults(command=_init)
    parser.add_argument("dir", metavar="DIR", help="data set with train/ trainannot/ val/ valannot/")


def _add_check(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    text = "Read every image and label map and say what is wrong. The exit code is 1 if there are problems."
    parser = commands.add_parser("check", help="find all that is wrong with a data set", description=text)
    parser.set_defaults(command=_check)
    parser.add_argument("dir", metavar="DIR", help="data set with train/ trainannot/ val/ valannot/, or Cityscapes")
    picture = "draw some images of each split, and its classes: .png or .svg"
    parser.add_argument("--picture", metavar="FILE", help=picture)
    parser.add_argument("--json", metavar="FILE", help="write counts, problems and warnings with all their files")


def _add_unzip(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    text = "Unpack a zip file into a new folder: all of it, or nothing if any member is unsafe."
    parser = commands.add_parser("unzip", help="unpack a data set's zip file safely", description=text)
    parser.set_defaults(command=_unzip)
    parser.add_argument("zip", metavar="FILE.zip", help="zip file to unpack")
    parser.add_argument("dir", metavar="DIR", help="folder to create and unpack into")


def make_parser() -> cli.Parser:
    examples = (
        "enet-data scenes SCENES --count 24",
        "enet-data init DATA",
        "enet-data check DATA --picture check.png",
    )
    text = "Get a data set to train and evaluate on, describe one, or check one."
    parser = cli.Parser("enet-data", description=text, examples=examples)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_camvid, _add_scenes, _add_init, _add_check, _add_unzip):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), lambda args: args.command(args), argv)


if __name__ == "__main__":
    raise SystemExit(main())
