"""``model.json`` in a run's folder: what the run was made with, so that the run can be read anywhere.

It has the model's whole configuration, the hashes of the weights and of the real images, and where the model folder
was; and the values of guidance terms that are plug-ins, so that a reader need not import them. Runs of models and terms
that ship with rarefy have no such file: their manifest says it all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rarefy.errors import ManifestError, bad
from rarefy.guidance.opaque import OpaqueTerm, read_opaque
from rarefy.models.config_file import Json, check_keys, read_object, read_text
from rarefy.models.folder import config_content, parse_config
from rarefy.models.remote import is_remote
from rarefy.models.source import ModelSpec, on_this_machine, tree_sha256

FORMAT = "rarefy-run-model-v1"
HASHES = ("unet", "classifier", "reference")
_MODEL_KEYS = ("where", "sha256", "config")


@dataclass(frozen=True)
class RunModel:
    """model: None for one that ships with rarefy; plugins: the guidance terms that are plug-ins, in their order."""

    model: ModelSpec | None
    plugins: tuple[OpaqueTerm, ...] = ()


def write_run_model(spec: ModelSpec, plugins: Sequence[OpaqueTerm] = ()) -> bytes | None:
    """The content of ``model.json``; None for a model that ships with rarefy, guided by its own terms."""
    content: dict[str, object] = {"format": FORMAT}
    if spec.source is not None:
        reference = spec.reference_sha256
        if reference is None and "reference" in spec.folder.files:
            reference = tree_sha256(on_this_machine(spec).folder.file("reference"))
        hashes = dict(zip(HASHES, (spec.checkpoint_sha256, spec.classifier_sha256, reference), strict=True))
        content |= {"where": spec.source, "sha256": hashes, "config": config_content(spec.folder)}
    if plugins:
        content["plugins"] = [{"class": term.path, "name": term.shown, "values": term.values} for term in plugins]
    return json.dumps(content, indent=1).encode() + b"\n" if len(content) > 1 else None


def read_run_model(data: bytes, source: str) -> RunModel:
    """What ``model.json`` says. source: the file's place, for error messages. Raises ManifestError. Imports nothing.

    The model folder's path is where it was, which may be another machine: see ``on_this_machine``.
    """
    try:
        content = read_object(json.loads(data), "model.json")
        if content.get("format") != FORMAT:
            raise ManifestError(bad("format", content.get("format"), FORMAT))
        required = _MODEL_KEYS if "plugins" not in content or any(key in content for key in _MODEL_KEYS) else ()
        check_keys(content, "", ("format", *required), ("plugins",))
        plugins = _plugins(content.get("plugins", []))
        if not required:
            return RunModel(None, plugins)
        hashes = _hashes(read_object(content["sha256"], "sha256"))
        where = read_text(content["where"], "where")
    except (ManifestError, ValueError, RecursionError) as error:
        reason = error if isinstance(error, ManifestError) else f"not JSON: {error}"
        raise ManifestError(f"{source}: {reason}") from None
    path = Path(where.partition("://")[2] if is_remote(where) else where)
    folder = parse_config(content["config"], path, f"{source}: config")
    model = ModelSpec(
        folder,
        where,
        checkpoint_sha256=hashes["unet"],
        classifier_sha256=hashes["classifier"],
        reference_sha256=hashes["reference"],
    )
    return RunModel(model, plugins)


def _plugins(content: object) -> tuple[OpaqueTerm, ...]:
    if not isinstance(content, list):
        raise ManifestError(bad("plugins", content, "a list"))
    return tuple(read_opaque(each, f"plugins[{place}]") for place, each in enumerate(content))


def _hashes(table: Json) -> dict[str, str | None]:
    check_keys(table, "sha256.", HASHES)
    for role, value in table.items():
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
            raise ManifestError(bad(f"sha256.{role}", value, "a sha256: 64 lower-case hex digits"))
    return dict(table)
