"""Where a training run writes: a folder of its own, weights, and the provenance of the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rarefy.errors import OutputError, bad
from rarefy.images import LabelledImages
from rarefy.models.file_hash import file_sha256
from rarefy.training.data import TrainingSet, place
from rarefy.training.log import LOG, checks, curve
from rarefy.training.recipe import Recipe, changed_key, stored_values, values_text
from rarefy.training.state import TrainState

RECIPE, STATE = "recipe.toml", "state.pt"


@dataclass(frozen=True)
class Places:
    """Where one part's files go.

    folder: recipe.toml, state.pt, log.jsonl and sample grids; weights, provenance: files; key: of this part in the
    provenance, which a model folder's parts share; None if the file is the part's own.
    """

    folder: Path
    weights: Path
    provenance: Path
    key: str | None = None

    @classmethod
    def alone(cls, out: Path) -> Places:
        """A folder for one network."""
        return cls(out, out / "weights.safetensors", out / "provenance.json")

    @classmethod
    def in_model(cls, model: Path, part: str) -> Places:
        """A part of a model folder."""
        name = "unet" if part == "diffusion" else part
        return cls(model / "training" / part, model / f"{name}.safetensors", model / "provenance.json", part)

    def record(self) -> dict[str, Any] | None:
        """The part's provenance; None if it has not been written."""
        stored = read_json(self.provenance)
        entry: dict[str, Any] | None = (stored or None) if self.key is None else stored.get(self.key)
        return entry

    def write_record(self, entry: Mapping[str, Any]) -> None:
        """Replace the part's provenance."""
        write_json(self.provenance, entry if self.key is None else {**read_json(self.provenance), self.key: entry})


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images to train on and held-out ones to measure with, if there are any.

    sha256: of the former; held_out_path: where the latter are, if they were compared with the images to train on.
    """

    train: TrainingSet
    held_out: LabelledImages | None
    sha256: str
    held_out_path: Path | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """One part's training: how, on what, and where its files go."""

    recipe: Recipe
    images: RealImages
    places: Places


def check_recipe(places: Places, recipe: Recipe, values: Mapping[str, object]) -> None:
    """Raise OutputError if the folder contains a run that these values cannot continue; it names the key.

    ``images`` and ``decay`` may differ from the earlier session's, and so may what does not change the weights.
    """
    copy = places.folder / RECIPE
    if not copy.exists():
        return
    stored = stored_values(copy, recipe.part)
    if key := changed_key(stored, values):
        name = key.replace("train.", f"{recipe.table}.")
        raise OutputError(
            f"{name}: {values.get(key)!r} is not {stored.get(key)!r}, with which the run in {str(places.folder)!r} "
            "began; images and decay may change, another recipe needs another folder"
        )


def claim(places: Places, values: Mapping[str, object]) -> None:
    """Make the part's folder and write its recipe. Raises OutputError."""
    folder = places.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"{RECIPE}.{place()[0]}"  # all processes of torchrun get here at the same time
        own.write_text(values_text(values))
        own.replace(folder / RECIPE)
    except OSError as error:
        raise OutputError(f"out: {str(folder)!r} cannot be written ({error.strerror})") from error


def check_length(state: TrainState, recipe: Recipe) -> None:
    """Raise OutputError if the run has already seen more images than the recipe wants."""
    if state.step > recipe.train.steps:
        allowed = f"at least {state.step * recipe.train.batch}, which the run has already seen"
        raise OutputError(bad(f"{recipe.table}.images", recipe.train.images, allowed))


def write_result(
    job: Job, state: TrainState, values: Mapping[str, object], measured: Mapping[str, object]
) -> dict[str, Any]:
    """Write the averaged weights and their provenance; returns the provenance.

    values: the recipe's, with the hashes of data and initial weights; measured: on held-out images.
    """
    recipe, data, places = job.recipe, job.images.train, job.places
    write_weights(state.ema, places.weights)
    result: dict[str, Any] = {
        "command": recipe.command,
        "recipe": values_text(values),
        "init_sha256": values.get("init_sha256"),
        "data_sha256": values["data_sha256"],
        "data": _relative(recipe.data, places),
        "held_out_data": _relative(job.images.held_out_path, places),
        "data_images": len(data),
        "classes": dict(zip(data.source.class_names, data.counts.tolist(), strict=True)),
        "excluded_images": data.excluded,
        "steps": state.step,
        "images": state.step * recipe.train.batch,
        "seconds": round(state.seconds, 1),
        "weights_sha256": file_sha256(places.weights),
        "torch": torch.__version__,
        **measured,
        "curve": curve(places.folder / LOG),
        "checks": checks(places.folder / LOG),
    }
    places.write_record(result)
    return result


def _relative(path: Path | None, places: Places) -> str | None:
    """A path as seen from the provenance's folder, so that both can move together."""
    return None if path is None else os.path.relpath(path, places.provenance.parent)


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights atomically, with the permissions of any new file: other users of a cluster may read them."""
    content = safetensors.torch.save({name: value.contiguous().cpu() for name, value in weights.items()})
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if there is no such file. Raises OutputError if it is damaged."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"out: {str(path)!r} is not JSON ({error}); move it away") from error
    return content
