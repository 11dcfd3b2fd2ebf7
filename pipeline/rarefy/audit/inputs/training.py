"""The images that the run's model was trained on, which the audit searches for copies and compares utility with.

The model folder's provenance names them by hash, and says where they were.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.reference import read_embedded, with_keys
from rarefy.errors import DataError, ManifestError, OutputError, bad
from rarefy.fields import Table, get_path, get_text
from rarefy.images import LabelledImages, load_images
from rarefy.models.folder import ModelFolder
from rarefy.training.held_out import without_held_out
from rarefy.training.output import read_json
from rarefy.training.recipe import data_folder, read_toml

Progress = Callable[[str, int, int], None]
RECIPE = "train.toml"


@dataclass(frozen=True)
class TrainingSet:
    """Images that the model was trained on, or that the user says it was.

    images: with labels in the model's class ids, and a key each; source: human-readable; sha256: of pixels and labels,
    in order; whole: this is the hash that the model folder's provenance names, so these are all of them.
    """

    images: LabelledImages
    source: str
    sha256: str
    whole: bool


@dataclass(frozen=True)
class _Place:
    """Where images to train on are, and the held-out ones that training left out, if there are any."""

    data: Path
    held_out: Path | None


def load_training(run: RunData, data: str | None, progress: Progress) -> TrainingSet | None:
    """The training images of the run's model, None if they are neither here nor given.

    data: the user's ``--training``; by default the images that the model folder names, if they are there and have its
    hash, else the part of them that ships with the model. Held-out images are not among them. If images are not those
    of the model, one line on stderr says so. Raises DataError for ``data`` that cannot be read or has other classes.
    """
    preset = run.manifest.preset
    record = _record(preset, run.weights[0])
    expected = None if record is None else str(record.get("data_sha256"))
    if data is not None:
        return _given(preset, data, expected, progress)
    if record is None:
        return None
    found, shipped = _named(preset, record, progress), _shipped(preset)
    if isinstance(found, TrainingSet):
        return found
    instead = "" if shipped is None else f" (searched instead: {shipped.source})"
    _say(f"{found}; give the model's training set with --training DATA{instead}")
    return shipped


def _given(preset: ModelFolder, data: str, expected: str | None, progress: Progress) -> TrainingSet:
    """The user's data, whatever their hash is."""
    place = _Place(Path(data), _own_held_out(preset))
    try:
        found = _read(preset, place, expected, progress)
    except DataError as error:
        raise DataError(f"training: {str(error).removeprefix('data: ')}") from None
    if not found.whole:
        why = "whose model folder names no training data" if expected is None else "which has another hash"
        _say(f"{data} is not known to be the training set of the run's model, {why}")
    return found


def _named(preset: ModelFolder, record: Table, progress: Progress) -> TrainingSet | str:
    """The data that the model folder names, or why they cannot be used."""
    place = _place(preset, record)
    if place is None:
        return "the model folder does not say where its training images are"
    if not place.data.exists():
        return f"no images are at {os.path.normpath(place.data)}"
    try:
        found = _read(preset, place, str(record.get("data_sha256")), progress)
    except DataError as error:
        return str(error).removeprefix("data: ")
    return found if found.whole else f"{os.path.normpath(place.data)} has changed since the model was trained on it"


def _read(preset: ModelFolder, place: _Place, expected: str | None, progress: Progress) -> TrainingSet:
    """As training reads them. A broken image is left out; the hash tells whether training left it out as well."""
    size, channels, classes = preset.image_size, preset.channels, preset.classes if preset.knows_classes else None
    step = partial(progress, "reading the training images")
    images = load_images(place.data, size, channels, classes=classes, skip_broken=True, progress=step)
    if not preset.knows_classes:
        images = replace(images, labels=np.zeros(len(images), np.int64), class_names=preset.labels)
    held_out = None
    if place.held_out is not None:
        held_out = load_images(place.held_out, size, channels, classes=classes)
    chosen = without_held_out(images, held_out, partial(progress, "comparing with held-out images"))
    sha256 = chosen.sha256(partial(progress, "hashing the training images"))
    if chosen.excluded:
        images = images.take(chosen.rows)
    if len(images) < 2:
        raise DataError(bad(f"data: {place.data}", f"{len(images)} images", "at least 2 images"))
    whole = sha256 == expected
    return TrainingSet(with_keys(images), f"training images in {os.path.normpath(place.data)}", sha256, whole)


def _shipped(preset: ModelFolder) -> TrainingSet | None:
    """The training images that ship with an embedded model."""
    if not preset.embedded or "held_out" not in preset.files:
        return None
    images = with_keys(read_embedded(preset, "held_out"))
    source = f"{len(images):,} of the model's training images, which ship with it"
    return TrainingSet(images, source, images.sha256(), whole=False)


def _record(preset: ModelFolder, weights_sha256: str) -> Table | None:
    """The provenance of the run's diffusion weights; None if the model folder has none or is not here."""
    files = preset.files.get("unet")
    if files is None:
        return None
    try:
        parts = read_json(preset.file("unet").parent / "provenance.json")
    except OutputError as error:
        _say(f"provenance.json of the model is not used ({error})")
        return None
    own = [part for part in parts.values() if isinstance(part, dict) and part.get("weights_sha256") == weights_sha256]
    return own[0] if own and own[0].get("data_sha256") else None


def _place(preset: ModelFolder, record: Table) -> _Place | None:
    """Where the provenance or, for a model of an earlier version, the project's train.toml says that the data are."""
    own = _own_held_out(preset)
    if "data" in record:
        folder = preset.file("unet").parent  # where provenance.json is
        return _Place(
            folder / str(record["data"]), folder / str(record["held_out_data"]) if record.get("held_out_data") else None
        )
    recipe = preset.path.parent / RECIPE
    try:
        table = read_toml(recipe)
        if (recipe.parent / get_text(table, "model")).resolve() != preset.path.resolve():
            return None
        named = get_path(table, "reference", recipe.parent)
        return _Place(data_folder(table, recipe), own if named is None else Path(named))
    except ManifestError:
        return None


def _own_held_out(preset: ModelFolder) -> Path | None:
    """The held-out images in the model folder, unless it is an embedded one, which was not trained with them there."""
    if preset.embedded or "reference" not in preset.files:
        return None
    path = preset.file("reference")
    return path if path.exists() else None


def _say(text: str) -> None:
    print(f"rarefy: training: {text}", file=sys.stderr, flush=True)
