"""The project's own kernels against torch's operations, and what happens where they cannot be built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import BOTH, TOLERANCE, error, needs_compiler, on_both
from torch import Tensor, nn

from rarefy.fast import norm
from rarefy.fast.conv import Conv3x3
from rarefy.fast.cpu import native
from rarefy.models import blocks
from rarefy.user_cache import keep, user_cache

pytestmark = pytest.mark.usefixtures("switched_on")


def layer_of(in_channels: int, out_channels: int, dtype: torch.dtype) -> Conv3x3:
    torch.manual_seed(0)
    layer = Conv3x3(in_channels, out_channels)
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    return layer.to(dtype)


# batch, in, out, height, width: tiles at every edge, one pixel, channels that fill no vector, no multiple of a panel.
SIZES = [
    (2, 32, 32, 28, 28), (3, 64, 96, 7, 7), (1, 16, 48, 1, 1), (2, 32, 2, 9, 5), (5, 96, 32, 4, 13), (1, 48, 33, 6, 2),
    (1, 960, 200, 5, 5),  # more weights than are transformed at once
    (3, 32, 1, 28, 28), (2, 48, 2, 9, 13), (1, 16, 3, 1, 12),  # few channels
]  # fmt: skip


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolution_and_all_its_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, channels, out, height, width = size
    layer = layer_of(channels, out, dtype)
    x = torch.randn(batch, channels, height, width).to(dtype).requires_grad_()
    weights = torch.randn(batch, out, height, width).to(dtype)
    leaves = [x, layer.weight, layer.bias]
    found = layer(x)
    wanted = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)  # type: ignore[union-attr]
    assert found.dtype == dtype
    assert error(found, wanted) < TOLERANCE[dtype]
    ours = torch.autograd.grad(found, leaves, weights)
    theirs = torch.autograd.grad(wanted, leaves, weights.double())
    # Products for the weights' gradient are float32 but where the processor multiplies pairs; a bias's is a sum.
    near = 1e-2 if dtype == torch.bfloat16 and not native._built().multiplies_pairs() else TOLERANCE[dtype]
    summed = 5e-3 if dtype == torch.bfloat16 else TOLERANCE[dtype]
    for mine, other, tolerance in zip(ours, theirs, (TOLERANCE[dtype], near, summed), strict=True):
        assert error(mine, other) < tolerance


@needs_compiler
def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = native.conv3x3
    monkeypatch.setattr(native, "conv3x3", lambda *a, **k: calls.append(k) or kernel(*a, **k))  # type: ignore[func-returns-value]
    x = torch.randn(2, 32, 8, 8, requires_grad=True)
    layer_of(32, 64, torch.float32)(x).sum().backward()
    assert calls == [{}, {"turned": True}]


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_one_channel_goes_in_by_torch_and_its_gradient_comes_out_by_the_kernel(dtype: torch.dtype) -> None:
    layer, x = layer_of(1, 32, dtype), torch.randn(2, 1, 28, 28).to(dtype).requires_grad_()
    found, wanted = layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.equal(found, wanted)
    weights = torch.randn(2, 32, 28, 28).to(dtype)
    (ours,), (theirs,) = (torch.autograd.grad(y, x, weights) for y in (found, wanted))
    assert not torch.equal(ours, theirs)
    assert error(ours, theirs) < TOLERANCE[dtype]


@needs_compiler
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("in_channels", [1, 32])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_residual_is_added_and_gets_its_gradient(dtype: torch.dtype, in_channels: int, on: bool) -> None:
    native.use(on)
    layer = layer_of(in_channels, 32, dtype)
    x, residual, weights = (torch.randn(2, c, 9, 5).to(dtype) for c in (in_channels, 32, 32))
    given, wanted = layer(x, residual), layer(x).double() + residual.double()
    assert given.dtype == dtype
    assert error(given, wanted) < TOLERANCE[dtype]
    with torch.no_grad():
        assert torch.equal(layer(x, residual), given)
    residual.requires_grad_()
    assert torch.equal(torch.autograd.grad(layer(x, residual), residual, weights)[0], weights)


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", [(1, 64, 7, 7), (40, 64, 7, 14), (40, 64, 5, 8), (4, 2, 5, 15)], ids=str)
def test_what_was_in_memory_does_not_matter(
    size: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products that only pixels beyond the image's edge would need are left out, and their places never written."""
    batch, out, height, width = size
    layer = layer_of(32, out, dtype)
    x = torch.randn(batch, 32, height, width).to(dtype).requires_grad_()
    weights = torch.randn(batch, out, height, width).to(dtype)

    def results() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], weights)]

    clean, scratch = results(), native._scratch
    monkeypatch.setattr(native, "_scratch", lambda *a: scratch(*a).fill_(torch.nan))
    assert all(torch.equal(found, wanted) for found, wanted in zip(results(), clean, strict=True))


# batch, heads, tokens, width: one token, no multiple of a block of rows or columns, widths of one, two, three vectors.
ATTENTIONS = [(2, 3, 1, 32), (3, 2, 13, 16), (2, 2, 33, 48), (2, 1, 130, 64)]


@on_both
@pytest.mark.parametrize("new_order", [True, False])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", ATTENTIONS, ids=str)
def test_attention_and_its_gradient(size: tuple[int, ...], dtype: torch.dtype, new_order: bool) -> None:
    torch.manual_seed(0)
    batch, heads, tokens, width = size
    qkv = 2 * torch.randn(batch, tokens, 3 * heads * width).to(dtype)
    weights = torch.randn(batch, tokens, heads * width).to(dtype)
    found, lse = native.attention_forward(qkv, heads, new_order)
    gradient = native.attention_backward(qkv, found, lse, weights, heads, new_order)
    leaf = qkv.double().requires_grad_()
    q, k, v = blocks.split_heads(leaf, heads, new_order)
    wanted = blocks.plain_attention(q, k, v).transpose(1, 2).flatten(2)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    assert found.dtype == gradient.dtype == dtype
    assert error(found, wanted) < tolerance
    scores = (q @ k.transpose(-2, -1)) * width**-0.5
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    if tokens > 1:  # one token's weight is 1 whatever it is: no gradient goes to queries and keys
        assert error(gradient, torch.autograd.grad(wanted, leaf, weights.double())[0]) < tolerance


@needs_compiler
def test_attention_by_the_kernel_as_the_blocks_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "takes_attention", lambda qkv, width: True)
    torch.manual_seed(0)
    block = blocks.AttentionBlock(64, 2, 32, False)
    nn.init.normal_(block.proj_out.weight, std=0.1)
    x = torch.randn(5, 64, 6, 7).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(5, 64, 6, 7)

    def run(threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        y = block(x)
        return y.detach(), torch.autograd.grad(y, x, weights)[0]

    ours, others = run(1), run(2)
    monkeypatch.setattr(native, "takes_attention", lambda qkv, width: False)
    for mine, other, plain in zip(ours, others, run(1), strict=True):
        assert torch.equal(mine, other)
        assert not torch.equal(mine, plain)
        assert error(mine, plain) < 1e-5


@needs_compiler
def test_which_attention_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.zeros(1, 64, 96, dtype=torch.bfloat16)
    pairs = bool(native._built().multiplies_pairs())
    assert native.takes_attention(qkv, 32) == pairs
    assert not native.takes_attention(qkv, 8)
    assert not native.takes_attention(qkv.float(), 32)
    assert not native.takes_attention(qkv.to("meta"), 32)
    assert native.takes_attention(qkv.repeat(1, 16, 1), 32) == pairs
    assert not native.takes_attention(qkv.repeat(1, 17, 1), 32)
    monkeypatch.setattr(native, "has_matrix_units", lambda: True)
    assert not native.takes_attention(qkv, 32)


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_threads_and_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    layer, scale = layer_of(32, 48, dtype), torch.randn(13, 32).to(dtype)
    group = norm.group_norm(32)

    def run(x: Tensor, factor: Tensor, threads: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        x = x.detach().requires_grad_()
        y = layer(norm.norm_act(x, group, factor, factor))
        return y.detach(), torch.autograd.grad(y.float().square().sum(), x)[0]

    x = torch.randn(13, 32, 11, 11).to(dtype)  # more tiles than are few; one image alone has few
    one, two, alone = run(x, scale, 1), run(x, scale, 2), run(x[3:4], scale[3:4], 2)
    for a, b, c in zip(one, two, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[3:4], c)


@on_both
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("tokens", [1, 49, 784])
@pytest.mark.parametrize("silu", [True, False])
def test_normalisation_and_its_gradients(silu: bool, tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(3, tokens, 96).to(dtype) + shift for shift in (5, 0))
    weight, bias, scale, shift = torch.randn(96), torch.randn(96), torch.randn(3, 96), torch.randn(3, 96)
    wanted = norm._normalise(x, weight, bias, scale, shift, silu)
    found = native.norm_forward(x, weight, bias, scale, shift, norm.GROUPS, silu)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, **near)
    statistics = wanted[1]
    theirs = norm._gradients(x, grad, statistics, silu)
    ours = native.norm_backward(x, grad, statistics, norm.GROUPS, silu)
    # A slope of 1 / deviation takes rounding along where one token leaves hardly a deviation.
    for mine, other in zip(ours, theirs, strict=True):
        assert error(mine, other) < (1e-4 if dtype == torch.float32 else 1e-2)


@on_both
def test_a_channel_that_is_constant_but_for_its_first_token() -> None:
    x = torch.full((1, 4096, 32), 3.0, dtype=torch.bfloat16)
    x[:, 0] = 1000.0
    x[:, :, 16:] = 3.0
    ones, zeros = torch.ones(32), torch.zeros(32)
    found = native.norm_forward(x, ones, zeros, None, None, norm.GROUPS, False)
    wanted = norm._normalise(x, ones, zeros, None, None, False)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2)


@on_both
def test_silu_at_its_ends_and_what_is_no_number() -> None:
    x = torch.zeros(1, 6, 32)
    group = torch.tensor([0.0, 200.0, -200.0, 1e30, -1e30, float("nan")])
    weight, scale, shift = torch.zeros(32), torch.zeros(1, 32), torch.zeros(1, 32)
    shift[0, :6] = group
    y = native.norm_forward(x, weight, torch.zeros(32), scale, shift, norm.GROUPS, True)[0][0, 0, :6]
    torch.testing.assert_close(y, F.silu(group), rtol=1e-6, atol=1e-8, equal_nan=True)
    rounded = native.norm_forward(x.bfloat16(), weight, torch.zeros(32), scale, shift, norm.GROUPS, True)[0][0, 0, :6]
    torch.testing.assert_close(rounded, F.silu(group).bfloat16(), rtol=0, atol=1e-8, equal_nan=True)


@needs_compiler
def test_which_convolutions_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LEAST_TILES", 8)
    x = torch.zeros(2, 32, 8, 8)  # four tiles each
    for image in (x, x.bfloat16()):
        assert native.takes_conv3x3(image, 32)
        assert not native.takes_conv3x3(image[:1], 32)
        assert not native.takes_conv3x3(image, 8)
    assert not native.takes_conv3x3(x.double(), 32)
    assert not native.takes_conv3x3(x.to("meta"), 32)
    monkeypatch.setattr(native, "has_matrix_units", lambda: True)
    assert not native.takes_conv3x3(x.bfloat16(), 32)
    assert native.takes_conv3x3(x, 32)
    native.use(False)
    assert not native.takes_conv3x3(x, 32)


@needs_compiler
def test_autocast_convolves_in_bfloat16() -> None:
    layer, x = layer_of(32, 32, torch.float32), torch.randn(2, 32, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert error(y, F.conv2d(x, layer.weight, layer.bias, padding=1)) < 1e-2
    y.float().square().sum().backward()
    for leaf in (x, layer.weight, layer.bias):
        assert leaf is not None and leaf.grad is not None and leaf.grad.dtype == torch.float32


PROBE = "from rarefy.fast.cpu import native; native.use(True); print(native.available(), native._state['on'])"


def probe(cache: Path, compiler: str | None = None) -> str:
    """What a fresh process says of the kernels."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "XDG_CACHE_HOME": str(cache)}
    if compiler is not None:
        environment["CXX"] = compiler
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_a_working_compiler_there_are_none_and_nothing_is_said(tmp_path: Path) -> None:
    assert probe(tmp_path, "no-such-compiler") == "False False"
    assert probe(tmp_path, "false") == "False False"
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_the_build_is_kept_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    assert probe(tmp_path) == "True True"
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    size, time = kept.stat().st_size, kept.stat().st_mtime_ns
    assert probe(tmp_path) == "True True"
    assert kept.stat().st_mtime_ns == time
    kept.write_bytes(b"")
    assert probe(tmp_path) == "True True"
    assert kept.stat().st_size == size


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert probe(blocker) == "True True"


def test_a_user_without_a_home_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        keep(user_cache() / "kernels" / "some.so", lambda file: file.write(b""))
    assert not list(tmp_path.iterdir())
