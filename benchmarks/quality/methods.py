"""The samplers of the experiment and the sweep that their values come from, each set of images as a manifest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rarefy.manifest import Manifest, parse_manifest

Table = Mapping[str, Any]
Tables = tuple[Table, ...]

CONDITIONAL, UNCONDITIONAL = "fashion-mnist-28", "fashion-mnist-28-uncond"
SWEEP_SEEDS = (100,)  # never those of the final table
ABLATION_SEEDS = (100, 101, 102)
ABLATION, SOLVER = "ablation", "solver"
ASIDE = frozenset({ABLATION, SOLVER})  # stages that ask why, after the choice
ADM_G_SCALE = 0.5
GAMMA_LATE, GAMMA_EARLY = 300, 500  # time steps at or below and above which gamma has its two values
SHARD_SIZE, BATCH = 250, 50


@dataclass(frozen=True)
class Steps:
    """A manifest's reverse chain: "ancestral", or "dpm-solver++" with its default of eta."""

    method: str = "dpm-solver++"
    steps: int = 25

    def __str__(self) -> str:
        """As a row says it."""
        return f"{self.method}, {self.steps} steps, {'' if self.method == 'ancestral' else 'eta 1, '}fast"


SAMPLER = Steps()
"""Of every set but those that ask what the solver and its steps change."""


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
    sampler: Steps = SAMPLER

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
            f"[sampler]\nmethod = {json.dumps(self.sampler.method)}\nsteps = {self.sampler.steps}\n"
            f'precision = "fast"\nbatch = {BATCH}',
            *(_table(table) for table in self.guidance),
            f"[classes]\ntotal = {self.images}",
            f"[output]\nshard_size = {SHARD_SIZE}",
        ]
        return parse_manifest("\n\n".join(lines) + "\n", self.folder)


def _table(table: Table) -> str:
    """A [[guidance]] table; JSON's numbers, strings, booleans and lists are TOML's too."""
    return "\n".join(["[[guidance]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def adm_g(scale: float) -> Table:
    """Classifier guidance."""
    return {"term": "classifier", "scale": scale}


def eds(scale: float) -> Table:
    """Classifier guidance with entropy-aware scaling."""
    return {"term": "classifier", "scale": scale, "entropy_scaling": True}


def low_confidence(scale: float, tau: float | tuple[float, ...], window: tuple[int, int] | None = None) -> Table:
    """Toward a confidence of tau, or of each tau for an equal share of a class."""
    target = {"tau": tau} if isinstance(tau, float) else {"tau_quantiles": list(tau)}
    return {"term": "low-confidence", "scale": scale} | target | ({"window": list(window)} if window else {})


def toward_prediction(late: float, early: float = 0.0) -> Table:
    """gamma at low noise and at high noise, linear between."""
    return {"term": "predicted-real-image", "gamma": [[GAMMA_LATE, late], [GAMMA_EARLY, early]]}


def entropy(scale: float) -> Table:
    """Entropy ascent."""
    return {"term": "entropy", "scale": scale}


def self_guided(scale: float) -> Table:
    """Self-guided minority sampling."""
    return {"term": "self-guided", "scale": scale}


def boost_and_skip(gamma: float) -> Table:
    """Boost-and-skip."""
    return {"term": "boost-and-skip", "gamma": gamma}


METHODS: dict[str, tuple[str, Tables]] = {
    "adm": (CONDITIONAL, ()),
    "adm-g": (CONDITIONAL, (adm_g(ADM_G_SCALE),)),
    "eds": (CONDITIONAL, (eds(0.25),)),
    "eds-ect": (f"{CONDITIONAL}-ect", (eds(0.25),)),
    "low-confidence": (CONDITIONAL, (low_confidence(1.0, 0.5),)),
    "predicted-real": (CONDITIONAL, (adm_g(ADM_G_SCALE), toward_prediction(0.0, -0.02))),
    "low-density": (CONDITIONAL, (low_confidence(1.0, 0.5, (0, 500)), toward_prediction(0.0, -0.05))),
    "entropy": (CONDITIONAL, (entropy(1.0),)),
    "self-guided": (CONDITIONAL, (self_guided(0.4),)),
    "boost-and-skip": (CONDITIONAL, (boost_and_skip(5.0),)),
    "uncond-adm": (UNCONDITIONAL, ()),
    "uncond-adm-g": (UNCONDITIONAL, (adm_g(1.5),)),
    "uncond-eds": (UNCONDITIONAL, (eds(1.0),)),
    "uncond-eds-ect": (f"{UNCONDITIONAL}-ect", (eds(1.0),)),
    "uncond-low-density": (UNCONDITIONAL, (low_confidence(2.0, 0.9), toward_prediction(0.0, -0.03))),
}
"""ModelFolder and guidance of each sampler in the final table; the values are what choice.py finds in the sweep."""


def final_sets(methods: list[str], seeds: list[int], images: int) -> Iterator[ImageSet]:
    """Every method at the first seed, then at the second: a stopped experiment has whole seeds."""
    for seed, method in itertools.product(seeds, methods):
        preset, guidance = METHODS[method]
        yield ImageSet("final", method, preset, guidance, seed, images)


def sweep_sets(images: int) -> Iterator[ImageSet]:
    """The sweep: scales, tau by gamma, windows and schedules; then what each part of the chosen method does."""
    for stage, values, preset, guidance in _sweep():
        for seed in SWEEP_SEEDS:
            yield ImageSet(stage, _name(preset, values), preset, guidance, seed, images, values)
    for sampler, values, guidance in _ablation():
        stage = ABLATION if sampler.method == SAMPLER.method else SOLVER
        for seed in ABLATION_SEEDS:
            yield ImageSet(stage, _name(CONDITIONAL, values), CONDITIONAL, guidance, seed, images, values, sampler)


def _name(preset: str, values: Mapping[str, float]) -> str:
    """A manifest's name: the model and the values."""
    return "-".join([preset.removeprefix("fashion-mnist-28").strip("-") or "cond", *map(_slug, values.items())])


def _slug(item: tuple[str, float]) -> str:
    """A value as a manifest's name can hold it: hundredths, m for minus."""
    key, value = item
    return f"{key}-{'m' if value < 0 else ''}{round(abs(value) * 100)}"


STRATIFIED = (0.35, 0.6, 0.8, 0.95, 1.0)  # tau by fifths of a class, about as real test images' confidences lie
PREDICTED_REAL = (
    (0.0, 0.03), (0.02, 0.02), (0.0, -0.03), (0.0, -0.05), (0.02, -0.05), (-0.03, 0.0), (-0.05, 0.0), (-0.03, -0.03),
    (0.0, -0.02), (-0.02, 0.0), (-0.02, -0.02),
)  # fmt: skip
"""gamma at low and at high noise, beside ADM-G."""
WINDOWS = ((300, 1000), (500, 1000), (0, 500))  # in which low-confidence acts


def _sweep() -> Iterator[tuple[str, dict[str, float], str, Tables]]:
    yield from _low_density()
    yield from _scales()
    for late in (-0.03, 0.02, 0.05):
        yield "predicted-real", {"late": late}, CONDITIONAL, (adm_g(1.0), toward_prediction(late))
    for late in (0.03, 0.05):
        values = {"scale": ADM_G_SCALE, "late": late}
        yield "predicted-real", values, CONDITIONAL, (adm_g(ADM_G_SCALE), toward_prediction(late))
    for late, early in PREDICTED_REAL:
        values = {"scale": ADM_G_SCALE, "late": late, "early": early}
        yield "predicted-real", values, CONDITIONAL, (adm_g(ADM_G_SCALE), toward_prediction(late, early))
    for late, early in ((0.0, -0.03), (0.0, -0.05), (-0.03, -0.03)):
        values = {"late": late, "early": early}
        yield "gamma alone", values, CONDITIONAL, (toward_prediction(late, early),)
    for name, term, scales in (
        ("entropy", entropy, (0.25, 0.5, 1.0, 2.0, 4.0)),
        ("self-guided", self_guided, (0.1, 0.2, 0.4, 1.0, 2.0)),
        ("boost-and-skip", boost_and_skip, (1.5, 2.0, 3.0, 4.0, 5.0, 6.0)),
    ):
        for scale in scales:
            yield name, {name: scale}, CONDITIONAL, (term(scale),)


def _low_density() -> Iterator[tuple[str, dict[str, float], str, Tables]]:
    for tau, gamma in itertools.product((0.3, 0.5, 0.7, 0.9), (0.0, 0.03, 0.05, 0.08)):
        terms = (low_confidence(1.0, tau), toward_prediction(gamma, -gamma))
        yield "tau x gamma", {"tau": tau, "gamma": gamma}, CONDITIONAL, terms
    for late, early in itertools.product((0.0, 0.05), (0.0, -0.05, -0.1)):
        values = {"late": late, "early": early}
        yield "gamma schedule", values, CONDITIONAL, (low_confidence(1.0, 0.7), toward_prediction(late, early))
    for tau, early in itertools.product((0.3, 0.5), (-0.05, -0.07)):
        terms = (low_confidence(1.0, tau), toward_prediction(0.0, early))
        yield "early gamma", {"tau": tau, "early": early}, CONDITIONAL, terms
    for tau in (0.3, 0.5):
        values = {"tau": tau, "early": -0.05, "high": 500}
        terms = (low_confidence(1.0, tau, (0, 500)), toward_prediction(0.0, -0.05))
        yield "early gamma", values, CONDITIONAL, terms
    for scale in (1.0, 2.0):
        terms = (low_confidence(scale, 0.7), toward_prediction(0.0, -0.05))
        yield "early gamma", {"scale": scale, "tau": 0.7, "early": -0.05}, UNCONDITIONAL, terms
    for low, high in WINDOWS:
        terms = (low_confidence(1.0, 0.5, (low, high)), toward_prediction(0.05, -0.05))
        yield "window", {"low": low, "high": high}, CONDITIONAL, terms
    for gamma in (0.0, 0.05):
        terms = (low_confidence(1.0, STRATIFIED), toward_prediction(gamma, -gamma))
        yield "stratified tau", {"gamma": gamma}, CONDITIONAL, terms
    for tau in (0.3, 0.5):
        yield "low-confidence", {"scale": 2.0, "tau": tau}, CONDITIONAL, (low_confidence(2.0, tau),)
    for scale, tau in itertools.product((1.0, 2.0), (0.5, 0.7)):
        terms = (low_confidence(scale, tau), toward_prediction(0.05, -0.05))
        yield "unconditional low-density", {"scale": scale, "tau": tau}, UNCONDITIONAL, terms
    for tau, late, early in itertools.product((0.7, 0.9), (0.0, 0.03), (0.0, -0.03)):
        terms = (low_confidence(2.0, tau), toward_prediction(late, early))
        values = {"scale": 2.0, "tau": tau, "late": late, "early": early}
        yield "unconditional low-density", values, UNCONDITIONAL, terms


def _scales() -> Iterator[tuple[str, dict[str, float], str, Tables]]:
    for preset in (CONDITIONAL, UNCONDITIONAL):
        yield "scale", {"scale": 0.0}, preset, ()
    for scale in (0.5, 1.0, 2.0, 4.0):
        for preset in (CONDITIONAL, UNCONDITIONAL):
            yield from _scale(preset, scale)
    yield from _scale(CONDITIONAL, 0.25)
    for scale in (0.75, 1.25, 1.5):
        yield from _scale(UNCONDITIONAL, scale)


def _scale(preset: str, scale: float) -> Iterator[tuple[str, dict[str, float], str, Tables]]:
    yield "scale", {"scale": scale, "eds": 0}, preset, (adm_g(scale),)
    yield "scale", {"scale": scale, "eds": 1}, preset, (eds(scale),)
    yield "scale", {"scale": scale, "eds": 1}, f"{preset}-ect", (eds(scale),)


def _ablation() -> Iterator[tuple[Steps, dict[str, float], Tables]]:
    """Either term of the chosen method alone and both, at more steps too; then gamma's sign with ancestral steps."""
    confidence, gamma = METHODS["low-density"][1]
    parts: dict[int, list[Tables]] = {
        25: [(), (confidence,), (gamma,), (confidence, gamma)],
        50: [(), (confidence, gamma)],
    }
    for steps, terms in ((steps, terms) for steps, found in parts.items() for terms in found):
        acting = {"confidence": int(confidence in terms), "gamma": int(gamma in terms)}
        values: dict[str, float] = {"steps": steps, **acting}
        yield Steps(steps=steps), values, terms
    for late, early in ((0.0, 0.0), (0.03, 0.0), (0.0, -0.03)):
        terms = (adm_g(ADM_G_SCALE), toward_prediction(late, early))
        yield Steps("ancestral", 50), {"late": late, "early": early}, terms
