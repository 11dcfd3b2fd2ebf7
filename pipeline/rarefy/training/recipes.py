"""Training runs as ``rarefy train`` makes them: a TOML recipe in, weights with their provenance out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rarefy.diffusion.sampler import ImageNoise, SamplerSettings, denoiser, reverse_chain, to_uint8
from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import DeviceError, ManifestError, OutputError, bad
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, to_device, use_kernels
from rarefy.guidance.base import Networks
from rarefy.images import LabelledImages, load_images
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.checkpoint import check_entries, file_sha256, read_state
from rarefy.models.folder import ModelFolder, find_model
from rarefy.training.classifier import ClassifierLoss, accuracy_at
from rarefy.training.diffusion import HybridLoss
from rarefy.training.loop import LossFunction, Report, TrainSettings, TrainState, place, start, train

KINDS = ("diffusion", "classifier")


@dataclass(frozen=True)
class Recipe:
    """A training recipe. preset: whose network and schedule; data: folder of images; train: the loop's settings.

    init: weights to begin from instead of random ones, a class-conditional model's for an unconditional one too; ect:
    weight of the entropy constraint, clean: images without noise, both for classifiers only; text: the TOML it was read
    from, with the ect that was given instead.
    """

    preset: ModelFolder
    data: Path
    train: TrainSettings
    init: Path | None
    ect: float
    clean: bool
    text: str


def load_recipe(path: Path, kind: str, given_ect: float | None = None) -> Recipe:
    """Read and check a recipe; ``given_ect`` takes the place of its ect.

    Raises ManifestError naming the key, its value and what is allowed.
    """
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        raise ManifestError(f"recipe: {str(path)!r} cannot be read ({error.strerror})") from error
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"recipe: {str(path)!r} is not TOML ({error})") from error
    if given_ect is not None:
        text = text if table.get("ect", 0.0) == given_ect else _with_ect(text, given_ect)
        table["ect"] = given_ect
    allowed = {"preset", "data", "init", "train"} | ({"ect", "clean"} if kind == "classifier" else set())
    for key in table:
        if key not in allowed:
            raise ManifestError(
                bad(key, table[key], f"a key of a {kind} recipe, which has {', '.join(sorted(allowed))}")
            )
    for key in ("preset", "data", "init"):
        if not isinstance(table.get(key, "" if key == "init" else None), str):
            raise ManifestError(bad(key, table.get(key), "a string"))
    ect = table.get("ect", 0.0)
    if isinstance(ect, bool) or not isinstance(ect, int | float) or not 0 <= ect < math.inf:
        raise ManifestError(bad("ect", ect, "a number of at least 0"))
    clean = table.get("clean", False)
    if not isinstance(clean, bool):
        raise ManifestError(bad("clean", clean, "true or false"))
    init = Path(table["init"]) if table.get("init") else None
    settings = _settings(table.get("train", {}))
    return Recipe(find_model(table["preset"]), Path(table["data"]), settings, init, float(ect), clean, text)


def run_training(
    kind: str, recipe_path: str, out: str, device: str, threads: int | None, ect: float | None = None
) -> dict[str, Any]:
    """Train a ``diffusion`` or ``classifier`` network to the recipe's end, resuming what ``out`` holds.

    ect: for a classifier, instead of the recipe's; the copy that ``out`` gets has it.

    Leaves state.pt (to resume), log.jsonl, weights.safetensors (EMA) and provenance.json; sample grids for diffusion.
    Under ``torchrun`` every process trains on its share of each batch and the first one writes. Returns the provenance,
    in the others nothing.
    Raises ManifestError, DataError, DeviceError or OutputError.
    """
    recipe = load_recipe(Path(recipe_path), kind, ect)
    target = _device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    if threads:
        torch.set_num_threads(threads)
    data = load_images(recipe.data, recipe.preset.image_size, recipe.preset.channels, "train")
    torch.manual_seed(recipe.train.seed)
    use_kernels(execution_on(target, "exact", "auto"))
    keep_freed_memory()
    network, loss = _network(kind, recipe, target)
    folder = _claim(Path(out), recipe)  # after all that a recipe can name wrongly: the corrected one is to be let in
    state = start(network, recipe.train, target, folder / "state.pt")
    for report in train(state, loss, data, recipe.train, folder / "state.pt"):
        if place()[0] > 0:
            continue
        _log(report, recipe.train, folder)
        if report.saved and kind == "diffusion":
            save_grid(state, recipe.preset, folder / f"samples-{report.step * recipe.train.batch:09d}.png")
    return _finish(kind, recipe, state, data, folder) if place()[0] == 0 else {}


def _with_ect(text: str, ect: float) -> str:
    """A recipe's text with that ect in place of its own: what a resumed run is held against, a whole recipe again."""
    rest = re.sub(r"""^[ \t]*["']?ect["']?[ \t]*=.*\n?""", "", text, flags=re.MULTILINE)
    return f"ect = {ect!r}\n{rest}"


def _settings(table: Mapping[str, object]) -> TrainSettings:
    fields = {f.name: f for f in dataclasses.fields(TrainSettings)}
    for key, value in table.items():
        if key not in fields:
            raise ManifestError(bad(f"train.{key}", value, f"one of {', '.join(fields)}"))
        if key == "precision":
            if value not in ("bfloat16", "float32"):
                raise ManifestError(bad("train.precision", value, "bfloat16 or float32"))
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ManifestError(bad(f"train.{key}", value, "a number of at least 0"))
    if not isinstance(table.get("images"), int) or not isinstance(table.get("batch", 1), int):
        raise ManifestError(bad("train.images", table.get("images"), "a whole number, as is train.batch"))
    if not table["images"] or table.get("batch") == 0:
        raise ManifestError(bad("train.images", table["images"], "at least 1, as is train.batch"))
    return TrainSettings(**table)  # type: ignore[arg-type]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(bad("device", name, "available here; this machine offers cpu"))
    if name != "cpu" and not name.startswith("cuda"):
        raise DeviceError(bad("device", name, "auto, cpu, cuda or cuda:N"))
    return torch.device(name)


def _claim(folder: Path, recipe: Recipe) -> Path:
    """Make the output folder; refuse one that another recipe has begun."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / "recipe.toml"
        if not copy.exists():
            own = folder / f"recipe.toml.{place()[0]}"  # torchrun's processes come here at the same time
            own.write_text(recipe.text)
            own.replace(copy)
        if copy.read_text() != recipe.text:
            raise OutputError(bad("out", str(folder), "a folder for this recipe: it holds another recipe's run"))
    except OSError as error:
        raise OutputError(f"out: {str(folder)!r} cannot be written ({error.strerror})") from error
    return folder


def _network(kind: str, recipe: Recipe, device: torch.device) -> tuple[ADM, LossFunction]:
    schedule = make_schedule(recipe.preset.schedule, recipe.preset.diffusion_steps)
    network: ADM
    loss: LossFunction
    if kind == "diffusion":
        network, loss = UNet(recipe.preset.unet), HybridLoss(schedule, device)
    else:
        network, loss = (
            Classifier(recipe.preset.classifier),
            ClassifierLoss(schedule, device, recipe.ect, clean=recipe.clean),
        )
    if recipe.init is not None:
        state = read_state(recipe.init)
        if isinstance(network, UNet) and recipe.preset.num_classes is None:
            state = without_classes(state)
        check_entries(state, network.state_dict(), recipe.init)
        network.load_state_dict(state)
    return network, loss


def without_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's entries for an unconditional network to begin from: the time embedding takes in the mean class."""
    if "label_emb.weight" not in state:
        return state
    rest = {name: value for name, value in state.items() if name != "label_emb.weight"}
    bias = "time_embed.2.bias"
    return rest | {bias: rest[bias] + state["label_emb.weight"].mean(0)}


def _log(report: Report, settings: TrainSettings, folder: Path) -> None:
    images = report.step * settings.batch
    left = max(settings.images - images, 0) / report.images_per_s
    means = " ".join(f"{name} {value:.4f}" for name, value in report.means.items())
    eta = time.strftime("%H:%M:%S", time.gmtime(left))
    print(f"{images:,}/{settings.images:,} images  {report.images_per_s:.0f}/s  ETA {eta}  {means}", file=sys.stderr)
    line = {"images": images, "images_per_s": round(report.images_per_s, 1), "lr": report.lr, **report.means}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


@torch.no_grad()
def save_grid(state: TrainState, preset: ModelFolder, path: Path, columns: int = 10, rows: int = 4) -> None:
    """Draw ``rows`` images of the first ``columns`` classes: EMA weights, 20 deterministic steps, fixed seeds."""
    device = next(state.model.parameters()).device
    ema = to_device(UNet(preset.unet), device).eval()
    ema.load_state_dict(state.ema)
    y = torch.arange(columns * rows, device=device) % columns % preset.classifier_classes
    noise = ImageNoise(range(len(y)), (preset.channels, preset.image_size, preset.image_size), device)
    chain = SamplerSettings("dpm-solver++", "logsnr20").chain(preset)
    *_, last = reverse_chain(Networks(denoiser(ema)), chain, noise(-1), y, noise)
    pixels = to_uint8(last.x).unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1).cpu().numpy())).save(path)


def _finish(kind: str, recipe: Recipe, state: TrainState, data: LabelledImages, folder: Path) -> dict[str, Any]:
    """Write the EMA weights and their provenance."""
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
    if kind == "classifier":
        result["test_accuracy"] = _accuracies(recipe, state)
    (folder / "provenance.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _curve(log: Path, points: int = 60) -> list[dict[str, float]]:
    """At most ``points`` evenly spaced lines of the training log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    stride = -(-len(lines) // points)
    return [{k: round(v, 5) for k, v in line.items()} for line in lines[stride - 1 :: stride]]


def _accuracies(recipe: Recipe, state: TrainState) -> dict[str, float]:
    preset = recipe.preset
    model: nn.Module = Classifier(preset.classifier).to(next(state.model.parameters()).device)
    model.load_state_dict(state.ema)
    schedule = make_schedule(preset.schedule, preset.diffusion_steps)
    test = load_images(recipe.data, preset.image_size, preset.channels, "test")
    steps = (0,) if recipe.clean else (0, 300, 500, 700)
    return {f"t={step}": round(accuracy_at(model.eval(), test, schedule, step), 4) for step in steps}
