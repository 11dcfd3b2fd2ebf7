"""Checks a manifest's values against the types of a term's fields."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from rarefy.errors import ManifestError, bad, one_of
from rarefy.guidance.base import Ramp

TYPES = "bool, int, float, str, Literal, Ramp, tuple[float, float] or tuple[float, ...], each with or without None"


def read_value(value: object, hint: object, field: str) -> object:
    """Convert a TOML value to the type of a field's annotation (see TYPES). Raises ManifestError.

    Numbers must be finite; an integer is accepted for a float; a list becomes a tuple.
    """
    union = get_origin(hint) in (Union, UnionType)
    kinds = set(get_args(hint)) - {NoneType} if union else {hint}
    if kinds == set(get_args(Ramp)):
        return _ramp(value, field)
    kind = kinds.pop() if len(kinds) == 1 else None
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind), field)
    if kind not in _READERS:
        raise ManifestError(bad(field, value, f"of a type that a manifest supports: {hint} is not {TYPES}"))
    return _READERS[kind](value, field)


def _flag(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise ManifestError(bad(field, value, "true or false"))
    return value


def _whole(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ManifestError(bad(field, value, "an integer"))
    return value


def _number(value: object, field: str) -> float:
    if isinstance(value, int | float) and _is_number(value):
        return float(value)
    raise ManifestError(bad(field, value, "a number"))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(bad(field, value, "a string"))
    return value


def _choice(value: object, choices: tuple[object, ...], field: str) -> object:
    if value not in choices:
        raise ManifestError(bad(field, value, one_of(value, [str(choice) for choice in choices])))
    return value


def _numbers(value: object, field: str) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and all(_is_number(item) for item in value):
        return tuple(float(item) for item in value)
    raise ManifestError(bad(field, value, "a list of numbers"))


def _pair(value: object, field: str) -> tuple[float, float]:
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(item) for item in value):
        return float(value[0]), float(value[1])
    raise ManifestError(bad(field, value, "[low, high], two numbers"))


def _ramp(value: object, field: str) -> Ramp:
    if _is_number(value):
        return _number(value, field)
    allowed = "a number or [[time step, value], ...] with ascending time steps"
    if not isinstance(value, list | tuple) or not value:
        raise ManifestError(bad(field, value, allowed))
    pairs = all(isinstance(p, list | tuple) and len(p) == 2 and all(_is_number(item) for item in p) for p in value)
    if not pairs or any(low[0] >= high[0] for low, high in itertools.pairwise(value)):
        raise ManifestError(bad(field, value, allowed))
    return tuple((float(t), float(v)) for t, v in value)


def _is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold."""
    most = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most


_READERS: dict[object, Callable[[object, str], object]] = {
    bool: _flag,
    int: _whole,
    float: _number,
    str: _text,
    tuple[float, ...]: _numbers,
    tuple[float, float]: _pair,
}
