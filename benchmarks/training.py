"""One training step of the embedded U-Net beside the reference's: ``python benchmarks/training.py --threads 1 --json``.

The reference trains in float32 with its attention blocks recomputed, averages the weights parameter by parameter and
sums the norms of weights and gradients for its log; the loss is the same code for both. Both take the same batches of
the package's real images, in turn, each in a process of its own that is set up as its users would have it; times are
CPU seconds (GPU: wall seconds). What a direct computation would take a second is compared with what a large product
reaches in the form's type: above 1 is what Winograd's algorithm saves. How far our gradient of the trained network is
from the baseline's, with and without our kernels, stands beside how far that of another batch is, all as parts of its
norm.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.baseline import unet_forward
from benchmarks.error import relative_error
from benchmarks.turns import take_turns
from rarefy.audit.inputs.reference import read_embedded
from rarefy.bench.flops import count_training_flops
from rarefy.bench.measure import ceiling_gflops, clock, machine, ratios, spread
from rarefy.diffusion.schedule import make_schedule
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, use_kernels
from rarefy.models.adm import UNet
from rarefy.models.folder import find_model
from rarefy.models.load import load_models
from rarefy.training.data import make_batch
from rarefy.training.loop import backward, start, train_step, training_dtype
from rarefy.training.losses import HybridLoss
from rarefy.training.recipe import TrainSettings

PRESET = "fashion-mnist-28"
NEVER = Path("never-written")  # no checkpoint is read or due within a benchmark


@dataclass(frozen=True)
class Case:
    """form: one of FORMS; batch: images a step."""

    form: str
    batch: int
    device: str
    threads: int


class BaselineUNet(nn.Module):
    """The embedded U-Net with the baseline's forward pass."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return unet_forward(self.network, x, t, y)


def timed(case: Case) -> float:
    """Seconds of one step of this process's form."""
    device = torch.device(case.device)
    step = step_of(case)
    begin = clock(device)
    step()
    return clock(device) - begin


@functools.cache
def step_of(case: Case) -> Callable[[], object]:
    """This process's form, made once."""
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.allow_tf32 = case.form != "baseline"  # float32 by its word; ours is as rarefy train sets it up
    return FORMS[case.form](TrainSettings(images=10**9, batch=case.batch), torch.device(case.device))


def baseline_step(settings: TrainSettings, device: torch.device) -> Callable[[], object]:
    """A step as the reference's TrainLoop takes it."""
    preset = find_model(PRESET)
    data = read_embedded(find_model(PRESET), "held_out")
    loss_function = HybridLoss(make_schedule(preset.schedule, preset.diffusion_steps), device)
    torch.manual_seed(0)
    model = BaselineUNet(UNet(preset.unet)).to(device).train()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    taken = [0]

    def step() -> None:
        batch = make_batch(data, taken[0], settings, device)
        optimizer.zero_grad()
        loss_function(model, batch)["loss"].backward()
        sum(float(p.grad.norm() ** 2) + float(p.detach().norm() ** 2) for p in model.parameters() if p.grad is not None)
        optimizer.step()
        for target, source in zip(average, model.parameters(), strict=True):
            target.mul_(settings.ema).add_(source.detach(), alpha=1 - settings.ema)
        taken[0] += 1

    return step


def our_step(settings: TrainSettings, device: torch.device) -> Callable[[], object]:
    """A step of ``rarefy train diffusion``."""
    preset = find_model(PRESET)
    data = read_embedded(find_model(PRESET), "held_out")
    loss_function = HybridLoss(make_schedule(preset.schedule, preset.diffusion_steps), device)
    torch.manual_seed(0)
    use_kernels(execution_on(device, "exact", "auto"))
    keep_freed_memory()
    state = start(UNet(preset.unet), settings, device, NEVER)
    return lambda: train_step(state, loss_function, data, settings)


def gradient_distances(batch: int, device: torch.device) -> dict[str, float]:
    """To the baseline's gradient, relative to its norm, for the embedded weights."""
    preset, settings = find_model(PRESET), TrainSettings(images=10**9, batch=batch)
    data = read_embedded(find_model(PRESET), "held_out")
    loss_function = HybridLoss(make_schedule(preset.schedule, preset.diffusion_steps), device)
    network = load_models(preset, None, None, (None, None), device, "exact").unet.train().requires_grad_()

    def gradient(model: nn.Module, step: int, precision: str, compile: str = "off") -> Tensor:
        use_kernels(execution_on(device, "exact", compile))
        torch.backends.cudnn.allow_tf32 = not isinstance(model, BaselineUNet)  # as in step_of
        network.zero_grad()
        backward(model, loss_function, make_batch(data, step, settings, device), precision)
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    wanted, other = (gradient(BaselineUNet(network), step, "float32") for step in (0, 1))
    found = {
        "gradient_error": gradient(network, 0, settings.precision, "auto"),
        "gradient_error_without_kernels": gradient(network, 0, settings.precision),
        "other_batch": other,
    }
    return {name: relative_error(value, wanted) for name, value in found.items()}


def ceiling_shares(images_per_s: dict[str, float], device: torch.device) -> dict[str, float]:
    """A direct computation's operations a second, at each form's speed, over the ceiling of its type: by one clock."""
    types = {"baseline": torch.float32, "rarefy": training_dtype(TrainSettings.precision, device)}
    ceilings = {dtype: ceiling_gflops(dtype, device) for dtype in dict.fromkeys(types.values())}
    gflops = count_training_flops(find_model(PRESET)) / 1e9
    return {name: round(gflops * speed / ceilings[types[name]], 2) for name, speed in images_per_s.items()}


FORMS = {"baseline": baseline_step, "rarefy": our_step}
WARM_UP = 2  # steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9, help="measured steps a form")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    cases = {name: Case(name, arguments.batch, arguments.device, arguments.threads) for name in FORMS}
    seconds = take_turns(timed, cases, WARM_UP, arguments.repeats)
    ratio = ratios(seconds["baseline"], seconds["rarefy"])
    speeds = {name: round(arguments.batch / spread(values).median, 1) for name, values in seconds.items()}
    print(f"images/s: baseline {speeds['baseline']}, rarefy {speeds['rarefy']}")
    print(f"ratio {ratio.median:.2f}, quartiles {ratio.low:.2f} to {ratio.high:.2f}")
    shares = ceiling_shares(speeds, device)
    print("of a large product's operations a second: " + ", ".join(f"{name} {share}" for name, share in shares.items()))
    distances = gradient_distances(arguments.batch, device)
    print("gradient, from the baseline's: " + ", ".join(f"{name} {value}" for name, value in distances.items()))
    if arguments.json:
        found = {"training_ratio": round(ratio.median, 3), "spread": [round(ratio.low, 3), round(ratio.high, 3)]}
        about = {"batch": arguments.batch, "repeats": arguments.repeats, "machine": machine(device)}
        print(json.dumps({**found, **distances, "images_per_s": speeds, "of_ceiling": shares, **about}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
