"""The node's parameters: defaults, ranges, and which may change while it runs."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from enet_deploy import BACKENDS, InputError

_RELIABILITY = ("auto", "reliable", "best_effort")
_TRANSPORTS = ("raw", "compressed")

# name -> (default, description, range or choices, whether it may change while the node runs)
_PARAMETERS: dict[str, tuple[Any, str, tuple[Any, ...], bool]] = {
    "artifact": ("", "weights, a graph (.onnx) or an engine", (), False),
    "backend": ("", "by default the fastest that is installed", ("", *BACKENDS), False),
    "device": ("", "cpu, cuda or cuda:N; by default the backend's own", (), False),
    "image_transport": ("raw", "compressed subscribes to ~/image/compressed", _TRANSPORTS, False),
    "reliability": ("auto", "of the subscription; auto is the camera's own", _RELIABILITY, False),
    "depth": (1, "images that wait; with 1 a newer one replaces it", (1, 1000), False),
    "alpha": (0.5, "share of the colours in ~/overlay", (0.0, 1.0), True),
    "dark_level": (10.0, "mean grey level below which /diagnostics warns", (0.0, 255.0), True),
    "frozen_after": (5.0, "seconds of the same picture until /diagnostics warns; 0: never", (0.0, 3600.0), True),
    "stale_after": (2.0, "seconds without an image until /diagnostics tells an error", (0.1, 3600.0), True),
}


def declare(node: Node) -> dict[str, Any]:
    """Declare all parameters and return their values. Raises InputError for a value that is none of them."""
    values = {name: _declare(node, name, *entry) for name, entry in _PARAMETERS.items()}
    if not values["artifact"]:
        raise InputError("parameter artifact is empty, expected a file: --ros-args -p artifact:=/path/enet-fp32.onnx")
    return values


def _declare(node: Node, name: str, default: Any, description: str, allowed: tuple[Any, ...], is_live: bool) -> Any:
    descriptor = ParameterDescriptor(description=description, read_only=not is_live)
    if isinstance(default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=allowed[0], to_value=allowed[1])]
        expected = f"a number with a point from {allowed[0]} to {allowed[1]}"
    elif isinstance(default, int):
        descriptor.integer_range = [IntegerRange(from_value=allowed[0], to_value=allowed[1])]
        expected = f"a whole number from {allowed[0]} to {allowed[1]}"
    else:
        expected = " or ".join(map(repr, allowed)) or "text"
        descriptor.additional_constraints = f"expected {expected}"
    try:
        value = node.declare_parameter(name, default, descriptor).value
    except (InvalidParameterTypeException, InvalidParameterValueException):
        given = node._parameter_overrides[name].value
        raise InputError(f"parameter {name} is {given!r}, expected {expected}") from None
    if isinstance(default, str) and allowed and value not in allowed:
        raise InputError(f"parameter {name} is {value!r}, expected {expected}")
    return value
