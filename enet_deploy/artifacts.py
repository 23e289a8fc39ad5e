"""What weights and exported files say about themselves, and writing them so that no half file is ever seen."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data import ClassList
from .errors import ArtifactError, InputError

METADATA_KEY = "enet_deploy"  # the one key, in safetensors' and in ONNX's metadata; its value is JSON
SCHEMA = 1

BUNDLED_WEIGHTS = Path(__file__).parent / "weights" / "enet-camvid.safetensors"

PRECISIONS = ("fp32", "fp16", "int8", "fp16-int8")
LARGEST = 8192  # side of a frame, more than a camera gives: no file is to name a size that takes all memory


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless both sides are positive multiples of 8, as the encoder halves the image three times, and
    no larger than `LARGEST`."""
    if max(size) > LARGEST:
        raise InputError(f"size {size[0]}x{size[1]}, expected at most {LARGEST} a side; take a smaller one")
    if any(side < 8 or side % 8 for side in size):
        near = "x".join(str(max(8, round(side / 8) * 8)) for side in size)
        raise InputError(f"size {size[0]}x{size[1]}, expected height and width divisible by 8; the nearest is {near}")


@dataclass(frozen=True)
class Metadata:
    """All that a runner has to know beside the tensors.

    Attributes:
        classes: names, colours, void id.
        mean, std: per channel, BGR, on the scale of [0, 255]; the network sees (frame - mean) / std.
        size: (height, width) that the weights were trained for or the graph was exported at.
        precision: one of `PRECISIONS`.
        weights_sha256: of the weights file an exported graph came from; "" in the weights themselves.
        details: facts for people: recipe, figures, commit, tool versions.
    """

    classes: ClassList
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    precision: str = "fp32"
    weights_sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std}, expected finite numbers, std above 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r:.40}, expected one of {', '.join(PRECISIONS)}")
        if not re.fullmatch("([0-9a-f]{64})?", self.weights_sha256):
            raise InputError(f"weights_sha256 {self.weights_sha256!r:.80}, expected 64 hex digits, or none")
        check_size(self.size)

    @property
    def layout(self) -> str:
        """Of an int8 graph, whose kernels it was made for: "all", or "ort"; else ""."""
        calibration = self.details.get("calibration")
        if not isinstance(calibration, dict):
            return ""
        return "ort" if calibration.get("target") == "ort" else "all"

    def to_text(self) -> str:
        return json.dumps(
            {
                "schema": SCHEMA,
                "classes": self.classes.to_json(),
                "mean": self.mean,
                "std": self.std,
                "size": self.size,
                "precision": self.precision,
                "weights_sha256": self.weights_sha256,
                "details": self.details,
            },
            sort_keys=True,
        )

    @classmethod
    def from_text(cls, text: str | None, source: str | Path) -> Metadata:
        """The inverse of `to_text`. Raises ArtifactError, naming `source`, where `text` is not of that form."""
        if text is None:
            raise ArtifactError(
                f"{source} carries no '{METADATA_KEY}' metadata (classes, mean, std, size); expected a file written "
                "by enet-train or enet-export"
            )
        try:
            value = json.loads(text)
            if value["schema"] != SCHEMA:
                raise ArtifactError(
                    f"{source} has metadata of schema {value['schema']!r}, expected {SCHEMA}; make it again with "
                    "this version of enet_deploy"
                )
            return cls(
                classes=ClassList.from_json(value["classes"]),
                mean=_triple(value["mean"]),
                std=_triple(value["std"]),
                size=(int(value["size"][0]), int(value["size"][1])),
                precision=str(value["precision"]),
                weights_sha256=str(value["weights_sha256"]),
                details=dict(value["details"]),
            )
        except (InputError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{source} has damaged '{METADATA_KEY}' metadata: {error!r}; export it again") from None


def graph_metadata(model: Any, source: str | Path) -> Metadata:
    """What an onnx.ModelProto says about itself. Raises ArtifactError, naming `source`, where it does not."""
    return Metadata.from_text({p.key: p.value for p in model.metadata_props}.get(METADATA_KEY), source)


def set_graph_metadata(model: Any, metadata: Metadata) -> None:
    """Let an onnx.ModelProto say this about itself, and nothing else."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())


def _triple(values: Any) -> tuple[float, float, float]:
    b, g, r = values
    return float(b), float(g), float(r)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    return _digest(Path(path).read_bytes())


def _digest(content: bytes) -> str:
    import hashlib  # here, as are others below: a robot imports this file, most often for nothing of the kind

    return hashlib.sha256(content).hexdigest()


def commit() -> str:
    """The checkout's commit, for the record; "unknown" where this is no checkout of its own, or git is not there."""
    import subprocess

    here = Path(__file__).parent
    try:
        root = _git(here, "rev-parse", "--show-toplevel")
        if Path(root) != here.parent:  # installed somewhere inside another project's checkout
            return "unknown"
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return _git(here, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    import subprocess

    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and vanishes when it does not.

    A reader of `path` sees the old file or the whole new one, also after a crash or a full disk. Where `path` is a
    link, the file it points to is replaced.
    Raises ArtifactError where the folder cannot be written, or `path` is there and no ordinary file.
    """
    import secrets

    path = _replaceable(path)
    # A name with a dot in front: should a crash leave it behind, no data set takes it for one of its files
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; choose a folder that can be written") from None
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; free space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Raise ArtifactError where `replacing` could not write `path`: for before the long work, not after it."""
    import tempfile

    if str(path) == "-":
        raise ArtifactError("cannot write -: standard output has the text already; name a file")
    path = _replaceable(path)
    folder = next(parent for parent in path.parents if parent.exists())
    try:  # asking for the permission is not enough: the superuser has it where nothing can be written
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise ArtifactError(f"cannot write {path}: {folder} is no folder that can be written; choose another") from None


def _replaceable(path: str | Path) -> Path:
    """The file itself where `path` is a link. Raises ArtifactError where it is there and no ordinary file."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise ArtifactError(f"cannot write {path}: it is a folder or a device; name an ordinary file")
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, for two files that belong together; `path` is a file or a folder that is there.

    Where there are no such locks (Windows, some network file systems) nothing is held.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(path, os.O_RDONLY)
            held.callback(os.close, descriptor)  # which lets go, as a crash does
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def write_json(path: str | Path, value: Any) -> None:
    """Write `value`, whole or not at all, indented for people. Raises ArtifactError where that fails."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


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
            value = json.loads(path.read_text(encoding="utf-8"))
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
        if _digest(content) != card.engine_sha256:
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
