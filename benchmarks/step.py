"""One guided sampling step beside the reference's: ``python benchmarks/step.py --model embedded --threads 1 --json``.

The baseline (benchmarks/baseline.py, a stand-in checked against the goldens), ``exact`` and ``fast`` take turns in one
process; times are CPU seconds of the process (GPU: wall seconds), ratios are medians over pairs of neighbouring runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.baseline import BaselineStep
from pipeline.bench.measure import clock, interleave, machine, ratios, spread
from pipeline.diffusion.guidance import ClassifierGuidance
from pipeline.diffusion.sampler import ImageNoise, Sample, SamplerSettings, denoiser, reverse_chain
from pipeline.models.adm import ADM, Classifier, UNet
from pipeline.models.catalog import Preset, get_preset, load_models
from pipeline.models.precision import set_precision, to_device

MODELS = {"embedded": "fashion-mnist-28", "adm-64": "adm-imagenet-64", "adm-256": "adm-imagenet-256"}
BATCHES = {"embedded": 64, "adm-64": 4, "adm-256": 1}
SCALE = 1.0
STEPS = "250"


@dataclass(frozen=True)
class Split:
    """CPU seconds of a step's parts."""

    unet: float
    classifier_forward: float
    classifier_backward: float


@dataclass(frozen=True, eq=False)
class Form:
    """One way to take the step. step: a whole guided step; objective: (x_t that wants a gradient, log p(y | x_t))."""

    step: Callable[[], object]
    denoise: Callable[[], Tensor]
    objective: Callable[[], tuple[Tensor, Tensor]]

    def split(self, device: torch.device) -> Split:
        """Time the networks' passes one by one."""
        times = [clock(device)]
        self.denoise()
        times.append(clock(device))
        x_t, objective = self.objective()
        times.append(clock(device))
        torch.autograd.grad(objective, x_t)
        times.append(clock(device))
        return Split(*(b - a for a, b in itertools.pairwise(times)))


@dataclass(frozen=True, eq=False)
class Inputs:
    """One batch: x_t and noise (B, C, H, W), y (B,)."""

    x_t: Tensor
    y: Tensor

    @property
    def t(self) -> Tensor:
        """A step in the middle of the chain, (B,)."""
        return torch.full((len(self.x_t),), 500.0, device=self.x_t.device)


def networks(preset: Preset) -> tuple[UNet, Classifier]:
    """Fresh networks: the embedded weights, or seeded random ones where the weights are not in the package."""
    if preset.embedded:
        models = load_models(preset, None, None, (None, None), torch.device("cpu"), "exact")
        return models.unet, models.classifier
    torch.manual_seed(0)
    unet, classifier = UNet(preset.unet), Classifier(preset.classifier)
    for network in (unet, classifier):
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)  # zero layers would leave nothing to compare
    return unet, classifier


def ours(preset: Preset, precision: str, inputs: Inputs) -> Form:
    """The project's own step in ``exact`` or ``fast``."""
    unet, classifier = (_frozen(network, precision, inputs.x_t.device) for network in networks(preset))
    assert isinstance(unet, UNet)
    states = _endless(preset, unet, classifier, inputs)

    def objective() -> tuple[Tensor, Tensor]:
        x_t = inputs.x_t.clone().requires_grad_()
        log_probs = classifier(x_t, inputs.t).log_softmax(dim=-1)
        return x_t, log_probs.gather(1, inputs.y[:, None]).sum()

    denoise = denoiser(unet)
    return Form(lambda: next(states), lambda: denoise(inputs.x_t, inputs.t, inputs.y), objective)


def baseline(preset: Preset, inputs: Inputs) -> Form:
    """The reference's step: float32, weights that want gradients."""
    device = inputs.x_t.device
    unet, classifier = networks(preset)
    unet, classifier = unet.to(device).requires_grad_(), classifier.to(device).requires_grad_()
    for network in (unet, classifier):
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
    step = BaselineStep(unet.eval(), classifier.eval(), SamplerSettings(steps=STEPS).chain(preset).schedule, SCALE)
    return Form(
        lambda: step(inputs.x_t, len(step.schedule) // 2, inputs.y, torch.randn_like(inputs.x_t)),
        lambda: step.eps_and_variance(inputs.x_t, inputs.t, inputs.y),
        lambda: step.log_prob(inputs.x_t, inputs.t, inputs.y),
    )


def compare(preset: Preset, batch: int, repeats: int, device: torch.device) -> dict[str, object]:
    """Time the three forms in turn. Returns ratios, seconds a step, and each form's split."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, preset.channels, preset.image_size, preset.image_size)
    y = torch.arange(batch, device=device) % preset.classifier_classes
    inputs = Inputs(torch.randn(shape, generator=generator).to(device), y)
    forms = {"baseline": baseline(preset, inputs)}
    forms |= {precision: ours(preset, precision, inputs) for precision in ("exact", "fast")}
    seconds = interleave({name: form.step for name, form in forms.items()}, repeats, device)
    splits = {name: [form.split(device) for _ in range(max(repeats // 2, 1) + 1)][1:] for name, form in forms.items()}
    exact, fast = (ratios(seconds["baseline"], seconds[name]) for name in ("exact", "fast"))
    return {
        "exact_ratio": round(exact.median, 3),
        "fast_ratio": round(fast.median, 3),
        "exact_spread": [round(exact.low, 3), round(exact.high, 3)],
        "fast_spread": [round(fast.low, 3), round(fast.high, 3)],
        "seconds_a_step": {name: round(spread(values).median, 5) for name, values in seconds.items()},
        "split": {name: _median_split(found, spread(seconds[name]).median) for name, found in splits.items()},
    }


def _frozen(network: ADM, precision: str, device: torch.device) -> ADM:
    set_precision(network, precision)
    return to_device(network, device).eval().requires_grad_(False)


def _endless(preset: Preset, unet: UNet, classifier: ADM, inputs: Inputs) -> Iterator[Sample]:
    """Step after step of the sampler, from chain to chain."""
    chain = SamplerSettings(steps=STEPS).chain(preset, (ClassifierGuidance(scale=SCALE),))
    while True:
        noise = ImageNoise(range(len(inputs.y)), tuple(inputs.x_t.shape[1:]), inputs.x_t.device)  # type: ignore[arg-type]
        yield from reverse_chain(denoiser(unet), classifier, chain, inputs.x_t, inputs.y, noise)


def _median_split(splits: list[Split], step: float) -> dict[str, float]:
    parts = {key: spread([asdict(split)[key] for split in splits]).median for key in asdict(splits[0])}
    parts["rest"] = step - sum(parts.values())
    return {key: round(value, 5) for key, value in parts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="default: 64 embedded, 4 adm-64, 1 adm-256")
    parser.add_argument("--repeats", type=int, default=9, help="measured runs a form")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, device = arguments.batch or BATCHES[arguments.model], torch.device(arguments.device)
    result = compare(get_preset(MODELS[arguments.model]), batch, arguments.repeats, device)
    _print_table(result)
    if arguments.json:
        about = {"model": arguments.model, "batch": batch, "repeats": arguments.repeats, "machine": machine(device)}
        print(json.dumps({**about, **result}))
    return 0


def _print_table(result: dict[str, object]) -> None:
    splits = result["split"]
    assert isinstance(splits, dict)
    columns = [*next(iter(splits.values()))]
    print(f"{'seconds a step':<16}" + "".join(f"{name:>21}" for name in columns))
    for form, parts in splits.items():
        print(f"{form:<16}" + "".join(f"{parts[name]:>21.4f}" for name in columns))
    for form in ("exact", "fast"):
        print(f"{form}: {result[f'{form}_ratio']} times the baseline's speed, quartiles {result[f'{form}_spread']}")


if __name__ == "__main__":
    sys.exit(main())
