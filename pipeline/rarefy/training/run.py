"""Training one part: from its recipe to weights and their provenance. ``rarefy train PART RECIPE --out DIR``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rarefy.device import find_device
from rarefy.diffusion.schedule import schedule_of
from rarefy.errors import DeviceError, ManifestError, bad, needs_extra
from rarefy.execution import check_execution
from rarefy.extras import is_installed
from rarefy.fields import check_integer
from rarefy.models.adm import ADM
from rarefy.models.checkpoint import check_entries, read_state
from rarefy.models.file_hash import file_sha256
from rarefy.training.data import place
from rarefy.training.images import library_images
from rarefy.training.log import TrainingLog, cut_log
from rarefy.training.loop import train
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.monitor import Check, Monitor
from rarefy.training.output import (
    STATE,
    Job,
    Places,
    check_length,
    check_recipe,
    claim,
    write_result,
)
from rarefy.training.progress import say
from rarefy.training.recipe import Recipe, load_recipe
from rarefy.training.samples import build_network
from rarefy.training.state import TrainState, start
from rarefy.training.step import LossFunction


@dataclass(frozen=True)
class TrainOptions:
    """How training runs, which changes the weights by rounding at most.

    device: auto, cpu, cuda or cuda:N; threads: of the CPU; compile: auto, off or full; tensorboard: write its files.
    allow_plugins: import a diffusion network of your own, for which a classifier is trained, to measure its quality.
    """

    device: str = "auto"
    threads: int | None = None
    compile: str = "auto"
    tensorboard: bool = False
    allow_plugins: bool = False


def run_training(
    part: str, recipe_path: str, out: str, options: TrainOptions, ect: float | None = None
) -> dict[str, Any]:
    """Train a library model's ``diffusion`` or ``classifier`` network, resuming the run in ``out`` if there is one.

    ect: for a classifier, replaces the recipe's value, also in the copy of the recipe in ``out``.
    Writes state.pt (to resume), log.jsonl, weights.safetensors (EMA) and provenance.json; sample grids for diffusion.
    Under ``torchrun`` every process trains on its share of each batch; only rank 0 writes and returns the provenance.
    The others return an empty dict. Raises ManifestError, DataError, DeviceError, OutputError or DivergedError.
    """
    recipe = load_recipe(Path(recipe_path), part, ect)
    with processes(options) as device:
        return train_part(Job(recipe, library_images(recipe), Places.alone(Path(out))), device, options)


def train_part(job: Job, device: torch.device, options: TrainOptions, check: Check | None = None) -> dict[str, Any]:
    """Train a part to its recipe's end and write weights and provenance; returns the provenance (rank 0).

    A finished run is left as it is; with more ``images`` it goes on. check: an audit for diffusion networks.
    """
    recipe, places = job.recipe, job.places
    _check_shares(recipe, place()[1])
    values = {**recipe.values(), "data_sha256": job.images.sha256}
    if recipe.init is not None:
        values["init_sha256"] = file_sha256(recipe.init)
    check_recipe(places, recipe, values)
    network, loss = _network(recipe, device)
    with _memory_limit(recipe, device):
        state = start(network, recipe.train, device, places.folder / STATE, options.compile)
        check_length(state, recipe)
        if (record := _finished(job, state)) is not None:
            say(f"{recipe.part} is finished: {recipe.train.images:,} images seen; with more images it would go on")
            return record if place()[0] == 0 else {}
        claim(places, values)  # last: a folder left by a mistake would refuse the corrected recipe
        monitor = Monitor(job, device, check)
        _train(job, state, loss, monitor, options.tensorboard)
        return write_result(job, state, values, monitor.result(state)) if place()[0] == 0 else {}


def _train(job: Job, state: TrainState, loss: LossFunction, monitor: Monitor, tensorboard: bool) -> None:
    """Run the loop; rank 0 logs and measures."""
    settings, folder = job.recipe.train, job.places.folder
    if place()[0] > 0:
        for _ in train(state, loss, job.images.train, settings, folder / STATE):
            pass
        return
    done = f", {state.step * settings.batch:,} of them seen already" if state.step else ""
    say(f"training the {job.recipe.part} for {settings.images:,} images{done}")
    if job.images.held_out is None:
        say("no held-out images: neither their loss nor accuracy is measured")
    cut_log(folder / "log.jsonl", state.step * settings.batch)
    with closing(TrainingLog(folder, settings, tensorboard)) as log:
        for report in train(state, loss, job.images.train, settings, folder / STATE):
            log.report(report)
            if report.saved and (monitor.due() or report.step == settings.steps):
                values = monitor.measure(state)
                if values:
                    log.check(report.step * settings.batch, values)


def _finished(job: Job, state: TrainState) -> dict[str, Any] | None:
    """The provenance of a run that needs no further step and whose weights are in place; else None."""
    record = job.places.record()
    if state.step < job.recipe.train.steps or record is None or not job.places.weights.exists():
        return None
    return record if record.get("weights_sha256") == file_sha256(job.places.weights) else None


def _check_shares(recipe: Recipe, world: int) -> None:
    shares = world * recipe.train.accumulate
    if recipe.train.batch % shares:
        parts = f"the {world} processes" + (" and their micro-batches" if recipe.train.accumulate > 1 else "")
        raise ManifestError(bad(f"{recipe.table}.batch", recipe.train.batch, f"divisible by {parts}"))


@contextmanager
def _memory_limit(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn a GPU's lack of memory into a line that says what would fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        batch, pieces = recipe.train.batch, recipe.train.accumulate
        share = batch // place()[1] // pieces
        advice = "set checkpointing = true, or take a smaller network"
        if share > 1:
            smaller = share // 2 * place()[1] * pieces
            advice = (
                f"a batch of {smaller} may fit; accumulate = {2 * pieces} needs as little memory and keeps the batch; "
                f"or {advice}"
            )
        fits = f"small enough for the memory of {device}, on which it runs {share} images at a time"
        raise DeviceError(f"{bad(f'{recipe.table}.batch', batch, fits)}: {advice}") from None


@contextmanager
def processes(options: TrainOptions) -> Iterator[torch.device]:
    """This process's device; under ``torchrun``, as a member of the process group."""
    if options.threads is not None:
        torch.set_num_threads(check_integer(options.threads, "threads", 1, 4096))
    if options.tensorboard and not is_installed("tensorboard"):
        raise needs_extra("--tensorboard", "tensorboard", "tensorboard")
    device = _device(options.device)
    check_execution(device, "exact", options.compile)
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


def _network(recipe: Recipe, device: torch.device) -> tuple[ADM, LossFunction]:
    """The network with its initial weights, on the CPU, and its loss."""
    model = recipe.model
    schedule = schedule_of(model)
    torch.manual_seed(recipe.train.seed)
    network, loss = build_network(recipe), HybridLoss(schedule, device, model.num_classes is not None)
    if recipe.init is not None:
        state = read_state(recipe.init)
        if recipe.part == "diffusion" and model.num_classes is None:
            state = without_classes(state)
        check_entries(state, network.state_dict(), recipe.init)
        network.load_state_dict(state)
    if recipe.part == "diffusion":
        return network, loss
    return network, ClassifierLoss(schedule, device, recipe.ect, recipe.clean)


def without_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a class-conditional U-Net's weights into unconditional ones: the time embedding absorbs the mean class."""
    if "label_emb.weight" not in state:
        return state
    rest = {name: value for name, value in state.items() if name != "label_emb.weight"}
    bias = "time_embed.2.bias"
    return rest | {bias: rest[bias] + state["label_emb.weight"].mean(0)}
