"""What one part of a training run needs, and the recipe file that names a model of the library.

The files that ``rarefy init`` writes, which describe a model of the user's, are read in :mod:`rarefy.training.project`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rarefy.errors import ManifestError, bad, near_path
from rarefy.fields import Table, find_path, get_flag, get_number, get_path, get_table, get_text, parse_toml
from rarefy.models.config import NetworkSpec
from rarefy.models.folder import ModelFolder, find_model
from rarefy.training.settings import LENGTH, SAME_WEIGHTS, TrainSettings, read_settings, settings_values

PARTS = ("diffusion", "classifier", "judge")


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    part: diffusion, classifier, or judge (a classifier of clean images); table: the name of the settings' table in the
    user's file; model: whose network and noise schedule are trained; data: folder of images; train: settings of the
    loop; init: weights to start from instead of random ones (an unconditional network can also start from
    class-conditional ones); ect: weight of the entropy constraint and clean: train on images without noise, both for
    classifiers only; command: what the user typed, for the provenance.
    """

    part: str
    table: str
    model: ModelFolder
    data: Path
    train: TrainSettings
    init: Path | None = None
    ect: float = 0.0
    clean: bool = False
    command: str = ""

    @property
    def network(self) -> NetworkSpec:
        """The network that is trained. A judge has the classifier's architecture."""
        spec = self.model.unet if self.part == "diffusion" else self.model.classifier
        if spec is None:
            raise ManifestError(bad("model", self.model.name, "a model with a classifier"))
        return spec

    def values(self) -> dict[str, object]:
        """Everything that the run depends on, by dotted name, as it is written into ``recipe.toml``."""
        spec = {"kind": self.network.kind, **dataclasses.asdict(self.network)}
        values: dict[str, object] = {
            "part": self.part,
            "model": self.model.name,
            "schedule.name": self.model.schedule,
            "schedule.steps": self.model.diffusion_steps,
            "schedule.prediction": self.model.prediction,
            "ect": self.ect,
            "clean": self.clean,
            **{f"network.{key}": list(v) if isinstance(v, tuple) else v for key, v in spec.items()},
            **{f"train.{key}": value for key, value in settings_values(self.train).items()},
        }
        return {key: value for key, value in values.items() if value is not None}


def load_recipe(path: Path, kind: str, ect: float | None = None) -> Recipe:
    """Read and check a recipe that names a model by ``preset``; relative paths in it start at its folder.

    kind: diffusion or classifier; ect: replaces the recipe's own value. Raises ManifestError, which names the key, its
    value and what is allowed.
    """
    table = read_toml(path)
    if ect is not None:
        table["ect"] = ect
    allowed = ["preset", "data", "init", "train"] + (["ect", "clean"] if kind == "classifier" else [])
    for key in table:
        if key not in allowed:
            raise ManifestError(bad(key, table[key], f"a key of a {kind} recipe, which has {', '.join(allowed)}"))
    init = get_path(table, "init", path.parent)
    model = find_model(get_text(table, "preset"))
    return Recipe(
        part=kind,
        table="train",
        model=model,
        data=data_folder(table, path),
        train=read_settings(get_table(table, "train"), "train", model.image_size, flip=kind == "classifier"),
        init=Path(init) if init else None,
        ect=get_number(table, "ect", 0, 1000, 0),
        clean=get_flag(table, "clean", False),
        command=f"rarefy train {kind} RECIPE.toml --out DIR",
    )


def names_preset(path: Path) -> bool:
    """Whether a recipe file trains a library model again, named by ``preset``. Raises ManifestError."""
    return "preset" in read_toml(path)


def data_folder(table: Table, path: Path) -> Path:
    """The folder of images that a recipe at ``path`` names."""
    return find_path(get_text(table, "data"), "data", path.parent)


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a recipe file. Raises ManifestError if it cannot be read or is not TOML."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except ManifestError as error:
        raise ManifestError(f"recipe: {str(path)!r} is {error}") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"recipe: {str(path)!r} cannot be read ({reason}){near_path(path)}") from error


def values_text(values: Mapping[str, object]) -> str:
    """Values as TOML. A dotted name is a key within a table, and JSON's scalars and lists are valid TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def stored_values(path: Path, part: str) -> dict[str, object]:
    """The values of an earlier session's ``recipe.toml``. Older versions kept a copy of the user's file there."""
    table = read_toml(path)
    if "preset" in table:
        return load_recipe(path, part).values()
    return _flat(table)


def changed_key(stored: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first key whose value would change the weights of the run in progress; None if it can go on."""
    free = {"model", *(f"train.{name}" for name in (*LENGTH, *SAME_WEIGHTS))}
    for key in (*stored, *now):
        known = key in stored or key.startswith("train.")
        if key not in free and known and stored.get(key) != now.get(key):
            return key
    return None


def _flat(table: Table, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        values |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values
