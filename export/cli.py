"""`enet-export`: weights -> verified ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from enet_deploy import cli
from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.data import UInt8Array, open_data, read_image, resize_image
from enet_deploy.errors import InputError

MAX_FRAMES = 128  # of a data set to verify with, spread evenly


def _frames(data: str, split: str, size: tuple[int, int] | None, weights: Path) -> UInt8Array:
    """Images of a split at the size of the export."""
    from enet_deploy.model import load_weights

    size = size or load_weights(weights)[1].size
    images = [image for image, _ in open_data(data, split).pairs]
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_FRAMES), dtype=int)
    return np.stack([resize_image(read_image(images[index]), size) for index in chosen])


def _export(args: argparse.Namespace) -> None:
    from .to_onnx import to_onnx

    if Path(args.name).name != args.name:
        raise InputError(f"--name '{args.name}', expected the beginning of a file's name; the folder is --out")
    frames = None if args.data is None else _frames(args.data, args.split, args.size, args.weights)
    path = Path(args.out) / f"{args.name}-fp32.onnx"
    batch = None if args.dynamic_batch else args.batch
    done = to_onnx(args.weights, path, size=args.size, batch=batch, logits=args.logits, frames=frames)
    print(
        f"{done.path}  {done.bytes / 1e6:.2f} MB, {done.nodes} operations; labels of {done.frames} "
        f"{'street scenes' if args.data is None else args.split + ' images'}: {done.agreement:.4%} as PyTorch's"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "enet-export",
        description="Export weights to ONNX: uint8 BGR frames in, uint8 labels out, held against PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, default=BUNDLED_WEIGHTS, help="a .safetensors file of enet-train")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder to write to")
    parser.add_argument("--name", default="enet", help="the file is NAME-fp32.onnx")
    parser.add_argument(
        "--size", type=cli.size, metavar="HxW", help="frame size; else what the weights were trained for"
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch", type=cli.positive, default=1, metavar="N", help="frames per call")
    batch.add_argument("--dynamic-batch", action="store_true", help="take any number of frames per call")
    parser.add_argument("--logits", action="store_true", help="return the logits too")
    parser.add_argument("--data", help="data set whose images to verify with; else drawn street scenes")
    parser.add_argument("--split", default="val", help="of --data")
    return cli.run(parser, _export, argv)


if __name__ == "__main__":
    raise SystemExit(main())
