"""What is measured while a network trains: sample grids, held-out losses and accuracies, a small audit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rarefy.diffusion.schedule import schedule_of
from rarefy.training.held_out import accuracies, class_accuracies, held_out_losses
from rarefy.training.losses import HybridLoss
from rarefy.training.output import Job
from rarefy.training.samples import averaged_network, save_grid
from rarefy.training.state import TrainState

PAUSE = 10  # times as long as the last measurement took, so that measuring takes a tenth of the time at most

Check = Callable[[nn.Module, float], dict[str, float]]
"""A diffusion network and how many seconds to spend -> what its images are like, by name."""


class Monitor:
    """Measures the averaged network now and then. check: an audit of a diffusion network's images, if there is one."""

    def __init__(self, job: Job, device: torch.device, check: Check | None = None) -> None:
        self.job, self.device, self.check = job, device, check
        model = job.recipe.model
        self.schedule = schedule_of(model)
        self.step, self.values = -1, dict[str, float]()
        self._took, self._ended = 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed since the last measurement."""
        return time.monotonic() - self._ended >= PAUSE * self._took

    def measure(self, state: TrainState) -> dict[str, float]:
        """Measure the network as it is now, and draw a grid of samples if it is a diffusion network."""
        started = time.monotonic()
        budget = (started - self._ended) / PAUSE
        network = averaged_network(self.job.recipe, state.ema, self.device)
        if self.job.recipe.part == "diffusion":
            images = state.step * self.job.recipe.train.batch
            self.values = self._diffusion(network, self.job.places.folder / f"samples-{images:09d}.png", budget)
        else:
            self.values = self._classifier(network)
        self.step, self._ended = state.step, time.monotonic()
        self._took = self._ended - started
        return self.values

    def result(self, state: TrainState) -> dict[str, Any]:
        """The last measurement for the provenance, made now if the network has been trained since."""
        values = self.values if self.step == state.step else self.measure(state)
        held_out, recipe = self.job.images.held_out, self.job.recipe
        if recipe.part == "diffusion":
            return {"held_out": {name: round(value, 5) for name, value in values.items()}}
        if held_out is None:
            return {"test_accuracy": None}
        network = averaged_network(recipe, state.ema, self.device)
        accuracy = {name.removeprefix("accuracy_"): value for name, value in values.items()}
        return {"test_accuracy": accuracy, "class_accuracy": class_accuracies(network, held_out, self.schedule)}

    def _diffusion(self, network: nn.Module, grid: Path, budget_s: float) -> dict[str, float]:
        model, held_out = self.job.recipe.model, self.job.images.held_out
        save_grid(network, model, grid)
        if held_out is None:
            return {}
        loss = HybridLoss(self.schedule, self.device, model.num_classes is not None)
        values = held_out_losses(network, loss, held_out)
        return values if self.check is None else values | self.check(network, budget_s)

    def _classifier(self, network: nn.Module) -> dict[str, float]:
        held_out, clean = self.job.images.held_out, self.job.recipe.clean
        if held_out is None:
            return {}
        measured = accuracies(network, held_out, self.schedule, clean)
        return {f"accuracy_{name}": value for name, value in measured.items()}
