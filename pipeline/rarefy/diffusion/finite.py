"""Finds values that are not finite along a chain, without waiting for the device at each step.

Each step leaves one sum per image on the device; they are read once, after the last step. A sum is finite only if all
its values are: NaN and infinity survive every addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rarefy.errors import NonFiniteError


def image_sums(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,): the sum of each image's values."""
    return x.sum(dim=(1, 2, 3))


def check_finite(sums: Sequence[Sequence[Tensor]], y: Tensor, seeds: Sequence[int]) -> None:
    """Raise NonFiniteError, which names class, seed and step of the first image whose sums are not all finite.

    sums: per step in order, one or more tensors (B,); y: (B,) class ids; seeds: one per image.
    """
    wrong = ~torch.stack([torch.stack(list(step)) for step in sums]).isfinite().all(dim=1)
    if not wrong.any():
        return
    step, row = (int(place) for place in wrong.nonzero()[0])
    raise NonFiniteError(
        f"an image of class {int(y[row])} with seed {seeds[row]} has values that are not finite (NaN or infinity) from "
        f"step {step + 1} of {len(sums)} on; if it is the same on other machines, less guidance or precision = 'exact' "
        "may help"
    )
