"""Networks of your own: ``kind`` is the import path ``package.module:build`` of the function that builds one."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

from torch import nn

from rarefy.errors import ManifestError, bad
from rarefy.models.config import OtherNetwork
from rarefy.plugins import IMPORT_ERRORS, import_plugin, one_line


def build_own(spec: OtherNetwork, field: str, allow_plugins: bool = False) -> nn.Module:
    """Call the function that ``spec.kind`` names with ``spec.options``. field: for messages, such as ``unet``.

    Raises ManifestError if it may not or cannot be imported (see :mod:`rarefy.plugins`), is not declared to return an
    nn.Module, or refuses the options.
    """
    build = _find(spec.kind, f"{field}.kind", allow_plugins)
    try:
        network = build(**spec.options)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ManifestError(
            bad(f"{field}.options", dict(spec.options), f"accepted by {spec.kind} ({reason})")
        ) from error
    if not isinstance(network, nn.Module):
        raise ManifestError(
            bad(f"{field}.kind", spec.kind, f"a function that returns an nn.Module; it returned {network!r}")
        )
    return network


def _find(path: str, field: str, allow_plugins: bool) -> Callable[..., object]:
    build: Any = import_plugin(path, field, path, allow_plugins)
    try:
        returned = build if isinstance(build, type) else typing.get_type_hints(build).get("return")
    except IMPORT_ERRORS as error:
        raise ManifestError(bad(field, path, f"importable here: {type(error).__name__}: {one_line(error)}")) from error
    # A downloaded folder must not be able to call any function of any installed package, such as os.system.
    if not isinstance(returned, type) or not issubclass(returned, nn.Module):
        raise ManifestError(
            bad(field, path, "a network's class or a function annotated to return one ('-> nn.Module')")
        )
    found: Callable[..., object] = build
    return found
