"""Engines for the GPUs of a fleet: a folder, and fleet.json in it, which says which engine is for which GPU.

`enet-export --engine trt-rtx --compute-capability LIST` writes the manifest; `open_runner(FOLDER)` takes the engine for
the GPU in the machine.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from ...artifacts import PRECISIONS, SCHEMA, check_size, with_digest, without_digest
from ...errors import ArtifactError
from ...files import file_lock, parse_json, write_json
from .card import EngineCard, is_capability
from .cuda import Gpu, find_gpu
from .library import FLAVOURS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedEngine:
    """An engine of a fleet, as the manifest describes it.

    Attributes:
        file: its name in the folder.
        compute_capabilities: the GPUs that it is for, such as "8.6".
        flavour, version: "trt" or "trt-rtx", and the exact version of that TensorRT.
        precision: of its graph, one of `PRECISIONS`.
        size: (height, width) of its frames.
        hardware_compatible: whether other GPUs may run it too, from Ampere on.
        bytes: size of the file.
        engine_sha256, onnx_sha256: hashes of the engine, and of the graph that it was built from.

    Raises ValueError for an impossible value.
    """

    file: str
    compute_capabilities: tuple[str, ...]
    flavour: str
    version: str
    precision: str
    size: tuple[int, int]
    hardware_compatible: bool
    bytes: int
    engine_sha256: str
    onnx_sha256: str

    def __post_init__(self) -> None:
        is_name = Path(self.file).name == self.file and self.file.endswith(".engine") and self.file.isprintable()
        if not is_name:  # of another folder, for example
            raise ValueError(f"file {self.file!r:.60}, expected the name of an .engine in this folder")
        if not self.compute_capabilities or not all(map(is_capability, self.compute_capabilities)):
            raise ValueError(f'compute_capabilities {self.compute_capabilities!r:.60}, expected a list such as ["8.6"]')
        if self.flavour not in FLAVOURS or self.precision not in PRECISIONS:
            raise ValueError(f"flavour {self.flavour!r:.20} and precision {self.precision!r:.20}, expected known ones")
        if type(self.bytes) is not int or self.bytes < 1:
            raise ValueError(f"bytes {self.bytes!r:.20}, expected a number from 1")
        if not isinstance(self.hardware_compatible, bool):
            raise ValueError(f"hardware_compatible {self.hardware_compatible!r:.20}, expected true or false")
        for name in ("version", "engine_sha256", "onnx_sha256"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} {getattr(self, name)!r:.60}, expected text")
        check_size(self.size)

    @classmethod
    def of(cls, engine: Path) -> ListedEngine:
        """Describe an engine by its card. Raises ArtifactError as `EngineCard.load`."""
        card, content = EngineCard.load(engine)
        names = {field.name for field in dataclasses.fields(cls)}
        shared = {name: value for name, value in vars(card).items() if name in names}
        metadata = card.metadata
        return cls(
            file=engine.name, bytes=len(content), precision=metadata.precision, size=metadata.size, **shared
        )  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ListedEngine:
        lists = {name: tuple(value[name]) for name in ("compute_capabilities", "size")}
        return cls(**{**value, **lists})


def manifest_path(folder: str | Path) -> Path:
    return Path(folder) / "fleet.json"


def read_manifest(folder: str | Path) -> tuple[ListedEngine, ...]:
    """Read the manifest of a folder. Raises ArtifactError if it is missing or damaged."""
    path = manifest_path(folder)
    again = "make it again: enet-export GRAPH --engine trt-rtx --compute-capability LIST --out FOLDER"
    try:
        value = without_digest(parse_json(path.read_text(encoding="utf-8")))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r:.20}, expected {SCHEMA}")
        engines = tuple(map(ListedEngine.from_json, value["engines"]))
        if not engines or len({engine.file for engine in engines}) < len(engines):
            raise ValueError("expected at least one engine, and each file once")
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} holds no {path.name}, expected a folder with engines for a fleet; {again}"
        ) from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = " ".join(f"{error}".split())
        raise ArtifactError(f"{path} is not the manifest of a fleet: {why}; {again}") from None
    return engines


def add_to_manifest(engine: Path) -> Path:
    """Write an engine into the manifest of its folder, in place of an earlier one of its name. Returns the manifest.

    Raises ArtifactError if the engine's card does not describe it, or the manifest is damaged or cannot be written.
    """
    path = manifest_path(engine.parent)
    with file_lock(engine.parent):
        new = ListedEngine.of(engine)  # in the lock: another run may replace the engine
        others = read_manifest(engine.parent) if path.exists() else ()
        engines = sorted([new, *(each for each in others if each.file != new.file)], key=lambda each: each.file)
        write_json(path, with_digest({"schema": SCHEMA, "engines": [dataclasses.asdict(each) for each in engines]}))
    return path


def engine_for_gpu(folder: Path, index: int) -> Path:
    """Return the engine for the GPU of this index, after a check that it is the one in the manifest.

    An engine is code, so its hash must be that of its card and that of the manifest.

    Raises:
        ArtifactError: no engine, or more than one, is for this GPU; the manifest or the engine is missing or damaged.
        BackendError: there is no GPU.
    """
    engines = read_manifest(folder)
    gpu = find_gpu(index)
    exact = [engine for engine in engines if gpu.compute_capability in engine.compute_capabilities]
    fitting = exact or [engine for engine in engines if engine.hardware_compatible]
    if not fitting:
        raise ArtifactError(_missing(folder, engines, gpu))
    if len(fitting) > 1:
        names = ", ".join(f"{engine.file} ({engine.precision}, {engine.flavour})" for engine in fitting)
        raise ArtifactError(f"{folder} holds {len(fitting)} engines for {gpu}: {names}; name the one to run")
    (chosen,) = fitting
    path = folder / chosen.file
    if EngineCard.read(path).engine_sha256 != chosen.engine_sha256:
        raise ArtifactError(
            f"{path} is another file than {manifest_path(folder)} lists (another SHA-256). An engine is code, so it is "
            f"not loaded; {_command(folder, chosen, chosen.compute_capabilities)}"
        )
    log.info("%s: %s is for %s", folder, chosen.file, gpu)
    return path


def _missing(folder: Path, engines: Sequence[ListedEngine], gpu: Gpu) -> str:
    known = sorted({name for engine in engines for name in engine.compute_capabilities}, key=capability_number)
    ahead = next((engine for engine in engines if engine.flavour == "trt-rtx"), engines[0])
    all_of_it = (*ahead.compute_capabilities, gpu.compute_capability)
    return (
        f"{folder} has engines for compute capability {', '.join(known)}, and this is {gpu}; "
        f"{_command(folder, ahead, all_of_it)}"
    )


def capability_number(capability: str) -> tuple[int, ...]:
    """ "8.6" -> (8, 6), to sort by."""
    return tuple(map(int, capability.split(".")))


def _command(folder: Path, engine: ListedEngine, capabilities: Sequence[str]) -> str:
    """The command that makes the engine of a fleet for these GPUs; it is named after its graph."""
    graph = Path(engine.file).stem.removesuffix("-rtx") + ".onnx"
    named = f" --compute-capability {','.join(capabilities)}" if engine.flavour == "trt-rtx" else ""
    return f"make it: enet-export {quote(graph)} --engine {engine.flavour}{named} --out {quote(str(folder))}"
