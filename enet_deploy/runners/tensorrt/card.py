"""The card of an engine: a JSON file beside it that says what it was built from, with and for, with its own digest."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import SCHEMA, Metadata, with_digest, without_digest
from ...errors import ArtifactError
from ...files import digest, parse_json, write_json


@dataclass(frozen=True)
class EngineCard:
    """What a TensorRT engine was built from, with and for.

    An engine is code for one TensorRT version and one kind of GPU, and it cannot be inspected before it is loaded. So
    the card describes it and has its hash: no other file is loaded in its place. The card is not signed. It reveals
    damage, not an attack: take engine and card only from people you trust.

    Attributes:
        engine_sha256, onnx_sha256: hashes of the engine, and of the graph that it was built from.
        flavour: "trt" or "trt-rtx".
        version: exact version of that TensorRT.
        compute_capabilities: the GPUs that it was built for, such as "8.6".
        gpu: name of the GPU that it was built on; None if it was built ahead of time.
        version_compatible, hardware_compatible: whether later versions and other GPUs may load it.
        precision_shares: share of the layers that compute in each precision, from the engine inspector; None if the
            engine could not be inspected.
        metadata: metadata of the graph.
    """

    engine_sha256: str
    onnx_sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    version_compatible: bool
    hardware_compatible: bool
    precision_shares: dict[str, float] | None
    metadata: Metadata

    @staticmethod
    def path(engine: str | Path) -> Path:
        """Return the path of an engine's card: enet-fp16.engine has enet-fp16.engine.json."""
        return Path(f"{engine}.json")

    @staticmethod
    def engine_name(graph: str | Path, flavour: str) -> str:
        """Return the engine's file name: enet-fp16.onnx gives enet-fp16.engine, or enet-fp16-rtx.engine for trt-rtx."""
        return f"{Path(graph).stem}{'-rtx' if flavour == 'trt-rtx' else ''}.engine"

    @staticmethod
    def rebuild(engine: str | Path, flavour: str = "trt") -> str:
        """Return the remedy for an unusable engine, which is named after its graph."""
        engine = Path(engine)
        graph = engine.stem.removesuffix("-rtx") + ".onnx"
        return f"build it again: enet-export {graph} --engine {flavour} --out {engine.parent}"

    def write(self, engine: str | Path) -> None:
        """Write the card beside the engine. Raises ArtifactError if that fails."""
        card = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        metadata = json.loads(self.metadata.to_text())
        del metadata["content_sha256"]  # the graph's own
        write_json(self.path(engine), with_digest({"schema": SCHEMA, **card, "metadata": metadata}))

    @classmethod
    def read(cls, engine: str | Path) -> EngineCard:
        """Return the card of an engine, after a check that it describes exactly this file. Raises as `load`."""
        return cls.load(engine)[0]

    @classmethod
    def load(cls, engine: str | Path) -> tuple[EngineCard, bytes]:
        """Return the card of an engine, and the bytes that it describes: the file may be replaced a moment later.

        Raises ArtifactError if the engine or its card is missing or damaged, or if the engine's hash differs.
        """
        path = cls.path(engine)
        again = cls.rebuild(engine)
        try:
            value = without_digest(parse_json(path.read_text(encoding="utf-8")))
            metadata = Metadata.from_text(json.dumps(value["metadata"]), path)
            if value.pop("schema") != SCHEMA:
                raise ValueError(f"another schema than {SCHEMA}")
            for name, (expected, is_valid) in _CARD_FIELDS.items():
                if not is_valid(value.get(name)):
                    raise ValueError(f"{name} {value.get(name)!r:.60}, expected {expected}")
            card = cls(**{**value, "metadata": metadata, "compute_capabilities": tuple(value["compute_capabilities"])})
            again = cls.rebuild(engine, card.flavour)
        except FileNotFoundError:
            raise ArtifactError(
                f"{engine} has no card {path.name} beside it, expected both files; copy both from a source that you "
                f"trust (an engine is code, and the card is not signed), or {again}"
            ) from None
        except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            why = " ".join(f"{error}".split())  # a field's name may have line breaks
            raise ArtifactError(f"{path} is not an engine's card: {why}; {again}") from None
        try:
            content = Path(engine).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{engine} cannot be read ({error.strerror}), only its {path.name}; {again}") from None
        if digest(content) != card.engine_sha256:
            raise ArtifactError(
                f"{engine} is not the file that {path.name} describes (another SHA-256): it is damaged, cut short or "
                f"replaced. An engine is code, so it is not loaded; {again}"
            )
        return card, content


def _is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(type(share) in (int, float) and 0 <= share <= 1 for share in value.values())


def _is_capabilities(value: Any) -> bool:
    names = value if isinstance(value, list) else []
    return bool(names) and all(map(is_capability, names))


def is_capability(name: object) -> bool:
    """Whether this is a compute capability, such as "8.6"."""
    return isinstance(name, str) and re.fullmatch(r"\d+\.\d+", name) is not None


# Field of a card's JSON -> the expected value, in words and as a test. The tests are strict: the text "false" would be
# true, and version_compatible allows an engine to run code on the CPU.
_CARD_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("engine_sha256", "onnx_sha256", "version"), ("text", lambda value: isinstance(value, str))),
    "flavour": ("trt or trt-rtx", lambda value: value in ("trt", "trt-rtx")),
    "compute_capabilities": ('a list such as ["8.6"]', _is_capabilities),
    "gpu": ("text or null", lambda value: value is None or isinstance(value, str)),
    **dict.fromkeys(
        ("version_compatible", "hardware_compatible"), ("true or false", lambda value: isinstance(value, bool))
    ),
    "precision_shares": ('null, or shares such as {"fp16": 0.9}', lambda value: value is None or _is_shares(value)),
}
