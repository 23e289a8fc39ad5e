"""Weights: files of tensors with metadata. Reading one runs no code from it. The bundled file lies in this folder."""

from __future__ import annotations

import math
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from ..artifacts import METADATA_KEY, Metadata
from ..errors import ArtifactError
from ..files import atomic_write
from ..model import ENet

LARGEST = 1 << 30  # bytes of a file of weights, those of a network 27 times as wide as ENet


def save_weights(path: str | Path, net: ENet, metadata: Metadata) -> None:
    """Write the parameters and running statistics as safetensors, with the metadata in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: metadata.to_text()}))


def load_weights(path: str | Path) -> tuple[ENet, Metadata]:
    """Read weights that `save_weights` wrote; runs no code from the file. The network is in eval mode, on the CPU.

    Raises ArtifactError where the file is missing, no safetensors, or not exactly this network's tensors.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} is not a file; expected weights, a .safetensors file written by enet-train")
    if Path(path).suffix != ".safetensors":
        raise ArtifactError(
            f"{path} has the suffix '{Path(path).suffix}', expected .safetensors: of a run, its best.safetensors"
        )
    if Path(path).stat().st_size > LARGEST:
        raise ArtifactError(
            f"{path} has {Path(path).stat().st_size} bytes, expected at most {LARGEST}; these are no weights of an ENet"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = Metadata.from_text((file.metadata() or {}).get(METADATA_KEY), path)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a whole safetensors file: {error}; train or copy it again") from None
    width = state["initial.bn.weight"].numel() // 16 if "initial.bn.weight" in state else 1
    # No wider than the file has parameters for: one tensor that claims to be large is not to take all memory
    most = math.isqrt(sum(tensor.numel() for tensor in state.values()) // 300_000)
    one_slope = "initial.act.weight" in state and state["initial.act.weight"].numel() == 1
    net = ENet(len(metadata.classes), max(1, min(width, most)), "layer" if one_slope else "channel")
    expected = net.state_dict()
    _require_same(path, "no tensor named", sorted(expected.keys() - state.keys()))
    _require_same(path, "a foreign tensor named", sorted(state.keys() - expected.keys()))
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise ArtifactError(
                f"{path} has {name} as {tuple(state[name].shape)} {state[name].dtype}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}; these are weights of another network"
            )
        if not state[name].isfinite().all():
            raise ArtifactError(
                f"{path} has values in {name} that are NaN or infinite, expected finite ones; the training diverged: "
                "take an earlier checkpoint, or train with a smaller --lr"
            )
    net.load_state_dict(state)
    return net.eval(), metadata


def _require_same(path: str | Path, what: str, names: list[str]) -> None:
    if names:
        raise ArtifactError(
            f"{path} has {what} '{names[0]}' ({len(names)} in all); these are weights of another network"
        )
