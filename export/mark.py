"""Write into weights which images they were trained on, for weights of before `enet-train` did so itself.

python -m enet_deploy.export.mark WEIGHTS CAMVID/train CAMVID/val SCENES/train
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from enet_deploy import console
from enet_deploy.commands import cli
from enet_deploy.data import find_images
from enet_deploy.files import require_outputs
from enet_deploy.images import read_image
from enet_deploy.trained_on import KEY, TrainedOn, pixel_hash
from enet_deploy.weights import Weights, save_weights

from .record import record_for


def mark(path: str | Path, folders: Sequence[str | Path]) -> str:
    """Replace what the weights say of their training images. Returns the new SHA-256 of the file.

    Args:
        path: weights. Their tensors stay the same, their SHA-256 does not.
        folders: of all the images that they were trained on, also before, if they were started from other weights.

    Raises ArtifactError if the file is no weights or cannot be written, DataError if a folder holds no images.
    """
    weights = Weights.read(path)
    images = [image for folder in folders for image in find_images(folder, "")]
    hashes = frozenset(pixel_hash(read_image(image)) for image in console.progress(images, "reading"))
    details = {**weights.metadata.details, KEY: TrainedOn(hashes).to_json()}
    save_weights(path, weights.net, dataclasses.replace(weights.metadata, details=details))
    print(f"{path} says that it was trained on {console.counted(len(hashes), 'image')}")
    return Weights.read(path).sha256


def _mark(args: argparse.Namespace) -> None:
    require_outputs([args.weights, args.record], [])  # both or none: a record is found by its weights' hash
    before = Weights.read(args.weights).sha256
    record = None if args.record is None else record_for(before, args.record)
    after = mark(args.weights, args.folders)
    if record is not None:
        dataclasses.replace(record, weights_sha256=after).write(args.record)
    print(f"SHA-256 was {before}, is {after}: export its graphs again")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.export.mark", description="Write into weights which images they were trained on."
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a .safetensors file; it is replaced")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="all the images that it was trained on")
    parser.add_argument("--record", type=Path, help="calibration record of these weights, to name them by the new hash")
    return cli.run(parser, _mark, argv)


if __name__ == "__main__":
    raise SystemExit(main())
