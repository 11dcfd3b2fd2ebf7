"""What ``fast`` changes against ``exact`` on the embedded model: ``python -m benchmarks.precision``.

For each set of guidance terms: relative errors of eps and of the guidance at noised test images, and the fraction of
pixels that differ by more than one 8-bit level in finished images of the same seeds. --save writes the worst of all
sets as JSON: a model's ``fast.json``, which the audit's page quotes. For the effect on the audit's metrics, compare
two runs: ``rarefy compare``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.command import make_parser
from rarefy.audit.inputs.reference import read_embedded
from rarefy.bench.measure import machine
from rarefy.bench.step import Execution, guided_steps, load
from rarefy.diffusion.sampler import networks_of, to_uint8
from rarefy.diffusion.schedule import schedule_of
from rarefy.diffusion.settings import SamplerSettings
from rarefy.execution import has_bfloat16, repeatable
from rarefy.guidance import StepState, Term, terms, times
from rarefy.guidance.guide import Guide
from rarefy.manifest import load_manifest
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import find_model
from rarefy.models.load import Models
from rarefy.models.source import ModelSpec

PRESET = find_model("fashion-mnist-28")
DEMO = load_manifest(Path(__file__).parents[1] / "manifests" / "demo.toml").terms
GUIDED = terms.ClassifierGuidance(scale=2.0)
SETS: dict[str, tuple[Term, ...]] = {
    "none": (),
    "classifier": (GUIDED,),
    "entropy-scaling": (terms.ClassifierGuidance(scale=2.0, entropy_scaling=True),),
    "low-confidence": (terms.LowConfidence(scale=2.0, tau=0.5),),
    "predicted-real-image": tuple(term for term in DEMO if isinstance(term, terms.PredictedRealImage)),
    "demo": DEMO,
    "entropy": (terms.EntropyAscent(scale=2.0),),
    "self-guided": (GUIDED, terms.SelfGuided()),
    "boost-and-skip": (GUIDED, terms.BoostAndSkip()),
}
TIMES = (2, 20, 100, 300, 600, 950)


def step_outputs(models: Models, guidance: Sequence[Term], count: int) -> list[Tensor]:
    """eps at each of TIMES, then the guidance where it acts, at real test images with the same noise for all models."""
    real, networks = read_embedded(PRESET, "reference"), networks_of(models, range(count))
    x_0, y = torch.tensor(real.images[:count]).float() / 127.5 - 1, torch.tensor(real.labels[:count]).to(models.device)
    generator, outputs, gradients = torch.Generator().manual_seed(0), [], []
    for t in TIMES:
        abar = float(schedule_of(PRESET).alphas_cumprod[t])
        noise = torch.randn(x_0.shape, generator=generator)
        x_t = (math.sqrt(abar) * x_0 + math.sqrt(1 - abar) * noise).to(models.device)
        with torch.no_grad():
            eps = networks.denoise(x_t, times(x_t, t), y)[:, : x_t.shape[1]]
            pred_xstart = ((x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
            gradient = Guide(guidance, networks)(StepState(0, t, abar, x_t, y, eps, pred_xstart))
        outputs.append(eps)
        gradients += [] if gradient is None or not gradient.any() else [gradient]
    return outputs + gradients


def make_images(models: Models, guidance: Sequence[Term], options: argparse.Namespace) -> NDArray[np.int16]:
    """(images, C, H, W) from 0 to 255, with the classes in turn."""
    chain = SamplerSettings(steps=str(options.steps)).chain(PRESET, guidance)
    *_, last = islice(guided_steps(models, chain, range(options.images)), len(chain.schedule))
    return to_uint8(last.x).cpu().numpy().astype(np.int16)


def changes(guidance: Sequence[Term], options: argparse.Namespace) -> dict[str, list[float]]:
    """Relative errors of eps and of the guidance, by time step, and the fraction of pixels above one level."""
    outputs, images = [], []
    for precision in ("exact", "fast"):
        models = load(PRESET, ModelSpec(PRESET), Execution(options.device, precision), options.images)
        with repeatable(precision):
            outputs.append(step_outputs(models, guidance, options.images))
            images.append(make_images(models, guidance, options))
    errors = [float((fast - exact).norm() / exact.norm()) for exact, fast in zip(*outputs, strict=True)]
    above = float((np.abs(images[1] - images[0]) > 1).mean())
    return {"eps": errors[: len(TIMES)], "gradient": errors[len(TIMES) :], "pixels_above_1": [above]}


def worst(sets: Sequence[dict[str, list[float]]]) -> dict[str, object]:
    """Over all sets: the ranges of the relative errors, and the most pixels."""
    pooled = {name: [value for one in sets for value in one[name]] for name in sets[0]}
    ranges = {name: [min(pooled[name], default=0.0), max(pooled[name], default=0.0)] for name in ("eps", "gradient")}
    return {**ranges, "pixels_above_1": max(pooled["pixels_above_1"])}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--terms", nargs="+", choices=SETS, default=list(SETS), help="sets of guidance terms")
    parser.add_argument("--images", type=int, default=100, help="default 100")
    parser.add_argument("--steps", type=int, default=50, help="default 50")
    parser.add_argument("--save", type=Path, help="write the worst of all sets there")
    options = parser.parse_args(argv)
    if not has_bfloat16(torch.device(options.device)):
        parser.error("--device: fast is exact on a device that does not multiply bfloat16")
    torch.set_num_threads(options.threads)
    sets = []
    for name in options.terms:
        sets.append(changes(SETS[name], options))
        print(name, json.dumps(sets[-1]), flush=True)
    if options.save:
        files = {"checkpoint_sha256": PRESET.file("unet"), "classifier_sha256": PRESET.file("classifier")}
        record = {key: file_sha256(path) for key, path in files.items()} | worst(sets)
        record |= {"images": options.images, "steps": options.steps, "machine": machine(torch.device(options.device))}
        options.save.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
