"""A network's table in ``train.toml``: NetworkConfig's keys, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, get_choice, get_flag, get_integer, get_match, get_number, known_keys
from rarefy.models.config import POOLS, NetworkConfig
from rarefy.models.networks import build_classifier, build_unet

DERIVED = ("image_size", "in_channels", "out_channels", "num_classes")


def read_network(table: Table, name: str, derived: dict[str, int | None]) -> NetworkConfig:
    """A network's table with NetworkConfig's keys, apart from those that the project gives. Raises ManifestError."""
    known_keys(table, name, ["kind", *(field.name for field in dataclasses.fields(NetworkConfig))])
    for key in DERIVED:
        if key in table and table[key] != derived[key]:
            raise ManifestError(bad(f"{name}.{key}", table[key], f"{derived[key]}, as the rest of the file has it"))
    get_match(table, f"{name}.kind", NetworkConfig.kind, f"{NetworkConfig.kind}, the kind that rarefy trains", "adm")
    try:
        config = NetworkConfig(**derived, **_shape_keys(table, name))  # type: ignore[arg-type]
        build: Callable[[NetworkConfig], object] = build_unet if name == "unet" else build_classifier
        with torch.device("meta"):  # without memory, to find what does not fit together
            build(config)
    except ValueError as error:
        raise error if isinstance(error, ManifestError) else ManifestError(f"{name}: {error}") from error
    return config


def _shape_keys(table: Table, name: str) -> dict[str, object]:
    def count(key: str, low: int, default: int | None = None) -> int:
        return get_integer(table, f"{name}.{key}", low, 65_536, default)

    def flag(key: str, default: bool) -> bool:
        return get_flag(table, f"{name}.{key}", default)

    values = {
        "model_channels": count("model_channels", 1),
        "num_res_blocks": count("num_res_blocks", 1),
        "attention_resolutions": _numbers(table, f"{name}.attention_resolutions", int),
        "channel_mult": _numbers(table, f"{name}.channel_mult", float),
        "dropout": get_number(table, f"{name}.dropout", 0, 0.99, 0.0),
        "num_heads": count("num_heads", 1, 1),
        "num_head_channels": count("num_head_channels", -1, -1),
        "num_heads_upsample": count("num_heads_upsample", -1, -1),
        "use_scale_shift_norm": flag("use_scale_shift_norm", True),
        "resblock_updown": flag("resblock_updown", True),
        "conv_resample": flag("conv_resample", True),
        "use_new_attention_order": flag("use_new_attention_order", False),
        "pool": get_choice(table, f"{name}.pool", POOLS, "attention"),
    }
    pooled = name != "unet" and values["pool"] == "attention"
    if values["num_head_channels"] == 0 or (pooled and values["num_head_channels"] == -1):
        allowed = "the number of channels per attention head, such as 32"
        raise ManifestError(bad(f"{name}.num_head_channels", values["num_head_channels"], allowed))
    return values


def _numbers(table: Table, field: str, kind: type) -> tuple[float, ...]:
    """A list of positive numbers. kind: int for whole ones only."""
    values = table.get(field.rsplit(".", 1)[-1])
    allowed = (int,) if kind is int else (int, float)
    good = isinstance(values, list) and all(type(value) in allowed and value > 0 for value in values)
    if not good or (kind is float and not values):
        raise ManifestError(bad(field, values, f"a list of positive {'integers' if kind is int else 'numbers'}"))
    assert isinstance(values, list)
    return tuple(values)
