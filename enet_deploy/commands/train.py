"""`enet-train`: train ENet on a data set; for several processes, `torchrun -m enet_deploy.commands.train`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataSet, files_of, hold_out, join, open_data, without
from ..errors import ArtifactError, EnetError, InputError, is_out_of_memory
from ..files import only_process, require_outputs
from ..plots import SUFFIXES, draw_curve, require_plot
from ..training.recipe import CHOICES, PRESETS, Recipe, shown
from . import cli

if TYPE_CHECKING:
    import torch

    from ..training.checkpoint import Checkpoint
    from ..training.logs import TensorBoard
    from ..training.trainer import Trainer


log = logging.getLogger(__name__)

# variables that torchrun sets for each of its processes
TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def _rank() -> int:
    """Number of this process among those of torchrun; 0 if it is alone."""
    rank = os.environ["RANK"] if os.environ.keys() >= TORCHRUN else "0"
    if not rank.isdecimal():
        raise InputError(f"RANK={rank}, expected a whole number; start the processes with torchrun")
    return int(rank)


def _recipe(args: argparse.Namespace) -> tuple[Recipe, Checkpoint | None]:
    """The recipe to train with, and the state to resume from, if any."""
    from ..training.checkpoint import CHECKPOINT, Checkpoint

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if hasattr(args, f.name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if {"minutes", "epochs"} <= given.keys():
        raise InputError(f"--minutes {args.minutes} with --epochs {args.epochs}, expected one of them")
    if args.resume:
        return _resumed(args, given)
    if "final_crop" in given and "final_from" not in given:
        raise InputError(
            f"--final-crop {shown(args.final_crop)} without --final-from, expected the share of the training after "
            "which crops have that size"
        )
    if "size" in given:
        given.setdefault("crop", given["size"])
        given.setdefault("final_crop", given["size"])
    if (Path(args.out) / CHECKPOINT).exists() and Checkpoint.read(args.out).epoch > 0:
        raise InputError(f"{args.out} holds a run already; --resume continues it, another --out starts a new one")
    return dataclasses.replace(PRESETS[args.preset or "default"], **given), None


def _resumed(args: argparse.Namespace, given: dict[str, Any]) -> tuple[Recipe, Checkpoint]:
    """The recipe and the state of the run in --out. Its options may be given again, but not changed."""
    from ..training.checkpoint import Checkpoint

    for name in ("preset", "init"):
        if getattr(args, name):
            raise InputError(f"--{name} with --resume, expected one of them: a resumed run keeps its own {name}")
    checkpoint = Checkpoint.read(args.out)
    for name, value in given.items():
        had = getattr(checkpoint.recipe, name)
        if had != value:
            raise InputError(
                f"--{name.replace('_', '-')} {value} with --resume, but the run in {args.out} has {had}; resume "
                "without it, or start another run with --out and, to go on from here, --init"
            )
    return checkpoint.recipe, checkpoint


def _data(args: argparse.Namespace) -> tuple[DataSet, DataSet, str]:
    """Images to train on, images to score on, and a name for the first."""
    train, val = open_data(args.data, "train"), open_data(args.data, "val")
    split = "train"
    if args.with_val:
        train, split = join([train, val]), "train+val"
    elif args.hold_out is not None:
        train, val = hold_out(join([train, val]), args.hold_out)
        split = f"train+val without {args.hold_out}*"
    for folder in args.extra:
        more = open_data(folder, "train")
        if args.hold_out is not None:  # that folder may have the same drive
            more = without(more, args.hold_out)
            if not len(more):
                raise InputError(
                    f"hold-out '{args.hold_out}' matches every image of {folder}, expected some to train on; "
                    "take a longer prefix"
                )
        train, split = join([train, more]), f"{split} + {len(more)} more"
    return train, val, split


def _require_outputs(args: argparse.Namespace) -> None:
    """Raise before the long work if the run would overwrite what it reads, or if an output cannot be written."""
    from ..training.checkpoint import CHECKPOINT
    from ..training.logs import require_tensorboard

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {args.out} is a file, expected a folder")
    names = (CHECKPOINT, "best.safetensors", "last.safetensors", "log.csv")
    data = [path for root in (args.data, *args.extra) for path in files_of(root)]
    require_outputs([*(out / name for name in names), args.curve], [args.init, args.teacher, *data])
    if args.curve is not None:
        if args.curve.suffix.lower() == ".html":
            raise InputError(
                f"--curve {args.curve} is a page, expected {' or '.join(SUFFIXES)}; for curves and example pictures in "
                "a browser, pass --tensorboard DIR"
            )
        require_plot(args.curve)
    if args.tensorboard is not None:
        require_tensorboard(args.tensorboard)
        require_outputs([args.tensorboard / "events"], data)


def _report(args: argparse.Namespace, trainer: Trainer, board: TensorBoard | None) -> None:
    """Draw the curve and write event files as far as the run has got."""
    try:
        if args.curve is not None:
            draw_curve(args.curve, trainer.history, bool(trainer.val_trained_on))
        if board is not None:
            board.write(trainer.history, trainer.examples)
    except (ArtifactError, OSError) as error:  # a failed picture must not end a night's training
        log.warning(f"no report this time: {error}")


def _device(args: argparse.Namespace) -> torch.device:
    """The device to train on. If torchrun started this process, it has its own GPU, and the processes are connected."""
    import torch
    import torch.distributed as dist

    from ..runners.torch_runner import torch_device

    device = torch_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processes = os.environ.keys() >= TORCHRUN
    if not processes and "LOCAL_RANK" in os.environ:
        missing = ", ".join(sorted(TORCHRUN - os.environ.keys()))
        log.info(f"LOCAL_RANK is set without {missing}, so no torchrun started this: training in one process")
    if device.type == "cuda":
        if processes:
            device = torch_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    if processes:
        try:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
            )
        except (RuntimeError, ValueError) as error:
            said = ", ".join(f"{name}={os.environ[name]}" for name in sorted(TORCHRUN))
            raise EnetError(
                f"the processes cannot be connected with {said}: {str(error).splitlines()[0]}; start them with torchrun"
            ) from None
    return device


@contextlib.contextmanager
def _explained_errors(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn errors of torch that the user can correct into an EnetError that says how."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise EnetError(
                f"the memory of {device} does not hold the network and images of {recipe.size[0]}x{recipe.size[1]} "
                "beside the training steps; pass a smaller --size or another --device"
            ) from None
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise EnetError(f"torch.compile failed: {str(error).splitlines()[0]}; train without --compile") from None


def _how_to_go_on(args: argparse.Namespace, trainer: Trainer | None) -> str:
    """Say how an interrupted run is continued."""
    from ..training.checkpoint import CHECKPOINT

    if not (Path(args.out) / CHECKPOINT).exists():
        return "nothing was saved yet"
    unless = "".join(f", without --{name}" for name in ("init", "preset") if getattr(args, name))
    last = "the last checkpoint" if trainer is None else f"epoch {trainer.saved_epoch}"
    return f"the same command with --resume{unless} continues after {last}"


def run(args: argparse.Namespace) -> None:
    """Do what the command does."""
    import torch

    if hasattr(args, "distill") and args.teacher is None:
        raise InputError(f"--distill {args.distill} without --teacher, expected the weights to learn from")
    _require_outputs(args)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    with only_process(Path(args.out)) if _rank() == 0 else contextlib.nullcontext():
        _run_alone(args)


def _run_alone(args: argparse.Namespace) -> None:
    """The training itself, while no other process trains in the same folder."""
    import torch.distributed as dist

    from ..runners.torch_runner import respect_quota
    from ..training.logs import TensorBoard
    from ..training.memory import keep_freed_memory
    from ..training.trainer import Trainer

    recipe, checkpoint = _recipe(args)
    device = _device(args)
    if device.type == "cpu":
        keep_freed_memory()
        respect_quota()
    trainer, board = None, None
    try:
        with _explained_errors(recipe, device):
            trainer = Trainer(*_data(args), args.out, recipe, device, args.init, args.teacher, args.compile, checkpoint)
            if args.tensorboard is not None:
                board = TensorBoard(args.tensorboard, trainer.train.classes, trainer.epoch)
            trainer.run(lambda: _report(args, trainer, board))
        if dist.is_initialized():
            dist.barrier()  # all leave together: gloo's threads abort a process whose peer is gone already
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(args, trainer)) from None
    finally:
        if board is not None:
            board.close()
        if dist.is_initialized():
            dist.destroy_process_group()
    with _explained_errors(recipe, device):
        trainer.log_corrections()  # without the others, who would wait for it


def _explained() -> dict[str, str]:
    """Each field of the recipe -> its explanation in the docstring of `Recipe`."""
    text = inspect.getdoc(Recipe) or ""  # since Python 3.13 __doc__ has no indentation, before it has
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of the recipe."""
    group = parser.add_argument_group(
        "recipe", "each option replaces the preset's value; in brackets the value of each preset"
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
            option |= {"type": type(field.default), "metavar": "X"}
        group.add_argument("--" + field.name.replace("_", "-"), **option)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    fit = "train on val too, for weights to ship; scores on val then show fit, not accuracy"
    fold = "cross-validation: train on train and val, but for images whose names start with PREFIX; score on those"
    more = "train on this data set's train/ too; repeatable"
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--with-val", action="store_true", help=fit)
    images.add_argument("--hold-out", metavar="PREFIX", help=fold)
    parser.add_argument("--extra", action="append", default=[], metavar="DATA", help=more)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    init = f"start from {cli.WEIGHTS}; of other classes, all but the last layer"
    teacher = "learn from the output of these weights too; usually of --width 2 or more"
    compiled = "use torch.compile, which takes minutes to start, instead of CUDA graphs"
    curve = "draw the learning curve into this .png or .svg file whenever the state is saved"
    events = "write curves and example pictures into this folder as event files for TensorBoard"
    parser.add_argument("--out", default="runs/enet", help="the run's folder (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, help="recipe to start from (default: default)")
    parser.add_argument("--init", type=cli.weights, metavar="WEIGHTS", help=init)
    parser.add_argument("--teacher", type=cli.weights, metavar="WEIGHTS", help=teacher)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--compile", action="store_true", help=compiled)
    parser.add_argument("--curve", type=Path, metavar="FILE", help=curve)
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help=events)
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def make_parser() -> cli.Parser:
    examples = (
        "enet-train DATA --out runs/mine --init enet-camvid --epochs 40 --crop 240x320",
        "enet-train DATA --out runs/mine --resume",
    )
    parser = cli.Parser("enet-train", description="Train ENet on a segmentation data set.", examples=examples)
    parser.add_argument("data", metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    for add in (_add_run_options, _add_data_options, _add_recipe_options):
        add(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    cli.log_to_stderr("%(message)s", logging.INFO)
    return cli.run(make_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
