"""`enet-train`: train ENet on a data set; under `torchrun -m enet_deploy.train_cli` on several processes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .errors import InputError
from .recipe import PRESETS, Recipe

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device '{name}', but torch {torch.__version__} sees no CUDA device; use --device cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device '{name}', expected cpu, cuda or cuda:N")
    return torch.device(name)


def _train(args: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from .train import Trainer, read_checkpoint

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if hasattr(args, f.name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    state = None
    if args.resume:
        state, recipe = read_checkpoint(args.out)
        changed = [name for name, value in given.items() if getattr(recipe, name) != value]
        if changed:
            raise InputError(
                f"--{changed[0].replace('_', '-')} {given[changed[0]]} with --resume, but the run in {args.out} has "
                f"{getattr(recipe, changed[0])}; resume without it, or start another run with --out"
            )
    elif (Path(args.out) / "checkpoint.pt").exists():
        raise InputError(f"{args.out} holds a run already; --resume continues it, another --out starts a new one")
    else:
        recipe = dataclasses.replace(PRESETS[args.preset], **given)
    device = _device(args.device)
    if "LOCAL_RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    try:
        trainer = Trainer(args.data, args.out, recipe, device, args.init)
        if state is not None:
            trainer.resume(state)
        trainer.run()
    except KeyboardInterrupt:
        log.info("interrupted; the same command with --resume continues after the last whole epoch")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("enet-train", description="Train ENet on a segmentation data set.")
    parser.add_argument("data", metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--out", default="runs/enet", help="the run's folder (default: %(default)s)")
    parser.add_argument(
        "--preset", choices=PRESETS, default="default", help="recipe to start from (default: %(default)s)"
    )
    parser.add_argument("--init", metavar="WEIGHTS", help="start from these weights")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    group = parser.add_argument_group("recipe", "each replaces the preset's value; see enet_deploy/recipe.py")
    for field in dataclasses.fields(Recipe):
        option: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"default: {field.default}"}
        if field.name in ("size", "crop"):
            option |= {"type": cli.size, "metavar": "HxW"}
        elif field.name == "scale":
            option |= {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")}
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
