"""The samplers of the experiment and the sweep that their values come from, each set of images as a manifest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.manifest import Manifest, parse_manifest

Tables = tuple[Mapping[str, Any], ...]

CONDITIONAL, UNCONDITIONAL = "fashion-mnist-28", "fashion-mnist-28-uncond"
SWEEP_SEEDS = (100,)  # never those of the final table
GAMMA_LATE, GAMMA_EARLY = 300, 500  # time steps at or below and above which gamma has its two values
SHARD_SIZE, BATCH = 250, 50
SAMPLER = "dpm-solver++, 50 steps, eta 1, fast"  # as every manifest here says it


@dataclass(frozen=True)
class ImageSet:
    """Images of one sampler and seed, as many a class. stage: "final" or a part of the sweep; values: what varies."""

    stage: str
    name: str
    preset: str
    guidance: Tables
    seed: int
    images: int
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where it lies below the experiment's folder."""
        return f"{self.stage.replace(' ', '-')}/{self.name}-{self.seed}-{self.images}"

    @property
    def manifest(self) -> Manifest:
        """The run that makes it: what ``rarefy run`` takes, too."""
        lines = [
            f"name = {json.dumps(self.name)}",
            f"seed = {self.seed}",
            f"[model]\npreset = {json.dumps(self.preset)}",
            f'[sampler]\nmethod = "dpm-solver++"\nsteps = 50\nprecision = "fast"\nbatch = {BATCH}',
            *(_table(table) for table in self.guidance),
            f"[classes]\ntotal = {self.images}",
            f"[output]\nshard_size = {SHARD_SIZE}",
        ]
        return parse_manifest("\n\n".join(lines) + "\n", self.folder)


def _table(table: Mapping[str, Any]) -> str:
    """A [[guidance]] table; JSON's numbers, strings, booleans and lists are TOML's too."""
    return "\n".join(["[[guidance]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def adm_g(scale: float) -> Mapping[str, Any]:
    """Classifier guidance."""
    return {"term": "classifier", "scale": scale}


def eds(scale: float) -> Mapping[str, Any]:
    """Classifier guidance with entropy-aware scaling."""
    return {"term": "classifier", "scale": scale, "entropy_scaling": True}


def low_confidence(scale: float, tau: float) -> Mapping[str, Any]:
    return {"term": "low-confidence", "scale": scale, "tau": tau}


def toward_prediction(late: float, early: float = 0.0) -> Mapping[str, Any]:
    """gamma at low noise and at high noise, linear between."""
    return {"term": "predicted-real-image", "gamma": [[GAMMA_LATE, late], [GAMMA_EARLY, early]]}


METHODS: dict[str, tuple[str, Tables]] = {
    "adm": (CONDITIONAL, ()),
    "adm-g": (CONDITIONAL, (adm_g(1.0),)),
    "eds": (CONDITIONAL, (eds(1.0),)),
    "eds-ect": (f"{CONDITIONAL}-ect", (eds(1.0),)),
    "low-confidence": (CONDITIONAL, (low_confidence(1.0, 0.7),)),
    "predicted-real": (CONDITIONAL, (adm_g(1.0), toward_prediction(0.03))),
    "low-density": (CONDITIONAL, (low_confidence(1.0, 0.7), toward_prediction(0.05, -0.05))),
    "entropy": (CONDITIONAL, ({"term": "entropy", "scale": 0.5},)),
    "self-guided": (CONDITIONAL, ({"term": "self-guided", "scale": 0.4},)),
    "boost-and-skip": (CONDITIONAL, ({"term": "boost-and-skip", "gamma": 2.0},)),
    "uncond-adm": (UNCONDITIONAL, ()),
    "uncond-adm-g": (UNCONDITIONAL, (adm_g(2.0),)),
    "uncond-eds": (UNCONDITIONAL, (eds(2.0),)),
    "uncond-eds-ect": (f"{UNCONDITIONAL}-ect", (eds(2.0),)),
    "uncond-low-density": (UNCONDITIONAL, (low_confidence(2.0, 0.7), toward_prediction(0.05, -0.05))),
}
"""Preset and guidance of each sampler in the final table."""


def final_sets(methods: list[str], seeds: list[int], images: int) -> Iterator[ImageSet]:
    """Every method at the first seed, then at the second: a stopped experiment has whole seeds."""
    for seed, method in itertools.product(seeds, methods):
        preset, guidance = METHODS[method]
        yield ImageSet("final", method, preset, guidance, seed, images)


def sweep_sets(images: int) -> Iterator[ImageSet]:
    """The sweep: scales of ADM-G with and without EDS, tau by gamma of both terms, and their windows."""
    for stage, values, preset, guidance in _sweep():
        name = "-".join([preset.removeprefix("fashion-mnist-28").strip("-") or "cond", *map(_slug, values.items())])
        for seed in SWEEP_SEEDS:
            yield ImageSet(stage, name, preset, guidance, seed, images, dict(values))


def _slug(item: tuple[str, float]) -> str:
    """A value as a manifest's name can hold it: hundredths, m for minus."""
    key, value = item
    return f"{key}-{'m' if value < 0 else ''}{round(abs(value) * 100)}"


def _sweep() -> Iterator[tuple[str, dict[str, float], str, Tables]]:
    for scale, tau, gamma in itertools.product((1.0,), (0.3, 0.5, 0.7, 0.9), (0.0, 0.03, 0.05, 0.08)):
        terms = (low_confidence(scale, tau), toward_prediction(gamma, -gamma))
        yield "tau x gamma", {"tau": tau, "gamma": gamma}, CONDITIONAL, terms
    for scale, scaled in itertools.product((0.5, 1.0, 2.0, 4.0), (0, 1)):
        term = eds(scale) if scaled else adm_g(scale)
        for preset in (CONDITIONAL, UNCONDITIONAL):
            yield "scale", {"scale": scale, "eds": scaled}, preset, (term,)
        if scaled:
            for preset in (CONDITIONAL, UNCONDITIONAL):
                yield "scale", {"scale": scale, "eds": 1}, f"{preset}-ect", (term,)
    for late, early in itertools.product((0.0, 0.05), (0.0, -0.05, -0.1)):
        values = {"late": late, "early": early}
        yield "gamma schedule", values, CONDITIONAL, (low_confidence(1.0, 0.7), toward_prediction(late, early))
    for late in (-0.03, 0.02, 0.05):
        yield "predicted-real", {"late": late}, CONDITIONAL, (adm_g(1.0), toward_prediction(late))
