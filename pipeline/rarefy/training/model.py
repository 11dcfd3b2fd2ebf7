"""The model folder that a project's training writes: what its ``config.json`` says before and after each part."""

from __future__ import annotations

import dataclasses

from rarefy.errors import OutputError, bad
from rarefy.models.config import NetworkSpec
from rarefy.models.folder import ModelFolder, read_model_folder, write_model_folder
from rarefy.training.output import Places
from rarefy.training.recipe import PARTS

COMPARED = ("class_names", "schedule", "diffusion_steps", "prediction")


def begin_model(model: ModelFolder) -> ModelFolder:
    """Write ``config.json`` before training; returns the model with the files that its folder has already.

    Raises OutputError if training has begun there and the recipe now describes another network, schedule or classes.
    """
    path = model.path
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            stored = read_model_folder(path)
            if any((path / "training" / part).exists() for part in PARTS):
                check_same(stored, model)
            model = dataclasses.replace(model, files=stored.files)
        model = dataclasses.replace(model, files={**model.files, **_held_out(model)})
        write_model_folder(model, path)
    except OSError as error:
        raise OutputError(f"model: {str(path)!r} cannot be written ({error.strerror})") from error
    return model


def check_same(stored: ModelFolder, model: ModelFolder) -> None:
    """Raise OutputError naming the first difference between what the folder says and what the recipe says."""
    pairs = [(key, getattr(stored, key), getattr(model, key)) for key in COMPARED]
    pairs += _network_pairs("unet", stored.unet, model.unet)
    pairs += _network_pairs("classifier_network", stored.classifier, model.classifier)
    for name, old, new in pairs:
        if old != new:
            allowed = f"{old!r}, with which training began in {str(model.path)!r}; another model needs another folder"
            raise OutputError(bad(name, new, allowed))


def _network_pairs(name: str, stored: NetworkSpec | None, now: NetworkSpec | None) -> list[tuple[str, object, object]]:
    if stored is None or now is None:  # a part that was added to the recipe or taken out of it
        return []
    fields = dataclasses.fields(stored)
    return [(f"{name}.{each.name}", getattr(stored, each.name), getattr(now, each.name, None)) for each in fields]


def finish_part(model: ModelFolder, part: str) -> ModelFolder:
    """Note a part's weights in ``config.json``; returns the model that it describes now.

    A classifier that was trained for somebody else's diffusion model is described only now.
    """
    stored = read_model_folder(model.path)
    role = "unet" if part == "diffusion" else part
    files = {**stored.files, **_held_out(model), role: Places.in_model(model.path, part).weights.name}
    described = dataclasses.replace(stored, files=files)
    if part == "classifier":
        described = dataclasses.replace(described, classifier=model.classifier, class_names=model.class_names)
    write_model_folder(described, model.path)
    return dataclasses.replace(model, files=files)


def _held_out(model: ModelFolder) -> dict[str, str]:
    """The folder's held-out images, which audits then use by default."""
    return {"reference": "reference"} if (model.path / "reference").is_dir() else {}
