"""The card beside an engine: what the engine was built from, with and for."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifacts import SCHEMA, Metadata
from ...errors import ArtifactError
from ...files import digest, parse_json, write_json


@dataclass(frozen=True)
class EngineCard:
    """The JSON beside a TensorRT engine: what it was built from, with and for.

    An engine is code of one TensorRT version for one kind of GPU, and can say nothing of this itself before it is
    loaded; so the card says it, and carries the engine's hash: no other file is loaded under its name. It is not
    signed, and shows damage, not intent: engine and card are to be taken only from whom one trusts.

    Attributes:
        engine_sha256, onnx_sha256: of the engine, and of the graph it was built from.
        flavour: "trt" or "trt-rtx".
        version: of that TensorRT, exact.
        compute_capabilities: that it was built for, such as "8.6".
        gpu: name of the GPU that it was built on; None where it was built ahead of time, without one.
        version_compatible, hardware_compatible: whether later versions and other GPUs may load it.
        precision_shares: share of the layers that compute in each precision, as the inspector told; None where it
            could not be asked.
        metadata: of the graph.
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
        """Where the card of an engine lies: enet-fp16.engine has enet-fp16.engine.json."""
        return Path(f"{engine}.json")

    @staticmethod
    def engine_name(graph: str | Path, flavour: str) -> str:
        """What an engine is called: enet-fp16.onnx gives enet-fp16.engine, and enet-fp16-rtx.engine for trt-rtx."""
        return f"{Path(graph).stem}{'-rtx' if flavour == 'trt-rtx' else ''}.engine"

    @staticmethod
    def rebuild(engine: str | Path, flavour: str = "trt") -> str:
        """What to do about an engine that cannot be used; it is named after its graph."""
        engine = Path(engine)
        graph = engine.stem.removesuffix("-rtx") + ".onnx"
        return f"build it again: enet-export {graph} --engine {flavour} --out {engine.parent}"

    def write(self, engine: str | Path) -> None:
        """Write it beside the engine. Raises ArtifactError where that fails."""
        card = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_json(self.path(engine), {"schema": SCHEMA, **card, "metadata": json.loads(self.metadata.to_text())})

    @classmethod
    def read(cls, engine: str | Path) -> EngineCard:
        """The card of an engine, which must be the very file that was built; raises as `load` does."""
        return cls.load(engine)[0]

    @classmethod
    def load(cls, engine: str | Path) -> tuple[EngineCard, bytes]:
        """The card of an engine, and the very bytes that it describes: the file may be another a moment later.

        Raises ArtifactError where the engine or its card is missing or damaged, or the engine's hash is another.
        """
        path = cls.path(engine)
        again = cls.rebuild(engine)
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
            metadata = Metadata.from_text(json.dumps(value["metadata"]), path)
            if value.pop("schema") != SCHEMA:
                raise ValueError("its schema is another")
            for name, (expected, is_so) in _CARD_FIELDS.items():
                if not is_so(value.get(name)):
                    raise ValueError(f"{name} {value.get(name)!r:.60}, expected {expected}")
            card = cls(**{**value, "metadata": metadata, "compute_capabilities": tuple(value["compute_capabilities"])})
            again = cls.rebuild(engine, card.flavour)
        except FileNotFoundError:
            raise ArtifactError(
                f"{engine} has no {path.name} beside it, which says what it is and shows damage; copy both, from whom "
                f"you trust, because an engine is code and the card is not signed, or {again}"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            why = " ".join(f"{error}".split())  # a field's name may have line breaks
            raise ArtifactError(f"{path} is no description of an engine: {why}; {again}") from None
        try:
            content = Path(engine).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{engine} cannot be read ({error.strerror}), only its {path.name}; {again}") from None
        if digest(content) != card.engine_sha256:
            raise ArtifactError(
                f"{engine} is not the file that {path.name} describes (its SHA-256 is another): damaged, cut short or "
                f"replaced. An engine is code, so it is not loaded; {again}"
            )
        return card, content


def _is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(type(share) in (int, float) and 0 <= share <= 1 for share in value.values())


def _is_capabilities(value: Any) -> bool:
    names = value if isinstance(value, list) else []
    return bool(names) and all(isinstance(name, str) and re.fullmatch(r"\d+\.\d+", name) for name in names)


# Field of a card's JSON -> what it is to be, in words and as a test. The text "false" is true, and what is true here
# lets an engine run code on the CPU.
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
