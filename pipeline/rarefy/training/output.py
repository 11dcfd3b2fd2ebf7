"""What a training run leaves in its folder: the recipe, the log, sample grids, weights and their provenance."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rarefy.diffusion.sampler import ImageNoise, SamplerSettings, denoiser, reverse_chain, to_uint8
from rarefy.diffusion.schedule import Schedule, make_schedule
from rarefy.errors import OutputError, bad
from rarefy.execution import prepare
from rarefy.guidance.base import Networks
from rarefy.images import LabelledImages, has_split, load_images
from rarefy.models.checkpoint import file_sha256
from rarefy.models.folder import ModelFolder
from rarefy.models.networks import build_classifier, build_unet
from rarefy.training.data import place
from rarefy.training.loop import Report, TrainState
from rarefy.training.recipe import Recipe, TrainSettings

GRID_PIXELS = 4 * 256**2  # per batch of a sample grid: ADM-256 takes about 0.7 GB per image


def claim(folder: Path, recipe: Recipe) -> Path:
    """Make the output folder; refuse one that contains another recipe's run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / "recipe.toml"
        if not copy.exists():
            own = folder / f"recipe.toml.{place()[0]}"  # all processes of torchrun get here at the same time
            own.write_text(recipe.text)
            own.replace(copy)
        if copy.read_text() != recipe.text:
            raise OutputError(bad("out", str(folder), "a folder of this recipe: it contains the run of another recipe"))
    except OSError as error:
        raise OutputError(f"out: {str(folder)!r} cannot be written ({error.strerror})") from error
    return folder


def write_log(report: Report, settings: TrainSettings, log: Path) -> None:
    """Print a report and append it to the log."""
    images = report.step * settings.batch
    left = max(settings.images - images, 0) / report.images_per_s
    means = " ".join(f"{name} {value:.4f}" for name, value in report.means.items())
    eta = time.strftime("%H:%M:%S", time.gmtime(left))
    print(f"{images:,}/{settings.images:,} images  {report.images_per_s:.0f}/s  ETA {eta}  {means}", file=sys.stderr)
    line = {"images": images, "images_per_s": round(report.images_per_s, 1), "lr": report.lr, **report.means}
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_log(log: Path) -> list[dict[str, float]]:
    """The log's entries, without a last line that a kill cut short."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_log(log: Path, images: int) -> None:
    """Drop the entries beyond ``images``, the checkpoint's: the resumed run writes them again."""
    kept = [json.dumps(entry) + "\n" for entry in read_log(log) if entry["images"] <= images]
    temporary = log.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(log)


@torch.no_grad()
def save_grid(state: TrainState, preset: ModelFolder, path: Path, columns: int = 10, rows: int = 4) -> None:
    """Draw ``rows`` images of the first ``columns`` classes: EMA weights, 20 deterministic steps, fixed seeds."""
    device = next(state.model.parameters()).device
    ema = prepare(build_unet(preset.unet), device).eval()
    ema.load_state_dict(state.ema)
    networks = Networks(denoiser(ema))
    chain = SamplerSettings("dpm-solver++", "logsnr20").chain(preset)
    shape = (preset.channels, preset.image_size, preset.image_size)
    y = torch.arange(columns * rows, device=device) % columns % preset.classifier_classes
    images, size = [], max(1, GRID_PIXELS // preset.image_size**2)
    for first in range(0, len(y), size):
        part = y[first : first + size]
        noise = ImageNoise(range(first, first + len(part)), shape, device)
        *_, last = reverse_chain(networks, chain, noise(-1), part, noise)
        images.append(to_uint8(last.x).cpu())
    pixels = torch.cat(images).unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1).numpy())).save(path)


def write_result(kind: str, recipe: Recipe, state: TrainState, data: LabelledImages, folder: Path) -> dict[str, Any]:
    """Write the EMA weights and their provenance; returns the provenance."""
    path = folder / "weights.safetensors"
    save_file({name: value.contiguous().cpu() for name, value in state.ema.items()}, path)
    result: dict[str, Any] = {
        "command": f"rarefy train {kind} RECIPE.toml --out DIR",
        "recipe": recipe.text,
        "init_sha256": file_sha256(recipe.init) if recipe.init else None,
        "data_sha256": data.sha256(),
        "steps": state.step,
        "images": state.step * recipe.train.batch,
        "seconds": round(state.seconds, 1),
        "weights_sha256": file_sha256(path),
        "torch": torch.__version__,
        "curve": _curve(folder / "log.jsonl"),
    }
    if kind == "classifier" and has_split(recipe.data, "test"):
        result["test_accuracy"] = _accuracies(recipe, state.ema, next(state.model.parameters()).device)
    (folder / "provenance.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _curve(log: Path, points: int = 60) -> list[dict[str, float]]:
    """At most ``points`` evenly spaced entries of the training log."""
    entries = read_log(log)
    stride = max(1, -(-len(entries) // points))
    return [{k: round(v, 5) for k, v in entry.items()} for entry in entries[stride - 1 :: stride]]


def _accuracies(recipe: Recipe, weights: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    preset = recipe.preset
    model = prepare(build_classifier(preset.classifier), device).eval()
    model.load_state_dict(weights)
    schedule = make_schedule(preset.schedule, preset.diffusion_steps)
    test = load_images(recipe.data, preset.image_size, preset.channels, "test", classes=preset.classes)
    steps = [len(schedule) * tenths // 10 for tenths in ((0,) if recipe.clean else (0, 3, 5, 7))]
    return {f"t={step}": round(accuracy_at(model, test, schedule, step), 4) for step in steps}


@torch.no_grad()
def accuracy_at(model: nn.Module, data: LabelledImages, schedule: Schedule, step: int, batch: int = 500) -> float:
    """Top-1 accuracy on images noised to one step of the chain (step 0: without noise)."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(step)
    abar = float(schedule.alphas_cumprod[step])
    hits = 0
    for start in range(0, len(data), batch):
        x_0 = torch.from_numpy(data.images[start : start + batch]).float() / 127.5 - 1
        x_t = x_0 if step == 0 else abar**0.5 * x_0 + (1 - abar) ** 0.5 * torch.randn(x_0.shape, generator=generator)
        t = torch.full((len(x_t),), float(schedule.timesteps[step]), device=device)
        predicted = model(x_t.to(device), t).argmax(-1).cpu()
        hits += int((predicted == torch.from_numpy(data.labels[start : start + batch])).sum())
    return hits / len(data)
