"""Model folders: a ``config.json`` that describes a model, and the model's files.

The models that rarefy knows by name are such folders in ``models/library``. If a folder has no weights, like the ones
for OpenAI's models, a manifest gives their paths.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad, near_path, one_of
from rarefy.fields import check_integer
from rarefy.images import ClassNames
from rarefy.models.agreement import check_agreement
from rarefy.models.config import NetworkSpec
from rarefy.models.config_file import (
    PREDICTIONS,
    Json,
    check_keys,
    read_beta_range,
    read_files,
    read_names,
    read_network,
    read_number,
    read_object,
    read_text,
)
from rarefy.plugins import check_plugin

FORMAT = "rarefy-model-v1"
LIBRARY = Path(__file__).parent / "library"
CONFIG = "config.json"
WEIGHTS = ("unet", "classifier")
ONLY_CLASS = "all"
OWN_CODE = ":"  # in the kind of a network: it is an import path
_KEYS = ("format", "name", "description", "image_size", "channels", "class_names", "schedule", "recommended_scale",
         "unet", "classifier")  # fmt: skip


@dataclass(frozen=True)
class ModelFolder:
    """A diffusion model, usually with a noise-aware classifier, as described by ``config.json``.

    schedule, diffusion_steps, beta_range: name and length of the noise schedule, and its first and last beta if they
    are not the usual ones; prediction: what the U-Net predicts, ``eps``, ``v`` or ``sample``; recommended_scale: the
    published scale of classifier guidance; class_names, wordnet_ids: one per class, or none; path: the folder; files:
    names of the folder's files by role: ``unet``, ``classifier``, ``judge`` (a classifier of clean images),
    ``reference`` and ``held_out`` (real images for the audit). allow_plugins: whether a network whose kind is an import
    path may be imported (see ``allow_kinds``); the file cannot say so.
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
    allow_plugins: bool = field(default=False, compare=False)

    @property
    def embedded(self) -> bool:
        """Whether its weights and reference images ship with the package."""
        return bool(self.files) and self.path.parent == LIBRARY

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
        """Number of classes that a sample can be labelled with; 1 if neither network knows classes."""
        if self.classifier is not None:
            return self.classifier.out_channels
        return self.num_classes or 1

    @property
    def knows_classes(self) -> bool:
        """Whether the U-Net is conditioned on classes or a classifier can guide it to them."""
        return self.classifier is not None or self.num_classes is not None

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class that a sample can be labelled with."""
        return tuple(self.class_name(class_id) for class_id in range(self.classifier_classes))

    @property
    def classes(self) -> ClassNames:
        """Names of the classes, for matching with data; their numbers if the model has no names."""
        return ClassNames(self.labels, self.wordnet_ids)

    def class_name(self, class_id: int) -> str:
        """Name of a class: its number if the model has no names, ``all`` if neither network knows classes."""
        if not self.knows_classes:
            return ONLY_CLASS
        return self.class_names[class_id] if self.class_names else str(class_id)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that sampling needs: ``unet`` and, if the model has one, ``classifier``."""
        return WEIGHTS if self.classifier is not None else WEIGHTS[:1]


def read_model_folder(path: Path) -> ModelFolder:
    """Read and check the ``config.json`` of a folder. Weights may be missing: then the model is not trained yet.

    Raises ManifestError, in one line with the file's path and the key, if it is missing, unreadable or inconsistent.
    """
    file = path / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = "it has no config.json" if path.is_dir() else f"there is no such folder{near_path(path)}"
        raise ManifestError(bad("model", str(path), f"a model folder: {missing}")) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ManifestError(f"{file}: cannot be read ({reason})") from None
    return parse_config(content, path, str(file))


def parse_config(content: object, path: Path, source: str) -> ModelFolder:
    """The model that the content of a ``config.json`` describes. source: where it is, for error messages."""
    try:
        folder = _parse(read_object(content, CONFIG), path)
        check_agreement(folder, read_object(content, CONFIG))
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from None
    return folder


def _parse(config: Json, path: Path) -> ModelFolder:
    if config.get("format") != FORMAT:
        raise ManifestError(bad("format", config.get("format"), FORMAT))
    check_keys(config, "", _KEYS, ("wordnet_ids", "files"))
    schedule = read_object(config["schedule"], "schedule")
    check_keys(schedule, "schedule.", ("name", "steps", "prediction"), ("beta_range",))
    if schedule["prediction"] not in PREDICTIONS:
        raise ManifestError(
            bad("schedule.prediction", schedule["prediction"], one_of(schedule["prediction"], PREDICTIONS))
        )
    beta_range = schedule.get("beta_range")
    return ModelFolder(
        name=read_text(config["name"], "name"),
        description=read_text(config["description"], "description"),
        unet=read_network(config["unet"], "unet"),
        classifier=None if config["classifier"] is None else read_network(config["classifier"], "classifier"),
        schedule=read_text(schedule["name"], "schedule.name"),
        recommended_scale=read_number(config["recommended_scale"], "recommended_scale", 0, 1e6),
        diffusion_steps=check_integer(schedule["steps"], "schedule.steps", 1, 1_000_000),
        class_names=read_names(config["class_names"], "class_names"),
        wordnet_ids=read_names(config.get("wordnet_ids", []), "wordnet_ids"),
        prediction=schedule["prediction"],
        beta_range=None if beta_range is None else read_beta_range(beta_range, "schedule.beta_range"),
        path=path,
        files=read_files(config.get("files", {}), "files", depth=1 if path.parent == LIBRARY else 0),
    )


def allow_kinds(folder: ModelFolder, allow_plugins: bool) -> ModelFolder:
    """The folder with permission to import the kinds of its networks. Imports nothing.

    Raises ManifestError for a kind that is a plug-in, if plug-ins are not allowed.
    """
    for role in folder.networks:
        network: NetworkSpec = getattr(folder, role)
        if OWN_CODE in network.kind:
            check_plugin(network.kind, f"{folder.path / CONFIG}: {role}.kind", network.kind, allow_plugins)
    return dataclasses.replace(folder, allow_plugins=True)


def write_model_folder(folder: ModelFolder, path: Path) -> None:
    """Write ``config.json`` into an existing folder. The weights are written by whoever has them."""
    temporary = path / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps(config_content(folder), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path / CONFIG)


def config_content(folder: ModelFolder) -> dict[str, Any]:
    """The content of the folder's ``config.json``."""
    schedule: dict[str, Any] = {
        "name": folder.schedule,
        "steps": folder.diffusion_steps,
        "prediction": folder.prediction,
    }
    if folder.beta_range is not None:
        schedule["beta_range"] = list(folder.beta_range)
    return {
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


def sampling_config(folder: ModelFolder) -> dict[str, Any]:
    """The part of the configuration that decides how an image is sampled and labelled, for digests.

    Keys that have their default value are left out, so that keys added to a later version leave old digests as they
    are.
    """
    content = config_content(folder)
    networks = {"unet": _without_defaults(folder.unet)}
    if folder.classifier is not None:
        networks["classifier"] = _without_defaults(folder.classifier)
    return {key: content[key] for key in ("class_names", "schedule")} | networks


def _without_defaults(network: NetworkSpec) -> dict[str, Any]:
    defaults = {each.name: each.default for each in dataclasses.fields(network)}
    table = _table(network)
    return {key: value for key, value in table.items() if key not in defaults or value != defaults[key]}


def _table(network: NetworkSpec) -> dict[str, Any]:
    return {"kind": network.kind, **dataclasses.asdict(network)}


@functools.cache
def library() -> Mapping[str, ModelFolder]:
    """The models that ship, by name."""
    folders = [read_model_folder(path.parent) for path in LIBRARY.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(folders, key=_library_order)}


def _library_order(folder: ModelFolder) -> tuple[bool, int, str]:
    """Embedded models first, then by image size and name."""
    return not folder.embedded, folder.image_size, folder.name


def find_model(name: str, field: str = "model.preset") -> ModelFolder:
    """The model that ships under this name. Raises ManifestError, which lists the known names."""
    if name not in library():
        raise ManifestError(bad(field, name, one_of(name, list(library()))))
    return library()[name]


def provenance(folder: ModelFolder) -> dict[str, Any]:
    """How the folder's files were produced: commands, data hashes, steps, curves, measured quality."""
    loaded: dict[str, Any] = json.loads((folder.file("unet").parent / "provenance.json").read_text())
    return loaded


def licence(folder: Path) -> str | None:
    """What the front matter of a model folder's card, README.md, names as ``license``; None if it says nothing."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return None if found is None or found[1] == "unknown" else found[1]


def fast_errors(checkpoint_sha256: str, classifier_sha256: str | None) -> dict[str, Any] | None:
    """The measured error of ``fast`` for the embedded model with these weights; None for any other model."""
    for path in sorted(LIBRARY.glob("*/fast.json")):
        errors: dict[str, Any] = json.loads(path.read_text())
        if (errors["checkpoint_sha256"], errors["classifier_sha256"]) == (checkpoint_sha256, classifier_sha256):
            return errors
    return None
