"""The kernels for GPUs against torch's operations. As a program, by Triton's interpreter: errors as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rarefy.fast import norm
from rarefy.fast.gpu import norm as triton_norm

# images, tokens, channels: groups of 1 to 24 channels, chunks that are not full, one token.
SMALL = [(2, 49, 96), (1, 300, 32), (1, 20, 224), (2, 1, 192)]
LARGE = [(64, 784, 32), (4, 4096, 192), (2, 64, 768), (1, 65_537, 64), *SMALL]
DTYPES = (torch.float32, torch.bfloat16)
WORST = {"float32": 5e-6, "bfloat16": 1e-2}


def errors(device: str, sizes: Sequence[tuple[int, int, int]]) -> dict[str, dict[str, list[float]]]:
    """By dtype and case, relative to the norm: y and its gradient, and statistics and sums, float32 all of them."""
    found: dict[str, dict[str, list[float]]] = {}
    torch.manual_seed(0)
    for dtype in DTYPES:
        of_dtype = found[str(dtype).removeprefix("torch.")] = {}
        for size in sizes:
            for scaled, silu in ((True, True), (False, False)):
                of_dtype[f"{size} scaled {scaled} silu {silu}"] = _case(size, dtype, scaled, silu, device)
    return found


def _case(size: tuple[int, int, int], dtype: torch.dtype, scaled: bool, silu: bool, device: str) -> list[float]:
    batch, _, channels = size
    x, grad = (torch.randn(size) * 3 + 5).to(device, dtype), torch.randn(size).to(device, dtype)
    weight, bias = torch.randn(channels).to(device), torch.randn(channels).to(device)
    # Halves of one array, as an embedding layer gives them.
    scale, shift = torch.randn(batch, 2 * channels).to(device, dtype).chunk(2, dim=1) if scaled else (None, None)
    y, statistics = triton_norm.norm_forward(x, weight, bias, scale, shift, norm.GROUPS, silu)
    wanted_y, wanted = norm._normalise(x, weight, bias, scale, shift, silu)
    ours = triton_norm.norm_backward(x, grad, wanted, norm.GROUPS, silu)
    theirs = norm._gradients(x, grad, wanted, silu)
    pairs = [(y, wanted_y), *zip(statistics, wanted, strict=True), *zip(ours, theirs, strict=True)]
    return [_error(mine, other) for mine, other in pairs]


def _error(found: Tensor, wanted: Tensor) -> float:
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm().clamp_min(1e-3))


def silu_at_its_ends(device: str) -> tuple[Tensor, Tensor]:
    """Found and wanted, for numbers at which an exponential over- or underflows, and for none."""
    u = torch.tensor([0.0, 200.0, -200.0, 1e30, -1e30, float("nan")])
    shift = torch.zeros(1, 32)
    shift[0, : len(u)] = u
    zeros = [torch.zeros(32, device=device) for _ in range(2)]
    scale, x = torch.zeros(1, 32, device=device), torch.zeros(1, 3, 32, device=device)
    y, _ = triton_norm.norm_forward(x, *zeros, scale, shift.to(device), norm.GROUPS, True)
    return y[0, 0, : len(u)].cpu(), F.silu(u)


if __name__ == "__main__":
    # So that small images have many chunks, of many tiles.
    triton_norm.TILE, triton_norm.STATISTICS_TILE, triton_norm.MOST_CHUNKS = 512, 1024, 4
    ends, wanted_ends = silu_at_its_ends("cpu")
    torch.testing.assert_close(ends, wanted_ends, rtol=1e-6, atol=1e-8, equal_nan=True)
    print(json.dumps(errors("cpu", SMALL)))
