"""The kernels for CPUs compared with formulas and torch's operations in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import BOTH, error, normalised
from torch import Tensor, nn

from rarefy.fast.conv import FastConv3x3, join, norm_act_conv, norm_act_conv_and_skip
from rarefy.fast.cpu import native
from rarefy.fast.norm import FastGroupNorm
from rarefy.models.config import GROUPS

TOLERANCE = 5e-6  # of Winograd's algorithm, which adds rounded sums
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the library's functions, as they are called."""
    made: list[str] = []
    call = native._call
    monkeypatch.setattr(native, "_call", lambda name, *a: made.append(name) or call(name, *a))  # type: ignore[func-returns-value]
    return made


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, dtype=dtype).to(memory_format=torch.channels_last)


def layers(channels: int, out: int) -> tuple[FastGroupNorm, FastConv3x3, nn.Conv2d]:
    """Frozen: a normalisation, a 3x3 and a 1x1 convolution, every parameter random."""
    torch.manual_seed(0)
    norm, conv = FastGroupNorm(GROUPS, channels), FastConv3x3(channels, out, 3, padding=1)
    norm.own_kernels = conv.own_kernels = True
    for parameter in (norm.weight, norm.bias, conv.bias):
        nn.init.normal_(parameter)  # type: ignore[arg-type]
    return norm.requires_grad_(False), conv.requires_grad_(False), nn.Conv2d(channels, out, 1).requires_grad_(False)


def conv_of(channels: int, out: int) -> FastConv3x3:
    torch.manual_seed(0)
    conv = FastConv3x3(channels, out, 3, padding=1)
    conv.own_kernels = True
    nn.init.normal_(conv.bias)  # type: ignore[arg-type]
    return conv


def act(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    h = F.group_norm(x, GROUPS, norm.weight.double(), norm.bias.double())
    if scale is not None and shift is not None:
        h = h * (1 + scale.double()[..., None, None]) + shift.double()[..., None, None]
    return F.silu(h)


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=conv.padding)  # type: ignore[arg-type]


# batch, in, out, height, width: tiles at every edge, one pixel, channels that fill no vector, no multiple of a panel.
SIZES = [
    (2, 32, 32, 28, 28), (3, 64, 96, 7, 7), (1, 16, 48, 1, 1), (2, 32, 2, 9, 5), (5, 96, 32, 4, 13), (1, 48, 33, 6, 2),
    (1, 960, 200, 5, 5),  # more weights than are transformed at once
    (3, 32, 1, 28, 28), (2, 48, 2, 9, 13), (1, 16, 3, 1, 12),  # few channels
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolution_and_all_its_gradients(size: tuple[int, ...], calls: list[str]) -> None:
    batch, channels, out, height, width = size
    conv, x = conv_of(channels, out), torch.randn(batch, channels, height, width).requires_grad_()
    weights, leaves = torch.randn(batch, out, height, width), [x, conv.weight, conv.bias]
    y, expected = conv(x), convolved(x.double(), conv)
    assert error(y, expected) < TOLERANCE
    ours, theirs = torch.autograd.grad(y, leaves, weights), torch.autograd.grad(expected, leaves, weights.double())
    assert calls == ["conv3x3", *["conv3x3"] * (out % native.CHANNELS == 0), "conv3x3_weights"]
    assert all(error(actual, other) < TOLERANCE for actual, other in zip(ours, theirs, strict=True))


def test_torch_convolves_one_channel_and_the_kernel_its_gradient(calls: list[str]) -> None:
    conv, x = conv_of(1, 32), torch.randn(2, 1, 28, 28).requires_grad_()
    y, expected = conv(x), convolved(x.double(), conv)
    assert not calls
    weights = torch.randn(2, 32, 28, 28)
    (ours,), (theirs,) = torch.autograd.grad(y, x, weights), torch.autograd.grad(expected, x, weights.double())
    assert calls == ["conv3x3"] and error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("in_channels", [1, 32])
def test_a_residual_is_added_and_gets_its_gradient(in_channels: int) -> None:
    conv = conv_of(in_channels, 32)
    x, residual, weights = (torch.randn(2, c, 9, 5) for c in (in_channels, 32, 32))
    y = conv(x, residual)
    assert error(y, convolved(x.double(), conv) + residual.double()) < TOLERANCE
    with torch.no_grad():
        assert torch.equal(conv(x, residual), y)
    residual.requires_grad_()
    assert torch.equal(torch.autograd.grad(conv(x, residual), residual, weights)[0], weights)


@pytest.mark.parametrize("size", [(1, 64, 7, 7), (40, 64, 7, 14), (40, 64, 5, 8), (4, 2, 5, 15)], ids=str)
def test_what_was_in_memory_does_not_matter(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that only pixels beyond the image's edge would need are left out, and their places never written."""
    batch, out, height, width = size
    conv, x = conv_of(32, out), torch.randn(batch, 32, height, width).requires_grad_()
    weights = torch.randn(batch, out, height, width)

    def results() -> list[Tensor]:
        y = conv(x)
        return [y, *torch.autograd.grad(y, [x, conv.weight, conv.bias], weights)]

    clean, scratch = results(), native._scratch
    monkeypatch.setattr(native, "_scratch", lambda *a: scratch(*a).fill_(torch.nan))
    assert all(torch.equal(dirty, expected) for dirty, expected in zip(results(), clean, strict=True))


def test_threads_and_neighbours_change_no_bit() -> None:
    conv, norm = conv_of(32, 48), layers(32, 32)[0]
    scale, x = torch.randn(13, 32), torch.randn(13, 32, 11, 11)  # more tiles than are few; one image alone has few

    def run(rows: slice, threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        part = x[rows].detach().requires_grad_()
        y = conv(norm(part, scale[rows], scale[rows], silu=True))
        return y.detach(), torch.autograd.grad(y.square().sum(), part)[0]

    one, two, alone = run(slice(None), 1), run(slice(None), 2), run(slice(3, 4), 2)
    for a, b, c in zip(one, two, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[3:4], c)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("tokens", [1, 49, 784])
@pytest.mark.parametrize("silu", [True, False])
def test_normalisation_and_its_gradients(silu: bool, tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(3, tokens, 96).to(dtype) + shift for shift in (5, 0))
    weight, bias, scale, shift = torch.randn(96), torch.randn(96), torch.randn(3, 96), torch.randn(3, 96)
    expected = normalised(x, grad, weight, bias, scale, shift, silu)
    y, statistics = native.norm_forward(x, weight, bias, scale, shift, GROUPS, silu)
    gradients = native.norm_backward(x, grad, expected.statistics.float(), GROUPS, silu)
    near = 1e-4 if dtype == torch.float32 else 1e-2
    assert error(y, expected.y) < near
    for actual, other in zip(statistics, expected.statistics, strict=True):
        assert error(actual, other) < near
    for actual, other in zip(gradients, expected.gradients, strict=True):
        assert error(actual, other) < near


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far-from-zero"])
def test_the_layers_gradients_reach_every_parameter(offset: float) -> None:
    """A mean far larger than the deviation loses no digits."""
    norm = layers(64, 64)[0].requires_grad_()
    x = (torch.randn(3, 64, 6, 6) + offset).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(2, 3, 64).requires_grad_().unbind()
    leaves, weights = [x, scale, shift, norm.weight, norm.bias], torch.randn(3, 64, 6, 6)
    ours = torch.autograd.grad(norm(x, scale, shift, silu=True), leaves, weights)
    theirs = torch.autograd.grad(act(x.double(), norm, scale, shift), leaves, weights.double())
    for actual, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-3, atol=1e-3)


def test_a_channel_that_is_constant_but_for_its_first_token() -> None:
    x = torch.full((1, 4096, 32), 3.0, dtype=torch.bfloat16)
    x[:, 0] = 1000.0
    x[:, :, 16:] = 3.0
    ones, zeros = torch.ones(32), torch.zeros(32)
    y, statistics = native.norm_forward(x, ones, zeros, None, None, GROUPS, False)
    expected = normalised(x, x, ones, zeros, None, None, False)
    torch.testing.assert_close(y.double(), expected.y, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(statistics.double(), expected.statistics, rtol=1e-2, atol=1e-2)


def test_silu_at_its_ends_and_of_nan() -> None:
    x = torch.zeros(1, 6, 32)
    u = torch.tensor([0.0, 200.0, -200.0, 1e30, -1e30, float("nan")])
    weight, scale, shift = torch.zeros(32), torch.zeros(1, 32), torch.zeros(1, 32)
    shift[0, :6] = u
    y = native.norm_forward(x, weight, torch.zeros(32), scale, shift, GROUPS, True)[0][0, 0, :6]
    torch.testing.assert_close(y, F.silu(u), rtol=1e-6, atol=1e-8, equal_nan=True)
    rounded = native.norm_forward(x.bfloat16(), weight, torch.zeros(32), scale, shift, GROUPS, True)[0][0, 0, :6]
    torch.testing.assert_close(rounded, F.silu(u).bfloat16(), rtol=0, atol=1e-8, equal_nan=True)


def test_which_convolutions_are_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LEAST_TILES", 8)
    x = torch.zeros(2, 32, 8, 8)  # four tiles each
    assert native.supports_conv3x3(x, 32)
    assert not native.supports_conv3x3(x[:1], 32)
    assert not native.supports_conv3x3(x, 8)
    for other in (x.double(), x.bfloat16(), x.to("meta")):
        assert not native.supports_conv3x3(other, 32)


# batch, channels of the first and of the second image, out, height, width, whether the first is of half the size
FUSED = [
    (64, 96, 96, 96, 7, 7, False),
    (13, 64, 32, 32, 28, 28, True),
    (9, 32, 0, 64, 14, 14, False),
    (17, 64, 64, 64, 9, 13, False),
    (3, 32, 64, 32, 2, 6, True),  # few tiles
    (12, 480, 480, 96, 12, 12, True),  # more weights than are transformed at once
    (1, 64, 0, 32, 1, 1, False),
]


@pytest.mark.parametrize("size", FUSED, ids=str)
def test_two_images_and_a_1x1_convolution(size: tuple[int, int, int, int, int, int, bool], calls: list[str]) -> None:
    batch, first, second, out, height, width, half = size
    norm, conv, skip = layers(first + second, out)
    shrink = 2 if half else 1
    parts = [image(batch, first, height // shrink, width // shrink)]
    parts += [image(batch, second, height, width)] if second else []
    with torch.no_grad():
        y, skipped = norm_act_conv_and_skip(parts, norm, conv, skip)
    assert calls == ["norm_conv3x3"]
    x = join(parts).double()
    assert x.shape == (batch, first + second, height, width)
    assert error(y, convolved(act(x, norm), conv)) < TOLERANCE
    assert error(skipped, convolved(x, skip)) < 1e-6


@pytest.mark.parametrize("size", [(5, 32, 2, 28, 28), (3, 64, 3, 7, 17), (2, 32, 1, 9, 5)], ids=str)
def test_few_output_channels(size: tuple[int, ...], calls: list[str]) -> None:
    batch, channels, out, height, width = size
    norm, conv, _ = layers(channels, out)
    x = image(batch, channels, height, width)
    with torch.no_grad():
        whole, alone = (norm_act_conv(v, norm, conv) for v in (x, x[1:2]))
        torch.set_num_threads(2)
        assert torch.equal(norm_act_conv(x, norm, conv), whole)
    assert calls == ["norm_conv3x3"] * 3
    assert torch.equal(alone, whole[1:2])
    assert error(whole, convolved(act(x.double(), norm), conv)) < TOLERANCE


def test_threads_neighbours_and_memory_change_no_bit_of_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, conv, skip = layers(96, 64)
    small, large, single = image(25, 64, 7, 5), image(25, 32, 14, 10), image(25, 96, 14, 10)
    scratch = native._scratch

    def run(threads: int, rows: slice, filled: float) -> list[Tensor]:
        torch.set_num_threads(threads)
        monkeypatch.setattr(native, "_scratch", lambda *a: scratch(*a).fill_(filled))
        with torch.no_grad():
            fused = norm_act_conv_and_skip([small[rows], large[rows]], norm, conv, skip)
        x = single[rows].detach().requires_grad_()
        y = norm_act_conv(x, norm, conv)
        return [*fused, y.detach(), *torch.autograd.grad(y.square().sum(), x)]

    whole = run(1, slice(None), 0.0)
    for threads, filled in product((1, 2), (0.0, torch.nan)):
        for rows in (slice(None), slice(3, 4), slice(2, 14)):
            for actual, other in zip(run(threads, rows, filled), whole, strict=True):
                assert torch.equal(actual, other[rows])


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("size", [(9, 64, 32, 14, 14), (2, 32, 64, 5, 6), (12, 96, 960, 12, 12)], ids=str)
def test_gradients_of_the_fused_kernel(size: tuple[int, ...], scaled: bool, trains: bool, calls: list[str]) -> None:
    batch, channels, out, height, width = size
    norm, conv, _ = layers(channels, out)
    scale, shift = (torch.randn(batch, channels) for _ in range(2)) if scaled else (None, None)
    x, residual = image(batch, channels, height, width), image(batch, out, height, width)
    named = (x, residual, *((norm.weight, norm.bias, scale, shift, conv.weight, conv.bias) if trains else ()))
    leaves = [v.requires_grad_() for v in named if v is not None]
    weights = torch.randn_like(residual)
    y = norm_act_conv(x, norm, conv, scale, shift, residual)
    ours = torch.autograd.grad(y, leaves, weights)
    assert calls == ["norm_conv3x3", "norm_conv3x3_backward", *["conv3x3_weights"] * trains]
    expected = convolved(act(x.double(), norm, scale, shift), conv) + residual.double()
    assert error(y, expected) < TOLERANCE
    for actual, other in zip(ours, torch.autograd.grad(expected, leaves, weights.double()), strict=True):
        assert error(actual, other) < TOLERANCE


def test_another_convolution_on_the_skip_path_is_not_fused(calls: list[str]) -> None:
    x = image(4, 64, 14, 14)
    norm, conv, _ = layers(64, 48)  # half a panel more than one
    for skip in (nn.Conv2d(64, 48, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Identity()):
        with torch.no_grad():
            y, skipped = norm_act_conv_and_skip([x], norm, conv, skip)
            assert torch.equal(skipped, skip(x))
        assert error(y, convolved(act(x.double(), norm), conv)) < TOLERANCE
    assert calls == ["norm_conv3x3"] * 3


def test_dropout_is_between_normalisation_and_convolution(calls: list[str]) -> None:
    norm, conv, _ = layers(64, 32)
    x, dropout = image(4, 64, 14, 14), nn.Dropout(0.5)
    with torch.no_grad():
        steady = norm_act_conv(x, norm, conv, dropout=dropout.eval())
        calls.clear()
        torch.manual_seed(0)
        dropped = norm_act_conv(x, norm, conv, dropout=dropout.train())
        torch.manual_seed(0)
        expected = conv(dropout(norm(x, silu=True)))
    assert calls[:2] == ["norm_forward", "conv3x3"]
    assert torch.equal(dropped, expected) and error(dropped, steady) > 0.01
