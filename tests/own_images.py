"""Data sets that tests write as users have them: PNG files in folders named by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SHAPES = ("circle", "square", "triangle", "cross", "ring")


def write_shapes(folder: Path, side: int, counts: Sequence[int], seed: int = 0) -> Path:
    """Shapes of random place, size and colour; ``counts`` images of the classes in SHAPES."""
    rng = np.random.default_rng(seed)
    for name, count in zip(SHAPES, counts, strict=True):
        (folder / name).mkdir()
        for number in range(count):
            draw_shape(name, side, rng).save(folder / name / f"{number}.png")
    return folder


def draw_shape(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """A bright shape on a dark background; drawn at four times the size for smooth edges."""
    scale = 4 * side
    image = Image.new("RGB", (scale, scale), tuple(rng.integers(0, 80, 3).tolist()))
    draw, colour = ImageDraw.Draw(image), tuple(rng.integers(140, 256, 3).tolist())
    radius = scale * rng.uniform(0.24, 0.36)
    x, y = rng.uniform(radius, scale - radius, 2)
    box, thick = (x - radius, y - radius, x + radius, y + radius), radius / 3
    if name == "circle":
        draw.ellipse(box, colour)
    elif name == "square":
        draw.rectangle(box, colour)
    elif name == "triangle":
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], colour)
    elif name == "cross":
        draw.rectangle((x - thick, y - radius, x + thick, y + radius), colour)
        draw.rectangle((x - radius, y - thick, x + radius, y + thick), colour)
    else:
        draw.ellipse(box, None, colour, round(thick))
    return image.resize((side, side), Image.Resampling.BOX)


def write_digits(folder: Path) -> Path:
    """scikit-learn's 1,797 digits, 8 px, grey."""
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        target = folder / str(label)
        target.mkdir(exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(target / f"{number}.png")
    return folder
