"""The papers' explanation of ECT and EDS: the classifier's entropy and the norm of the guidance along the chain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.methods import CONDITIONAL, UNCONDITIONAL
from rarefy.diffusion.sampler import image_noise, networks_of, reverse_chain
from rarefy.diffusion.settings import SamplerSettings
from rarefy.execution import load_prepared
from rarefy.guidance.base import entropy
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.folder import find_model
from rarefy.models.load import Models
from rarefy.plan import sample_seed

MODELS = {"conditional": CONDITIONAL, "unconditional": UNCONDITIONAL}
SAMPLER = SamplerSettings("dpm-solver++", "logsnr50", 1.0)  # the manifest's default
ADM_G = ClassifierGuidance(scale=1.0)
EDS = replace(ADM_G, entropy_scaling=True)


def traces(images: int, precision: str = "fast", sampler: SamplerSettings = SAMPLER) -> dict[str, Any]:
    """Curves for both models with the plain classifier and with the one trained with ECT.

    Returns {"images", "sampler", "scale", "chains": {model: {"t", "entropy": {"plain", "ect"},
    "gradient": {"adm-g", "eds", "eds-ect"}}}}. A curve is {"mean": one value per time step in "t"}, over the images;
    entropies are in nats, at the states of ADM-G's chain; gradient is the norm of the guidance G(x_t).
    """
    chains = {}
    for name, preset in MODELS.items():
        models = (find_model(preset), find_model(f"{preset}-ect"))
        plain, ect = (load_prepared(m, None, None, (None, None), torch.device("cpu"), precision) for m in models)
        adm_g = watch(plain, ect, ADM_G, images, sampler)
        norms = {"adm-g": adm_g, "eds": watch(plain, ect, EDS, images, sampler),
                 "eds-ect": watch(ect, plain, EDS, images, sampler)}  # fmt: skip
        chains[name] = {
            "t": sampler.chain(plain.preset).schedule.timesteps.tolist(),
            "entropy": {"plain": {"mean": adm_g["own"]}, "ect": {"mean": adm_g["other"]}},
            "gradient": {method: {"mean": curves["norm"]} for method, curves in norms.items()},
        }
    named = f"{sampler.method}, {sampler.steps}, eta {sampler.eta:g}"
    return {"images": images, "sampler": named, "scale": ADM_G.scale, "chains": chains}


def watch(
    models: Models, other: Models, term: ClassifierGuidance, images: int, sampler: SamplerSettings
) -> dict[str, list[float]]:
    """One guided chain with the classes in turn, recorded per step in ascending t, as means over the images.

    own, other: entropy of each model's classifier at the same x_t; norm: of the gradient of the own classifier.
    """
    curves: dict[str, list[float]] = {"own": [], "other": [], "norm": []}

    def classify(x_t: Tensor, t: Tensor) -> Tensor:
        assert models.classifier is not None and other.classifier is not None
        logits: Tensor = models.classifier(x_t, t)
        with torch.no_grad():
            for name, answer in (("own", logits), ("other", other.classifier(x_t, t))):
                curves[name].append(float(entropy(answer.float().log_softmax(dim=-1)).mean()))
        if x_t.requires_grad:
            x_t.register_hook(lambda gradient: curves["norm"].append(float(gradient.flatten(1).norm(dim=1).mean())))
        return logits

    classes = models.preset.classifier_classes
    seeds = [sample_seed(0, row % classes, row // classes, 0) for row in range(images)]
    y, noise = torch.arange(images) % classes, image_noise(models, seeds)
    networks = replace(networks_of(models, seeds), classify=classify)
    for _ in reverse_chain(networks, sampler.chain(models.preset, (term,)), noise(-1), y, noise):
        pass
    return {name: values[::-1] for name, values in curves.items()}
