"""Training speed: images per second of this project's trainer against the usual PyTorch loop, in one run.

    python -m enet_deploy.benchmarks.measure.training CAMVID --crop 240x320

The usual loop is a DataLoader that decodes every image again and augments it on the CPU (in worker processes if the
device is a GPU), and an eager float32 step in PyTorch's default layout with the cross-entropy only. The two loops take
turns. The result is the median over the turns, without the first turn of each loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from enet_deploy.commands import cli
from enet_deploy.data import DataSet, open_data
from enet_deploy.environment import environment
from enet_deploy.errors import InputError
from enet_deploy.files import require_outputs, write_json
from enet_deploy.training.recipe import Recipe

SCHEMA = 1


def endless_recipe(**values: Any) -> Recipe:
    """A recipe whose steps all do the same: every loss from the start, and no warm-up, because that is in float32."""
    return Recipe(epochs=10**6, warmup=0, lovasz_from=0.0, **values)


def usual_loop(data: DataSet, recipe: Recipe, device: str) -> Iterator[None]:
    """Do one training step per item, with a DataLoader and an eager network."""
    import numpy as np
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Dataset

    from enet_deploy.fit import fit_image, fit_labels
    from enet_deploy.model import ENet
    from enet_deploy.training.crops import augment, draw_params

    class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, labels = data[index]
            image = fit_image(image, recipe.size, recipe.fit)
            labels = fit_labels(labels, recipe.size, recipe.fit, void)
            params = draw_params(recipe, recipe.crop, np.random.default_rng())
            pixels, ids = augment(
                torch.from_numpy(image)[None], torch.from_numpy(labels)[None], [params], recipe.crop, (0, 0, 0), void
            )
            return pixels[0].permute(2, 0, 1).contiguous() / 255, ids[0]

    void = data.classes.void
    workers = min(8, os.cpu_count() or 1) if device.startswith("cuda") else 0
    loader = DataLoader(
        Images(), recipe.batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=workers > 0,
        multiprocessing_context="fork" if workers else None,  # a local class cannot be pickled for a fresh process
    )  # fmt: skip
    net = ENet(len(data.classes)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), recipe.lr)
    while True:
        for pixels, ids in loader:
            loss = F.cross_entropy(net(pixels.to(device)), ids.to(device), ignore_index=void)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield


def this_trainer(
    data: DataSet, recipe: Recipe, device: str, out: Path, compiled: bool = False, captured: bool = True
) -> Iterator[None]:
    """Do one step of `enet-train` per item."""
    from enet_deploy.runners.torch_runner import torch_device
    from enet_deploy.training.memory import keep_freed_memory
    from enet_deploy.training.trainer import Trainer

    keep_freed_memory()
    trainer = Trainer(data, data, "train", out, recipe, torch_device(device), compiled=compiled, captured=captured)
    for epoch in range(recipe.epochs):
        trainer.epoch = epoch
        for _ in trainer.steps():
            yield


def measure(loops: dict[str, Iterator[None]], seconds: float, turns: int, wait: Callable[[], None]) -> dict[str, float]:
    """Return steps per second by loop, the median over its turns.

    Args:
        loops: name -> iterator that does one step per item.
        seconds: length of a turn.
        turns: of each loop, after a first one that is not counted.
        wait: returns when the device is idle; a turn ends there.
    """
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(turns + 1):
        for name, loop in loops.items():
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                next(loop)
                count += 1
            wait()
            rates[name].append(count / (time.perf_counter() - started))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}


def _run(args: argparse.Namespace) -> None:
    import torch

    from enet_deploy.runners.torch_runner import torch_device

    torch_device(args.device)  # the usual loop would find a wrong one in its own words
    recipe = endless_recipe(crop=args.crop, batch=args.batch, amp=args.amp)
    data = open_data(args.data, "train")
    if not args.seconds > 0:
        raise InputError(f"--seconds {args.seconds}, expected more than 0")
    require_outputs([args.json], [])
    if len(data) < args.batch:
        raise InputError(f"batch {args.batch} for {len(data)} training images, expected no more than there are")
    wait = (lambda: torch.cuda.synchronize(args.device)) if args.device.startswith("cuda") else lambda: None
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "usual loop": usual_loop(data, recipe, args.device),
            "enet-train": this_trainer(data, recipe, args.device, Path(folder), args.compile),
        }
        rates = measure(loops, args.seconds, args.turns, wait)
    speeds = {name: args.batch * rate for name, rate in rates.items()}
    for name, speed in speeds.items():
        print(f"{name:<12}{speed:>10.1f} crops of {args.crop[0]}x{args.crop[1]} a second")
    print(f"{speeds['enet-train'] / speeds['usual loop']:.2f} times as many")
    if args.json is not None:
        settings = {"device": args.device, "crop": args.crop, "batch": args.batch, "amp": args.amp}
        settings |= {"compile": args.compile, "threads": torch.get_num_threads()}
        found = {"schema": SCHEMA, "environment": environment(), "settings": settings}
        write_json(args.json, found | {"crops_per_second": speeds})


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.measure.training",
        description="Training speed against the usual PyTorch loop.",
    )
    parser.add_argument("data", metavar="DATA", help="folder with train/ and trainannot/")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--crop", type=cli.size, default=(360, 480), metavar="HxW", help="size of a crop (default: 360x480)"
    )
    parser.add_argument("--batch", type=cli.positive, default=8, metavar="N", help="images per step (default: 8)")
    parser.add_argument("--amp", action="store_true", help="use bfloat16 in enet-train")
    parser.add_argument("--compile", action="store_true", help="use torch.compile in enet-train")
    parser.add_argument("--seconds", type=cli.not_negative, default=10, metavar="S", help="of a turn (default: 10)")
    parser.add_argument(
        "--turns", type=cli.positive, default=5, metavar="N", help="turns of each loop, after the first (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return cli.run(parser, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
