"""Small networks, images and a data-parallel process for tests of the training code."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rarefy.diffusion.schedule import make_schedule
from rarefy.images import LabelledImages
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import ModelFolder
from rarefy.training.data import Batch, TrainingSet, make_batch
from rarefy.training.loop import DivergedError, train
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.settings import TrainSettings
from rarefy.training.state import TrainState, start
from rarefy.training.step import LossFunction, train_step

CPU = torch.device("cpu")
SIZE, CLASSES = 8, 4
SETTINGS = TrainSettings(images=24, batch=8, lr=1e-2, warmup=0, decay=0, precision="float32")
UNET = NetworkConfig(
    image_size=SIZE,
    in_channels=1,
    model_channels=32,
    out_channels=2,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 1),
    num_classes=CLASSES,
    num_head_channels=32,
    resblock_updown=False,
)
CLASSIFIER = dataclasses.replace(UNET, out_channels=CLASSES, num_classes=None)
MODEL = ModelFolder("tiny", "for tests", UNET, CLASSIFIER, "cosine", 1.0, diffusion_steps=100)


def images(count: int = 16) -> LabelledImages:
    """Smooth images of balanced classes. Brightness changes from left to right, at a rate that depends on the class."""
    rng, labels = np.random.default_rng(0), np.arange(count) % CLASSES
    ramp = np.linspace(-1, 1, SIZE) * (labels[:, None] - 1.5) * 60
    pixels = 128 + ramp[:, None, None, :] + rng.normal(0, 10, (count, 1, SIZE, SIZE))
    return LabelledImages(pixels.clip(0, 255).astype(np.uint8), labels, tuple(str(k) for k in range(CLASSES)))


def training_set(count: int = 16) -> TrainingSet:
    """All of those images."""
    return TrainingSet.whole(images(count))


def take_step(state: TrainState, loss: LossFunction, settings: TrainSettings) -> dict[str, Tensor]:
    """The next optimiser step on those images."""
    return train_step(state, loss, make_batch(training_set(), state.step, settings, CPU), settings)


def network_and_loss(kind: str, dropout: float = 0.0, seed: int = 0) -> tuple[ADM, LossFunction]:
    """The network of that kind with random weights, and its loss."""
    torch.manual_seed(seed)
    schedule = make_schedule(MODEL.schedule, MODEL.diffusion_steps)
    if kind == "diffusion":
        return UNet(dataclasses.replace(UNET, dropout=dropout)), HybridLoss(schedule, CPU)
    return Classifier(dataclasses.replace(CLASSIFIER, dropout=dropout)), ClassifierLoss(schedule, CPU)


def start_small(kind: str, settings: TrainSettings, folder: Path, dropout: float = 0.0, seed: int = 0) -> TrainState:
    """The state of a run in a folder, resumed if it has a checkpoint."""
    return start(network_and_loss(kind, dropout, seed)[0], settings, CPU, folder / "state.pt")


def run_process(rank: int, world: int, folder: Path) -> None:
    """One of ``world`` processes of data-parallel training; saves what it saw in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    seen: dict[str, object] = train_and_record(folder, SETTINGS, seed=rank)
    seen["accumulated"] = train_and_record(folder, dataclasses.replace(SETTINGS, accumulate=2))["weights"]
    seen["dropout"] = dropout_mask(folder)
    seen["stopped"] = stop_at_signal(folder, raises=rank == 1)
    seen["diverged"] = diverge(folder, raises=rank == 1)
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


def train_and_record(folder: Path, settings: TrainSettings, seed: int = 0) -> dict[str, object]:
    """Train for three steps. seed: of the initial weights; rank 0's are used."""
    state = start_small("diffusion", settings, folder / "none", seed=seed)
    state.optimizer.param_groups[0]["eps"] = 1e-3  # Adam would amplify the rounding of gradients that are zero
    inputs: list[Tensor] = []
    state.model.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    (report,) = train(state, network_and_loss("diffusion")[1], training_set(), settings, folder / "never.pt")
    return {"weights": state.model.state_dict(), "inputs": inputs, "means": report.means}


def dropout_mask(folder: Path) -> Tensor:
    """Which activations the first dropout layer keeps in one step."""
    state = start_small("diffusion", SETTINGS, folder / "none", dropout=0.5)
    layer = next(module for module in state.model.modules() if isinstance(module, nn.Dropout))
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda module, arguments, output: outputs.append(output.detach() != 0))
    take_step(state, network_and_loss("diffusion")[1], SETTINGS)
    return outputs[0]


def stop_at_signal(folder: Path, raises: bool) -> tuple[int, tuple[object, ...]]:
    """Train until SIGTERM reaches one process in its second step. Returns the last step and what was raised."""
    state = start_small("classifier", SETTINGS, folder / "stopped")
    inner, calls = network_and_loss("classifier")[1], [0]

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        calls[0] += 1
        if raises and calls[0] == 2:
            signal.raise_signal(signal.SIGTERM)
        return inner(model, batch)

    try:
        list(train(state, loss, training_set(), SETTINGS, folder / "stopped.pt"))
    except KeyboardInterrupt as interrupt:
        return state.step, tuple(int(number) for number in interrupt.args)
    return state.step, ()


def diverge(folder: Path, raises: bool) -> str:
    """Train with a loss that is NaN in one process in the second step. Returns the error."""
    state = start_small("classifier", SETTINGS, folder / "none")
    inner, calls = network_and_loss("classifier")[1], [0]

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        calls[0] += 1
        losses = inner(model, batch)
        return losses | {"loss": losses["loss"] * (math.nan if raises and calls[0] == 2 else 1)}

    try:
        list(train(state, loss, training_set(), SETTINGS, folder / "diverged.pt"))
    except DivergedError as error:
        return str(error)
    return ""
