"""Reads the noise schedule and the kind of prediction from a scheduler's configuration of the diffusers library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad, one_of

Json = Mapping[str, Any]

# Schedulers of discrete variance-preserving models: they differ in how they sample, not in what was trained.
KINDS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
)  # fmt: skip
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "sample"}
# Settings under which the scheduler's own samples differ from rarefy's. Values: what rarefy does, for any model.
_SAMPLING = {
    "clip_sample": (True, "rarefy clips predicted images to [-1, 1]"),
    "clip_sample_range": (1.0, "rarefy clips predicted images to [-1, 1]"),
    "thresholding": (False, "rarefy clips predicted images to [-1, 1], without dynamic thresholding"),
}
_VARIANCE = "rarefy's ancestral steps have variance beta (fixed_large); ddim and dpm-solver++ do not depend on it"


@dataclass(frozen=True)
class Scheduler:
    """What was trained. schedule, beta_range, steps, prediction: as in a model folder; variance: diffusers' word.

    notes: the scheduler's settings of sampling that rarefy does not follow.
    """

    kind: str
    schedule: str
    steps: int
    prediction: str
    beta_range: tuple[float, float] | None
    variance: str
    notes: tuple[str, ...]


def read_scheduler(config: Json, file: Path) -> Scheduler:
    """What a scheduler's configuration says of training. Raises ManifestError, which names the key, if unsupported."""

    def choose(key: str, default: str, choices: Mapping[str, str]) -> str:
        value = config.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise ManifestError(bad(f"{file}: {key}", value, one_of(value, choices)))
        return choices[value]

    kind = choose("_class_name", "", {name: name for name in KINDS})
    for key in ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas"):
        if config.get(key):
            raise ManifestError(bad(f"{file}: {key}", _short(config[key]), "supported: only named noise schedules are"))
    schedule = choose("beta_schedule", "linear", SCHEDULES)
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 1_000_000:
        raise ManifestError(bad(f"{file}: num_train_timesteps", steps, "an integer from 1 to 1000000"))
    variance = config.get("variance_type") or "fixed_small"
    return Scheduler(
        kind=kind,
        schedule=schedule,
        steps=steps,
        prediction=choose("prediction_type", "epsilon", PREDICTIONS),
        beta_range=None if schedule == "cosine" else _beta_range(config, file),
        variance=variance,
        notes=tuple(_notes(config, variance)),
    )


def _beta_range(config: Json, file: Path) -> tuple[float, float]:
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if not all(isinstance(beta, int | float) and not isinstance(beta, bool) for beta in (first, last)):
        raise ManifestError(bad(f"{file}: beta_start, beta_end", [first, last], "two numbers"))
    if not 0 < first <= last < 1:
        raise ManifestError(bad(f"{file}: beta_start, beta_end", [first, last], "0 < beta_start <= beta_end < 1"))
    return float(first), float(last)


def _notes(config: Json, variance: str) -> list[str]:
    notes = [
        f"the scheduler's {key} is {config[key]!r}, but {text}"
        for key, (value, text) in _SAMPLING.items()
        if key in config and config[key] != value
    ]
    if config.get("_class_name") == "DDPMScheduler" and variance not in ("fixed_large", "learned_range"):
        notes.append(f"the scheduler's variance_type is {variance!r}, but {_VARIANCE}")
    return notes


def _short(value: object) -> object:
    return f"{str(value)[:40]} ..." if len(str(value)) > 40 else value
