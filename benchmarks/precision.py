"""What ``fast`` changes against ``exact`` on the embedded model: ``python -m benchmarks.precision``.

For each set of guidance terms: relative errors of eps and of the guidance at noised test images, the fraction of pixels
that differ by more than one 8-bit level in finished images, and FID, recall, confidence and entropy of these: fast less
exact on the same seeds, next to the standard deviation of exact over the seeds. Confidence and entropy are the exact
classifier's. --save writes the worst of all sets as JSON: a model's ``fast.json``, which the audit's page quotes.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.command import make_parser
from rarefy.audit.features.extractors import extract_outputs, kept_outputs, load_extractor
from rarefy.audit.inputs.reference import read_embedded
from rarefy.audit.metrics.assembly import DEFAULT_K, set_metrics
from rarefy.audit.metrics.neighbors import Manifold, build_manifold
from rarefy.bench.measure import machine
from rarefy.bench.step import Execution, guided_steps, load
from rarefy.diffusion.sampler import SamplerSettings, networks_of, to_uint8
from rarefy.diffusion.schedule import make_schedule
from rarefy.execution import has_bfloat16, repeatable
from rarefy.generate.score import score_images
from rarefy.guidance import terms
from rarefy.guidance.base import StepState, Term, times
from rarefy.guidance.guide import Guide
from rarefy.manifest import ModelSpec, load_manifest
from rarefy.models.checkpoint import file_sha256
from rarefy.models.folder import find_model
from rarefy.models.load import Models

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
ROLES = {"checkpoint": "unet", "classifier": "classifier"}


def step_outputs(models: Models, guidance: Sequence[Term], count: int) -> list[Tensor]:
    """eps at each of TIMES, then the guidance where it acts, at real test images with the same noise for all models."""
    real, networks = read_embedded(PRESET, "reference"), networks_of(models, range(count))
    x_0, y = torch.tensor(real.images[:count]).float() / 127.5 - 1, torch.tensor(real.labels[:count]).to(models.device)
    generator, outputs, gradients = torch.Generator().manual_seed(0), [], []
    for t in TIMES:
        abar = float(make_schedule(PRESET.schedule, PRESET.diffusion_steps).alphas_cumprod[t])
        noise = torch.randn(x_0.shape, generator=generator)
        x_t = (math.sqrt(abar) * x_0 + math.sqrt(1 - abar) * noise).to(models.device)
        with torch.no_grad():
            eps = networks.denoise(x_t, times(x_t, t), y)[:, : x_t.shape[1]]
            pred_xstart = ((x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
            gradient = Guide(guidance, networks)(StepState(0, t, abar, x_t, y, eps, pred_xstart))
        outputs.append(eps)
        gradients += [] if gradient is None or not gradient.any() else [gradient]
    return outputs + gradients


def make_images(models: Models, guidance: Sequence[Term], seed: int, options: argparse.Namespace) -> NDArray[np.uint8]:
    """(images, C, H, W), with the classes in turn."""
    chain = SamplerSettings(steps=str(options.steps)).chain(PRESET, guidance)
    states = guided_steps(models, chain, range(seed * options.images, (seed + 1) * options.images))
    *_, last = islice(states, len(chain.schedule))
    return to_uint8(last.x).cpu().numpy()


def changes(guidance: Sequence[Term], options: argparse.Namespace) -> dict[str, Any]:
    """All figures for one set of guidance terms."""
    outputs, images = [], []
    for precision in ("exact", "fast"):
        models = load(PRESET, ModelSpec(PRESET.name), Execution(options.device, precision), options.images)
        with repeatable(precision):
            outputs.append(step_outputs(models, guidance, options.images))
            images.append([make_images(models, guidance, seed, options) for seed in range(options.seeds)])
    errors = [float((fast - exact).norm() / exact.norm()) for exact, fast in zip(*outputs, strict=True)]
    exact, fast = ([measure(pixels, options) for pixels in sets] for sets in images)
    differences = {}
    for name in exact[0]:
        change = [after[name] - before[name] for before, after in zip(exact, fast, strict=True)]
        std = statistics.stdev(row[name] for row in exact) if options.seeds > 1 else None
        differences[name] = {"difference": statistics.fmean(change), "std": std}
    above = float((np.abs(np.diff(np.array(images, dtype=np.int16), axis=0)) > 1).mean())
    eps, gradient = errors[: len(TIMES)], errors[len(TIMES) :]
    return {"eps": eps, "gradient": gradient, "pixels_above_1": above, "metrics": differences}


def measure(images: NDArray[np.uint8], options: argparse.Namespace) -> dict[str, float]:
    """The audit's FID and recall, and means of what the exact classifier says."""
    found = set_metrics(extract_outputs(images, load_extractor(), options.device), real_manifold(options.device))
    classifier = load(PRESET, ModelSpec(PRESET.name), Execution(options.device), len(images)).classifier
    y = torch.arange(len(images), device=options.device) % PRESET.classifier_classes
    scores = score_images(classifier, torch.tensor(images).to(y.device), y)
    confidence, entropy = float(scores.confidence.mean()), float(scores.entropy.mean())
    return {"fid": found.fid, "recall": found.recall, "confidence": confidence, "entropy": entropy}


@functools.cache
def real_manifold(device: str) -> Manifold:
    """The embedded test images' features."""
    return build_manifold(kept_outputs(read_embedded(PRESET, "reference").images, load_extractor(), device), DEFAULT_K)


def worst(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all sets: the ranges of the relative errors, the most pixels, the largest difference of each metric."""
    errors = {name: [error for found in sets for error in found[name]] for name in ("eps", "gradient")}
    ranges = {name: [min(values, default=0.0), max(values, default=0.0)] for name, values in errors.items()}
    metrics = {}
    for name in sets[0]["metrics"]:
        metrics[name] = max((found["metrics"][name] for found in sets), key=lambda entry: abs(entry["difference"]))
    return {**ranges, "pixels_above_1": max(found["pixels_above_1"] for found in sets), "metrics": metrics}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--terms", nargs="+", choices=SETS, default=list(SETS), help="sets of guidance terms")
    for name, default in (("seeds", 3), ("images", 100), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
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
        hashes = {f"{key}_sha256": file_sha256(PRESET.file(role)) for key, role in ROLES.items()}
        about = {name: getattr(options, name) for name in ("images", "seeds", "steps")}
        about |= {"machine": machine(torch.device(options.device))}
        options.save.write_text(json.dumps({**hashes, **about, **worst(sets)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
