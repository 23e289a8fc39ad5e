"""Which layers suffer from int8: one layer quantised at a time, and the worst left in float until a budget holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from enet_deploy.errors import ArtifactError, ParityError
from enet_deploy.export.int8 import insert_pairs, layers, quantize, quantized_layers
from enet_deploy.export.record import Record
from enet_deploy.files import atomic_write, parse_json, write_json
from enet_deploy.plots import new_figure, save_figure

from .scoring import Judge, Score

SCHEMA = 1


@dataclass(frozen=True)
class Damage:
    """What quantising one layer alone does: `drop` in points of the measure, `snr` of the logits in dB."""

    layer: str
    drop: float
    snr: float


def measure_damage(
    model: onnx.ModelProto,
    record: Record,
    judge: Judge,
    state: str | Path,
    progress: Callable[[Sequence[str], str], Iterable[str]] = lambda names, _: names,
) -> list[Damage]:
    """Quantise each layer alone, also those that stay float by default; worst first.

    Args:
        model: the float graph.
        state: JSON file that is written after each layer, and read first: a run that was cut short goes on.
    """
    key = hashlib.sha256(
        json.dumps([record.weights_sha256, record.ranges, judge.measure, judge.sha256]).encode()
    ).hexdigest()
    done = _read_state(Path(state), key)
    for name in progress(list(layers(model.graph)), "layers"):
        if name in done:
            continue
        one = onnx.ModelProto()
        one.CopyFrom(model)
        insert_pairs(one.graph, [layers(one.graph)[name]], record.ranges)
        score = judge.score(one, name)
        done[name] = Damage(name, judge.drop(score), min(score.snr, 200.0))
        write_json(
            state,
            {
                "schema": SCHEMA,
                "key": key,
                "measure": judge.measure,
                "layers": [*map(dataclasses.asdict, done.values())],
            },
        )
    return ranked(done.values())


def ranked(damages: Iterable[Damage]) -> list[Damage]:
    """Worst first: by the points lost, and where these are the same, by the noise in the logits."""
    return sorted(damages, key=lambda damage: (-damage.drop, damage.snr))


def _read_state(path: Path, key: str) -> dict[str, Damage]:
    """What an earlier run of the same study found; nothing where there was none, or it was another study."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        found = [Damage(str(entry["layer"]), float(entry["drop"]), float(entry["snr"])) for entry in value["layers"]]
        same = value["key"] == key
    except FileNotFoundError:
        return {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no sensitivity study: {error!r}; remove it, or name another folder") from None
    return {damage.layer: damage for damage in found} if same else {}


def keep_budget(
    model: onnx.ModelProto,
    record: Record,
    score: Score,
    judge: Judge,
    damages: Callable[[], list[Damage]],
    max_drop: float,
) -> tuple[Record, Score]:
    """Leave the worst layers in float, one more at a time, until int8 costs at most `max_drop` points.

    Args:
        score: of `record` as it is.
        damages: gives the layers, worst first; asked only where the budget does not hold.

    Raises ParityError where it does not hold whatever is left in float.
    """
    if judge.drop(score) <= max_drop:
        return record, score
    for damage in damages():
        if damage.layer not in quantized_layers(model.graph, record.float_layers):
            continue
        before = judge.drop(score)
        trial = dataclasses.replace(record, float_layers={**record.float_layers, damage.layer: ""})
        if not quantized_layers(model.graph, trial.float_layers):
            break
        score = judge.score(quantize(model, trial), f"without {damage.layer}")
        why = (
            f"alone in int8 it costs {damage.drop:.2f} points of {judge.measure} (logits at {damage.snr:.1f} dB); "
            f"with it in float int8 costs {judge.drop(score):.2f} instead of {before:.2f}"
        )
        record = dataclasses.replace(record, float_layers={**record.float_layers, damage.layer: why})
        if judge.drop(score) <= max_drop:
            return record, score
    raise ParityError(
        f"int8 costs {judge.drop(score):.2f} points of {judge.measure}, expected at most {max_drop:g}, also with "
        "all but one layer in float; calibrate with more --images or another --method, or allow a larger --max-drop"
    )


def write_table(path: str | Path, damages: Sequence[Damage], in_int8: Collection[str], measure: str) -> None:
    """A Markdown table, worst first; `in_int8` are the layers that the record quantises."""
    lines = [f"| layer, alone in int8 | {measure}, points | logits, dB | in the record |", "|---|---|---|---|"]
    lines += [
        f"| {d.layer} | {-d.drop:+.3f} | {d.snr:.1f} | {'int8' if d.layer in in_int8 else 'float'} |" for d in damages
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_plot(
    path: str | Path, damages: Sequence[Damage], order: Sequence[str], in_int8: Collection[str], measure: str
) -> None:
    """Two bars per layer, in the `order` of the network, as a picture (PNG or SVG, by the suffix)."""
    by_name = {damage.layer: damage for damage in damages}
    shown = [by_name[name] for name in order]
    colors = ["tab:blue" if damage.layer in in_int8 else "tab:gray" for damage in shown]
    figure = new_figure(9, 0.16 * len(shown) + 1.2)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(shown))
    left.barh(rows, [damage.drop for damage in shown], color=colors)
    left.set_xlabel(f"{measure}, points lost")
    right.barh(rows, [damage.snr for damage in shown], color=colors)
    right.set_xlabel("logits, signal to noise in dB (higher is better)")
    left.set_yticks(rows, [damage.layer for damage in shown], fontsize=7)
    left.set_ylim(len(shown) - 0.5, -0.5)
    figure.suptitle("One layer in int8 at a time; grey stays float", fontsize=10)
    save_figure(figure, path)
