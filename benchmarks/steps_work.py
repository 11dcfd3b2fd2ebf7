"""One row of benchmarks/steps.py: workers sample, score and embed its batches; the audit's metrics of the whole."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.extractors import (
    Extractor,
    Features,
    extract_features,
    kept_features,
    load_extractor,
    resolve_device,
)
from rarefy.audit.inputs.reference import load_reference, match_counts
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.audit.metrics.kinds import metric_name
from rarefy.audit.metrics.neighbors import Manifold, build_manifold, find_neighbors
from rarefy.audit.metrics.tail import tail_members
from rarefy.bench.measure import clock
from rarefy.diffusion.sampler import SamplerSettings, sample, to_uint8
from rarefy.errors import DataError, bad
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, set_up
from rarefy.generate.score import Scores, score_images
from rarefy.guidance.base import Term
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.manifest import Manifest, ModelSpec
from rarefy.models.folder import find_model
from rarefy.models.load import Models, load_models
from rarefy.plan import Plan, Slot, class_rank, sample_seed

REFERENCE = "ancestral"
SOLVERS = {
    REFERENCE: ("ancestral", "{}", 0.0),
    "ddim": ("ddim", "logsnr{}", 0.0),
    "dpm-solver++": ("dpm-solver++", "logsnr{}", 0.0),
    "dpm-solver++-sde": ("dpm-solver++", "logsnr{}", 1.0),
    "ancestral-logsnr": ("ancestral", "logsnr{}", 0.0),
}
"""Method, respacing and eta by name; the last tells what is the grid's doing, and is made only where asked for."""


@dataclass(frozen=True)
class Common:
    """What every row of one sweep shares. weights: hash over both networks' hashes; reference: of the real images."""

    preset: str
    weights: str
    reference: str
    guidance: str
    images: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Setting:
    """One row: all that changes its numbers."""

    solver: str
    steps: int
    classifier_every: int
    seed: int
    common: Common

    @property
    def sampler(self) -> SamplerSettings:
        """As a manifest's [sampler] would say it."""
        method, respacing, eta = SOLVERS[self.solver]
        return SamplerSettings(method, respacing.format(self.steps), eta, self.classifier_every)


@dataclass(frozen=True)
class Job:
    """One batch of a row, for a worker process."""

    setting: Setting
    model: ModelSpec
    terms: tuple[Term, ...]
    device: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Batch:
    """features: (B, D); on_class, confidence, entropy: (B,); seconds: of sampling, an image."""

    features: Features
    on_class: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    entropy: NDArray[np.float32]
    seconds: float


@functools.cache
def loaded(model: ModelSpec, precision: str, device: str) -> tuple[Models, Extractor]:
    """This process's networks."""
    hashes = model.checkpoint_sha256, model.classifier_sha256
    place, preset = resolve_device(device), find_model(model.preset)
    return load_models(preset, model.checkpoint, model.classifier, hashes, place, precision), load_extractor()


def start_worker(model: ModelSpec, common: Common, device: str) -> None:
    """One thread a process; two guided steps of a full batch, so that no measured one compiles."""
    torch.set_num_threads(1)
    keep_freed_memory()
    models, _ = loaded(model, common.precision, device)
    execution = execution_on(models.device, common.precision, "auto")
    set_up((models.unet, models.classifier), execution, common.batch)
    chain = SamplerSettings(steps="2").chain(models.preset, (ClassifierGuidance(),))
    for _ in sample(models, torch.zeros(common.batch, dtype=torch.int64, device=device), range(common.batch), chain):
        pass


def make_batch(job: Job) -> Batch:
    """Sample, score and embed one batch."""
    models, extractor = loaded(job.model, job.setting.common.precision, job.device)
    device, slots = models.device, job.slots
    y = torch.tensor([slot.class_id for slot in slots], device=device)
    seeds = [sample_seed(job.setting.seed, slot.class_id, slot.class_index, 0) for slot in slots]
    ranks = torch.tensor([class_rank(slot.class_index) for slot in slots], device=device)
    start = clock(device)
    for state in sample(models, y, seeds, job.setting.sampler.chain(models.preset, job.terms), ranks):
        x = state.x
    seconds = (clock(device) - start) / len(slots)
    images = to_uint8(x)
    scores = score_images(models.classifier, images, y)
    features = extract_features(images.cpu().numpy(), extractor, device)
    return Batch(features, *_arrays(scores, y), seconds)


def _arrays(scores: Scores, y: torch.Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    return (scores.predicted_id == y.cpu()).numpy(), scores.confidence.numpy(), scores.entropy.numpy()


@dataclass(frozen=True)
class Options:
    """images a row; batch; precision; device and processes; reference: a folder of real images or the embedded ones."""

    images: int
    batch: int
    precision: str
    device: str
    processes: int
    reference: str | None


class Bench:
    """A manifest's model and guidance, the real images, and the workers that make rows."""

    def __init__(self, manifest: Manifest, options: Options) -> None:
        self.manifest, self.device, self.processes = manifest, options.device, options.processes
        self.models, self.extractor = loaded(manifest.model, options.precision, self.device)
        hashes = self.models.checkpoint_sha256 + self.models.classifier_sha256
        reference = load_reference(manifest.preset, options.reference)
        if reference is None:
            raise DataError(bad("--reference", None, f"a folder of real images, which {manifest.preset.name} needs"))
        self.common = Common(
            manifest.preset.name,
            hashlib.sha256(hashes.encode()).hexdigest()[:16],
            reference.real.sha256()[:16],
            repr(manifest.terms),
            options.images,
            options.batch,
            options.precision,
        )
        self.reference = reference
        self.real = build_manifold(kept_features(reference.real.images, self.extractor, self.device), DEFAULT_K)

    @property
    def counts(self) -> dict[int, int]:
        """Images a class, balanced to one image."""
        share, rest = divmod(self.common.images, self.manifest.preset.classifier_classes)
        counts = {class_id: share + (class_id < rest) for class_id in range(self.manifest.preset.classifier_classes)}
        return {class_id: count for class_id, count in counts.items() if count}

    def floor(self) -> dict[str, float]:
        """The metrics of as many held-out real images."""
        held_out = match_counts(self.reference.held_out, self.counts)
        y = torch.tensor(held_out.labels, device=self.models.device)
        scores = score_images(self.models.classifier, torch.tensor(held_out.images, device=self.models.device), y)
        features = kept_features(held_out.images, self.extractor, self.device)
        return metrics(features, self.real, self.extractor.name) | _means(*_arrays(scores, y))

    def rows(self, settings: Sequence[Setting]) -> Iterator[dict[str, Any]]:
        """Make each setting's row in turn, its batches spread over the workers."""
        with ProcessPoolExecutor(
            self.processes,
            multiprocessing.get_context("spawn"),
            start_worker,
            (self.manifest.model, self.common, self.device),
        ) as pool:
            plan = Plan(self.counts, self.common.batch)
            for setting in settings:
                jobs = [
                    Job(setting, self.manifest.model, self.manifest.terms, self.device, plan.shard(k).slots)
                    for k in range(plan.num_shards)
                ]
                yield {"setting": asdict(setting), "metrics": self._measure(list(pool.map(make_batch, jobs)))}

    def _measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        features = np.concatenate([batch.features for batch in batches])
        scores = (
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("on_class", "confidence", "entropy")
        )
        seconds = statistics.median(batch.seconds for batch in batches)
        found = metrics(features, self.real, self.extractor.name)
        return found | _means(*scores) | {"cpu_seconds_an_image": round(seconds, 5)}


def metrics(features: Features, real: Manifold, extractor: str) -> dict[str, float]:
    """The audit's metrics of one set that tell solvers apart."""
    hood = find_neighbors(build_manifold(features, real.k), real)
    return {
        metric_name("fid", extractor): frechet_distance(features, real.features),
        "precision": hood.precision,
        "recall": hood.recall,
        "tail_recall": float(hood.recalled[tail_members(real)].mean()),
        "coverage": hood.coverage,
    }


def _means(on_class: NDArray[Any], confidence: NDArray[Any], entropy: NDArray[Any]) -> dict[str, float]:
    return {
        "on_class_rate": float(on_class.mean()),
        "confidence": float(confidence.mean(dtype=np.float64)),
        "entropy": float(entropy.mean(dtype=np.float64)),
    }
