"""What the papers say that ECT and EDS do, measured: the entropy of p(. | x_t) and the guidance's norm along t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rarefy.audit.inputs.reference import load_reference, match_counts
from rarefy.diffusion.sampler import SamplerSettings, image_noise, networks_of, reverse_chain
from rarefy.errors import DataError, bad
from rarefy.guidance.base import Classify, entropy, times
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.folder import find_model
from rarefy.models.load import Models, load_models
from rarefy.plan import Plan, Slot, sample_seed

PAIRS = {
    "conditional": ("fashion-mnist-28", "fashion-mnist-28-ect"),
    "unconditional": ("fashion-mnist-28-uncond", "fashion-mnist-28-uncond-ect"),
}
SAMPLER = SamplerSettings("dpm-solver++", "logsnr50", 1.0)  # the default of manifests
OUTER = 0.1  # the band that goes with a mean leaves out this share of the images on either side


@dataclass(frozen=True)
class TraceSettings:
    """images: per chain, spread over the classes; every: of the chain's steps, real images are noised to every n-th.

    scale, max_scale: of ClassifierGuidance, the same in all chains, so that their norms compare.
    """

    images: int = 100
    batch: int = 50
    sampler: SamplerSettings = SAMPLER
    every: int = 2
    scale: float = 1.0
    max_scale: float | None = None
    seed: int = 0


class Watched:
    """A classifier that keeps what a chain does with it: entropies, and the norm of the gradient taken at each x_t.

    others: classifiers that see the same x_t beside it, without gradients. entropies: by name, "own" is its own; each
    one (B,) tensor a call; norms: one (B,) tensor a call with a gradient.
    """

    def __init__(self, classify: Classify, others: Mapping[str, Classify]) -> None:
        self.classify, self.others = classify, others
        self.entropies: dict[str, list[Tensor]] = {name: [] for name in ("own", *others)}
        self.norms: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        logits = self.classify(x_t, t)
        self.entropies["own"].append(_entropy(logits))
        with torch.no_grad():
            for name, classify in self.others.items():
                self.entropies[name].append(_entropy(classify(x_t, t)))
        if x_t.requires_grad:
            x_t.register_hook(lambda gradient: self.norms.append(gradient.flatten(1).norm(dim=1).cpu()))
        return logits


def load_pairs(device: torch.device, precision: str) -> dict[str, tuple[Models, Models]]:
    """The embedded models of PAIRS: with the plain and with the ECT classifier."""

    def load(name: str) -> Models:
        return load_models(find_model(name), None, None, (None, None), device, precision)

    return {name: (load(plain), load(ect)) for name, (plain, ect) in PAIRS.items()}


def traces(pairs: Mapping[str, tuple[Models, Models]], settings: TraceSettings) -> dict[str, Any]:
    """Traces of each pair of models, which differ by their classifiers, plain and ECT; all pairs share these.

    Returns, as JSON types, each CURVE being {"mean": [...], "low": [...], "high": [...]}, over the images, one value a
    time step of the "t" beside it, low and high the 10% and 90% quantiles; entropies in nats:

    {"images", "sampler", "scale", "classes": K,
     "noised": {"t", "entropy": {"plain": CURVE, "ect": CURVE}},                   real test images noised to t
     "chains": {pair: {"t", "entropy": {"plain": CURVE, "ect": CURVE},             both at the states of ADM-G's chain
                       "gradient": {"adm-g": CURVE, "eds": CURVE, "eds-ect": CURVE}}}}

    gradient: norm of an image's classifier guidance G(x_t), its scale and EDS' factor within, each in its own chain.
    t: original time steps, ascending.
    """
    first = next(iter(pairs.values()))
    sampler = settings.sampler
    return {
        "images": settings.images,
        "sampler": f"{sampler.method}, {sampler.steps}, eta {sampler.eta:g}",
        "scale": settings.scale,
        "classes": first[0].preset.classifier_classes,
        "noised": noised(*first, settings),
        "chains": {name: trace(plain, ect, settings) for name, (plain, ect) in pairs.items()},
    }


def trace(plain: Models, ect: Models, settings: TraceSettings) -> dict[str, Any]:
    """One entry of "chains" in what ``traces`` returns."""
    term = ClassifierGuidance(scale=settings.scale)
    scaled = replace(term, entropy_scaling=True, max_scale=settings.max_scale)
    both = {"plain": plain.classifier, "ect": ect.classifier}
    guided = _watch(plain, term, {"ect": both["ect"]}, settings)
    chains = {
        "adm-g": guided,
        "eds": _watch(plain, scaled, {}, settings),
        "eds-ect": _watch(ect, scaled, {}, settings),
    }
    return {
        "t": settings.sampler.chain(plain.preset).schedule.timesteps.tolist(),
        "entropy": {name: _curve(guided[key]) for name, key in (("plain", "own"), ("ect", "ect"))},
        "gradient": {name: _curve(found["norm"]) for name, found in chains.items()},
    }


@torch.no_grad()
def noised(plain: Models, ect: Models, settings: TraceSettings) -> dict[str, Any]:
    """The entry "noised" of what ``traces`` returns: the classifiers at draws of q(x_t | x_0) of real test images.

    Raises DataError where the preset has none with it.
    """
    preset = plain.preset
    reference = load_reference(preset, None)
    if reference is None:
        raise DataError(bad("traces", preset.name, "an embedded preset, which has real images"))
    images = match_counts(reference.real, _counts(preset.classifier_classes, settings.images)).images
    x_0 = torch.from_numpy(images).to(plain.device).float() / 127.5 - 1
    noise = image_noise(plain, [sample_seed(settings.seed, 0, row, 0) for row in range(len(x_0))])
    schedule = settings.sampler.chain(preset).schedule
    steps = range(0, len(schedule), settings.every)
    found: dict[str, list[Tensor]] = {"plain": [], "ect": []}
    for step in steps:
        t, abar = int(schedule.timesteps[step]), float(schedule.alphas_cumprod[step])
        x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise(step)
        for name, models in (("plain", plain), ("ect", ect)):
            parts = [_entropy(models.classifier(part, times(part, t))) for part in x_t.split(settings.batch)]
            found[name].append(torch.cat(parts))
    curves = {name: _curve(torch.stack(rows)) for name, rows in found.items()}
    return {"t": [int(schedule.timesteps[step]) for step in steps], "entropy": curves}


def _watch(
    models: Models, term: ClassifierGuidance, others: Mapping[str, Classify], settings: TraceSettings
) -> dict[str, Tensor]:
    """Entropies by name and "norm", (S, N) each, steps from the least noisy: one guided chain, watched."""
    chain = settings.sampler.chain(models.preset, (term,))
    plan = Plan(_counts(models.preset.classifier_classes, settings.images), settings.batch)
    found: list[dict[str, Tensor]] = []
    for k in range(plan.num_shards):
        slots = plan.shard(k).slots
        seeds, y = _seeds(slots, settings.seed), torch.tensor([slot.class_id for slot in slots], device=models.device)
        noise, watched = image_noise(models, seeds), Watched(models.classifier, others)
        for _ in reverse_chain(replace(networks_of(models, seeds), classify=watched), chain, noise(-1), y, noise):
            pass
        rows = watched.entropies | {"norm": watched.norms}
        found.append({name: torch.stack(row).flip(0) for name, row in rows.items()})
    return {name: torch.cat([part[name] for part in found], dim=1) for name in found[0]}


def _seeds(slots: Sequence[Slot], seed: int) -> list[int]:
    return [sample_seed(seed, slot.class_id, slot.class_index, 0) for slot in slots]


def _counts(classes: int, images: int) -> dict[int, int]:
    share, rest = divmod(images, classes)
    return {class_id: share + (class_id < rest) for class_id in range(classes) if share + (class_id < rest)}


def _entropy(logits: Tensor) -> Tensor:
    """H(p) of logits (B, K), (B,) on the CPU."""
    return entropy(logits.detach().float().log_softmax(dim=-1)).cpu()


def _curve(values: Tensor) -> dict[str, list[float]]:
    """Mean and outer quantiles of (S, N) over the images, a value a step."""
    low, high = torch.quantile(values.double(), torch.tensor([OUTER, 1 - OUTER], dtype=torch.float64), dim=1)
    return {"mean": values.double().mean(dim=1).tolist(), "low": low.tolist(), "high": high.tolist()}
