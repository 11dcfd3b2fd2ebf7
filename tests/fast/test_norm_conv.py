"""Normalisation and convolution as one kernel: against float64, and where each is left to itself."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import BOTH, TOLERANCE, error, needs_compiler, on_both
from torch import Tensor, nn

from rarefy.fast import norm, norm_conv
from rarefy.fast.conv import Conv3x3
from rarefy.fast.cpu import native
from rarefy.models.blocks import ResBlock
from rarefy.models.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("switched_on")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the library's functions, as they are called."""
    made: list[str] = []
    call = native._call
    monkeypatch.setattr(native, "_call", lambda name, *a: made.append(name) or call(name, *a))  # type: ignore[func-returns-value]
    return made


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size).to(dtype).to(memory_format=torch.channels_last)


def layers(channels: int, out: int, dtype: torch.dtype) -> tuple[nn.GroupNorm, Conv3x3, nn.Conv2d]:
    """Frozen: a normalisation, a 3x3 and a 1x1 convolution, every parameter random."""
    torch.manual_seed(0)
    group = norm.group_norm(channels)
    nn.init.normal_(group.weight)
    nn.init.normal_(group.bias)
    convs = (Conv3x3(channels, out).to(dtype), nn.Conv2d(channels, out, 1).to(dtype))
    for layer in (group, *convs):
        layer.eval().requires_grad_(False)
    return group, *convs


def normalised(x: Tensor, group: nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    h = F.group_norm(x, norm.GROUPS, group.weight.double(), group.bias.double(), norm.EPS)
    if scale is not None and shift is not None:
        h = h * (1 + scale.double()[..., None, None]) + shift.double()[..., None, None]
    return F.silu(h)


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=conv.padding)  # type: ignore[arg-type]


# batch, channels of the first and of the second image, out, height, width, whether the first is of half the size
SIZES = [
    (64, 96, 96, 96, 7, 7, False),
    (13, 64, 32, 32, 28, 28, True),
    (9, 32, 0, 64, 14, 14, False),
    (17, 64, 64, 64, 9, 13, False),
    (3, 32, 64, 32, 2, 6, True),  # few tiles
    (12, 480, 480, 96, 12, 12, True),  # more weights than are transformed at once
    (1, 64, 0, 32, 1, 1, False),
]


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_images_and_the_convolution_beside(
    size: tuple[int, int, int, int, int, int, bool], dtype: torch.dtype, calls: list[str]
) -> None:
    batch, first, second, out, height, width, half = size
    group, conv, skip = layers(first + second, out, dtype)
    shrink = 2 if half else 1
    parts = [image(batch, first, height // shrink, width // shrink, dtype=dtype)]
    parts += [image(batch, second, height, width, dtype=dtype)] if second else []
    with torch.no_grad():
        found, skipped = norm_conv.norm_act_conv_and_skip(parts, group, conv, skip)
    assert calls == ["norm_conv3x3"]
    assert found.dtype == skipped.dtype == dtype
    x = norm_conv.join(parts).double()
    assert x.shape == (batch, first + second, height, width)
    assert error(found, convolved(normalised(x, group), conv)) < TOLERANCE[dtype]
    assert error(skipped, convolved(x, skip)) < (1e-6 if dtype == torch.float32 else 5e-3)


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", [(5, 32, 2, 28, 28), (3, 64, 3, 7, 17), (2, 32, 1, 9, 5)], ids=str)
def test_few_channels_come_out(size: tuple[int, ...], dtype: torch.dtype, calls: list[str]) -> None:
    batch, channels, out, height, width = size
    group, conv, _ = layers(channels, out, dtype)
    x = image(batch, channels, height, width, dtype=dtype)
    with torch.no_grad():
        whole, alone = (norm_conv.norm_act_conv(v, group, conv) for v in (x, x[1:2]))
        torch.set_num_threads(2)
        assert torch.equal(norm_conv.norm_act_conv(x, group, conv), whole)
    assert calls == ["norm_conv3x3"] * 3
    assert torch.equal(alone, whole[1:2])
    assert error(whole, convolved(normalised(x.double(), group), conv)) < TOLERANCE[dtype]


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", [(9, 64, 32, 14, 14), (2, 32, 64, 5, 6), (12, 96, 960, 12, 12)], ids=str)
def test_the_gradients_of_image_and_residual(size: tuple[int, ...], dtype: torch.dtype, calls: list[str]) -> None:
    batch, channels, out, height, width = size
    group, conv, _ = layers(channels, out, dtype)
    x, residual = image(batch, channels, height, width, dtype=dtype), image(batch, out, height, width, dtype=dtype)
    scale, shift, weights = torch.randn(batch, channels), torch.randn(batch, channels), torch.randn_like(residual)
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    found = norm_conv.norm_act_conv(x, group, conv, scale.to(dtype), shift.to(dtype), residual)
    ours = torch.autograd.grad(found, leaves, weights)
    assert calls == ["norm_conv3x3", "norm_conv3x3_backward"]
    h = normalised(x.double(), group, scale.to(dtype), shift.to(dtype))
    wanted = convolved(h, conv) + residual.double()
    assert error(found, wanted) < TOLERANCE[dtype]
    for mine, other in zip(ours, torch.autograd.grad(wanted, leaves, weights.double()), strict=True):
        assert error(mine, other) < TOLERANCE[dtype]


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_threads_neighbours_and_what_was_in_memory_change_no_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, conv, skip = layers(96, 64, dtype)
    small, large = image(25, 64, 7, 5, dtype=dtype), image(25, 32, 14, 10, dtype=dtype)
    single = image(25, 96, 14, 10, dtype=dtype)
    scratch = native._scratch

    def run(threads: int, rows: slice, filled: float) -> list[Tensor]:
        torch.set_num_threads(threads)
        monkeypatch.setattr(native, "_scratch", lambda *a: scratch(*a).fill_(filled))
        with torch.no_grad():
            found = norm_conv.norm_act_conv_and_skip([small[rows], large[rows]], group, conv, skip)
        x = single[rows].detach().requires_grad_()
        y = norm_conv.norm_act_conv(x, group, conv)
        return [*found, y.detach(), *torch.autograd.grad(y.float().square().sum(), x)]

    whole = run(1, slice(None), 0.0)
    for threads, filled in product((1, 2), (0.0, torch.nan)):
        for rows in (slice(None), slice(3, 4), slice(2, 14)):
            for mine, other in zip(run(threads, rows, filled), whole, strict=True):
                assert torch.equal(mine, other[rows])


def block(dropout: float = 0.0) -> ResBlock:
    config = NetworkConfig(28, 1, 32, 2, 1, (), (1,), dropout=dropout)
    torch.manual_seed(0)
    made = ResBlock(64, 32, config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


@on_both
def test_a_frozen_block_takes_two_kernels_and_gives_what_torch_gives(calls: list[str]) -> None:
    x, beside, emb = image(4, 32, 14, 14), image(4, 32, 28, 28), torch.randn(4, 128)
    frozen = block()
    with torch.no_grad():
        found = frozen(x, emb, beside)
        assert calls == ["norm_conv3x3"] * 2
        native.use(False)
        wanted = frozen(x, emb, beside)
    assert calls == ["norm_conv3x3"] * 2
    assert error(found, wanted) < 5e-6


@on_both
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", [(9, 64, 32, 14, 14), (2, 32, 64, 5, 6)], ids=str)
def test_all_gradients_of_layers_that_train(
    size: tuple[int, ...], dtype: torch.dtype, scaled: bool, calls: list[str]
) -> None:
    batch, channels, out, height, width = size
    group, conv, _ = layers(channels, out, dtype)
    scale, shift = (torch.randn(batch, channels).to(dtype).requires_grad_() for _ in range(2)) if scaled else [None] * 2
    x, residual = image(batch, channels, height, width, dtype=dtype), image(batch, out, height, width, dtype=dtype)
    named = (x, group.weight, group.bias, scale, shift, conv.weight, conv.bias, residual)
    leaves = [v.requires_grad_() for v in named if v is not None]
    weights = torch.randn_like(residual)
    found = norm_conv.norm_act_conv(x, group, conv, scale, shift, residual)
    ours = torch.autograd.grad(found, leaves, weights)
    assert calls == ["norm_conv3x3", "norm_conv3x3_backward", "conv3x3_weights"]
    wanted = convolved(normalised(x.double(), group, scale, shift), conv) + residual.double()
    assert error(found, wanted) < TOLERANCE[dtype]
    for mine, leaf, other in zip(ours, leaves, torch.autograd.grad(wanted, leaves, weights.double()), strict=True):
        assert mine.dtype == leaf.dtype
        assert error(mine, other) < TOLERANCE[dtype]


@needs_compiler
def test_what_is_between_is_kept_for_the_weights_alone(calls: list[str]) -> None:
    x, emb = image(4, 64, 28, 28), torch.randn(4, 128).requires_grad_()
    trained = block()
    torch.autograd.grad(trained(x, emb).sum(), emb)
    assert calls == ["norm_conv3x3"] * 2 + ["norm_conv3x3_backward"]  # the first half has nothing to do with emb
    trained.requires_grad_()
    calls.clear()
    trained(x, emb).sum().backward()
    assert calls.count("conv3x3_weights") == calls.count("norm_conv3x3_backward") == 2


@needs_compiler
def test_autocast_takes_the_kernel_for_images_in_its_type(calls: list[str]) -> None:
    x, emb = image(4, 64, 28, 28), torch.randn(4, 128)
    trained = block().requires_grad_()
    wanted = trained(x, emb)
    for given, taken in ((x, False), (x.bfloat16(), True)):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = trained(given, emb)
        assert error(found, wanted) < 2e-2
        assert ("norm_conv3x3" in calls[:1]) == taken
    found.float().square().sum().backward()
    for parameter in trained.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32


@needs_compiler
def test_another_convolution_beside_goes_by_itself(calls: list[str]) -> None:
    x = image(4, 64, 14, 14)
    group, conv, _ = layers(64, 48, torch.float32)  # half a panel more than one
    for skip in (nn.Conv2d(64, 48, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Identity()):
        with torch.no_grad():
            found, skipped = norm_conv.norm_act_conv_and_skip([x], group, conv, skip)
            assert torch.equal(skipped, skip(x))
        assert error(found, convolved(normalised(x.double(), group), conv)) < 5e-6
    assert calls == ["norm_conv3x3"] * 3


@needs_compiler
def test_a_block_that_trains_drops_out(calls: list[str]) -> None:
    x, emb = image(4, 64, 28, 28), torch.randn(4, 128)
    dropping = block(dropout=0.5)
    with torch.no_grad():
        steady = dropping(x, emb)
        assert torch.equal(dropping(x, emb), steady)
        calls.clear()
        assert error(dropping.train()(x, emb), steady) > 0.01
    assert calls == ["norm_conv3x3", "norm_forward", "conv3x3"]
