"""A training step of the embedded U-Net against the reference's: ``python -m benchmarks.training``.

The baseline trains as the reference's loop does: float32, attention recomputed in the backward pass, the average of the
weights updated parameter by parameter, the norms of weights and gradients summed for the log. Loss and data are shared.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.baseline import baseline
from benchmarks.command import compare, make_parser
from rarefy.audit.inputs.reference import read_embedded
from rarefy.diffusion.schedule import make_schedule
from rarefy.models.folder import find_model
from rarefy.models.networks import build_unet
from rarefy.training.data import TrainingSet, make_batch
from rarefy.training.losses import HybridLoss
from rarefy.training.settings import TrainSettings
from rarefy.training.state import start as start_training
from rarefy.training.step import train_step


def start(form: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that takes the next training step in one form: baseline or rarefy."""
    device, preset = torch.device(options.device), find_model("fashion-mnist-28")
    settings, data = TrainSettings(images=10**9, batch=options.batch), read_embedded(preset, "held_out")
    loss_function = HybridLoss(make_schedule(preset.schedule, preset.diffusion_steps), device)
    network = build_unet(preset.unet)
    if form == "rarefy":
        state = loop.start(network, settings, device, Path("no-checkpoint"))
        return lambda: loop.train_step(state, loss_function, data, settings)
    torch.backends.cudnn.allow_tf32 = False
    model = baseline(network.to(device)).train()
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer, numbers = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0), itertools.count()

    def step() -> None:
        optimizer.zero_grad()
        loss_function(model, make_batch(data, next(numbers), settings, device))["loss"].backward()
        sum(float(p.grad.norm() ** 2) + float(p.detach().norm() ** 2) for p in parameters if p.grad is not None)
        optimizer.step()
        for target, source in zip(average, parameters, strict=True):
            target.mul_(settings.ema).add_(source.detach(), alpha=1 - settings.ema)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--batch", type=int, default=64)
    compare(start, ["rarefy"], ["baseline"], parser.parse_args(argv))


if __name__ == "__main__":
    main()
