"""The throughput of enet-fleet on one machine against enet-segment, the same images, in rounds by turns.

python -m enet_deploy.benchmarks.studies.fleet enet-fp32.onnx --images 2000 --rounds 3

Each command prints how long it labelled, without its start; the figure is the ratio of these times. That of enet-fleet
has the start of its actors in it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from enet_deploy.child import python_main
from enet_deploy.commands import cli
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import RequirementError

SIZE = (360, 480)
DIFFERENT = 50  # scenes; more files are copies of them
COMMANDS = {"enet-segment": ("segment", "--labels"), "enet-fleet": ("fleet",)}


def seconds_of(command: str, artifact: Path, images: Path, out: Path) -> float:
    """Label the images with a command; return how long it says that took. Raises RequirementError if it fails."""
    module, *option = COMMANDS[command]
    words = python_main(f"enet_deploy.commands.{module}", f"{artifact}", f"{images}", *option, f"{out}")
    done = subprocess.run(words, capture_output=True, text=True)
    found = re.search(r" in ([\d.]+) s \(", done.stderr)
    if done.returncode or found is None:
        raise RequirementError(f"{command} failed: {done.stderr}")
    return float(found[1])


def run(args: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with TemporaryDirectory(prefix="enet-") as folder:
        images = Path(folder) / "images"
        images.mkdir()
        contents = [cv2.imencode(".png", street_scene(seed, SIZE)[0])[1].tobytes() for seed in range(DIFFERENT)]
        for index in range(args.images):
            (images / f"{index:06}.png").write_bytes(contents[index % DIFFERENT])
        for number in range(args.rounds):
            for command, found in times.items():
                found.append(seconds_of(command, args.artifact, images, Path(folder) / f"{command}-{number}"))
                print(f"round {number + 1}: {command} {found[-1]:.1f} s", flush=True)
    ratios = [fleet / segment for segment, fleet in zip(*times.values(), strict=True)]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"enet-fleet takes {statistics.median(ratios):.2f} times as long as enet-segment (rounds: {shown})")


def make_parser() -> cli.Parser:
    parser = cli.Parser("fleet", description="The throughput of enet-fleet on one machine against enet-segment.")
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help=cli.ARTIFACT)
    parser.add_argument("--images", type=cli.positive, default=2000, metavar="N", help="of 360x480 (default: 2000)")
    parser.add_argument("--rounds", type=cli.positive, default=3, metavar="N", help="default: 3")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
