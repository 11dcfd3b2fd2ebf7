"""Model folders: a ``config.json`` that describes a model, and the model's files.

The models that rarefy knows by name are such folders in ``models/library``. If a folder has no weights, such as those
of OpenAI's models, a manifest gives their paths.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad
from rarefy.images import ClassNames
from rarefy.models.config import NetworkConfig, NetworkSpec, OtherNetwork

FORMAT = "rarefy-model-v1"
LIBRARY = Path(__file__).parent / "library"


@dataclass(frozen=True)
class ModelFolder:
    """A diffusion model, usually with a noise-aware classifier, as described by ``config.json``.

    schedule, diffusion_steps, beta_range: name and length of the noise schedule, and its first and last beta if they
    are not the usual ones; prediction: what the U-Net predicts, ``eps``, ``v`` or ``sample``; recommended_scale: the
    published scale of classifier guidance; class_names, wordnet_ids: one per class, or none; path: the folder; files:
    names of the folder's files by role: ``unet``, ``classifier``, ``judge`` (a classifier of clean images),
    ``reference`` and ``held_out`` (real images for the audit).
    """

    name: str
    description: str
    unet: NetworkSpec
    classifier: NetworkSpec | None
    schedule: str
    recommended_scale: float
    diffusion_steps: int = 1000
    class_names: tuple[str, ...] = ()
    wordnet_ids: tuple[str, ...] = ()
    prediction: str = "eps"
    beta_range: tuple[float, float] | None = None
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
        """Number of classes that a sample can be labelled with; 1 if the model knows no classes."""
        if self.classifier is not None:
            return self.classifier.out_channels
        return self.num_classes or max(len(self.class_names), 1)

    @property
    def classes(self) -> ClassNames:
        """Names of the classes, for matching with data; their numbers if the model has no names."""
        names = tuple(self.class_name(class_id) for class_id in range(self.classifier_classes))
        return ClassNames(names, self.wordnet_ids)

    def class_name(self, class_id: int) -> str:
        """Name of a class; its number if the model has no names."""
        return self.class_names[class_id] if self.class_names else str(class_id)


def read_model_folder(path: Path) -> ModelFolder:
    """Read the ``config.json`` of a folder. Raises ManifestError if its format is unknown."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ManifestError(bad(f"{path / 'config.json'}: format", config.get("format"), FORMAT))
    schedule = config["schedule"]
    return ModelFolder(
        name=config["name"],
        description=config["description"],
        unet=_network(config["unet"]),
        classifier=_network(config["classifier"]) if config["classifier"] is not None else None,
        schedule=schedule["name"],
        recommended_scale=config["recommended_scale"],
        diffusion_steps=schedule["steps"],
        class_names=tuple(config["class_names"]),
        wordnet_ids=tuple(config.get("wordnet_ids", ())),
        prediction=schedule["prediction"],
        beta_range=tuple(schedule["beta_range"]) if "beta_range" in schedule else None,
        path=path,
        files=config.get("files", {}),
    )


def write_model_folder(folder: ModelFolder, path: Path) -> None:
    """Write ``config.json`` into an existing folder. The weights are written by whoever has them."""
    schedule: dict[str, Any] = {
        "name": folder.schedule,
        "steps": folder.diffusion_steps,
        "prediction": folder.prediction,
    }
    if folder.beta_range is not None:
        schedule["beta_range"] = list(folder.beta_range)
    config = {
        "format": FORMAT,
        "name": folder.name,
        "description": folder.description,
        "image_size": folder.image_size,
        "channels": folder.channels,
        "class_names": list(folder.class_names),
        **({"wordnet_ids": list(folder.wordnet_ids)} if folder.wordnet_ids else {}),
        "schedule": schedule,
        "recommended_scale": folder.recommended_scale,
        "unet": _table(folder.unet),
        "classifier": _table(folder.classifier) if folder.classifier is not None else None,
        "files": dict(folder.files),
    }
    temporary = path / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path / "config.json")


def _table(network: NetworkSpec) -> dict[str, Any]:
    return {"kind": network.kind, **dataclasses.asdict(network)}


def _network(table: Mapping[str, Any]) -> NetworkSpec:
    """``kind`` names the architecture: adm, or another one. Lists become tuples."""
    if table["kind"] != NetworkConfig.kind:
        return OtherNetwork(**table)
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
    """The model that ships under this name. Raises ManifestError, which lists the known names."""
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
