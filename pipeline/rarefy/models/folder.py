"""Model folders: a ``config.json`` that describes a model, and the model's files.

The models that rarefy knows by name are such folders in ``models/library``. If a folder has no weights, such as those
of OpenAI's models, a manifest gives their paths.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad
from rarefy.models.config import NetworkConfig

FORMAT = "rarefy-model-v1"
LIBRARY = Path(__file__).parent / "library"


@dataclass(frozen=True)
class ModelFolder:
    """A diffusion model with its noise-aware classifier, as described by ``config.json``.

    schedule, diffusion_steps: name and length of the noise schedule; recommended_scale: the published scale of
    classifier guidance; class_names: one per class of the classifier, or none; path: the folder; files: names of the
    folder's files by role: ``unet``, ``classifier``, ``reference`` and ``held_out`` (real images for the audit).
    """

    name: str
    description: str
    unet: NetworkConfig
    classifier: NetworkConfig
    schedule: str
    recommended_scale: float
    diffusion_steps: int = 1000
    class_names: tuple[str, ...] = ()
    path: Path = LIBRARY
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether its weights and reference images ship with the package."""
        return bool(self.files)

    def file(self, role: str) -> Path:
        """Path of the file with this role. Raises KeyError if the folder has none."""
        return self.path / self.files[role]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.unet.image_size

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.unet.in_channels

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the U-Net is conditioned on; None if it is unconditional."""
        return self.unet.num_classes

    @property
    def classifier_classes(self) -> int:
        """Number of classes that a sample can be labelled with."""
        return self.classifier.out_channels

    def class_name(self, class_id: int) -> str:
        """Name of a class; its number if the model has no names."""
        return self.class_names[class_id] if self.class_names else str(class_id)


def read_model_folder(path: Path) -> ModelFolder:
    """Read the ``config.json`` of a folder. Raises ManifestError if its format is unknown."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ManifestError(bad(f"{path / 'config.json'}: format", config.get("format"), FORMAT))
    return ModelFolder(
        name=config["name"],
        description=config["description"],
        unet=_network(config["unet"]),
        classifier=_network(config["classifier"]),
        schedule=config["schedule"]["name"],
        recommended_scale=config["recommended_scale"],
        diffusion_steps=config["schedule"]["steps"],
        class_names=tuple(config["class_names"]),
        path=path,
        files=config.get("files", {}),
    )


def _network(table: Mapping[str, Any]) -> NetworkConfig:
    """Lists become tuples. ``kind`` names the architecture; so far only ``adm`` exists."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key != "kind"
    }
    return NetworkConfig(**values)


@functools.cache
def library() -> Mapping[str, ModelFolder]:
    """The models that ship, by name."""
    folders = [read_model_folder(path.parent) for path in LIBRARY.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(folders, key=_library_order)}


def _library_order(folder: ModelFolder) -> tuple[bool, int, str]:
    """Embedded models first, then by image size and name."""
    return not folder.embedded, folder.image_size, folder.name


def find_model(name: str) -> ModelFolder:
    """The model with this name. Raises ManifestError, which lists the known names."""
    if name not in library():
        raise ManifestError(bad("model.preset", name, f"one of {', '.join(library())}"))
    return library()[name]


def provenance(folder: ModelFolder) -> dict[str, Any]:
    """How the folder's files were produced: commands, data hashes, steps, curves, measured quality."""
    loaded: dict[str, Any] = json.loads((folder.file("unet").parent / "provenance.json").read_text())
    return loaded


def fast_errors(checkpoint_sha256: str, classifier_sha256: str) -> dict[str, Any] | None:
    """The measured error of ``fast`` for the embedded model with these weights; None for any other model."""
    for path in sorted(LIBRARY.glob("*/fast.json")):
        errors: dict[str, Any] = json.loads(path.read_text())
        if (errors["checkpoint_sha256"], errors["classifier_sha256"]) == (checkpoint_sha256, classifier_sha256):
            return errors
    return None
