"""A training step of the embedded U-Net against the reference's: ``python -m benchmarks.training``.

The baseline trains as the reference's loop does: float32, attention recomputed in the backward pass, the average of the
weights updated parameter by parameter, the norms of weights and gradients summed for the log. Loss and data are shared.

``--loader`` instead compares the loader alone with the step: how many times as many images it reads as a step needs.
``--data FOLDER --size 64`` reads a folder's colour images, from the cache on disk if they are many.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.baseline import baseline
from benchmarks.command import compare, finish, make_parser
from rarefy.audit.inputs.reference import read_embedded
from rarefy.bench.measure import clock
from rarefy.diffusion.schedule import schedule_of
from rarefy.images import LabelledImages, load_images
from rarefy.models.folder import find_model
from rarefy.models.networks import build_unet
from rarefy.training.data import TrainingSet, make_batch
from rarefy.training.loader import Loader
from rarefy.training.losses import HybridLoss
from rarefy.training.settings import TrainSettings
from rarefy.training.state import start as start_training
from rarefy.training.step import train_step

LOADER_SECONDS = 5


def start(form: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that takes the next training step in one form: baseline or rarefy."""
    device, preset = torch.device(options.device), find_model("fashion-mnist-28")
    settings, data = TrainSettings(images=10**9, batch=options.batch), TrainingSet.whole(_images(options))
    loss_function = HybridLoss(schedule_of(preset), device)
    shape = data.source.images.shape
    network = build_unet(
        dataclasses.replace(preset.unet, image_size=shape[2], in_channels=shape[1], out_channels=2 * shape[1])
    )
    numbers = itertools.count()
    if form == "rarefy":
        state = start_training(network, settings, device, Path("no-checkpoint"))
        return lambda: train_step(state, loss_function, make_batch(data, next(numbers), settings, device), settings)
    torch.backends.cudnn.allow_tf32 = False
    model = baseline(network.to(device)).train()
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        loss_function(model, make_batch(data, next(numbers), settings, device))["loss"].backward()
        sum(float(p.grad.norm() ** 2) + float(p.detach().norm() ** 2) for p in parameters if p.grad is not None)
        optimizer.step()
        for target, source in zip(average, parameters, strict=True):
            target.mul_(settings.ema).add_(source.detach(), alpha=1 - settings.ema)

    return step


def compare_loader(options: argparse.Namespace) -> None:
    """Print images/s of the loader alone and of the step, and their ratio."""
    torch.set_num_threads(options.threads)
    device, step = torch.device(options.device), start("rarefy", options)
    settings = TrainSettings(images=10**9, batch=options.batch, flip=True)
    step()
    begin = clock(device, wall=True)
    for _ in range(options.repeats):
        step()
    stepped = options.repeats * options.batch / (clock(device, wall=True) - begin)
    with Loader(TrainingSet.whole(_images(options)), settings, device) as loader:
        batches = loader.batches(0)
        next(batches)
        begin, count = clock(device, wall=True), 0
        while (seconds := clock(device, wall=True) - begin) < LOADER_SECONDS:
            next(batches)
            count += options.batch
    loaded = count / seconds
    print(
        f"loader {loaded:,.0f} images/s, step {stepped:,.0f} images/s: {loaded / stepped:,.1f} times what a step needs"
    )
    finish(options, {"loader_images_per_s": loaded, "step_images_per_s": stepped})


def _images(options: argparse.Namespace) -> LabelledImages:
    if options.data:
        return load_images(options.data, options.size, 3)
    return read_embedded(find_model("fashion-mnist-28"), "held_out")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--loader", action="store_true", help="time the loader alone and the step")
    parser.add_argument("--data", help="folder of colour images (default: the embedded model's)")
    parser.add_argument("--size", type=int, default=32, help="size of the images in --data (default 32)")
    options = parser.parse_args(argv)
    if options.loader:
        compare_loader(options)
    else:
        compare(start, ["rarefy"], ["baseline"], options)


if __name__ == "__main__":
    main()
