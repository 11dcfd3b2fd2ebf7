"""Finds a run's model folder for the audit, and checks that it is still the one that the run was made with."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rarefy.errors import CheckpointError, ManifestError, bad
from rarefy.models.folder import WEIGHTS, allow_kinds, sampling_config
from rarefy.models.source import ModelSpec, find_source, on_this_machine, tree_sha256


def find_run_model(spec: ModelSpec, moved_to: str | None, needed: bool) -> ModelSpec:
    """The run's model with a folder on this machine. moved_to: where it is now, None for where it was.

    needed: the folder's real images are the reference. Raises ManifestError if the folder is not there although it is
    needed or ``moved_to`` names it, and CheckpointError if its weights or real images are not those of the run. If it
    is neither there nor needed, the result has no files, and the audit goes on without the classifier.
    """
    if spec.source is None:
        if moved_to is not None:
            raise ManifestError(bad("model", moved_to, f"needed: {spec.folder.name} ships with rarefy"))
        return on_this_machine(spec)
    try:
        there = find_source(moved_to or spec.source, Path.cwd())
    except ManifestError as error:
        if moved_to is None and not needed:
            return replace(spec, folder=replace(spec.folder, files={}))
        hint = "" if moved_to else "; give --model PATH if it has moved, or --reference with other real images"
        raise ManifestError(f"the run's model cannot be read: {error}{hint}") from None
    _check_same(spec, there, needed)
    if needed and not there.folder.file("reference").exists():
        missing = f"{there.folder.file('reference')} is missing; give --reference with other real images"
        raise ManifestError(f"the run's model has no real images: {missing}")
    return there


def allow_networks(spec: ModelSpec, allow_plugins: bool) -> ModelSpec:
    """The model with permission to import its networks, if they are plug-ins.

    Without ``allow_plugins`` a model that needs some loses its weights, one line says so, and the audit goes on without
    the classifier.
    """
    try:
        return replace(spec, folder=allow_kinds(spec.folder, allow_plugins))
    except ManifestError as error:
        print(f"rarefy: {error}; the audit goes on without scores of the real images", file=sys.stderr, flush=True)
    files = {role: name for role, name in spec.folder.files.items() if role not in WEIGHTS}
    return replace(spec, folder=replace(spec.folder, files=files))


def _check_same(spec: ModelSpec, there: ModelSpec, needed: bool) -> None:
    """Raise CheckpointError, naming what differs between the run's model and the folder that was found."""
    pairs: dict[str, tuple[object, object]] = {
        "config.json": (sampling_config(spec.folder), sampling_config(there.folder)),
        "diffusion weights": (spec.checkpoint_sha256, there.checkpoint_sha256),
        "classifier": (spec.classifier_sha256, there.classifier_sha256),
    }
    if needed and spec.reference_sha256 is not None:
        path = there.folder.file("reference") if "reference" in there.folder.files else None
        pairs["real images"] = (spec.reference_sha256, path and tree_sha256(path))
    for what, (of_run, found) in pairs.items():
        if of_run != found:
            raise CheckpointError(
                f"model: {there.source!r} is not the model of this run: its {what} differ or are missing; "
                "give --model PATH, where that model is"
            )
