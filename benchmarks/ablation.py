"""Which parts of a training recipe earn their place: one change at a time, on drives that training never saw.

    python -m enet_deploy.benchmarks.ablation CAMVID --out benchmarks/results/ablation.json

For every fold (a drive held out of CamVid's train and val together) and seed one base is trained from scratch; every
variant continues from it for the same number of steps with one thing changed, and is scored on the held-out drive by
its last weights. A run that was cut short goes on where it stopped. The default size is a quarter of CamVid's pixels:
a proxy that two CPU cores can afford; a GPU can do --size 360x480 --crop 360x480 and ten times the steps.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from enet_deploy.commands import cli
from enet_deploy.data import DataSet, hold_out, join, open_data
from enet_deploy.environment import environment
from enet_deploy.errors import ArtifactError
from enet_deploy.files import atomic_write, require_writable, sha256, write_json
from enet_deploy.training.recipe import Recipe
from enet_deploy.weights import load_weights

SCHEMA = 1
FOLDS = ("0001TP", "0006R0", "0016E5")

BASE: dict[str, Any] = {
    "class_weight_c": 1.10,
    "prior_correction": 0.0,
    "lr": 2e-3,
    "aux": 0.0,
    "lovasz": 0.0,
    "noise": 0.0,
    "color": 0.3,
    "tint": 0.0,
}
REFERENCE = "cross-entropy, c = 1.10"
TAUGHT = "c = 1.02, taught by a network of width 2"
COMBINED: dict[str, Any] = {"class_weight_c": 1.02, "lovasz": 1.0, "lovasz_from": 0.0, "aux": 0.4}
NOISY: dict[str, Any] = {"class_weight_c": 1.02, "noise": 16.0}
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "c = 1.02": {"class_weight_c": 1.02},
    "hard pixels only (OHEM 0.7)": {"ohem": 0.7},
    "auxiliary head 0.4": {"aux": 0.4},
    "Lovasz 1": {"lovasz": 1.0, "lovasz_from": 0.0},
    "rare-class crops 0.5": {"rare": 0.5},
    "sensor noise up to 16": {"noise": 16.0},
    "no colour jitter": {"color": 0.0},
    "no scaling": {"scale": (1.0, 1.0)},
    "c = 1.02, auxiliary head 0.4": {"class_weight_c": 1.02, "aux": 0.4},
    "c = 1.02, sensor noise up to 16": NOISY,
    "c = 1.02, sensor noise up to 16, colour jitter 0.6": NOISY | {"color": 0.6},
    "c = 1.02, sensor noise up to 16, colour jitter 0.6, tint 0.2": NOISY | {"color": 0.6, "tint": 0.2},
    "c = 1.02, sensor noise up to 16, colour jitter 0.9, tint 0.3": NOISY | {"color": 0.9, "tint": 0.3},
    "c = 1.02, Lovasz 1, auxiliary head 0.4": COMBINED,
    "c = 1.02, Lovasz 1, auxiliary head 0.4, sensor noise up to 16": COMBINED | {"noise": 16.0},
    TAUGHT: {"class_weight_c": 1.02},
}


def train_and_score(
    train: DataSet,
    val: DataSet,
    out: Path,
    recipe: Recipe,
    device: str,
    init: Path | None = None,
    teacher: Path | None = None,
) -> dict[str, float]:
    """Figures of a run's last weights on `val`; a run that is there already goes on, or is only read."""
    from enet_deploy.runners.torch_runner import torch_device
    from enet_deploy.training.trainer import Trainer, read_checkpoint

    trainer = Trainer(train, val, "fold", out, recipe, torch_device(device), init, teacher)
    if (out / "checkpoint.pt").exists():
        state, had = read_checkpoint(out)
        if had != recipe:
            raise ArtifactError(f"{out} holds a run of another recipe; remove it, or pass another --runs")
        trainer.resume(state)
        began = trainer.metadata.details.get("init", {}).get("sha256")
        if init is not None and began != sha256(init):
            raise ArtifactError(f"{out} began from another base than {init}; remove it, or pass another --runs")
    # a finished run would write its weights again, with the commit of now in them
    if trainer.epoch < recipe.epochs or not (out / "last.safetensors").exists():
        trainer.run()
    return trainer.history[-1]


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The val mIoU of `REFERENCE` in points, and what each variant changes in it: per fold, and over all its runs.

    A run is held against the reference of its own fold and seed.
    """
    folds = list(dict.fromkeys(row["fold"] for row in rows))
    found = {(row["variant"], row["fold"], row["seed"]): 100 * row["figures"]["val_miou"] for row in rows}
    lines = [
        "| variant | " + " | ".join(f"{fold} held out (runs)" for fold in folds) + " | all: mean (lowest to highest) |",
        "|---" * (len(folds) + 2) + "|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        changes: dict[str, list[float]] = {fold: [] for fold in folds}
        for (name, fold, seed), miou in found.items():
            if name == variant and (REFERENCE, fold, seed) in found:
                changes[fold].append(miou if variant == REFERENCE else miou - found[REFERENCE, fold, seed])
        form = ".1f" if variant == REFERENCE else "+.1f"
        cells = [f"{statistics.mean(own):{form}} ({len(own)})" if own else "" for own in changes.values()]
        every = [change for own in changes.values() for change in own]
        spread = f"{statistics.mean(every):{form}} ({min(every):{form}} to {max(every):{form}})"
        lines.append(f"| {variant} | " + " | ".join(cells) + f" | {spread} |")
    return "\n".join(lines)


def _ablate(args: argparse.Namespace) -> None:
    require_writable(args.out)
    machine = environment()
    every = join([open_data(args.data, "train"), open_data(args.data, "val")])
    folds = {fold: hold_out(every, fold) for fold in args.folds}
    variants = [REFERENCE, *(name for name in args.variants if name != REFERENCE)]
    shared = {"size": args.size, "crop": args.crop, "batch": args.batch}
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for fold, (train, val) in folds.items():
            folder = args.runs / f"{fold}-{seed}"
            steps = max(1, len(train) // args.batch)
            epochs = max(1, args.base_steps // steps)
            base = Recipe(**shared, **BASE, epochs=epochs, eval_every=epochs, seed=seed)
            train_and_score(train, val, folder / "base", base, args.device)
            epochs = max(1, args.steps // steps)
            teacher = None
            if TAUGHT in variants:  # it learns for as long as base and variant together
                teacher = folder / "teacher" / "last.safetensors"
                longer = max(1, (args.base_steps + args.steps) // steps)
                wide = replace(base, **VARIANTS[TAUGHT], width=2, epochs=longer, eval_every=longer)
                train_and_score(train, val, teacher.parent, wide, args.device)
            for name in variants:
                changes = BASE | {"lr": BASE["lr"] / 2} | VARIANTS[name]
                recipe = Recipe(**shared, epochs=epochs, eval_every=epochs, seed=seed + 1000, **changes)
                out = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
                init = folder / "base" / "last.safetensors"
                taught = teacher if name == TAUGHT else None
                figures = train_and_score(train, val, out, recipe, args.device, init, taught)
                of = load_weights(out / "last.safetensors")[1].details["commit"]
                rows.append({"variant": name, "fold": fold, "seed": seed, "figures": figures, "commit": of})
                settings = {**shared, "base": BASE, "base_steps": args.base_steps, "steps": args.steps}
                result = {"schema": SCHEMA, "environment": machine, "settings": settings, "runs": rows}
                write_json(args.out, result)
    table = as_markdown(rows)
    with atomic_write(args.out.with_suffix(".md")) as temporary:
        temporary.write_text(table + "\n")
    print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.ablation",
        description="Train variants of a recipe on folds of CamVid and compare them.",
    )
    parser.add_argument("data", metavar="CAMVID", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON; a .md table is put beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="of every run (default: %(default)s)")
    parser.add_argument("--folds", nargs="+", default=FOLDS, metavar="PREFIX", help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=f"default: all of {'; '.join(VARIANTS)}",
    )
    parser.add_argument("--size", type=cli.size, default=(184, 240), metavar="HxW", help="default: 184x240")
    parser.add_argument("--crop", type=cli.size, default=(144, 192), metavar="HxW", help="default: 144x192")
    parser.add_argument("--batch", type=cli.positive, default=8, metavar="N", help="default: 8")
    parser.add_argument("--base-steps", type=cli.positive, default=480, metavar="N", help="default: 480")
    parser.add_argument(
        "--steps",
        type=cli.positive,
        default=240,
        metavar="N",
        help="of each variant, rounded to whole epochs; default: 240",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return cli.run(parser, _ablate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
