"""The project's own kernels for CPUs (``kernels/``): normalisation, 3x3 convolutions, attention.

The machine's C++ compiler builds them at first use, in some seconds, and the user's cache keeps them. Where there is no
compiler, or :func:`use` has switched them off, torch's own operations do the same work; results agree within rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rarefy.user_cache import keep, user_cache

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC")
THREADS = ("-fopenmp",)  # where the compiler has it; without, a kernel is one thread's
CHANNELS = 16  # what channels must be a multiple of: the widest vector
LEAST_TILES = 8  # of 4 x 4 pixels, from where on transforming the weights pays (benchmarks/kernels.py)
DTYPES = (torch.float32, torch.bfloat16)
EPS = 1e-5  # of the normalisation; kernels/norm.h has it too
MOST_TOKENS = 1024  # of attention: for its gradient, each thread holds a number for every two of them

_state = {"on": False}


class NormConv(NamedTuple):
    """What :func:`norm_conv3x3` gives.

    y: (B, K, H, W); statistics: (4, B, C) float32, for :func:`norm_conv3x3_backward`; skipped: the 1x1 convolution's
    result, (B, K, H, W), or None; between: the normalised images, (B, C, H, W), or None.
    """

    y: Tensor
    statistics: Tensor
    skipped: Tensor | None
    between: Tensor | None


def use(on: bool) -> None:
    """Switch the kernels on, where they can be had, or off (process-wide; off at first)."""
    _state["on"] = on and available()


def available() -> bool:
    """Whether the kernels are built, or can be, and load; builds them."""
    return _library() is not None


def takes_norm(x: Tensor) -> bool:
    """Whether :func:`norm_forward` is on for such images."""
    return _state["on"] and x.device.type == "cpu" and x.dtype in DTYPES and not torch.compiler.is_compiling()


def takes_conv3x3(x: Tensor, in_channels: int) -> bool:
    """Whether :func:`conv3x3` is on for such images, (B, in_channels, H, W), and the faster way.

    Not in bfloat16 where the processor has matrix units for it: there torch's convolution is several times as fast.
    """
    if not takes_norm(x) or in_channels % CHANNELS or (x.dtype == torch.bfloat16 and has_matrix_units()):
        return False
    tiles: int = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return tiles >= LEAST_TILES


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor]:
    """x: (B, N, C) contiguous -> y like x, and a, b, mean, 1 / deviation, (4, B, C) float32 (``norm._normalise``)."""
    batch, tokens, channels = x.shape
    y, statistics = torch.empty_like(x), x.new_empty((4, batch, channels), dtype=torch.float32)
    size = (batch, tokens, channels, groups)
    vectors = [None if v is None else v.float().contiguous() for v in (weight, bias, scale, shift)]
    _call("norm_forward", x.dtype, x, y, *size, *vectors, silu, statistics)
    return y, statistics


def norm_backward(
    x: Tensor, grad: Tensor, statistics: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: like x -> the gradient with respect to x, and means over the tokens of du and du * x_hat, (B, C)."""
    grad_x, means = torch.empty_like(x), torch.empty_like(statistics)
    _call("norm_backward", x.dtype, x, grad, grad_x, *x.shape, groups, *statistics.unbind(), silu, means)
    return grad_x, means[0], means[1]


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, turned: bool = False
) -> Tensor:
    """A convolution of stride 1 and padding 1. x: (B, C, H, W); weight: (K, C, 3, 3) -> (B, K, H, W), channels-last.

    residual: added to the result, whose shape and dtype it has. turned: x is the gradient (B, K, H, W) instead, and
    the result that with respect to the image, (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    out = weight.shape[1 if turned else 0]
    y = _empty_image(x, batch, out, height, width)
    size = (batch, height, width, channels, out)
    scratch = _scratch("conv3x3_scratch", x.dtype == torch.bfloat16, *size)
    offset = None if bias is None else bias.float()
    added = None if residual is None else _channels_last(residual)
    _call("conv3x3", x.dtype, _channels_last(x), _channels_last(weight), offset, added, y, *size, turned, scratch)
    return y


def conv3x3_weights(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """float32 gradients of its weight, (K, C, 3, 3), and bias. x: (B, C, H, W); grad: (B, K, H, W)."""
    (batch, channels, height, width), out = x.shape, grad.shape[1]
    weight = x.new_empty((out, 3, 3, channels), dtype=torch.float32)
    bias = weight.new_empty(out)
    scratch = _scratch("conv3x3_weights_scratch", channels, out)
    size = (batch, height, width, channels, out)
    _call("conv3x3_weights", x.dtype, _channels_last(x), _channels_last(grad), weight, bias, *size, scratch)
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
    """:func:`conv3x3` of SiLU(normalised images), a few images at a time, so that these never leave the cache.

    parts: one image, (B, C, H, W), or two whose channels lie side by side, the first perhaps of half the height and
    width, its pixels then twice as high and wide; norm: its weight and bias, (C,); scale, shift: (B, C); skip: weight,
    (K, C, 1, 1), and bias of a 1x1 convolution of what is normalised; keep: whether what is convolved is wanted too,
    with one image and no ``skip``.
    """
    first, *others = (_channels_last(part) for part in parts)
    second = others[0] if others else None
    batch, first_channels = first.shape[:2]
    height, width = parts[-1].shape[2:]
    half, out = first.shape[2] != height, len(weight)
    channels = first_channels if second is None else first_channels + second.shape[1]
    y = _empty_image(first, batch, out, height, width)
    skipped = None if skip is None else torch.empty_like(y)
    between = torch.empty_like(first) if keep else None
    statistics = y.new_empty((4, batch, channels), dtype=torch.float32)
    size = (batch, height, width, channels, out)
    scratch = _scratch("norm_conv3x3_scratch", y.dtype == torch.bfloat16, *size, channels, 0 if skip is None else out)
    images = (first, second, first_channels, half, groups)
    vectors = (None if v is None else v.float().contiguous() for v in (*norm, scale, shift))
    passing = (None, None) if skip is None else (skip[0].flatten(1).contiguous(), skip[1].float())
    added = None if residual is None else _channels_last(residual)
    kernel = (_channels_last(weight), bias.float(), added, y)
    _call("norm_conv3x3", y.dtype, *images, *vectors, statistics, *passing, skipped, between, *kernel, *size, scratch)
    return NormConv(y, statistics, skipped, between)


def norm_conv3x3_backward(
    x: Tensor, statistics: Tensor, groups: int, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: (B, K, H, W) -> the gradient of the one image ``x``, (B, C, H, W), and means as :func:`norm_backward`."""
    (batch, channels, height, width), out = x.shape, grad.shape[1]
    grad_x, means = _empty_image(x, batch, channels, height, width), torch.empty_like(statistics)
    size = (batch, height, width, out, channels)
    scratch = _scratch("norm_conv3x3_scratch", x.dtype == torch.bfloat16, *size, channels, 0)
    arrays = (_channels_last(x), statistics, groups, _channels_last(weight), _channels_last(grad), grad_x, means)
    _call("norm_conv3x3_backward", x.dtype, *arrays, *size, scratch)
    return grad_x, means[0], means[1]


def takes_attention(qkv: Tensor, width: int) -> bool:
    """Whether :func:`attention_forward` is on for (B, N, 3C) tokens with heads of ``width``, and the faster way.

    In bfloat16 alone, where the processor multiplies its pairs; in float32 torch's own are as fast.
    """
    return (
        qkv.dtype == torch.bfloat16
        and takes_norm(qkv)
        and width % CHANNELS == 0
        and qkv.shape[1] <= MOST_TOKENS
        and not has_matrix_units()
        and bool(_built().multiplies_pairs())
    )


def attention_forward(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor]:
    """qkv: (B, N, 3C) contiguous, ordered as ``split_heads`` says -> (B, N, C), and (B, heads, N) log sums.

    Those are float32, of each query's exponentials; :func:`attention_backward` takes them.
    """
    batch, tokens, channels = qkv.shape
    width = channels // 3 // heads
    out, lse = qkv.new_empty((batch, tokens, channels // 3)), qkv.new_empty((batch, heads, tokens), dtype=torch.float32)
    scratch = _scratch("attention_scratch", qkv.dtype == torch.bfloat16, tokens, width, False)
    _call("attention_forward", qkv.dtype, qkv, out, lse, batch, tokens, heads, width, new_order, scratch)
    return out, lse


def attention_backward(qkv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, heads: int, new_order: bool) -> Tensor:
    """grad: (B, N, C) -> the gradient with respect to qkv, of what :func:`attention_forward` gave."""
    batch, tokens, channels = qkv.shape
    width = channels // 3 // heads
    grad_qkv = torch.empty_like(qkv)
    scratch = _scratch("attention_scratch", qkv.dtype == torch.bfloat16, tokens, width, True)
    size = (batch, tokens, heads, width)
    _call("attention_backward", qkv.dtype, qkv, out, lse, grad.contiguous(), grad_qkv, *size, new_order, scratch)
    return grad_qkv


def find_compiler() -> str | None:
    """The machine's C++ compiler, which torch.compile takes too: $CXX, or the platform's own."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers, x86's (AVX512-BF16, AMX) or ARM's (BF16)."""
    return "bf16" in _processor()


def has_matrix_units() -> bool:
    """Whether the processor multiplies bfloat16 matrices in units of their own (Intel's AMX)."""
    return "amx_bf16" in _processor()


def _channels_last(x: Tensor) -> Tensor:
    """The image where its numbers lie in (B, H, W, C) order, or a copy."""
    last = torch.channels_last
    return x if x.is_contiguous(memory_format=last) else x.contiguous(memory_format=last)


def _empty_image(like: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=like.dtype, memory_format=torch.channels_last)


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    """Call a kernel, in as many threads as torch has: pointers for tensors, numbers as they are."""
    plain = (value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
    getattr(_built(), name)(dtype == torch.bfloat16, *plain, torch.get_num_threads())


def _scratch(name: str, *size: int) -> Tensor:
    """What a kernel needs for itself, in as many threads as torch has; ``name`` is the library's function for it."""
    return torch.empty(getattr(_built(), name)(*size, torch.get_num_threads()), dtype=torch.float32)


def _built() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = find_compiler()
    if compiler is None:
        return None
    for flags in ((*FLAGS, *THREADS), FLAGS):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return _typed(_load(compiler, flags))
    return None  # none that works here: torch's own operations remain


def _load(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The library from the cache, or built into it. Raises OSError, CalledProcessError."""
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256("\0".join((*flags, version, _processor())).encode())
    for source in sources:
        digest.update(source.read_bytes())
    kept = user_cache() / "kernels" / f"{digest.hexdigest()[:40]}.so"
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / kept.name

        def run(*arguments: str) -> None:
            subprocess.run([compiler, *flags, *arguments], check=True, capture_output=True)

        objects = {str(source): f"{folder}/{source.stem}.o" for source in sources if source.suffix == ".cpp"}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: run("-c", source, "-o", objects[source]), objects))
        run("-shared", *objects.values(), "-o", str(made))
        library = ctypes.CDLL(str(made))
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next process its seconds
            keep(kept, lambda file: file.write(made.read_bytes()))
        return library


@functools.cache
def _processor() -> str:
    """What the processor can do, as Linux lists it; elsewhere its name."""
    with contextlib.suppress(OSError, StopIteration), Path("/proc/cpuinfo").open() as lines:
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{sys.platform} {os.uname().machine}"


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the arguments: the order is that of the sources."""
    flag, number, array, threads = ctypes.c_bool, ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.norm_forward.argtypes = [flag, *[array] * 2, *[number] * 4, *[array] * 4, flag, array, threads]
    library.norm_backward.argtypes = [flag, *[array] * 3, *[number] * 4, *[array] * 4, flag, array, threads]
    library.conv3x3.argtypes = [flag, *[array] * 5, *[number] * 5, flag, array, threads]
    library.conv3x3_weights.argtypes = [flag, *[array] * 4, *[number] * 5, array, threads]
    images = (array, array, number, flag, number)
    library.norm_conv3x3.argtypes = [flag, *images, *[array] * 13, *[number] * 5, array, threads]
    library.norm_conv3x3_backward.argtypes = [flag, *[array] * 2, number, *[array] * 4, *[number] * 5, array, threads]
    library.attention_forward.argtypes = [flag, *[array] * 3, *[number] * 4, flag, array, threads]
    library.attention_backward.argtypes = [flag, *[array] * 5, *[number] * 4, flag, array, threads]
    library.attention_scratch.argtypes = [flag, number, number, flag, threads]
    library.multiplies_pairs.restype = flag
    library.conv3x3_scratch.argtypes = [flag, *[number] * 5, threads]
    library.conv3x3_weights_scratch.argtypes = [number, number, threads]
    library.norm_conv3x3_scratch.argtypes = [flag, *[number] * 7, threads]
    for scratch in ("conv3x3_scratch", "conv3x3_weights_scratch", "norm_conv3x3_scratch", "attention_scratch"):
        getattr(library, scratch).restype = number
    return library
