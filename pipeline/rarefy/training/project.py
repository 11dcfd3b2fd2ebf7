"""``train.toml``: the file that describes a model of the user's, its data, and how each of its parts is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rarefy.diffusion.schedule import SCHEDULES
from rarefy.errors import ManifestError, bad, near_path
from rarefy.fields import (
    Table,
    find_path,
    get_choice,
    get_flag,
    get_integer,
    get_number,
    get_path,
    get_table,
    get_text,
    known_keys,
)
from rarefy.images import ClassNames
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import CONFIG, ModelFolder, read_model_folder
from rarefy.training.network_table import read_network
from rarefy.training.recipe import PARTS, Recipe, data_folder, read_toml
from rarefy.training.settings import TrainSettings, read_settings

DATA_KEYS = ("name", "description", "data", "model", "reference", "class_names", "skip_broken")
MODEL_KEYS = ("image_size", "channels", "schedule", "diffusion_steps", "recommended_scale", "unet")
NETWORK_KEYS = ("classifier_network", *PARTS)
MAX_SIDE = 1024
MIN_STEPS, MAX_STEPS = 40, 100_000  # of the chain; a sample grid needs 20 of them


@dataclass(frozen=True)
class Project:
    """A ``train.toml``.

    data, reference: folders of images to train on and of held-out ones; folder: the model folder that is written;
    class_names: None for the data's own; unet, classifier: their tables; base: the model in the folder if somebody else
    trained its U-Net; parts: the settings of each part that is trained, in their order; ect: weight of the classifier's
    entropy constraint; skip_broken: leave out images that cannot be read, instead of refusing the data.
    """

    path: Path
    name: str
    description: str
    data: Path
    folder: Path
    reference: Path
    image_size: int
    channels: int
    class_names: tuple[str, ...] | None
    schedule: str
    diffusion_steps: int
    recommended_scale: float
    unet: Table | None
    classifier: Table | None
    base: ModelFolder | None
    parts: dict[str, TrainSettings]
    ect: float
    skip_broken: bool = False

    @property
    def classes(self) -> ClassNames | None:
        """The classes that the data are matched with; None if they define the classes themselves."""
        if self.class_names is not None:
            return ClassNames(self.class_names)
        if self.base is None:
            return None
        if self.base.num_classes is not None:
            return self.base.classes
        return ClassNames(self.base.class_names, self.base.wordnet_ids) if self.base.class_names else None

    def model(self, class_names: tuple[str, ...]) -> ModelFolder:
        """The model of these classes, with the files that its folder has. Raises ManifestError for a bad network."""
        if self.base is not None:
            if self.base.num_classes not in (None, len(class_names)):
                allowed = f"one name for each of the {self.base.num_classes} classes of the model in {self.folder}"
                raise ManifestError(bad("class_names", f"{len(class_names)} names", allowed))
            network = self.classifier_network(len(class_names))
            return dataclasses.replace(self.base, classifier=network, class_names=class_names)
        assert self.unet is not None
        unet = read_network(self.unet, "unet", self._shape(2 * self.channels, len(class_names)))
        return ModelFolder(
            name=self.name,
            description=self.description,
            unet=unet,
            classifier=self.classifier_network(len(class_names)),
            schedule=self.schedule,
            recommended_scale=self.recommended_scale,
            diffusion_steps=self.diffusion_steps,
            class_names=class_names,
            path=self.folder,
        )

    def classifier_network(self, classes: int) -> NetworkConfig | None:
        """The network of classifier and judge; None if none is trained."""
        if self.classifier is None or "classifier" not in self.parts:
            return None
        return read_network(self.classifier, "classifier_network", self._shape(classes, None))

    def recipe(self, part: str, model: ModelFolder) -> Recipe:
        """How a part of the model is trained. A judge learns from images without noise and guides nothing."""
        return Recipe(
            part=part,
            table=part,
            model=model,
            data=self.data,
            train=self.parts[part],
            ect=self.ect if part == "classifier" else 0.0,
            clean=part == "judge",
            command=f"rarefy train {part} {self.path.name}",
        )

    def _shape(self, out_channels: int, num_classes: int | None) -> dict[str, int | None]:
        """What a network's table need not say, because the project says it."""
        return {
            "image_size": self.image_size,
            "in_channels": self.channels,
            "out_channels": out_channels,
            "num_classes": num_classes,
        }


def load_project(path: Path) -> Project:
    """Read and check a ``train.toml``; relative paths in it start at its folder. Raises ManifestError."""
    table = read_toml(path)
    known_keys(table, "", (*DATA_KEYS, *MODEL_KEYS, *NETWORK_KEYS), path.name)
    folder = find_path(get_text(table, "model"), "model", path.parent)
    base = _base(table, folder)
    size = get_integer(table, "image_size", 4, MAX_SIDE) if base is None else base.image_size
    if not (parts := [part for part in PARTS if part in table]):
        raise ManifestError(bad("recipe", str(path), f"a file with at least one of the tables {', '.join(PARTS)}"))
    if "judge" in parts and "classifier" not in parts:
        raise ManifestError(bad("judge", "a table", "allowed without [classifier], whose architecture it has"))
    if "classifier" in parts and "classifier_network" not in table:
        raise ManifestError(bad("classifier_network", None, "a table that describes the network of [classifier]"))
    return Project(
        path=path,
        name=get_text(table, "name", base.name if base else None),
        description=get_text(table, "description", base.description if base else "trained by rarefy"),
        data=data_folder(table, path),
        folder=folder,
        reference=_reference(table, path, folder),
        image_size=size,
        channels=_channels(table) if base is None else base.channels,
        class_names=_class_names(table),
        schedule=get_choice(table, "schedule", SCHEDULES, "cosine"),
        diffusion_steps=get_integer(table, "diffusion_steps", MIN_STEPS, MAX_STEPS, 1000),
        recommended_scale=get_number(table, "recommended_scale", 0, 1e6, 1.0),
        unet=get_table(table, "unet") if base is None else None,
        classifier=get_table(table, "classifier_network") if "classifier_network" in table else None,
        base=base,
        parts={part: _part(table, part, size) for part in parts},
        ect=get_number(get_table(table, "classifier"), "classifier.ect", 0, 1000, 0),
        skip_broken=get_flag(table, "skip_broken", False),
    )


def _base(table: Table, folder: Path) -> ModelFolder | None:
    """Somebody else's diffusion model, if the file describes no U-Net: the one in the model folder."""
    if "unet" in table:
        return None
    if not (folder / CONFIG).exists():
        allowed = f"a table that describes the U-Net (without it, a trained one must be in the model folder {folder})"
        raise ManifestError(bad("unet", None, allowed))
    for key in (*MODEL_KEYS, "diffusion"):
        if key in table:
            raise ManifestError(bad(key, table[key], "allowed without [unet]: the model folder says it"))
    model = read_model_folder(folder)
    if model.class_names and table.get("class_names", names := list(model.class_names)) != names:
        raise ManifestError(bad("class_names", table["class_names"], "allowed here: the model folder has others"))
    if model.diffusion_steps < MIN_STEPS:
        allowed = f"at least {MIN_STEPS}, which measuring the model needs"
        raise ManifestError(bad(f"{folder / CONFIG}: schedule.steps", model.diffusion_steps, allowed))
    if model.classifier is not None and not (folder / "training" / "classifier").exists():
        raise ManifestError(bad("model", str(folder), "a model without a classifier: it has one already"))
    return model


def _reference(table: Table, path: Path, folder: Path) -> Path:
    """The held-out images: those that the file names, which must exist, or else those in the model folder."""
    named = get_path(table, "reference", path.parent)
    if named is not None and not Path(named).exists():
        raise ManifestError(bad("reference", named, f"a folder of held-out images that exists{near_path(named)}"))
    return folder / "reference" if named is None else Path(named)


def _part(table: Table, part: str, image_size: int) -> TrainSettings:
    settings = {key: value for key, value in get_table(table, part).items() if (part, key) != ("classifier", "ect")}
    return read_settings(settings, part, image_size, flip=False)


def _channels(table: Table) -> int:
    channels = get_integer(table, "channels", 1, 3)
    if channels == 2:
        raise ManifestError(bad("channels", channels, "1 (grey) or 3 (RGB)"))
    return channels


def _class_names(table: Table) -> tuple[str, ...] | None:
    names = table.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ManifestError(bad("class_names", names, "a list of non-empty strings"))
    return tuple(names)
