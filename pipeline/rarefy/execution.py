"""How networks run on a device: the only way to :mod:`rarefy.fast`, and the switches of the whole process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from rarefy.device import COMPILES, PRECISIONS, has_bfloat16
from rarefy.device import check_execution as _check_device
from rarefy.errors import DeviceError, bad
from rarefy.models.adm import ADM
from rarefy.models.folder import ModelFolder
from rarefy.models.load import Models, load_models

_make_fast: Callable[[nn.Module, torch.device, str, str, int], nn.Module] | None = None
_has_cpu_kernels: Callable[[], bool] | None = None
try:
    from rarefy.fast import has_cpu_kernels as _has_cpu_kernels
    from rarefy.fast import prepare as _make_fast
except ModuleNotFoundError as error:
    if error.name != "rarefy.fast":
        raise

Network = TypeVar("Network", bound=nn.Module)

__all__ = [
    "COMPILES",
    "PRECISIONS",
    "build_kernels",
    "check_execution",
    "has_bfloat16",
    "has_cpu_kernels",
    "load_prepared",
    "prepare",
    "repeatable",
]


def has_cpu_kernels() -> bool:
    """Whether rarefy's kernels for CPUs can be used here; builds and loads them if necessary."""
    return _has_cpu_kernels is not None and _has_cpu_kernels()


def check_execution(device: torch.device, precision: str, compile: str) -> None:
    """Raise DeviceError or ManifestError if networks cannot run on this device in the given way."""
    _check_device(device, precision, compile)
    if precision == "fast" and _make_fast is None:
        raise DeviceError(bad("precision", precision, "possible here: rarefy.fast is not installed; use exact"))


def prepare(
    network: Network, device: torch.device, precision: str = "exact", compile: str = "auto", batch: int = 0
) -> Network:
    """Move a network to a device, in place, and make it fast there; returns it.

    precision: ``exact`` is float32; ``fast`` is bfloat16 on devices with matrix units for it. compile: ``auto`` uses
    rarefy's own kernels if they can be built; ``off`` uses torch's; ``full`` is torch.compile. batch: the number of
    images per call that a sampler repeats, for which whole networks may be compiled or recorded; 0 for training and for
    calls of any size. Parameters keep their names and, in ``exact``, their values. Parameters on the meta device are
    cast and stay there. May be called again with other arguments, but weights that ``fast`` rounded cannot become
    ``exact`` again. A network that is not ADM keeps its layers and weights: ``fast`` is autocast, ``auto`` like
    ``off``. Raises DeviceError, ManifestError.
    """
    check_execution(device, precision, compile)
    if precision == "exact" and isinstance(network, ADM) and network.dtype == torch.bfloat16:
        raise DeviceError(bad("precision", precision, "possible: the network's weights are in bfloat16; load it again"))
    if _make_fast is not None:
        with repeatable(precision):
            _make_fast(network, device, precision, compile, batch)
        return network
    return network if any(parameter.is_meta for parameter in network.parameters()) else network.to(device)


def build_kernels(device: torch.device, compile: str) -> None:
    """Build what :func:`prepare` would build at its first use on this machine, if it has to be built."""
    if device.type == "cpu" and compile == "auto":
        has_cpu_kernels()


def load_prepared(
    preset: ModelFolder,
    checkpoint: str | None,
    classifier: str | None,
    sha256s: tuple[str | None, str | None],
    device: torch.device,
    precision: str = "exact",
    compile: str = "auto",
    batch: int = 0,
) -> Models:
    """:func:`load_models` followed by :func:`prepare`. Weights are cast while they are read, to save memory."""

    def cast(network: nn.Module) -> nn.Module:
        return prepare(network, device, precision, compile)

    models = load_models(preset, checkpoint, classifier, sha256s, device, cast)
    for network in (models.unet, models.classifier):
        if network is not None:
            prepare(network, device, precision, compile, batch)
    return models


@contextmanager
def repeatable(precision: str = "exact") -> Iterator[None]:
    """Within this context equal work on one device gives equal bytes; the process's switches are restored afterwards.

    cuDNN must not time its algorithms against each other, since another winner rounds differently. In ``fast`` it may
    round float32 convolutions to 10 bits (TF32).
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, precision == "fast"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
