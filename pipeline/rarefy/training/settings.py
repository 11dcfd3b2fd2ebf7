"""The settings of the training loop: one table of a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, get_choice, get_flag, get_integer, get_number, known_keys

MAX_IMAGES = 2**32
MAX_SEED = 2**32 - 1  # torch's CPU generator uses no more bits
PRECISIONS = ("bfloat16", "tf32", "float32")
SAME_WEIGHTS = ("accumulate", "checkpointing")
"""Settings that change speed and memory; they change the weights by rounding errors at most."""
LENGTH = ("images", "decay")
"""Settings that may change when a run is continued."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything that changes the weights, except the data and the network.

    images: number of images that training sees in total, repeats included; batch: images per step, over all processes;
    lr: peak learning rate; warmup: images over which the rate rises; decay: fraction of the run, at its end, over which
    it falls linearly to zero; ema: decay of the weights' moving average per step; ema_halflife: the same in images,
    after which a weight's share in the average has halved (it replaces ema); clip: largest gradient norm; precision of
    matrix products: bfloat16 (autocast, where the device has it in hardware), tf32 (on GPUs) or float32; flip: mirror
    half of the images; crop: largest random shift in pixels, with reflected borders; balance: 0 draws classes as often
    as the data has them, 1 equally often, and in between class c with weight n_c^(1 - balance); accumulate: number of
    micro-batches per step, to save memory; checkpointing: compute activations again in the backward pass, to save more.
    """

    images: int
    batch: int = 128
    lr: float = 3e-4
    weight_decay: float = 0.0
    warmup: int = 20_000
    decay: float = 0.15
    ema: float = 0.9995
    ema_halflife: int | None = None
    clip: float = 1.0
    seed: int = 0
    precision: str = "bfloat16"
    flip: bool = False
    crop: int = 0
    balance: float = 0.0
    accumulate: int = 1
    checkpointing: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.images // self.batch)

    @property
    def ema_decay(self) -> float:
        """Decay of the moving average per step."""
        return self.ema if self.ema_halflife is None else 0.5 ** (self.batch / self.ema_halflife)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, plateau, linear decay."""
        rise = (step + 1) * self.batch / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1e-9)
        return self.lr * min(rise, 1.0, fall)


def read_settings(table: Table, name: str, image_size: int, flip: bool) -> TrainSettings:
    """The settings in a recipe's table called ``name``. flip: its default. Raises ManifestError."""
    known_keys(table, name, [field.name for field in fields(TrainSettings)])
    if "ema" in table and "ema_halflife" in table:
        raise ManifestError(bad(f"{name}.ema", table["ema"], "allowed together with ema_halflife; give one of them"))
    default = TrainSettings
    halflife = "ema_halflife" in table
    settings = TrainSettings(
        images=get_integer(table, f"{name}.images", 1, MAX_IMAGES),
        batch=get_integer(table, f"{name}.batch", 1, 65_536, default.batch),
        lr=get_number(table, f"{name}.lr", 1e-9, 10, default.lr),
        weight_decay=get_number(table, f"{name}.weight_decay", 0, 10, default.weight_decay),
        warmup=get_integer(table, f"{name}.warmup", 0, MAX_IMAGES, default.warmup),
        decay=get_number(table, f"{name}.decay", 0, 1, default.decay),
        ema=get_number(table, f"{name}.ema", 0, 0.999999, default.ema),
        ema_halflife=get_integer(table, f"{name}.ema_halflife", 1, MAX_IMAGES) if halflife else None,
        clip=get_number(table, f"{name}.clip", 1e-6, 1e6, default.clip),
        seed=get_integer(table, f"{name}.seed", 0, MAX_SEED, default.seed),
        precision=get_choice(table, f"{name}.precision", PRECISIONS, default.precision),
        flip=get_flag(table, f"{name}.flip", flip),
        crop=get_integer(table, f"{name}.crop", 0, image_size - 1, default.crop),
        balance=get_number(table, f"{name}.balance", 0, 1, default.balance),
        accumulate=get_integer(table, f"{name}.accumulate", 1, 65_536, default.accumulate),
        checkpointing=get_flag(table, f"{name}.checkpointing", default.checkpointing),
    )
    if settings.batch % settings.accumulate:
        allowed = f"a divisor of {name}.batch, which is {settings.batch}"
        raise ManifestError(bad(f"{name}.accumulate", settings.accumulate, allowed))
    return settings


def settings_values(settings: TrainSettings) -> dict[str, object]:
    """The settings by name, without those that are not given."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
