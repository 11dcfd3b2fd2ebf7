"""How a frozen network computes: ``exact`` or ``fast``, by torch, by our own kernels or under ``torch.compile``.

The choice follows from what a device can do, in one function (:func:`choose`) that needs no device itself. The
kernels' switches and cuDNN's are the process's: the last :func:`set_up` holds for every network in it.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rarefy.errors import DeviceError, ManifestError, bad
from rarefy.fast.cpu import native
from rarefy.fast.gpu import norm as triton_norm
from rarefy.fast.gpu.graph import recorded
from rarefy.models.adm import ADM, Classifier

Network = TypeVar("Network", bound=nn.Module)
Model = TypeVar("Model", bound=ADM)

PRECISIONS = ("exact", "fast")
COMPILES = ("auto", "off", "full")
OUR_OWN = "our own"
TRITON_GPU = (7, 0)  # least compute capability that Triton builds for


@dataclass(frozen=True)
class Capability:
    """What a device can do.

    device: "cpu" or "cuda"; present: torch finds it; compiler: torch.compile works for it, and so Triton on a GPU;
    native: the project's own kernels for CPUs do.
    """

    device: str
    present: bool
    compiler: bool
    native: bool


@dataclass(frozen=True)
class Execution:
    """How networks are run.

    native: the project's own kernels for CPUs; triton: those for GPUs; graphs: on a GPU, whole networks recorded and
    replayed; network_mode: torch.compile's mode for whole networks, None for eager; tf32: cuDNN may round the float32
    convolutions of a GPU to 10 bits.
    """

    native: bool = False
    triton: bool = False
    graphs: bool = False
    network_mode: str | None = None
    tf32: bool = False

    @property
    def kernels(self) -> str:
        """Whose they are, for people."""
        if self.network_mode is not None:
            return "torch.compile's"
        if self.native:
            return OUR_OWN
        return "torch's and, for the normalisation, our own" if self.triton else "torch's"


def capability(device: torch.device, compile: str) -> Capability:
    """Look at a device of this machine and at the tools to compile for it; for ``auto`` alone our own are built."""
    if device.type == "cpu":
        return Capability("cpu", True, has_compiler(), compile == "auto" and native.available())
    if not torch.cuda.is_available():
        return Capability("cuda", False, False, False)
    triton = importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= TRITON_GPU
    return Capability("cuda", True, triton and has_compiler(), False)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: elsewhere it is slower than float32, and no better."""
    if device.type == "cpu":
        return native.has_bfloat16()
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def choose(found: Capability, precision: str, compile: str) -> Execution:
    """What runs how on such a device. Raises DeviceError where it cannot carry out what was asked for.

    compile: ``auto`` takes the project's own kernels where they can be had, and on a GPU replays recorded networks;
    ``off`` is torch alone, eager; ``full`` is torch.compile for the whole networks, as CUDA graphs on a GPU.
    """
    if compile not in COMPILES:
        raise DeviceError(bad("compile", compile, f"one of {', '.join(COMPILES)}"))
    if not found.present:
        raise DeviceError(bad("device", found.device, "possible here: torch finds no GPU on this machine"))
    if compile == "full" and not found.compiler:
        needed = "g++ (or $CXX) and Python's headers" + (", and Triton for a GPU" if found.device == "cuda" else "")
        raise DeviceError(bad("compile", compile, f"possible here: torch.compile needs {needed}; auto and off do not"))
    gpu, auto = found.device == "cuda", compile == "auto"
    mode = ("reduce-overhead" if gpu else "default") if compile == "full" else None
    return Execution(
        native=auto and found.native,
        triton=auto and gpu and found.compiler,
        graphs=auto and gpu,
        network_mode=mode,
        tf32=gpu and precision == "fast",
    )


def execution_on(device: torch.device, precision: str, compile: str) -> Execution:
    """What :func:`choose` says for a device of this machine."""
    return choose(capability(device, compile), precision, compile)


def set_up(networks: Iterable[ADM], execution: Execution, batch: int) -> None:
    """Set this process and its networks up for batches of ``batch`` images, so that equal work gives equal bytes.

    Compiled or recorded are only the calls that a sampler repeats: ``batch`` images, for a classifier with their
    gradient. Any other call stays eager, since each new shape would cost time and memory; results agree within
    rounding. cuDNN never times its algorithms against each other: another winner would round differently.
    """
    use_kernels(execution)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = execution.tf32
    for network in networks:
        network.__dict__.pop("forward", None)
        # A module calls its own attribute of that name before its class's.
        if execution.network_mode is not None:
            network.__dict__["forward"] = _compiled(network, execution.network_mode, batch)
        elif execution.graphs:
            network.__dict__["forward"] = recorded(network, batch)


def use_kernels(execution: Execution) -> None:
    """Switch the project's own kernels on or off: all that training, which records nothing, sets up."""
    native.use(execution.native)
    triton_norm.use(execution.triton)


def _compiled(network: ADM, mode: str, batch: int) -> Callable[..., Tensor]:
    eager: Callable[..., Tensor] = network.forward
    fast: Callable[..., Tensor] = torch.compile(eager, dynamic=False, mode=mode)
    with_gradient = isinstance(network, Classifier)

    def forward(x: Tensor, *rest: Tensor | None) -> Tensor:
        if len(x) != batch or x.requires_grad != with_gradient:
            return eager(x, *rest)
        return _own(fast(_own(x), *rest))

    return forward


class _Own(torch.autograd.Function):
    """A copy, of the gradient too: CUDA graphs write the next call's results over those that they gave out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clone()


def _own(x: Tensor) -> Tensor:
    copy: Tensor = _Own.apply(x)  # type: ignore[no-untyped-call]
    return copy


def has_compiler() -> bool:
    """Whether what torch.compile builds with is here: the C++ compiler that it looks for, and Python's headers."""
    return native.find_compiler() is not None and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def set_precision(network: Model, precision: str, device: torch.device) -> Model:
    """Cast a network, which may be on meta still, in place to what ``precision`` is on a device; returns it.

    exact is float32, and so is fast where the device does not multiply bfloat16; else fast is :func:`to_bfloat16`.
    """
    if precision not in PRECISIONS:
        raise ManifestError(bad("sampler.precision", precision, f"one of {', '.join(PRECISIONS)}"))
    return to_bfloat16(network) if precision == "fast" and has_bfloat16(device) else network


def to_bfloat16(network: Model) -> Model:
    """Cast convolutions, attention and embedding layers of the blocks in place; returns the network.

    The first convolution, the time embedding, the normalisation statistics and the output layer stay float32, so that
    neither x_t at the beginning nor eps and logits at the end are rounded to 8 bits.
    """
    for block in network.blocks()[1:]:
        for module in block.modules():
            if not isinstance(module, nn.GroupNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)
    return network


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network in place, its convolution weights channels-last."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
