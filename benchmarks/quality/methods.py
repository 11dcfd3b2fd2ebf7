"""The samplers that the experiment compares. Each set of images is an ordinary run with a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rarefy.manifest import Manifest, parse_manifest

Table = Mapping[str, Any]
Tables = tuple[Table, ...]

CONDITIONAL, UNCONDITIONAL = "fashion-mnist-28", "fashion-mnist-28-uncond"
FID_MARGIN, ON_CLASS_SHARE = 1.1, 0.9  # bounds of a good sampler, relative to no guidance and to real images


@dataclass(frozen=True)
class ImageSet:
    """The images of one sampler and seed, the same number per class.

    stage: "final" or a part of the sweep; values: what the sweep varies.
    """

    stage: str
    name: str
    preset: str
    guidance: Tables
    seed: int
    images: int
    values: Mapping[str, float] = field(default_factory=dict)
    method: str = "dpm-solver++"
    steps: int = 25

    @property
    def part(self) -> str:
        """The list in the results file that its row belongs to."""
        return "final" if self.stage == "final" else "sweep"

    @property
    def sampler(self) -> str:
        """Method, steps and precision as a row of the results names them."""
        return f"{self.method}, {self.steps} steps, {'' if self.method == 'ancestral' else 'eta 1, '}fast"

    @property
    def folder(self) -> str:
        """The run's folder, relative to the experiment's."""
        return f"{self.stage.replace(' ', '-')}/{self.name}-{self.seed}-{self.images}"

    @property
    def manifest(self) -> Manifest:
        """The manifest, as ``rarefy run`` reads it."""
        parts = [
            f'name = "{self.name}"\nseed = {self.seed}',
            f'[model]\npreset = "{self.preset}"',
            f'[sampler]\nmethod = "{self.method}"\nsteps = {self.steps}\nprecision = "fast"\nbatch = 50',
            *map(_toml, self.guidance),
            f"[classes]\ntotal = {self.images}",
            "[output]\nshard_size = 250",
        ]
        return parse_manifest("\n\n".join(parts) + "\n", self.folder)


def _toml(table: Table) -> str:
    """A [[guidance]] table. JSON values are valid TOML."""
    return "\n".join(["[[guidance]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


def _term(term: str, **values: Any) -> Table:
    return {"term": term, **values}


def _predicted_real(gamma: float) -> Table:
    """Predicted-real-image guidance at high noise only: gamma from step 500, zero up to step 300."""
    return _term("predicted-real-image", gamma=[[300, 0.0], [500, gamma]])


ADM_G = _term("classifier", scale=0.5)
METHODS: dict[str, tuple[str, Tables]] = {
    "adm": (CONDITIONAL, ()),
    "adm-g": (CONDITIONAL, (ADM_G,)),
    "eds": (CONDITIONAL, (_term("classifier", scale=0.25, entropy_scaling=True),)),
    "eds-ect": (f"{CONDITIONAL}-ect", (_term("classifier", scale=0.25, entropy_scaling=True),)),
    "low-confidence": (CONDITIONAL, (_term("low-confidence", scale=1.0, tau=0.5),)),
    "predicted-real": (CONDITIONAL, (ADM_G, _predicted_real(-0.02))),
    "low-density": (
        CONDITIONAL,
        (_term("low-confidence", scale=1.0, tau=0.5, window=[0, 500]), _predicted_real(-0.05)),
    ),
    "entropy": (CONDITIONAL, (_term("entropy", scale=1.0),)),
    "self-guided": (CONDITIONAL, (_term("self-guided", scale=0.4),)),
    "boost-and-skip": (CONDITIONAL, (_term("boost-and-skip", gamma=5.0),)),
    "uncond-adm": (UNCONDITIONAL, ()),
    "uncond-adm-g": (UNCONDITIONAL, (_term("classifier", scale=1.5),)),
    "uncond-eds": (UNCONDITIONAL, (_term("classifier", scale=1.0, entropy_scaling=True),)),
    "uncond-eds-ect": (f"{UNCONDITIONAL}-ect", (_term("classifier", scale=1.0, entropy_scaling=True),)),
    "uncond-low-density": (UNCONDITIONAL, (_term("low-confidence", scale=2.0, tau=0.9), _predicted_real(-0.03))),
}
"""Model and guidance of each sampler in the final table. ``sweep.choose`` picks the values from the sweep."""


def final_sets(methods: Sequence[str], seeds: Sequence[int], images: int) -> Iterator[ImageSet]:
    """All methods with the first seed, then all with the second: an interrupted experiment has complete seeds."""
    for seed, method in product(seeds, methods):
        yield ImageSet("final", method, *METHODS[method], seed, images)
