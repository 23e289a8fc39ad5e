"""`enet-train`: train ENet on a data set; under `torchrun -m enet_deploy.commands.train` on several processes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..data import DataSet, hold_out, join, open_data, without
from ..errors import ArtifactError, EnetError, InputError
from ..plots import SUFFIXES, draw_curve, require_plot
from ..training.recipe import PRESETS, Recipe, Slopes, shown
from . import cli

if TYPE_CHECKING:
    from ..training.trainer import Trainer

CHOICES = {"optimizer": ("adam", "adamw"), "slopes": get_args(Slopes)}


def _recipe(args: argparse.Namespace) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe to train with, and the state to resume from, if any."""
    from ..training.trainer import read_checkpoint

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if hasattr(args, f.name)}
    if "size" in given and not args.resume:
        given.setdefault("crop", given["size"])
        given.setdefault("final_crop", given["size"])
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if {"minutes", "epochs"} <= given.keys():
        raise InputError(f"--minutes {args.minutes} with --epochs {args.epochs}, expected one of them")
    if hasattr(args, "final_crop") and "final_from" not in given and not args.resume:
        raise InputError(
            f"--final-crop {shown(args.final_crop)} without --final-from, expected the share of the training after "
            "which crops have that size"
        )
    if not args.resume:
        if (Path(args.out) / "checkpoint.pt").exists() and read_checkpoint(args.out)[0]["epoch"] > 0:
            raise InputError(f"{args.out} holds a run already; --resume continues it, another --out starts a new one")
        return dataclasses.replace(PRESETS[args.preset or "default"], **given), None
    for name in ("preset", "init"):
        if getattr(args, name):
            raise InputError(f"--{name} with --resume, expected none: the run has its own")
    state, recipe = read_checkpoint(args.out)
    changed = [name for name, value in given.items() if getattr(recipe, name) != value]
    if changed:
        raise InputError(
            f"--{changed[0].replace('_', '-')} {given[changed[0]]} with --resume, but the run in {args.out} has "
            f"{getattr(recipe, changed[0])}; resume without it, or start another run with --out and, to go on from "
            "here, --init"
        )
    return recipe, state


def _data(args: argparse.Namespace) -> tuple[DataSet, DataSet, str]:
    """What to train on, what to score on, and a line that says so."""
    train, val = open_data(args.data, "train"), open_data(args.data, "val")
    split = "train"
    if args.with_val:
        train, split = join([train, val]), "train+val"
    elif args.hold_out is not None:
        train, val = hold_out(join([train, val]), args.hold_out)
        split = f"train+val without {args.hold_out}*"
    for folder in args.extra:
        more = open_data(folder, "train")
        if args.hold_out is not None:  # the same drive may be in there too
            more = without(more, args.hold_out)
            if not len(more):
                raise InputError(f"hold-out '{args.hold_out}' fits every image of {folder}, expected some others")
        train, split = join([train, more]), f"{split} + {len(more)} more"
    return train, val, split


def _require_curve(path: Path) -> None:
    """Raise where the learning curve could not be drawn: before the long work, not in it."""
    if path.suffix.lower() == ".html":
        raise InputError(
            f"--curve {path} is a page, expected {' or '.join(SUFFIXES)}; for curves and pictures in a browser, pass "
            "--tensorboard DIR"
        )
    require_plot(path)


def _curve(path: Path, trainer: Trainer) -> Callable[[], None]:
    """What draws a run as far as it got."""

    def draw() -> None:
        try:
            draw_curve(path, trainer.history, trainer.val_was_trained_on)
        except ArtifactError as error:  # a picture is no reason to end a night's training
            logging.warning(f"no learning curve this time: {error}")

    return draw


def _train(args: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from ..runners.torch_runner import torch_device
    from ..training.trainer import Trainer, is_out_of_memory, keep_freed_memory

    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a file, expected a folder")
    if args.curve is not None:
        _require_curve(args.curve)
    if hasattr(args, "distill") and args.teacher is None:
        raise InputError(f"--distill {args.distill} without --teacher, expected the weights to learn from")
    recipe, state = _recipe(args)
    device = torch_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processes = "LOCAL_RANK" in os.environ  # started by torchrun
    if device.type == "cuda":
        if processes:
            device = torch_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    if processes:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
        )
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    if device.type == "cpu":
        keep_freed_memory()
    trainer = None
    try:
        trainer = Trainer(*_data(args), args.out, recipe, device, args.init, args.teacher, args.compile, state)
        if args.curve is None:
            trainer.run()
        else:
            logging.info(f"the learning curve, drawn whenever the state is saved: {args.curve}")
            trainer.run(_curve(args.curve, trainer))
        if dist.is_initialized():
            dist.barrier()  # all leave together: gloo's threads abort a process whose peer is gone already
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise EnetError(
                f"the memory of {device} does not hold the network and images of {recipe.size[0]}x{recipe.size[1]} "
                "beside the training steps; pass a smaller --size or another --device"
            ) from None
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise EnetError(f"torch.compile failed: {str(error).splitlines()[0]}; train without --compile") from None
    except KeyboardInterrupt:
        if not (Path(args.out) / "checkpoint.pt").exists():
            raise KeyboardInterrupt("nothing was saved yet") from None
        unless = "".join(f", without --{name}" for name in ("init", "preset") if getattr(args, name))
        last = "the last checkpoint" if trainer is None else f"epoch {trainer.saved_epoch}"
        raise KeyboardInterrupt(f"the same command with --resume{unless} continues after {last}") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _explained() -> dict[str, str]:
    """Field of the recipe -> what its docstring says of it."""
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", Recipe.__doc__ or "", re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("enet-train", description="Train ENet on a segmentation data set.")
    parser.add_argument("data", metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--out", default="runs/enet", help="the run's folder (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, help="recipe to start from (default: default)")
    parser.add_argument(
        "--init", metavar="WEIGHTS", help="start from these weights; of other classes, all but the last layer is taken"
    )
    parser.add_argument(
        "--teacher", metavar="WEIGHTS", help="learn from these weights' output too; usually of --width 2 or more"
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--with-val",
        action="store_true",
        help="train on val too, for weights to ship: val then shows fit, not accuracy",
    )
    images.add_argument(
        "--hold-out",
        metavar="PREFIX",
        help="cross-validation: of train and val, score on the images whose names begin so",
    )
    parser.add_argument(
        "--extra", action="append", default=[], metavar="DATA", help="train on this data set's train/ too; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--compile", action="store_true", help="through torch.compile, minutes to start, in place of CUDA graphs"
    )
    parser.add_argument(
        "--curve",
        type=Path,
        metavar="FILE",
        help="draw the learning curve there, .png or .svg; drawn again whenever the state is saved",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    group = parser.add_argument_group(
        "recipe", "each replaces the preset's value; in brackets the value of each preset"
    )
    explained = _explained()
    for field in dataclasses.fields(Recipe):
        presets = ", ".join(f"{name}: {shown(getattr(preset, field.name))}" for name, preset in PRESETS.items())
        text = f"{explained.get(field.name, '')} ({presets})".replace("%", "%%")
        option: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if field.name in ("size", "crop", "final_crop"):
            option |= {"type": cli.size, "metavar": "HxW"}
        elif field.name == "scale":
            option |= {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")}
        elif field.name in CHOICES:
            option |= {"choices": CHOICES[field.name]}
        elif isinstance(field.default, bool):
            option |= {"action": argparse.BooleanOptionalAction}
        else:
            positive = field.name in ("epochs", "batch", "eval_every")
            option |= {"type": cli.positive if positive else type(field.default), "metavar": "X"}
        group.add_argument("--" + field.name.replace("_", "-"), **option)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return cli.run(parser, _train, argv)


if __name__ == "__main__":
    raise SystemExit(main())
