"""An example of a model of your own: two small networks, trained here on scikit-learn's 8 px digits.

    python examples/own_model/digits_model.py out/digits/model
    PYTHONPATH=examples/own_model rarefy run examples/own_model/rare.toml --out out/digits/rare --allow-plugins

The script writes a model folder whose config.json names the two classes below by their import paths, so rarefy builds
them wherever Python can import this file and --allow-plugins permits it. What a network is called with is in
rarefy.models.networks; see also docs/IMPORT.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rarefy.diffusion.schedule import make_schedule
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import ModelFolder, write_model_folder

SIZE, CLASSES, WIDTH, BATCH = 8, 10, 32, 128
HELD_OUT_EVERY = 5  # one of five images is never trained on; the audit compares with these


class Block(nn.Module):
    """Two convolutions on a residual path, to which the embedding of the time step (and class) is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.embedding = nn.Linear(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embedding(embedding)[:, :, None, None]
        y: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return y


class DigitUNet(nn.Module):
    """Predicts eps: (x_t (B, 1, 8, 8), t (B,), y (B,) class ids) -> (B, 1, 8, 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(CLASSES, width)
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.down, self.middle, self.up = Block(width), Block(width), Block(width)
        self.join = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        embedding = F.silu(self.time(sines(t, self.width)) + self.classes(y))
        skip = self.down(self.first(x), embedding)
        h = F.interpolate(self.middle(F.avg_pool2d(skip, 2), embedding), scale_factor=2)
        eps: Tensor = self.last(self.up(self.join(torch.cat([h, skip], dim=1)), embedding))
        return eps


class DigitClassifier(nn.Module):
    """The noise-aware classifier: (x_t, t) -> logits (B, 10). It has no features(); the terms used here need none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first, self.block = nn.Conv2d(1, width, 3, padding=1), Block(width)
        self.head = nn.Linear(16 * width, CLASSES)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.block(self.first(x), F.silu(self.time(sines(t, self.width))))
        logits: Tensor = self.head(F.avg_pool2d(F.silu(h), 2).flatten(1))
        return logits


def sines(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of time steps, (B,) -> (B, width)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


MODEL = ModelFolder(
    name="digits",
    description="scikit-learn's digits, 8 px grey, by networks of examples/own_model",
    unet=OtherNetwork("digits_model:DigitUNet", SIZE, 1, 1, CLASSES, options={"width": WIDTH}),
    classifier=OtherNetwork("digits_model:DigitClassifier", SIZE, 1, CLASSES, options={"width": WIDTH}),
    schedule="cosine",
    recommended_scale=1.0,
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    files={"unet": "unet.safetensors", "classifier": "classifier.safetensors", "reference": "reference"},
)


def batches(images: Tensor, labels: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Noisy images at random time steps: x_t, t, the noise eps, labels."""
    schedule = make_schedule(MODEL.schedule, MODEL.diffusion_steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        t, eps = torch.randint(MODEL.diffusion_steps, (BATCH,)), torch.randn(BATCH, 1, SIZE, SIZE)
        abar = schedule.alphas_cumprod[t].float()[:, None, None, None]
        yield abar.sqrt() * images[rows] + (1 - abar).sqrt() * eps, t.float(), eps, labels[rows]


def train(images: Tensor, labels: Tensor, steps: int) -> tuple[DigitUNet, DigitClassifier]:
    """Train both networks on images in [-1, 1], (N, 1, 8, 8)."""
    unet, classifier = DigitUNet(WIDTH), DigitClassifier(WIDTH)
    optimizer = torch.optim.AdamW([*unet.parameters(), *classifier.parameters()], lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for x_t, t, eps, y in batches(images, labels, steps):
        loss = F.mse_loss(unet(x_t, t, y), eps) + F.cross_entropy(classifier(x_t, t), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return unet, classifier


def main() -> None:
    """Train and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model folder to write")
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default 3000, some minutes)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.images).float(), torch.from_numpy(digits.target)  # pixels from 0 to 16
    held_out = torch.arange(len(labels)) % HELD_OUT_EVERY == 0
    unet, classifier = train((pixels[~held_out] / 8 - 1)[:, None], labels[~held_out], arguments.steps)
    for index in held_out.nonzero().flatten().tolist():
        folder = arguments.out / "reference" / MODEL.class_names[int(labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[index] * 255 / 16).round().byte().numpy()).save(folder / f"{index:04d}.png")
    save_file(unet.state_dict(), arguments.out / MODEL.files["unet"])
    save_file(classifier.state_dict(), arguments.out / MODEL.files["classifier"])
    write_model_folder(MODEL, arguments.out)


if __name__ == "__main__":
    main()
