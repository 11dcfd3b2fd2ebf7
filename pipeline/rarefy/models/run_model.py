"""``model.json`` in a run's folder: the model that the run was made with, so that the run can be read anywhere.

It has the whole configuration, the hashes of the weights and of the real images, and where the model folder was. Runs
of models that ship with rarefy have none: the name in their manifest says it all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from rarefy.errors import ManifestError, bad
from rarefy.models.config_file import Json, check_keys, read_object, read_text
from rarefy.models.folder import config_content, parse_config
from rarefy.models.remote import is_remote
from rarefy.models.source import ModelSpec, on_this_machine, tree_sha256

FORMAT = "rarefy-run-model-v1"
HASHES = ("unet", "classifier", "reference")


def write_run_model(spec: ModelSpec) -> bytes | None:
    """The content of ``model.json``; None for a model that ships with rarefy."""
    if spec.source is None:
        return None
    reference = spec.reference_sha256
    if reference is None and "reference" in spec.folder.files:
        reference = tree_sha256(on_this_machine(spec).folder.file("reference"))
    hashes = dict(zip(HASHES, (spec.checkpoint_sha256, spec.classifier_sha256, reference), strict=True))
    content = {"format": FORMAT, "where": spec.source, "sha256": hashes, "config": config_content(spec.folder)}
    return json.dumps(content, indent=1).encode() + b"\n"


def read_run_model(data: bytes, source: str) -> ModelSpec:
    """The model of a run. source: the file's place, for error messages. Raises ManifestError.

    The folder's path is where it was, which may be another machine: see ``on_this_machine``.
    """
    try:
        content = read_object(json.loads(data), "model.json")
        if content.get("format") != FORMAT:
            raise ManifestError(bad("format", content.get("format"), FORMAT))
        check_keys(content, "", ("format", "where", "sha256", "config"))
        hashes = _hashes(read_object(content["sha256"], "sha256"))
        where = read_text(content["where"], "where")
    except (ManifestError, ValueError, RecursionError) as error:
        reason = error if isinstance(error, ManifestError) else f"not JSON: {error}"
        raise ManifestError(f"{source}: {reason}") from None
    path = Path(where.partition("://")[2] if is_remote(where) else where)
    folder = parse_config(content["config"], path, f"{source}: config")
    return ModelSpec(
        folder,
        where,
        checkpoint_sha256=hashes["unet"],
        classifier_sha256=hashes["classifier"],
        reference_sha256=hashes["reference"],
    )


def _hashes(table: Json) -> dict[str, str | None]:
    check_keys(table, "sha256.", HASHES)
    for role, value in table.items():
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
            raise ManifestError(bad(f"sha256.{role}", value, "a sha256: 64 lower-case hex digits"))
    return dict(table)
