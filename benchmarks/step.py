"""A guided sampling step against the reference's: ``python -m benchmarks.step --model embedded``.

The baseline (benchmarks/baseline.py, float32), ``exact`` and ``fast`` take the same ancestral step with classifier
guidance: U-Net, classifier and its gradient. Each is set up as its users have it. The weights are random, which changes
no speed; the memory includes them. On a GPU the baseline does not round to TF32 unless --tf32 lets it, as torch does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from benchmarks.baseline import baseline
from benchmarks.command import compare, make_parser
from rarefy.bench.step import Execution, guided_steps, load
from rarefy.diffusion.settings import SamplerSettings
from rarefy.execution import COMPILES, repeatable
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.folder import find_model
from rarefy.models.load import Models
from rarefy.models.networks import build_classifier, build_unet

MODELS = {"embedded": ("fashion-mnist-28", 64), "adm-64": ("adm-imagenet-64", 4), "adm-256": ("adm-imagenet-256", 1)}


def start(form: str, options: argparse.Namespace) -> Callable[[], object]:
    """A function that takes the next step in one form: baseline, exact or fast."""
    name, batch = MODELS[options.model]
    preset, device, batch = find_model(name), torch.device(options.device), options.batch or batch
    if form == "baseline":
        torch.backends.cudnn.allow_tf32 = options.tf32
        networks = (
            baseline(build_unet(preset.unet).to(device)),
            baseline(build_classifier(preset.classifier).to(device)),
        )
        models = Models(preset, *networks, "random", "random")
    else:
        models = load(preset, None, Execution(options.device, form, options.compile), batch)
    chain = SamplerSettings().chain(preset, [ClassifierGuidance(scale=preset.recommended_scale)])
    steps = guided_steps(models, chain, range(batch))

    def step() -> object:
        with nullcontext() if form == "baseline" else repeatable(form):
            return next(steps)

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--batch", type=int, help="default: 64 embedded, 4 adm-64, 1 adm-256")
    parser.add_argument("--compile", choices=COMPILES, default="auto", help="of exact and fast, as rarefy run takes it")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round the baseline's convolutions to 10 bits")
    compare(start, ["exact", "fast"], ["baseline"], parser.parse_args(argv), warm_up=3)


if __name__ == "__main__":
    main()
