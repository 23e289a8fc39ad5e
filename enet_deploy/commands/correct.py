"""Give finished weights another prior correction, if need be another one for some classes.

python -m enet_deploy.commands.correct WEIGHTS --alpha 0.5 --of pole=0.25 --out OTHER.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from ..console import did_you_mean
from ..errors import ArtifactError, InputError
from ..files import require_outputs
from ..training import prior
from ..weights import load_weights, save_weights
from . import cli


def correct(path: str | Path, out: str | Path, alpha: float, of: dict[str, float]) -> None:
    """Write weights with another prior correction in place of their own.

    Scores of the training are left out of the metadata: they are of the correction before.

    Args:
        path: weights of enet-train.
        out: file to write.
        alpha: strength for all classes but those in `of`.
        of: class -> strength.

    Raises ArtifactError if the weights cannot be read or do not say which class weights they were trained with, or if
    `out` cannot be written; InputError for a class that they do not know, or if `out` is `path` or has another suffix
    than .safetensors.
    """
    if Path(out).suffix != ".safetensors":  # `load_weights` takes no other
        raise InputError(f"--out {out} has the suffix '{Path(out).suffix}', expected .safetensors")
    require_outputs([out], [path])
    net, metadata = load_weights(path)
    had = metadata.details.get(prior.KEY)
    net, metadata = prior.uncorrected(net, metadata, path)
    if had is None:
        raise ArtifactError(
            f"{path} does not say which class weights it was trained with; expected weights of enet-train with a "
            "--prior-correction above 0"
        )
    weight = torch.tensor(had["class_weights"])
    names = metadata.classes.names
    for name in of.keys() - {*names}:
        raise InputError(f"class '{name}', expected one of {', '.join(names)}{did_you_mean(name, names)}")
    alphas = torch.tensor([of.get(name, alpha) for name in names], dtype=torch.float64)
    details = {**metadata.details, prior.KEY: prior.record(weight, alphas if of else alpha)}
    figures = details.pop("figures", None)
    if isinstance(figures, dict):  # another tool may have put anything there
        details["figures"] = {name: value for name, value in figures.items() if not name.startswith("val_")}
    save_weights(out, prior.corrected(net, weight, alphas), dataclasses.replace(metadata, details=details))


def _of(text: str) -> tuple[str, float]:
    """argparse type: "pole=0.25" -> ("pole", 0.25)."""
    name, equals, number = text.rpartition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"'{text}', expected CLASS=ALPHA such as pole=0.25")
    return name, cli.not_negative(number)


def _correct(args: argparse.Namespace) -> None:
    of = dict(args.of)
    if len(of) < len(args.of):
        raise InputError(f"--of {' '.join(name for name, _ in args.of)}, expected each class once")
    correct(args.weights, args.out, args.alpha, of)
    print(
        f"{args.out}  {args.weights} with the prior correction {args.alpha:g}", *(f"{n}={a:g}" for n, a in of.items())
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.commands.correct",
        description="Give finished weights another prior correction; what they had is undone before.",
    )
    parser.add_argument("weights", type=cli.weights, metavar="WEIGHTS", help=cli.WEIGHTS)
    strength = "strength for all classes (default: %(default)s)"
    parser.add_argument("--alpha", type=cli.not_negative, default=0.5, help=strength)
    of = "another strength for a class; may be repeated"
    parser.add_argument("--of", type=_of, action="append", default=[], metavar="CLASS=ALPHA", help=of)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights to write")
    return cli.run(parser, _correct, argv)


if __name__ == "__main__":
    raise SystemExit(main())
