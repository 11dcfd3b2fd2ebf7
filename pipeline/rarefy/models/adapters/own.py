"""Networks of your own: ``kind`` is the import path ``package.module:build`` of the function that builds one."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable

from torch import nn

from rarefy.errors import ManifestError, bad
from rarefy.models.config import OtherNetwork

# What importing a broken module commonly raises. Other errors keep their traceback, for the module's author.
_IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError, OSError,
                  RuntimeError)  # fmt: skip


def build_own(spec: OtherNetwork, field: str) -> nn.Module:
    """Call the function that ``spec.kind`` names with ``spec.options``. field: for messages, such as ``unet``.

    Raises ManifestError if it cannot be imported, is not declared to return an nn.Module, or refuses the options.
    """
    build = _find(spec.kind, f"{field}.kind")
    try:
        network = build(**spec.options)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {_line(error)}"
        raise ManifestError(
            bad(f"{field}.options", dict(spec.options), f"accepted by {spec.kind} ({reason})")
        ) from error
    if not isinstance(network, nn.Module):
        raise ManifestError(
            bad(f"{field}.kind", spec.kind, f"a function that returns an nn.Module; it returned {network!r}")
        )
    return network


def _find(path: str, field: str) -> Callable[..., object]:
    module, _, attribute = path.partition(":")
    try:
        build: Callable[..., object] = getattr(importlib.import_module(module), attribute)
        returned = build if isinstance(build, type) else typing.get_type_hints(build).get("return")
    except _IMPORT_ERRORS as error:
        raise ManifestError(bad(field, path, f"importable here: {type(error).__name__}: {_line(error)}")) from error
    # A downloaded folder must not be able to call any function of any installed package, such as os.system.
    if not isinstance(returned, type) or not issubclass(returned, nn.Module):
        raise ManifestError(
            bad(field, path, "a network's class or a function annotated to return one ('-> nn.Module')")
        )
    return build


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
