"""What a trajectory is made of and consists of. Needs no torch, unlike making one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Origin:
    """What determines an image, besides the manifest: its row's key, class, seed and candidate."""

    key: str
    class_id: int
    seed: int
    candidate: int


@dataclass(frozen=True)
class Step:
    """After one step. t: time step of x; confidence, entropy: of the classifier's p(y | x, t), None without one."""

    t: int
    confidence: float | None
    entropy: float | None


@dataclass(frozen=True)
class Frame:
    """PNG files of x and of the predicted image after a step. number: of the step, from 0."""

    number: int
    x: bytes
    predicted: bytes


@dataclass(frozen=True)
class Trajectory:
    """steps: all of them; frames: evenly spaced ones, the last among them; image: the result (C, H, W)."""

    steps: tuple[Step, ...]
    frames: tuple[Frame, ...]
    image: NDArray[np.uint8]
