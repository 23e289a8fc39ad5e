"""The state of a run on disk: `checkpoint.pt`, all that is needed to resume it to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import Metadata, require_file
from ..data import DataSet, read_ahead
from ..errors import ArtifactError
from ..files import atomic_write
from ..images import read_content
from ..model import ENet
from .objective import Objective
from .recipe import Recipe

CHECKPOINT = "checkpoint.pt"  # in a run's folder


@dataclass(frozen=True)
class RunIdentity:
    """The properties that must be the same when a run is resumed, in words for an error message.

    Attributes:
        classes: names, in order.
        images: number of training images, and a hash over the content of all images and label maps, in order. So the
            data set may be moved or renamed.
        void: the label of pixels without a class.
        label_values: hash of the classes' values in label maps.
        processes: number of processes that train together.
        teacher: sha256 of the teacher's weights; None without a teacher.
    """

    classes: str
    images: str
    void: int
    label_values: str
    processes: int
    teacher: str | None

    @classmethod
    def of(cls, train: DataSet, val: DataSet, processes: int, teacher: str | None) -> RunIdentity:
        files = [path for data in (train, val) for pair in data.pairs for path in pair]
        contents = read_ahead(lambda index: hashlib.sha256(read_content(files[index])).digest(), range(len(files)))
        return cls(
            ", ".join(train.classes.names),
            f"{len(train)} ({_short_hash(b''.join(contents))})",
            train.classes.void,
            _short_hash(repr(sorted(train.values_in_use().items())).encode()),
            processes,
            teacher,
        )

    def __post_init__(self) -> None:
        kinds = {"classes": str, "images": str, "void": int, "label_values": str, "processes": int}
        for name, kind in (kinds | {"teacher": (str, type(None))}).items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} {getattr(self, name)!r:.60}")

    def require_same(self, other: RunIdentity, out: Path) -> None:
        """Raise ArtifactError if the run in folder `out`, which is `other`, cannot be resumed as this one."""
        for what, name in (
            ("classes", "classes"),
            ("training images", "images"),
            ("label of void", "void"),
            ("values of classes in label maps, by hash", "label_values"),
            ("processes", "processes"),
            ("--teacher of sha256", "teacher"),
        ):
            if getattr(self, name) != getattr(other, name):
                raise ArtifactError(
                    f"{out / CHECKPOINT} was made with the {what} {getattr(other, name)}, these are "
                    f"{getattr(self, name)}; use the same, or another --out"
                )


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of an epoch.

    Attributes:
        metadata: of the weights, with the normalisation that the run uses.
        epoch, step: that are done.
        best: highest val mIoU so far; -1 before the first evaluation.
        history: figures by epoch, as in log.csv.
        class_weights: (C,) float32, on the CPU.
        net, ema, optimizer: state dicts; `ema` is None if the recipe has no average.
    """

    recipe: Recipe
    metadata: Metadata
    identity: RunIdentity
    epoch: int
    step: int
    best: float
    history: list[dict[str, float]]
    class_weights: Tensor
    net: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]

    def write(self, out: Path) -> None:
        """Write the file in the folder `out`, whole or not at all."""
        # not dataclasses.asdict as a whole: it would copy every tensor
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        state |= {
            "recipe": dataclasses.asdict(self.recipe),
            "metadata": self.metadata.to_text(),
            "identity": dataclasses.asdict(self.identity),
        }
        content = io.BytesIO()  # if these bytes do not fit on the disk, that is an OSError as everywhere else
        torch.save(state, content)
        with atomic_write(out / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    @classmethod
    def read(cls, out: str | Path) -> Checkpoint:
        """Read the state that a run left in the folder `out`. Runs no code from the file.

        Raises ArtifactError if there is none, or if it is damaged or of another version.
        """
        path = Path(out) / CHECKPOINT
        require_file(path, "the state of a run to resume; leave out --resume")
        with reading(Path(out)):
            with zipfile.ZipFile(path) as archive:  # torch.load does not check the sums in it
                damaged = archive.testzip()
            _require(damaged is None, "checksum of", damaged)
            state = torch.load(path, map_location="cpu", weights_only=True)
            state |= {
                "recipe": read_recipe(state["recipe"]),
                "metadata": Metadata.from_text(state["metadata"], path),
                "identity": RunIdentity(**state["identity"]),
            }
            checkpoint = cls(**state)
            checkpoint._require_sound()
            return checkpoint

    def _require_sound(self) -> None:
        """Raise ValueError unless each field has the type, the shape and the range that it should have.

        The optimizer's state is checked by `fitting_state`, when there is an optimizer.
        """
        recipe, classes = self.recipe, len(self.metadata.classes)
        _require(type(self.epoch) is int and 0 <= self.epoch <= recipe.epochs, "epoch", self.epoch)
        _require(type(self.step) is int and self.step >= 0, "step", self.step)
        _require(type(self.best) in (int, float) and -1 <= self.best <= 1, "best", self.best)
        _require(self.metadata.size == recipe.size, "size of the metadata", self.metadata.size)
        _require(type(self.history) is list and len(self.history) == self.epoch, "history", self.history)
        for number, row in enumerate(self.history, 1):
            _require(type(row) is dict and {"epoch", "loss", "lr", "seconds"} <= row.keys(), "history", row)
            figures = all(type(k) is str and type(v) in (int, float) for k, v in row.items())
            _require(figures and row["epoch"] == number, "history", row)
            _require(all(map(math.isfinite, row.values())), "history", row)
        _require_tensors({"class_weights": self.class_weights}, {"class_weights": torch.empty(classes)})
        with torch.device("meta"):  # names, shapes and types alone: a width in the file is not to take all memory
            objective = Objective(ENet(classes, recipe.width, recipe.slopes), recipe, self.metadata.classes.void)
        _require_tensors(self.net, objective.state_dict())
        _require((self.ema is not None) == (recipe.ema > 0), "ema", type(self.ema))
        if self.ema is not None:
            _require_tensors(self.ema, objective.net.state_dict())


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from its fields. Raises TypeError for a value of another type, and InputError as `Recipe`."""
    default = Recipe()
    for name, value in values.items():
        _require_alike(name, value, getattr(default, name))
    return Recipe(**values)


def _require_alike(name: str, value: object, example: object) -> None:
    """Raise TypeError unless a value is of its example's type; an integer may stand for a float."""
    kinds = (int, float) if type(example) is float else (type(example),)
    if type(value) not in kinds:
        raise TypeError(f"{name} {value!r:.60}, expected {kinds[-1].__name__}")
    if isinstance(value, tuple) and isinstance(example, tuple):
        for part, of_example in zip(value, example, strict=True):
            _require_alike(name, part, of_example)


def fitting_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The state of a checkpoint's optimizer, in a form that `optimizer.load_state_dict` takes.

    The settings stay those of `optimizer`. The tensors are copies with the shape and the memory layout of the
    parameters: the fused kernels read and write without checking either. Raises ValueError if they do not fit.
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in own["param_groups"] for number in group["params"]]
    states = saved["state"]
    _require(type(states) is dict, "optimizer", states)
    _require(states.keys() == ({*numbers} if step else set()), "optimizer", [*states][:5])
    fitting: dict[int, dict[str, Tensor]] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in states:
            likeness = parameter.detach()
            expected = {"step": torch.empty(()), "exp_avg": likeness, "exp_avg_sq": likeness}
            _require_tensors(states[number], expected)
            _require(float(states[number]["step"]) == step, "step of the optimizer", states[number]["step"])
            _require(bool((states[number]["exp_avg_sq"] >= 0).all()), "exp_avg_sq", "below 0")
            fitting[number] = {
                name: torch.empty_like(like, device="cpu").copy_(states[number][name])
                for name, like in expected.items()
            }
    return {"state": fitting, "param_groups": own["param_groups"]}


def _require_tensors(values: object, expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless these are plain finite tensors with the names, shapes and types that are expected."""
    if not isinstance(values, dict) or values.keys() != expected.keys():
        names = [*values] if isinstance(values, dict) else values
        raise ValueError(f"tensors {names!r:.60}, expected {[*expected]!r:.60}")
    for name, like in expected.items():
        value = values[name]
        _require(type(value) is Tensor and value.layout is torch.strided and value.is_cpu, name, type(value))
        _require(value.shape == like.shape, f"shape of {name}", tuple(value.shape))
        _require(value.dtype is like.dtype, f"type of {name}", value.dtype)
        _require(bool(value.isfinite().all()), name, "not finite")


def _require(is_right: bool, name: str, value: object) -> None:
    if not is_right:
        raise ValueError(f"{name} {value!r:.60}")


@contextlib.contextmanager
def reading(out: Path) -> Iterator[None]:
    """Turn any error of the block, which reads or uses a checkpoint, into an ArtifactError: the file is damaged."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # noqa: BLE001  torch.load raises whatever the bytes lead it to
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ArtifactError(
            f"{out / CHECKPOINT} is not a whole checkpoint of this version ({why}); start again with another --out"
        ) from None
