"""The digest of a manifest: a hash of everything that changes an image or a file of its run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rarefy.fields import Table
from rarefy.guidance.base import Term, import_path
from rarefy.guidance.opaque import OpaqueTerm
from rarefy.models.folder import sampling_config
from rarefy.models.source import ModelSpec

NOT_HASHED = ("model", "digest", "text", "gates", "real")  # the model counts by what its images depend on


def digest_of(fields: Mapping[str, Any], written: Table) -> str:
    """sha256 of a manifest's fields but text, gates and real. written: its [model] table.

    Weights count by their hash if given, else by their path as written. A model folder counts by what its images
    depend on, and not by its name or its place.
    """
    content = {name: _plain(value) for name, value in fields.items() if name not in NOT_HASHED}
    content |= {"": "Manifest", "digest": "", "text": "", "format": 1, "model": _model(fields["model"], written)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def opaque(term: Term) -> OpaqueTerm | None:
    """What a reader without a plug-in's code needs to know of its term; None for a built-in term."""
    if isinstance(term, OpaqueTerm):
        return term
    path, values = _class_name(type(term)), _plain(term)
    if ":" not in path:
        return None
    assert isinstance(values, dict)
    return OpaqueTerm(path=path, shown=term.name, values={key: value for key, value in values.items() if key})


def _model(model: ModelSpec, written: Table) -> list[object]:
    if model.source is not None:
        return [sampling_config(model.folder), model.checkpoint_sha256, model.classifier_sha256]
    return [
        model.folder.name,
        model.checkpoint_sha256 or written.get("checkpoint", ""),
        model.classifier_sha256 or written.get("classifier", ""),
    ]


def _plain(value: object) -> object:
    """The value as JSON types. A dataclass includes its class name, so that two kinds of term never look alike."""
    if isinstance(value, OpaqueTerm):
        return {"": value.path, **value.values}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        omitted = {f.name for f in dataclasses.fields(value) if f.metadata.get("later") and fields[f.name] is None}
        kept = {name: _plain(item) for name, item in fields.items() if name not in omitted}
        return {"": _class_name(type(value)), **kept}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _class_name(kind: type) -> str:
    """The class's name; for a plug-in, its import path."""
    return kind.__name__ if kind.__module__.startswith("rarefy.") else import_path(kind)
