"""Training on a finished data set: its rows, its images, and both mixed with real ones.

Names are imported when they are used: reading rows and exclusion lists needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarefy.consume.exclusions import read_exclusions, write_exclusions
    from rarefy.consume.loader import Loader
    from rarefy.consume.mixing import MixedImages, mix
    from rarefy.consume.rare import RareImages
    from rarefy.consume.ray_data import ray_dataset
    from rarefy.consume.real import RealImages
    from rarefy.consume.rows import read_rows
    from rarefy.consume.sampler import EpochSampler

__all__ = [
    "EpochSampler",
    "Loader",
    "MixedImages",
    "RareImages",
    "RealImages",
    "mix",
    "ray_dataset",
    "read_exclusions",
    "read_rows",
    "write_exclusions",
]
_MODULES = {
    "EpochSampler": "sampler",
    "Loader": "loader",
    "MixedImages": "mixing",
    "RareImages": "rare",
    "RealImages": "real",
    "mix": "mixing",
    "ray_dataset": "ray_data",
    "read_exclusions": "exclusions",
    "read_rows": "rows",
    "write_exclusions": "exclusions",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"rarefy.consume.{name} needs PyTorch: pip install torch, or 'rarefy[run]'") from None
