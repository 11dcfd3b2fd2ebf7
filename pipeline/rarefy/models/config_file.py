"""Checks the values of a model folder's ``config.json``. Every error names the key, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import posixpath
import re
import typing
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from rarefy.errors import ManifestError, bad, hint
from rarefy.fields import check_integer
from rarefy.models.config import GROUPS, NetworkConfig, NetworkSpec, OtherNetwork

Json = Mapping[str, Any]

KINDS = "adm, diffusers or an import path such as 'mypackage.module:build'"
_KIND = re.compile(r"adm|diffusers|[\w.]+:\w+")
PREDICTIONS = ("eps", "v", "sample")
ROLES = ("unet", "classifier", "judge", "reference", "held_out")
LARGEST = 2**31 - 1


def check_keys(table: Json, field: str, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise ManifestError for a missing or an unknown key."""
    known = [*required, *optional]
    for key in table:
        if key not in known:
            raise ManifestError(bad("key", f"{field}{key}", f"a key of config.json ({hint(key, known)})"))
    for key in required:
        if key not in table:
            raise ManifestError(f"{field}{key}: this key is missing")


def read_object(value: object, field: str) -> Json:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ManifestError(bad(field, value, "a JSON object"))
    return value


def read_text(value: object, field: str) -> str:
    """A string; it may be empty."""
    if not isinstance(value, str):
        raise ManifestError(bad(field, value, "a string"))
    return value


def read_number(value: object, field: str, low: float, high: float) -> float:
    """A number from low to high, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ManifestError(bad(field, value, f"a number from {low:g} to {high:g}"))
    return value


def read_names(value: object, field: str) -> tuple[str, ...]:
    """A list of non-empty strings that differ by more than case."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise ManifestError(bad(field, _short(value), "a list of non-empty strings"))
    seen: dict[str, str] = {}
    for name in value:
        folded = name.strip().casefold()
        if folded in seen:
            raise ManifestError(bad(field, name, f"a new name: it equals {seen[folded]!r}, apart from case and spaces"))
        seen[folded] = name
    return tuple(value)


def read_beta_range(value: object, field: str) -> tuple[float, float]:
    """The first and last beta of a schedule, 0 < first <= last < 1."""
    if isinstance(value, list) and len(value) == 2 and all(type(beta) in (int, float) for beta in value):
        first, last = value
        if 0 < first <= last < 1:
            return first, last
    raise ManifestError(bad(field, value, "[first, last] with 0 < first <= last < 1"))


def read_files(value: object, field: str, depth: int) -> dict[str, str]:
    """File names by role. depth: by how many levels they may leave the folder."""
    table = read_object(value, field)
    check_keys(table, f"{field}.", (), ROLES)
    for role, name in table.items():
        path = posixpath.normpath(read_text(name, f"{field}.{role}"))
        parts = PurePosixPath(path).parts
        if not name or parts[:1] in ((), ("/",)) or "\\" in name or parts.count("..") > depth:
            raise ManifestError(bad(f"{field}.{role}", name, "the name of a file in this folder"))
    return dict(table)


def read_network(value: object, field: str) -> NetworkSpec:
    """The description of a network. Lists become tuples."""
    table = read_object(value, field)
    kind = table.get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ManifestError(bad(f"{field}.kind", kind, KINDS))
    values = {key: item for key, item in table.items() if key != "kind"}
    if kind != NetworkConfig.kind:
        return _other_network(kind, values, field)
    fields = dataclasses.fields(NetworkConfig)
    required = [each.name for each in fields if each.default is dataclasses.MISSING]
    check_keys(values, f"{field}.", required, [each.name for each in fields if each.name not in required])
    hints = typing.get_type_hints(NetworkConfig)
    typed: dict[str, Any] = {key: _typed(item, hints[key], f"{field}.{key}") for key, item in values.items()}
    try:
        network = NetworkConfig(**typed)
        _check_widths(network)
    except ValueError as error:
        raise ManifestError(f"{field}.{error}") from None
    return network


def _check_widths(network: NetworkConfig) -> None:
    """Group normalisation and attention divide the channels of every level. Raises ManifestError."""
    if not network.channel_mult:
        raise ManifestError(bad("channel_mult", [], "a list with one factor per level"))
    heads = network.num_head_channels
    if heads == 0 or (heads < 0 and network.num_heads < 1):
        raise ManifestError(bad("num_head_channels", heads, "a positive integer, or -1 with a positive num_heads"))
    for mult in network.channel_mult:
        channels = int(mult * network.model_channels)
        if channels % GROUPS:
            raise ManifestError(bad("model_channels", network.model_channels, f"times {mult:g} a multiple of {GROUPS}"))
        if channels % (heads if heads > 0 else network.num_heads):
            name = "num_head_channels" if heads > 0 else "num_heads"
            raise ManifestError(bad(name, getattr(network, name), f"a divisor of {channels}, the channels of a level"))


def _other_network(kind: str, values: Json, field: str) -> OtherNetwork:
    sizes = ("image_size", "in_channels", "out_channels")
    check_keys(values, f"{field}.", sizes, ("num_classes", "options"))
    for key in sizes:
        check_integer(values[key], f"{field}.{key}", 1, LARGEST)
    if values.get("num_classes") is not None:
        check_integer(values["num_classes"], f"{field}.num_classes", 1, LARGEST)
    read_object(values.get("options", {}), f"{field}.options")
    return OtherNetwork(kind, **values)


def _typed(value: object, hint: object, field: str) -> object:
    """Check a value of ``NetworkConfig`` against the field's annotation."""
    if hint is bool and not isinstance(value, bool):
        raise ManifestError(bad(field, value, "true or false"))
    if hint is str:
        read_text(value, field)
    if hint is float:
        read_number(value, field, 0, 1)  # dropout
    if hint is int:
        # -1 stands for "not used" in the keys that count heads.
        check_integer(value, field, -1 if "num_head" in field else 1, LARGEST)
    if hint == int | None and value is not None:
        check_integer(value, field, 1, LARGEST)
    if typing.get_origin(hint) is tuple:
        whole = typing.get_args(hint)[0] is int
        if not isinstance(value, list) or not all(_positive(item, whole) for item in value):
            raise ManifestError(bad(field, value, f"a list of positive {'integers' if whole else 'numbers'}"))
        return tuple(value)
    return value


def _positive(value: object, whole: bool) -> bool:
    allowed = int if whole else int | float
    return isinstance(value, allowed) and not isinstance(value, bool) and 0 < value <= LARGEST


def _short(value: object) -> object:
    text = repr(value)
    return value if len(text) <= 200 else f"{text[:200]} ..."
