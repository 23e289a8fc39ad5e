"""Frozen dataclasses to JSON and back. Reading checks every value, so that what was read can be used without guards."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

JSON_NAME = "json name"  # of a field's metadata; None: the field is derived and not in the JSON
LATER: dict[str, Any] = {"later": True}  # metadata of a field that older files lack: left out if it has its default
LARGEST = 1e15  # of a number: squares and sums of such numbers are still finite


def to_json(value: Any) -> Any:
    """A dataclass instance, or a container of them, as what `json.dumps` takes. Fields keep their order."""
    if is_dataclass(value):
        stored = ((each, name, getattr(value, each.name)) for each, name in _stored(type(value)))
        return {name: to_json(own) for each, name, own in stored if not (_is_later(each) and own == each.default)}
    if isinstance(value, Mapping):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[T], value: Any) -> T:
    """An instance of a dataclass from its JSON; keys without a field are ignored.

    Raises ValueError that names the first value that is missing or not of its field's type.
    """
    instance: T = _read(kind, value, "")
    return instance


def _stored(kind: Any) -> list[tuple[Field[Any], str]]:
    """The fields in the JSON, each with its name there."""
    named = ((each, each.metadata.get(JSON_NAME, each.name)) for each in fields(kind))
    return [(each, name) for each, name in named if name is not None]


def _is_later(field: Field[Any]) -> bool:
    return "later" in field.metadata


_hints = cache(typing.get_type_hints)


def _read(kind: Any, value: Any, place: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_dataclass(kind, value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # X | None is the only union here
        return None if value is None else _read(arguments[0], value, place)
    if origin is dict:
        _require(isinstance(value, dict), value, "an object", place)
        return {key: _read(arguments[1], each, f"{place}.{key}") for key, each in value.items()}
    if origin is tuple:
        return _read_tuple(arguments, value, place)
    if kind in (int, float):
        number = isinstance(value, kind | int) and not isinstance(value, bool)
        _require(number and math.isfinite(value) and abs(value) <= LARGEST, value, f"a finite {_WORDS[kind]}", place)
        return value
    _require(isinstance(value, kind), value, _WORDS[kind], place)
    return value


_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def _read_dataclass(kind: Any, value: Any, place: str) -> Any:
    _require(isinstance(value, dict), value, "an object", place)
    hints = _hints(kind)
    read = {}
    for field, name in _stored(kind):
        if name not in value:
            if field.default is not MISSING:  # what earlier versions did not measure
                continue
            raise ValueError(f"{place or 'the object'} lacks '{name}'")
        read[field.name] = _read(hints[field.name], value[name], f"{place}.{name}".lstrip("."))
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from None


def _read_tuple(arguments: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    _require(isinstance(value, list), value, "a list", place)
    each = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
    _require(len(value) == len(each), value, f"{len(each)} values", place)
    return tuple(_read(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(each, value, strict=True)))


def _require(holds: bool, value: object, expected: str, place: str) -> None:
    if not holds:
        raise ValueError(f"{place or 'the value'} is {value!r:.40}, expected {expected}")
