"""The GPU kernels compared with the formula. As a program: in Triton's interpreter; prints errors as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kernel_cases import error, normalised
from torch import Tensor

from rarefy.fast.gpu import norm as triton_norm
from rarefy.models.config import GROUPS

Case = tuple[tuple[int, int, int], torch.dtype, bool]

# (images, tokens, channels), type, and whether with scale, shift and SiLU. They include groups of 1 to 24 channels,
# partial chunks and a single token.
SMALL: list[Case] = [
    ((2, 49, 96), torch.float32, True),
    ((1, 150, 32), torch.float32, False),
    ((2, 1, 192), torch.bfloat16, True),
    ((1, 20, 224), torch.bfloat16, False),
]
LARGE: list[Case] = [
    (size, dtype, form)
    for size in ((64, 784, 32), (4, 4096, 192), (2, 64, 768), (1, 65_537, 64), *(case[0] for case in SMALL))
    for dtype in (torch.float32, torch.bfloat16)
    for form in (True, False)
]
WORST = {torch.float32: 5e-6, torch.bfloat16: 1e-2}


def worst_errors(device: str, cases: Sequence[Case]) -> list[float]:
    """The largest error of each case, relative to the norm, as a fraction of what its type allows."""
    torch.manual_seed(0)
    return [max(_errors(*case, device)) / WORST[case[1]] for case in cases]


def _errors(size: tuple[int, int, int], dtype: torch.dtype, full: bool, device: str) -> list[float]:
    batch, _, channels = size
    x, grad = (torch.randn(size) * 3 + 5).to(device, dtype), torch.randn(size).to(device, dtype)
    weight, bias = torch.randn(channels).to(device), torch.randn(channels).to(device)
    # Halves of one array, as an embedding layer returns them.
    scale, shift = torch.randn(batch, 2 * channels).to(device, dtype).chunk(2, dim=1) if full else (None, None)
    expected = normalised(x, grad, weight, bias, scale, shift, full)
    y, statistics = triton_norm.norm_forward(x, weight, bias, scale, shift, GROUPS, full)
    gradients = triton_norm.norm_backward(x, grad, expected.statistics.float(), GROUPS, full)
    pairs = [(y, expected.y), *zip(statistics, expected.statistics, strict=True)]
    pairs += zip(gradients, expected.gradients, strict=True)
    return [error(ours, theirs) for ours, theirs in pairs if theirs.norm() > 1e-3]


def silu_at_its_ends(device: str) -> tuple[Tensor, Tensor]:
    """rarefy's SiLU and torch's, where an exponential over- or underflows, and for NaN."""
    u = torch.tensor([0.0, 200.0, -200.0, 1e30, -1e30, float("nan")])
    shift = torch.zeros(1, 32)
    shift[0, : len(u)] = u
    zeros = [torch.zeros(32, device=device) for _ in range(2)]
    scale, x = torch.zeros(1, 32, device=device), torch.zeros(1, 3, 32, device=device)
    y, _ = triton_norm.norm_forward(x, *zeros, scale, shift.to(device), GROUPS, True)
    return y[0, 0, : len(u)].cpu(), F.silu(u)


if __name__ == "__main__":
    # Small, so that small images have many chunks of many tiles.
    triton_norm.TILE, triton_norm.STATISTICS_TILE, triton_norm.MOST_CHUNKS = 512, 1024, 4
    ends, torchs_ends = silu_at_its_ends("cpu")
    torch.testing.assert_close(ends, torchs_ends, rtol=1e-6, atol=1e-8, equal_nan=True)
    print(json.dumps(worst_errors("cpu", SMALL)))
