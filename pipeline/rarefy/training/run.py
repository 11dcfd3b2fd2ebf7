"""``rarefy train``: trains a recipe's network and writes its weights and their provenance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rarefy.device import find_device
from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import ManifestError, bad
from rarefy.fields import check_integer
from rarefy.images import load_images
from rarefy.models.adm import ADM
from rarefy.models.checkpoint import check_entries, read_state
from rarefy.models.networks import build_classifier, build_unet
from rarefy.training.data import place
from rarefy.training.loop import LossFunction, start, train
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.output import claim, cut_log, save_grid, write_log, write_result
from rarefy.training.recipe import Recipe, load_recipe


def run_training(
    kind: str, recipe_path: str, out: str, device: str, threads: int | None, ect: float | None = None
) -> dict[str, Any]:
    """Train a ``diffusion`` or ``classifier`` network to the recipe's end, resuming the run in ``out`` if there is one.

    ect: for a classifier, replaces the recipe's value, also in the copy of the recipe in ``out``.
    Writes state.pt (to resume), log.jsonl, weights.safetensors (EMA) and provenance.json; sample grids for diffusion.
    Under ``torchrun`` every process trains on its share of each batch; only rank 0 writes and returns the provenance.
    The others return an empty dict. Raises ManifestError, DataError, DeviceError, OutputError or DivergedError.
    """
    recipe = load_recipe(Path(recipe_path), kind, ect)
    if threads is not None:
        torch.set_num_threads(check_integer(threads, "threads", 1, 4096))
    with _processes(device) as target:
        rank, world = place()
        if recipe.train.batch % world:
            raise ManifestError(bad("train.batch", recipe.train.batch, f"divisible by the {world} processes"))
        preset, settings = recipe.preset, recipe.train
        data = load_images(recipe.data, preset.image_size, preset.channels, "train", classes=preset.classes)
        network, loss = _network(kind, recipe, target)
        folder = claim(Path(out), recipe)  # last: a folder left by a mistake would refuse the corrected recipe
        state = start(network, settings, target, folder / "state.pt")
        if rank == 0:
            cut_log(folder / "log.jsonl", state.step * settings.batch)
        for report in train(state, loss, data, settings, folder / "state.pt"):
            if rank > 0:
                continue
            write_log(report, settings, folder / "log.jsonl")
            if report.saved and kind == "diffusion":
                save_grid(state, preset, folder / f"samples-{report.step * settings.batch:09d}.png")
        return write_result(kind, recipe, state, data, folder) if rank == 0 else {}


@contextmanager
def _processes(name: str) -> Iterator[torch.device]:
    """This process's device; under ``torchrun``, as a member of the process group."""
    device = _device(name)
    if device.index is not None:
        torch.cuda.set_device(device)
    joins = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if joins:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if joins:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return find_device(name)


def _network(kind: str, recipe: Recipe, device: torch.device) -> tuple[ADM, LossFunction]:
    """The network with its initial weights, on the CPU, and its loss."""
    preset = recipe.preset
    schedule = make_schedule(preset.schedule, preset.diffusion_steps)
    torch.manual_seed(recipe.train.seed)
    network: ADM
    loss: LossFunction
    if kind == "diffusion":
        network, loss = build_unet(preset.unet), HybridLoss(schedule, device, preset.num_classes is not None)
    else:
        network = build_classifier(preset.classifier)
        loss = ClassifierLoss(schedule, device, recipe.ect, clean=recipe.clean)
    if recipe.init is not None:
        state = read_state(recipe.init)
        if kind == "diffusion" and preset.num_classes is None:
            state = without_classes(state)
        check_entries(state, network.state_dict(), recipe.init)
        network.load_state_dict(state)
    return network, loss


def without_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a class-conditional U-Net's weights into unconditional ones: the time embedding absorbs the mean class."""
    if "label_emb.weight" not in state:
        return state
    rest = {name: value for name, value in state.items() if name != "label_emb.weight"}
    bias = "time_embed.2.bias"
    return rest | {bias: rest[bias] + state["label_emb.weight"].mean(0)}
