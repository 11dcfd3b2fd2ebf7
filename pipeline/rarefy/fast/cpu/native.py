"""rarefy's kernels for CPUs: group normalisation in float32 and bfloat16, 3x3 convolutions in float32.

The machine's C++ compiler builds them at first use (:mod:`rarefy.fast.cpu.build`). Without a compiler torch's
operations do the same work; results agree within rounding.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rarefy.fast.cpu.build import load_library

SOURCES = Path(__file__).parent / "kernels"
CHANNELS = 16  # the number of channels must be a multiple of the widest vector
LEAST_TILES = 8  # of 4 x 4 pixels; below that, transforming the weights costs more than it saves
DTYPES = (torch.float32, torch.bfloat16)

# Arguments of the library's functions: p is an array, l a number, b a flag. The number of threads comes last.
_FUNCTIONS = {
    "norm_forward": "bpp llll pppp bp",
    "norm_backward": "bppp llll pppp bp",
    "conv3x3": "ppppp lllll bp",
    "conv3x3_weights": "pppp lllll p",
    "norm_conv3x3": "pplbl pppp p ppp p pppp lllll p",
    "norm_conv3x3_backward": "ppl pppp lllll p",
    "conv3x3_scratch": "lllll",
    "conv3x3_weights_scratch": "ll",
    "norm_conv3x3_scratch": "lllll ll",
}
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "b": ctypes.c_bool}


class NormConv(NamedTuple):
    """Results of :func:`norm_conv3x3`.

    y: (B, K, H, W); statistics: (4, B, C) float32, for :func:`norm_conv3x3_backward`; skipped: the 1x1 convolution's
    result, (B, K, H, W), or None; normalised: the normalised images, (B, C, H, W), or None.
    """

    y: Tensor
    statistics: Tensor
    skipped: Tensor | None
    normalised: Tensor | None


def available() -> bool:
    """Whether the kernels can be used; builds and loads them if necessary."""
    return _library() is not None


def supports_norm(x: Tensor) -> bool:
    """Whether :func:`norm_forward` supports such images."""
    return x.device.type == "cpu" and x.dtype in DTYPES and available()


def supports_conv3x3(x: Tensor, in_channels: int) -> bool:
    """Whether :func:`conv3x3` supports images of shape (B, in_channels, H, W) like x, and is faster than torch."""
    tiles: int = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return x.dtype == torch.float32 and in_channels % CHANNELS == 0 and tiles >= LEAST_TILES and supports_norm(x)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor]:
    """y = f(a x + b), where f is SiLU or the identity.

    x: (B, N, C) contiguous. Returns y like x, and a, b, the groups' mean and 1 / deviation as (4, B, C) float32.
    """
    batch, tokens, channels = x.shape
    y, statistics = torch.empty_like(x), x.new_empty((4, batch, channels), dtype=torch.float32)
    vectors = _floats(weight, bias, scale, shift)
    reduced = x.dtype == torch.bfloat16
    _call("norm_forward", reduced, x, y, batch, tokens, channels, groups, *vectors, silu, statistics)
    return y, statistics


def norm_backward(
    x: Tensor, grad: Tensor, statistics: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: like x. Returns the gradient with respect to x, and means over the tokens of du and du * x_hat, (B, C)."""
    grad_x, means = torch.empty_like(x), torch.empty_like(statistics)
    reduced = x.dtype == torch.bfloat16
    _call("norm_backward", reduced, x, grad, grad_x, *x.shape, groups, *statistics.unbind(), silu, means)
    return grad_x, means[0], means[1]


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, turned: bool = False
) -> Tensor:
    """A convolution of stride 1 and padding 1. x: (B, C, H, W); weight: (K, C, 3, 3) -> (B, K, H, W), channels-last.

    residual: added to the result, of the same shape. turned: x is the gradient, (B, K, H, W), and the result is the
    gradient with respect to the image, (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    out = weight.shape[1 if turned else 0]
    y = _empty_image(batch, out, height, width)
    size = (batch, height, width, channels, out)
    arrays = (_channels_last(x), _channels_last(weight), bias, _optional(residual), y)
    _call("conv3x3", *arrays, *size, turned, _scratch("conv3x3_scratch", *size))
    return y


def conv3x3_weights(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight, (K, C, 3, 3), and bias. x: (B, C, H, W); grad: (B, K, H, W)."""
    (batch, channels, height, width), out = x.shape, grad.shape[1]
    weight, bias = x.new_empty((out, 3, 3, channels)), x.new_empty(out)
    arrays = (_channels_last(x), _channels_last(grad), weight, bias)
    scratch = _scratch("conv3x3_weights_scratch", channels, out)
    _call("conv3x3_weights", *arrays, batch, height, width, channels, out, scratch)
    return weight.permute(0, 3, 1, 2), bias


def norm_conv3x3(
    parts: Sequence[Tensor],
    norm: tuple[Tensor, Tensor],
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    skip: tuple[Tensor, Tensor] | None = None,
    keep: bool = False,
) -> NormConv:
    """:func:`conv3x3` of SiLU(normalised images), a few images at a time, which stay in the cache in between.

    parts: one image, (B, C, H, W), or two whose channels are concatenated; the first may have half the height and
    width and is then upsampled. norm: weight and bias, (C,); scale, shift: (B, C); skip: weight, (K, C, 1, 1), and bias
    of a 1x1 convolution of the image before normalisation; keep: whether to return the normalised image, which is
    only possible for one image without ``skip``.
    """
    first, *others = (_channels_last(part) for part in parts)
    second = others[0] if others else None
    batch, first_channels = first.shape[:2]
    height, width = parts[-1].shape[2:]
    half, out = first.shape[2] != height, len(weight)
    channels = first_channels if second is None else first_channels + second.shape[1]
    y = _empty_image(batch, out, height, width)
    skipped = None if skip is None else torch.empty_like(y)
    normalised = torch.empty_like(first) if keep else None
    statistics = y.new_empty((4, batch, channels))
    size = (batch, height, width, channels, out)
    scratch = _scratch("norm_conv3x3_scratch", *size, channels, 0 if skip is None else out)
    images = (first, second, first_channels, half, groups, *_floats(*norm, scale, shift), statistics)
    skip_arrays = (None, None) if skip is None else (skip[0].flatten(1).contiguous(), skip[1])
    kernel = (_channels_last(weight), bias, _optional(residual), y)
    _call("norm_conv3x3", *images, *skip_arrays, skipped, normalised, *kernel, *size, scratch)
    return NormConv(y, statistics, skipped, normalised)


def norm_conv3x3_backward(
    x: Tensor, statistics: Tensor, groups: int, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: (B, K, H, W). Returns the gradient of the single image x, (B, C, H, W), and means like norm_backward."""
    (batch, channels, height, width), out = x.shape, grad.shape[1]
    grad_x, means = _empty_image(batch, channels, height, width), torch.empty_like(statistics)
    size = (batch, height, width, out, channels)
    scratch = _scratch("norm_conv3x3_scratch", *size, channels, 0)
    arrays = (_channels_last(x), statistics, groups, _channels_last(weight), _channels_last(grad), grad_x, means)
    _call("norm_conv3x3_backward", *arrays, *size, scratch)
    return grad_x, means[0], means[1]


def _channels_last(x: Tensor) -> Tensor:
    """The image if its numbers are in (B, H, W, C) order, else a copy in that order."""
    assert x.dtype == torch.float32  # the convolutions read nothing else
    last = torch.channels_last
    return x if x.is_contiguous(memory_format=last) else x.contiguous(memory_format=last)


def _optional(x: Tensor | None) -> Tensor | None:
    return None if x is None else _channels_last(x)


def _floats(*vectors: Tensor | None) -> list[Tensor | None]:
    return [None if v is None else v.float().contiguous() for v in vectors]


def _empty_image(*size: int) -> Tensor:
    return torch.empty(size, memory_format=torch.channels_last, dtype=torch.float32)


def _call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a kernel with torch's number of threads. Tensors are passed as pointers."""
    plain = (value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
    getattr(_library(), name)(*plain, torch.get_num_threads())


def _scratch(name: str, *size: int) -> Tensor:
    """A kernel's working memory; ``name`` is the library's function that tells how much it needs."""
    return torch.empty(getattr(_library(), name)(*size, torch.get_num_threads()), dtype=torch.float32)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library(SOURCES)
    if library is not None:
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = [*(_TYPES[kind] for kind in arguments.replace(" ", "")), ctypes.c_int]
            function.restype = ctypes.c_long if name.endswith("_scratch") else None
    return library
