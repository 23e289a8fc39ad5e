"""Weights: safetensors files with metadata. Reading one runs no code from it. The bundled file lies in this folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..artifacts import METADATA_KEY, Metadata, check_digest, read_artifact, require_file, sealed
from ..errors import ArtifactError
from ..files import atomic_write, digest, parse_json
from ..model import ENet

LARGEST = 1 << 30  # bytes of a weights file: a network 27 times as wide as ENet


@dataclass(frozen=True)
class Weights:
    """A weights file, read and checked.

    A command reads its weights once and hands this down, so that all its parts use the same network and hash.

    Attributes:
        path: the file.
        sha256: hex digest of the file.
        net: the network in eval mode, on the CPU. Copy it before you change it.
        metadata: as the file has it.
    """

    path: Path
    sha256: str
    net: ENet
    metadata: Metadata

    @classmethod
    def read(cls, path: str | Path) -> Weights:
        """Read a file that `save_weights` wrote.

        Raises ArtifactError if the file is missing, has changed since it was written, is not safetensors, or does not
        hold exactly ENet's tensors.
        """
        path = Path(path)
        _check_file(path)
        try:
            content = read_artifact(path)  # once: the file may be replaced, and its path need not be UTF-8
            state = safetensors.torch.load(content)
            header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
        except (SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path} is not a whole safetensors file: {error}; train or copy it again") from None
        metadata = Metadata.from_text(header.get("__metadata__", {}).get(METADATA_KEY), path)
        check_digest(content, path)
        net = _network_for(state, metadata)
        _check_tensors(path, state, net)
        net.load_state_dict(state)
        return cls(path, digest(content), net.eval(), metadata)


def load_weights(path: str | Path) -> tuple[ENet, Metadata]:
    """Return network and metadata of `Weights.read`. Raises ArtifactError as it does."""
    weights = Weights.read(path)
    return weights.net, weights.metadata


def save_weights(path: str | Path, net: ENet, metadata: Metadata) -> None:
    """Write parameters and running statistics as safetensors, with the metadata in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(sealed(safetensors.torch.save(tensors, {METADATA_KEY: metadata.to_text()})))


def _check_file(path: Path) -> None:
    require_file(path, "weights, a .safetensors file written by enet-train")
    if path.suffix != ".safetensors":
        raise ArtifactError(
            f"{path} has the suffix '{path.suffix}', expected .safetensors; take best.safetensors of the run"
        )
    size = path.stat().st_size
    if size > LARGEST:
        raise ArtifactError(f"{path} has {size} bytes, expected at most {LARGEST}; these are no weights of an ENet")


def _network_for(state: dict[str, Tensor], metadata: Metadata) -> ENet:
    """Build an ENet with the width and slopes of these tensors."""
    width = state["initial.bn.weight"].numel() // 16 if "initial.bn.weight" in state else 1
    # At most as wide as the parameters in the file allow: one tensor with a false size must not take all memory
    most = math.isqrt(sum(tensor.numel() for tensor in state.values()) // 300_000)
    one_slope = "initial.act.weight" in state and state["initial.act.weight"].numel() == 1
    return ENet(len(metadata.classes), max(1, min(width, most)), "layer" if one_slope else "channel")


def _check_tensors(path: Path, state: dict[str, Tensor], net: ENet) -> None:
    """Raise ArtifactError unless `state` has exactly the tensors of `net`, with finite values."""
    expected = net.state_dict()
    _require_no_names(path, "no tensor named", sorted(expected.keys() - state.keys()))
    _require_no_names(path, "a foreign tensor named", sorted(state.keys() - expected.keys()))
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


def _require_no_names(path: Path, problem: str, names: list[str]) -> None:
    if names:
        raise ArtifactError(
            f"{path} has {problem} '{names[0]}' ({len(names)} in all); these are weights of another network"
        )
