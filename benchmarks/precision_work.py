"""One row of benchmarks/precision.py: two modes of one model on the same noise, in a worker process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarefy.audit.features.extractors import Images, extract_features, kept_features, load_extractor
from rarefy.audit.inputs.reference import read_embedded
from rarefy.audit.metrics.assembly import DEFAULT_K, set_estimates
from rarefy.audit.metrics.neighbors import build_manifold
from rarefy.diffusion.sampler import SamplerSettings, networks_of, sample, to_uint8
from rarefy.diffusion.schedule import make_schedule
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, set_up, to_bfloat16
from rarefy.generate.score import score_images
from rarefy.guidance.base import StepState, Term
from rarefy.guidance.guide import Guide
from rarefy.guidance.terms import (
    BoostAndSkip,
    ClassifierGuidance,
    EntropyAscent,
    LowConfidence,
    PredictedRealImage,
    SelfGuided,
)
from rarefy.manifest import load_manifest
from rarefy.models.folder import find_model
from rarefy.models.load import Models, load_models
from rarefy.plan import sample_seed

PRESET = "fashion-mnist-28"
DEMO = Path(__file__).parents[1] / "manifests" / "demo.toml"
SETS = (
    "none", "classifier", "entropy-scaling", "low-confidence", "predicted-real-image", "demo", "entropy", "self-guided",
    "boost-and-skip",
)  # fmt: skip
LEVELS = (1, 8)


@dataclass(frozen=True)
class Job:
    """All that a row depends on. kind: errors, pixels or metrics; against: the mode held against exact.

    seed: of all draws; images: noisy images a time step, or images made; steps: of the chain, 0 for errors; times:
    original time steps, of errors alone; reference: real images compared with, of metrics alone; eager: ``against`` by
    torch alone; weights: hash over both files.
    """

    kind: str
    terms: str
    against: str
    seed: int
    images: int
    batch: int
    steps: int
    times: tuple[int, ...]
    reference: int
    eager: bool
    device: str
    weights: str


def term_set(name: str) -> tuple[Term, ...]:
    """The guidance of that name; the demo's is read from its manifest."""
    demo = load_manifest(DEMO).terms
    sets: dict[str, tuple[Term, ...]] = {
        "none": (),
        "classifier": (ClassifierGuidance(scale=2.0),),
        "entropy-scaling": (ClassifierGuidance(scale=2.0, entropy_scaling=True),),
        "low-confidence": (LowConfidence(scale=2.0, tau=0.5),),
        "predicted-real-image": tuple(term for term in demo if isinstance(term, PredictedRealImage)),
        "demo": demo,
        "entropy": (EntropyAscent(scale=2.0),),
        "self-guided": (ClassifierGuidance(scale=2.0), SelfGuided()),
        "boost-and-skip": (ClassifierGuidance(scale=2.0), BoostAndSkip()),
    }
    return sets[name]


def run_job(job: Job) -> dict[str, Any]:
    """The row's figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if job.kind == "errors":
        return step_errors(job)
    exact, against = make_images(job, "exact"), make_images(job, "against")
    found: dict[str, Any] = {"pixels": pixel_difference(exact, against)}
    if job.kind == "metrics":
        found["exact"], found["against"] = distribution_metrics(job, [exact, against])
    return found


def load(job: Job, mode: str) -> Models:
    """The embedded model in a mode, exact or against, and the process set up for it as an actor's: call before each.

    fast is bfloat16 here on any device. Where nothing multiplies that it is slow, and its products are rounded less.
    """
    precision, eager = (job.against, job.eager) if mode == "against" else ("exact", False)
    device = torch.device(job.device)
    models = load_models(find_model(PRESET), None, None, (None, None), device, "exact")
    if precision == "fast":
        to_bfloat16(models.unet)
        to_bfloat16(models.classifier)
    execution = execution_on(device, precision, "off" if eager else "auto")
    set_up((models.unet, models.classifier), execution, job.batch)
    return models


def step_errors(job: Job) -> dict[str, Any]:
    """Relative errors of eps and of the guidance by time step, at noised real test images."""
    # One mode after the other: the switches are the process's.
    exact = _steps(job, load(job, "exact"))
    against = _steps(job, load(job, "against"))
    found: dict[str, Any] = {"eps": {}, "gradient": {}}
    for t, first, second in zip(job.times, exact, against, strict=True):
        for name, a, b in zip(found, first, second, strict=True):
            if a is not None and b is not None:
                found[name][str(t)] = relative_error(b, a)
    return found


def relative_error(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Norm of the difference over the norm of ``wanted``: of the whole batch, and median and worst of its images."""
    difference, norms = (found - wanted).double().flatten(1).norm(dim=1), wanted.double().flatten(1).norm(dim=1)
    each = difference / norms.clamp(min=torch.finfo(torch.float32).tiny)
    whole = difference.norm() / norms.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return {"batch": whole.item(), "median": each.median().item(), "worst": each.max().item()}


def _steps(job: Job, models: Models) -> list[tuple[Tensor, Tensor | None]]:
    """eps and G at each time step; the noise is the same for every mode."""
    preset, real = models.preset, read_embedded(find_model(PRESET), "reference")
    alphas = make_schedule(preset.schedule, preset.diffusion_steps).alphas_cumprod.tolist()
    generator = torch.Generator().manual_seed(job.seed)
    chosen = torch.randperm(len(real), generator=generator)[: job.images]
    x_0 = torch.tensor(real.images)[chosen].float() / 127.5 - 1
    y = torch.tensor(real.labels)[chosen].to(models.device)
    found = []
    for t in job.times:
        x_t = math.sqrt(alphas[t]) * x_0 + math.sqrt(1 - alphas[t]) * torch.randn(x_0.shape, generator=generator)
        found.append(_step(models, term_set(job.terms), (t, alphas[t]), x_t.to(models.device), y))
    return found


def _step(
    models: Models, terms: Sequence[Term], time: tuple[int, float], x_t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor | None]:
    t, alpha = time
    with torch.no_grad():
        networks = networks_of(models, range(len(x_t)))  # the same noise for every mode
        output = networks.denoise(x_t, torch.full((len(x_t),), float(t), device=x_t.device), y)
        eps = output[:, : x_t.shape[1]]
        pred_xstart = ((x_t - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)).clamp(-1, 1)
        state = StepState(0, t, alpha, x_t, y, eps, pred_xstart)
        return eps, Guide(terms, networks)(state)


def make_images(job: Job, mode: str) -> Images:
    """The job's images in one mode, (N, C, H, W) uint8, classes in turn, seeds as a run's."""
    models = load(job, mode)
    chain = SamplerSettings(steps=str(job.steps)).chain(models.preset, term_set(job.terms))
    parts = []
    for start in range(0, job.images, job.batch):
        y = _classes(job)[start : start + job.batch].to(models.device)
        numbers = range(start, start + len(y))
        seeds = [sample_seed(job.seed, int(c), n, 0) for n, c in zip(numbers, y, strict=True)]
        for state in sample(models, y, seeds, chain):
            x = state.x
        parts.append(to_uint8(x).cpu().numpy())
    return np.concatenate(parts)


def _classes(job: Job) -> Tensor:
    classes = find_model(PRESET).classifier_classes
    return torch.arange(job.images) % classes


def pixel_difference(exact: Images, against: Images) -> dict[str, float]:
    """Absolute differences in 8-bit levels over all pixels, and shares of pixels above each of LEVELS."""
    difference = np.abs(exact.astype(np.int16) - against.astype(np.int16))
    shares = {f"above_{level}": float((difference > level).mean()) for level in LEVELS}
    return {"mean": float(difference.mean()), "max": int(difference.max()), **shares}


def distribution_metrics(job: Job, sets: Sequence[Images]) -> list[dict[str, float]]:
    """Of each image set: the audit's metrics and what the exact classifier says; the last also by its own mode's.

    own_confidence and own_entropy are what a run in that mode writes into its metadata.
    """
    extractor = load_extractor()
    tests = read_embedded(find_model(PRESET), "reference").images[: job.reference]
    real = build_manifold(kept_features(tests, extractor, job.device), DEFAULT_K)
    exact = load(job, "exact")
    found = []
    for images in sets:
        features = extract_features(images, extractor, job.device)
        found.append(set_estimates(build_manifold(features, DEFAULT_K), real).values | _scores(job, exact, images))
    own = [_scores(job, exact, sets[0]), _scores(job, load(job, "against"), sets[1])]
    for values, scores in zip(found, own, strict=True):
        values |= {f"own_{name}": scores[name] for name in ("confidence", "entropy")}
    return found


def _scores(job: Job, models: Models, images: Images) -> dict[str, float]:
    y, columns = _classes(job), []
    for start in range(0, len(images), job.batch):
        part, wanted = torch.tensor(images[start : start + job.batch]), y[start : start + job.batch]
        scores = score_images(models.classifier, part.to(models.device), wanted.to(models.device))
        columns.append(torch.stack([scores.confidence, scores.entropy, (scores.predicted_id == wanted).float()]))
    confidence, entropy, on_class = torch.cat(columns, dim=1).double().mean(dim=1).tolist()
    return {"confidence": confidence, "entropy": entropy, "on_class_rate": on_class}
