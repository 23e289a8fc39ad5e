"""The sensitivity of each layer to int8, and the choice of layers that must stay in float to keep a budget."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from enet_deploy.artifacts import graph_metadata
from enet_deploy.errors import ArtifactError, ParityError
from enet_deploy.export.int8 import insert_pairs, layers, quantized_copy, quantized_layers
from enet_deploy.files import atomic_write, parse_json, write_json
from enet_deploy.plots import new_figure, save_figure
from enet_deploy.trained_on import in_words

from .scoring import Evaluator, Score

SCHEMA = 1


@dataclass(frozen=True)
class LayerSensitivity:
    """The cost of one layer alone in int8: `drop` in points of the measure, `snr` of the logits in dB."""

    layer: str
    drop: float
    snr: float


def measure_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, float],
    evaluator: Evaluator,
    state: str | Path,
    progress: Callable[[Sequence[str], str], Iterable[str]] = lambda names, _: names,
) -> list[LayerSensitivity]:
    """Quantise each layer alone, including those that stay float by default. Returns the most sensitive layer first.

    Args:
        model: the float graph.
        ranges: tensor -> largest magnitude that int8 represents.
        state: JSON file that is written after each layer. An interrupted study continues from it.
        progress: wraps the names of the layers; called with a title.

    Raises ArtifactError if `state` exists and is no such file.
    """
    weights_sha256 = graph_metadata(model, "the graph").weights_sha256
    study = [weights_sha256, ranges, evaluator.measure, evaluator.sha256]
    key = hashlib.sha256(json.dumps(study).encode()).hexdigest()
    done = _read_state(Path(state), key)
    for name in progress(list(layers(model.graph)), "layers"):
        if name in done:
            continue
        one = onnx.ModelProto()
        one.CopyFrom(model)
        insert_pairs(one.graph, [layers(one.graph)[name]], ranges)
        score = evaluator.score(one, name)
        done[name] = LayerSensitivity(name, evaluator.drop(score), min(score.snr, 200.0))
        write_json(
            state,
            {
                "schema": SCHEMA,
                "key": key,
                "measure": evaluator.measure,
                "layers": [*map(dataclasses.asdict, done.values())],
            },
        )
    return ranked(done.values())


def ranked(sensitivities: Iterable[LayerSensitivity]) -> list[LayerSensitivity]:
    """Sort by points lost, most first; if these are equal, by the noise in the logits."""
    return sorted(sensitivities, key=lambda each: (-each.drop, each.snr))


def _read_state(path: Path, key: str) -> dict[str, LayerSensitivity]:
    """Return the layers that an interrupted run of the same study has measured."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        measured = [
            LayerSensitivity(str(entry["layer"]), float(entry["drop"]), float(entry["snr"]))
            for entry in value["layers"]
        ]
        same = value["key"] == key
    except FileNotFoundError:
        return {}
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no sensitivity study: {error!r}; remove it, or name another folder") from None
    return {each.layer: each for each in measured} if same else {}


def keep_budget(
    model: onnx.ModelProto,
    ranges: dict[str, float],
    float_layers: dict[str, str],
    score: Score,
    evaluator: Evaluator,
    sensitivities: Callable[[], list[LayerSensitivity]],
    max_drop: float,
) -> tuple[dict[str, str], Score]:
    """Leave the most sensitive layers in float, one more at a time, until int8 costs at most `max_drop` points.

    Args:
        float_layers: layers that stay float from the start -> reason.
        score: score with these layers in float.
        sensitivities: returns the layers, most sensitive first; called only if the budget does not hold.

    Returns the layers that stay float -> reason, and the score with them. Raises ParityError if the budget is not kept
    before one layer is left in int8.
    """
    if evaluator.drop(score) <= max_drop:
        return float_layers, score
    for each in sensitivities():
        if each.layer not in quantized_layers(model.graph, float_layers):
            continue
        if not quantized_layers(model.graph, [*float_layers, each.layer]):
            break
        before = evaluator.drop(score)
        score = evaluator.score(quantized_copy(model, ranges, [*float_layers, each.layer]), f"without {each.layer}")
        reason = (
            f"alone in int8 it costs {each.drop:.2f} points of {evaluator.measure} (logits at {each.snr:.1f} dB); "
            f"with it in float int8 costs {evaluator.drop(score):.2f} instead of {before:.2f}"
        )
        float_layers = {**float_layers, each.layer: reason}
        if evaluator.drop(score) <= max_drop:
            return float_layers, score
    raise ParityError(
        f"int8 costs {evaluator.drop(score):.2f} points of {evaluator.measure}, expected at most {max_drop:g}, also "
        "with all but one layer in float; calibrate with more --images or another --method, or allow more --max-drop"
    )


def write_table(
    path: str | Path,
    sensitivities: Sequence[LayerSensitivity],
    in_int8: Collection[str],
    evaluator: Evaluator,
    weights_sha256: str,
) -> None:
    """Write a page in Markdown: what was scored, and a table in the given order.

    Args:
        in_int8: the layers that the record quantises.
        evaluator: what scored them.
        weights_sha256: of the float network.
    """
    measure = evaluator.measure
    lines = [
        "# Int8: each layer alone",
        "",
        f"Of the weights with SHA-256 {weights_sha256[:12]}, on {evaluator.count} images: one layer in int8 at a time, "
        f"against all in float. Change of {measure} in points, and signal-to-noise ratio of the logits in dB; of both, "
        "higher is better.",
        "",
        in_words(evaluator.trained_on, evaluator.count),
        "",
    ]
    lines += [f"| layer, alone in int8 | {measure}, points | logits, dB | in the record |", "|---|---|---|---|"]
    lines += [
        f"| {each.layer} | {-each.drop:+.3f} | {each.snr:.1f} | {'int8' if each.layer in in_int8 else 'float'} |"
        for each in sensitivities
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_plot(
    path: str | Path,
    sensitivities: Sequence[LayerSensitivity],
    order: Sequence[str],
    in_int8: Collection[str],
    measure: str,
) -> None:
    """Draw two bars per layer, in the `order` of the network, as a PNG or SVG picture (by the suffix)."""
    by_name = {each.layer: each for each in sensitivities}
    shown = [by_name[name] for name in order]
    colors = ["tab:blue" if each.layer in in_int8 else "tab:gray" for each in shown]
    figure = new_figure(9, 0.16 * len(shown) + 1.2)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(shown))
    left.barh(rows, [each.drop for each in shown], color=colors)
    left.set_xlabel(f"{measure}, points lost")
    right.barh(rows, [each.snr for each in shown], color=colors)
    right.set_xlabel("logits, signal to noise in dB (higher is better)")
    left.set_yticks(rows, [each.layer for each in shown], fontsize=7)
    left.set_ylim(len(shown) - 0.5, -0.5)
    figure.suptitle("One layer in int8 at a time; grey stays float", fontsize=10)
    save_figure(figure, path)
