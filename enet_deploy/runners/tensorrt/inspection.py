"""In which precision the layers of an engine compute, by TensorRT's own inspector."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ...errors import ParityError
from .library import load_engine, tensor_type

# Types as the inspector spells them, alone or inside a text such as "Channel major FP16 format where channel % 8 == 0"
_PRECISIONS = {
    **dict.fromkeys(("float", "fp32"), "fp32"),
    **dict.fromkeys(("half", "fp16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
    **{name: name for name in ("fp8", "int8")},
}
_TYPE = re.compile(rf"\b({'|'.join(_PRECISIONS)})\b", re.IGNORECASE)  # not UInt8, which is the type of frames

# Layers that only move or convert data do not count: the network does not compute in them
_MOVING_LAYERS = {"reformat", "shuffle", "constant", "noop", "slice", "concatenation", "cast", "signal", "wait"}
# Generated kernels are named after their operations, four letters each: __myl_MoveReshTran_myl3_7
_MOVING_KERNEL = re.compile(r"__myl_(Move|Resh|Tran|Repl|Conc|Slic|Cast|Iota|Quan|Dequ)+(_|$)")


def precision_shares(inspected: str) -> dict[str, float] | None:
    """Return the share of the computing layers in each precision, largest first, from the inspector's JSON.

    As in NVIDIA's tools, a layer has the precision of its first typed input, or output if no input is typed. None if
    the inspector reports no types.
    """
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    computing = [layer for layer in layers if isinstance(layer, dict) and not _moves_data(layer)]
    counts = Counter(precision for layer in computing if (precision := _precision(layer)))
    return {name: round(count / counts.total(), 4) for name, count in counts.most_common()} or None


def _moves_data(layer: dict[str, Any]) -> bool:
    kind, name = str(layer.get("LayerType", "")).lower(), str(layer.get("Name", ""))
    return kind in _MOVING_LAYERS or _MOVING_KERNEL.match(name) is not None


def _precision(layer: dict[str, Any]) -> str | None:
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        if match := _TYPE.search(tensor_type(tensor)):
            return _PRECISIONS[match[1].lower()]
    return None


def inspect(trt: Any, engine: bytes, *, host_code: bool) -> str:
    """Return the inspector's JSON for a new engine. Raises BackendError if the engine does not load.

    Args:
        host_code: as for `load_engine`.
    """
    loaded = load_engine(trt, engine, host_code=host_code)
    inspector = loaded.create_engine_inspector()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    inputs = [name for name in names if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    dynamic = [name for name in inputs if -1 in tuple(loaded.get_tensor_shape(name))]
    if dynamic:  # without a shape, types are reported as "N/A due to dynamic shapes"
        context = loaded.create_execution_context()
        for name in dynamic:
            context.set_input_shape(name, loaded.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text


def require_precision(asked: str, shares: dict[str, float] | None, path: str | Path) -> None:
    """Raise ParityError if the graph asks for a precision in which no layer computes; "fp16-int8" asks for two.

    Raise it also if half of the layers of an fp16 graph compute in fp32: by design only a few do.
    """
    if shares is None:
        return
    precisions = asked.split("-")
    wrong = [f"no layer of {path} computes in {name}" for name in precisions if name not in {"fp32", *shares}]
    if "fp16" in precisions and shares.get("fp32", 0.0) >= 0.5:
        wrong.append(f"{shares['fp32']:.0%} of the layers of {path} compute in fp32, expected under half")
    if wrong:
        actual = ", ".join(f"{share:.0%} in {name}" for name, share in shares.items())
        raise ParityError(
            f"asked for {asked}, and {wrong[0]}: {actual}; nothing was written. Export the graph again with "
            "enet-export, or build the engine of the fp32 graph"
        )
