"""A project of the user's for tests: small grey images in class folders, held-out ones in a shard, and train.toml."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from small_training import images
from webdataset import TarWriter

from rarefy.images import LabelledImages
from rarefy.shards.writer import encode_png

NAMES = ("apple", "Big bird", "cat", "dog")
NETWORK = """model_channels = 32
channel_mult = [1, 1]
num_res_blocks = 1
attention_resolutions = [2]
num_head_channels = 32
resblock_updown = false
"""
TRAIN_TOML = f"""name = "mine"
data = "../photos"
model = "model"
image_size = 8
channels = 1
diffusion_steps = 100

[unet]
{NETWORK}
[classifier_network]
{NETWORK}
[diffusion]
images = 160
batch = 16
lr = 2e-3
warmup = 16
ema_halflife = 40

[classifier]
images = 480
batch = 16
lr = 2e-3
warmup = 16
ema_halflife = 40
ect = 0.1

[judge]
images = 480
batch = 16
lr = 2e-3
warmup = 16
ema_halflife = 40
"""


def write_photos(folder: Path, count: int = 60) -> LabelledImages:
    """Class folders of images, which are returned."""
    data = images(count)
    for row in range(count):
        place = folder / NAMES[data.labels[row]] / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row, 0]).save(place)
    return data


def write_reference(folder: Path, data: LabelledImages) -> None:
    """A shard of held-out images. Its class ids are not in the order of the names, which decide."""
    folder.mkdir(parents=True)
    with TarWriter(str(folder / "held-out-000000.tar"), encoder=False) as tar:
        for row, image in enumerate(data.images):
            name = NAMES[data.labels[row]]
            info = {"class_name": name}
            content = {"png": encode_png(image), "cls": str(3 - data.labels[row]).encode()}
            tar.write({"__key__": f"{row:05d}", **content, "json": json.dumps(info).encode()})


def write_project(folder: Path) -> Path:
    """``mine/train.toml`` with 60 photos, 8 of which are also among 40 held-out images; returns its path."""
    write_photos(folder / "photos")
    write_reference(folder / "mine" / "model" / "reference", images(92).take(np.arange(52, 92)))
    (folder / "mine" / "train.toml").write_text(TRAIN_TOML)
    return folder / "mine" / "train.toml"
