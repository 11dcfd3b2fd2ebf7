"""Writing an imported model: a complete model folder under its final name, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from rarefy.errors import OutputError
from rarefy.models.checkpoint import load_network
from rarefy.models.folder import ModelFolder, config_content, parse_config, write_model_folder
from rarefy.models.networks import build_network
from rarefy.new_output import new_output


@dataclass(frozen=True)
class Imported:
    """What was imported. parameters: number of each network's weights, by its role; notes: what to know about it."""

    folder: ModelFolder
    parameters: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """A summary of several lines."""
        model = self.folder
        classes = "unconditional" if model.num_classes is None else f"{model.num_classes:,} classes"
        schedule = f"schedule {model.schedule}, {model.diffusion_steps:,} steps, predicts {model.prediction}"
        colour = "grey" if model.channels == 1 else "colour"
        counts = ", ".join(f"{role} {count:,} parameters" for role, count in self.parameters.items())
        return "\n".join(
            [
                f"{model.name}: {model.image_size} px {colour}, {classes}, {schedule}",
                counts if model.classifier is not None else f"{counts}, no classifier",
                *(f"note: {note}" for note in self.notes),
                f'model folder: {model.path}   (in a manifest: [model] path = "{model.path}")',
            ]
        )

    def content(self) -> dict[str, Any]:
        """The summary as JSON."""
        model = self.folder
        return {
            "name": model.name,
            "path": str(model.path),
            "image_size": model.image_size,
            "channels": model.channels,
            "num_classes": model.num_classes,
            "schedule": model.schedule,
            "prediction": model.prediction,
            "parameters": dict(self.parameters),
            "notes": list(self.notes),
        }


def write_imported(
    folder: ModelFolder, weights: Mapping[str, Path], out: str, origin: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> Imported:
    """Write a model folder with weights that are converted to safetensors. The model's name is that of the folder.

    weights: the files of the networks by role, ``unet`` and perhaps ``classifier``; origin: for ``provenance.json``.
    Raises CheckpointError, ManifestError, OutputError; then nothing is left.
    """
    files = {role: f"{role}.safetensors" for role in weights}
    folder = replace(folder, name=Path(out).resolve().name, path=Path(out), files=files)
    parse_config(json.loads(json.dumps(config_content(folder))), folder.path, "the imported model")  # checks it
    parameters, hashes = {}, {}
    with new_output(out) as temporary, _safetensor_errors(out):
        temporary.mkdir()
        for role, source in weights.items():
            spec = folder.unet if role == "unet" else folder.classifier
            assert spec is not None
            network, hashes[role] = load_network(partial(build_network, spec, role), source)
            parameters[role] = sum(parameter.numel() for parameter in network.parameters())
            state = {name: value.contiguous() for name, value in network.state_dict().items()}
            save_file(state, temporary / files[role])
        sources = {role: {"file": path.name, "sha256": hashes[role]} for role, path in weights.items()}
        provenance = {"imported": {**origin, "weights": sources}}
        (temporary / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
        write_model_folder(folder, temporary)
    return Imported(folder, parameters, notes)


@contextmanager
def _safetensor_errors(out: str) -> Iterator[None]:
    """Report that weights cannot be written."""
    try:
        yield
    except SafetensorError as error:
        raise OutputError(f"out: {out!r} cannot be written ({error})") from error
