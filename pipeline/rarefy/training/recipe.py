"""The training recipe: a TOML file that names the model, the images and the settings of the training loop."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, get_choice, get_integer, get_number, get_path, get_table, get_text, known_keys
from rarefy.models.folder import ModelFolder, find_model

MAX_IMAGES = 2**32
MAX_SEED = 2**32 - 1  # torch's CPU generator uses no more bits


@dataclass(frozen=True)
class TrainSettings:
    """Everything that changes the weights, except the data and the network.

    images: number of images that training sees in total, repeats included; batch: images per step, over all processes;
    lr: peak learning rate; warmup: images over which the rate rises; decay: fraction of the run, at its end, over which
    it falls linearly to zero; ema: decay of the weights' moving average per step; clip: largest gradient norm;
    precision: bfloat16 (autocast, where the device has it in hardware) or float32.
    """

    images: int
    batch: int = 128
    lr: float = 3e-4
    weight_decay: float = 0.0
    warmup: int = 20_000
    decay: float = 0.15
    ema: float = 0.9995
    clip: float = 1.0
    seed: int = 0
    precision: str = "bfloat16"

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.images // self.batch)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, plateau, linear decay."""
        rise = (step + 1) * self.batch / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1e-9)
        return self.lr * min(rise, 1.0, fall)


@dataclass(frozen=True)
class Recipe:
    """A training recipe.

    preset: the model whose network and noise schedule are trained; data: folder of images; train: settings of the loop;
    init: weights to start from instead of random ones (an unconditional network can also start from class-conditional
    ones); ect: weight of the entropy constraint and clean: train on images without noise, both for classifiers only;
    text: the recipe's TOML.
    """

    preset: ModelFolder
    data: Path
    train: TrainSettings
    init: Path | None
    ect: float
    clean: bool
    text: str


def load_recipe(path: Path, kind: str, ect: float | None = None) -> Recipe:
    """Read and check a recipe; relative paths in it start at its folder. ``ect`` replaces the recipe's own value.

    Raises ManifestError, which names the key, its value and what is allowed.
    """
    text, table = _read(path)
    if ect is not None:
        text = text if table.get("ect", 0.0) == ect else _with_ect(text, ect)
        table["ect"] = ect
    allowed = ["preset", "data", "init", "train"] + (["ect", "clean"] if kind == "classifier" else [])
    for key in table:
        if key not in allowed:
            raise ManifestError(bad(key, table[key], f"a key of a {kind} recipe, which has {', '.join(allowed)}"))
    clean = table.get("clean", False)
    if not isinstance(clean, bool):
        raise ManifestError(bad("clean", clean, "true or false"))
    init = get_path(table, "init", path.parent)
    return Recipe(
        preset=find_model(get_text(table, "preset")),
        data=path.parent.absolute() / Path(get_text(table, "data")).expanduser(),
        train=_settings(get_table(table, "train")),
        init=Path(init) if init else None,
        ect=get_number(table, "ect", 0, 1000, 0),
        clean=clean,
        text=text,
    )


def _read(path: Path) -> tuple[str, dict[str, object]]:
    try:
        text = path.read_text()
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"recipe: {str(path)!r} is not TOML ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"recipe: {str(path)!r} cannot be read ({error})") from error


def _settings(table: Table) -> TrainSettings:
    known_keys(table, "train", [field.name for field in fields(TrainSettings)])
    default = TrainSettings
    return TrainSettings(
        images=get_integer(table, "train.images", 1, MAX_IMAGES),
        batch=get_integer(table, "train.batch", 1, 65_536, default.batch),
        lr=get_number(table, "train.lr", 1e-9, 10, default.lr),
        weight_decay=get_number(table, "train.weight_decay", 0, 10, default.weight_decay),
        warmup=get_integer(table, "train.warmup", 0, MAX_IMAGES, default.warmup),
        decay=get_number(table, "train.decay", 0, 1, default.decay),
        ema=get_number(table, "train.ema", 0, 0.999999, default.ema),
        clip=get_number(table, "train.clip", 1e-6, 1e6, default.clip),
        seed=get_integer(table, "train.seed", 0, MAX_SEED, default.seed),
        precision=get_choice(table, "train.precision", ("bfloat16", "float32"), default.precision),
    )


def _with_ect(text: str, ect: float) -> str:
    """A recipe's text with ``ect`` replaced. The run keeps this copy, and a resumed run must have the same text."""
    rest = re.sub(r"""^[ \t]*["']?ect["']?[ \t]*=.*\n?""", "", text, flags=re.MULTILINE)
    return f"ect = {ect!r}\n{rest}"
