"""Networks of kind ``diffusers``: the U-Net UNet2DModel of the diffusers library."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from rarefy.errors import ManifestError, bad
from rarefy.extras import missing_package
from rarefy.models.config import OtherNetwork
from rarefy.torchvision_operators import import_module

UNET = "diffusers.models.unets.unet_2d"


def build_diffusers(spec: OtherNetwork) -> nn.Module:
    """A UNet2DModel with random weights and the parameter names of diffusers. spec.options: its configuration.

    Raises ManifestError if diffusers is not installed or does not accept the options.
    """
    kind = _adapted()
    try:
        network: nn.Module = kind(**spec.options)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(f"unet.options: diffusers {_version()} cannot build this UNet2DModel ({reason})") from error
    return network


@functools.cache
def _adapted() -> type[nn.Module]:
    """UNet2DModel, called as rarefy calls a U-Net."""
    try:
        base: Any = import_module(UNET).UNet2DModel
    except ImportError as error:
        allowed = f"usable here: {' '.join(str(error).split())}"
        missing = missing_package("unet.kind: 'diffusers'", error)
        raise missing or ManifestError(bad("unet.kind", "diffusers", allowed)) from error

    class DiffusersUNet(base):  # type: ignore[misc]  # untyped package
        """(x_t, t, y) -> prediction; see rarefy.models.networks."""

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            output: Tensor = super().forward(x, t.long(), class_labels=y, return_dict=False)[0]
            return output

    return DiffusersUNet


def _version() -> str:
    return str(import_module("diffusers").__version__)
