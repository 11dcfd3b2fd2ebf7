"""Model folders: a ``config.json`` that says what a model is, and the files beside it.

The models that rarefy knows by name are such folders in ``models/library``. A folder without weights, such as OpenAI's,
takes them from the paths that a manifest gives.
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
    """A diffusion model with its noise-aware classifier, as its ``config.json`` describes them.

    schedule, diffusion_steps: the noise schedule's name and its number of steps; recommended_scale: the scale of
    classifier guidance in the published samples; class_names: one for each class of the classifier, or none;
    path: the folder; files: names of the files that it ships, relative to it, by role: ``unet``, ``classifier``,
    ``reference`` and ``held_out`` (real images of the audit).
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
        """Path of the file of that role. Raises KeyError where the folder ships none."""
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
        """Number of classes that the U-Net is conditioned on; None where it is unconditional."""
        return self.unet.num_classes

    @property
    def classifier_classes(self) -> int:
        """Number of classes that a sample can be labelled with."""
        return self.classifier.out_channels

    def class_name(self, class_id: int) -> str:
        """Name of a class; its number where the model has no names."""
        return self.class_names[class_id] if self.class_names else str(class_id)


def read_model_folder(path: Path) -> ModelFolder:
    """Read the ``config.json`` of a folder. Raises ManifestError for one of another format."""
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
    """JSON has lists where the config has tuples. ``kind`` names the architecture; ``adm`` is the only one yet."""
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
    """The model of that name. Raises ManifestError, which lists the known ones."""
    if name not in library():
        raise ManifestError(bad("model.preset", name, f"one of {', '.join(library())}"))
    return library()[name]


def provenance(folder: ModelFolder) -> dict[str, Any]:
    """How the folder's files were made: commands, data hashes, steps, curves, measured quality."""
    loaded: dict[str, Any] = json.loads((folder.file("unet").parent / "provenance.json").read_text())
    return loaded


def fast_errors(checkpoint_sha256: str, classifier_sha256: str) -> dict[str, Any] | None:
    """The measured error of ``fast`` for an embedded model with these weights; None for any other model."""
    for path in sorted(LIBRARY.glob("*/fast.json")):
        found: dict[str, Any] = json.loads(path.read_text())
        if (found["checkpoint_sha256"], found["classifier_sha256"]) == (checkpoint_sha256, classifier_sha256):
            return found
    return None
