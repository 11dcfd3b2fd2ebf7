"""Network forms that the goldens do not cover, and the reduced-precision normalisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rarefy.fast import norm
from rarefy.fast.precision import to_bfloat16, to_device
from rarefy.fast.resample import mean2x2, upsample
from rarefy.models.adm import Classifier, UNet
from rarefy.models.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("kernels")
BASE = NetworkConfig(
    image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
    attention_resolutions=(2,), channel_mult=(1, 2), num_heads=2,
)  # fmt: skip


def randomised(network: nn.Module) -> nn.Module:
    """Blocks start as the identity, which would hide most faults: give every zeroed layer values."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        replace(BASE, resblock_updown=False),
        replace(BASE, resblock_updown=False, conv_resample=False),
        replace(BASE, use_scale_shift_norm=False),
        replace(BASE, use_new_attention_order=True, num_head_channels=16),
        replace(BASE, image_size=28, in_channels=1, out_channels=1),
        replace(BASE, channel_mult=(0.5, 1, 2), model_channels=64, attention_resolutions=(4,)),
    ],
    ids=["base", "plain-resampling", "mean-nearest", "additive-embedding", "new-order", "grey-28", "fractional"],
)
def test_every_form_keeps_the_image_size_and_uses_its_time_step(config: NetworkConfig) -> None:
    unet = randomised(UNet(config))
    x = torch.randn(2, config.in_channels, config.image_size, config.image_size)
    early, late = (unet(x, torch.full((2,), t)) for t in (10.0, 900.0))
    assert early.shape == (2, config.out_channels, config.image_size, config.image_size)
    assert (early - late).abs().max() > 1e-3


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_layer_works_channels_last(channels: int, reduced: bool) -> None:
    """One layer that falls back to (B, C, H, W) order makes its neighbours reorder too: a third of the speed."""
    unet = randomised(UNet(replace(BASE, in_channels=channels, out_channels=2 * channels)))
    if reduced:
        to_bfloat16(unet)  # type: ignore[type-var]
    to_device(unet, torch.device("cpu"))
    strays = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        images = [h for h in (*inputs, output) if isinstance(h, torch.Tensor) and h.ndim == 4 and min(h.shape[1:]) > 1]
        strays.extend(type(layer).__name__ for h in images if h.stride(1) != 1)

    for layer in list(unet.modules())[1:]:
        layer.register_forward_hook(look)
    unet(torch.randn(2, channels, 16, 16), torch.full((2,), 10.0))
    assert not strays


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_every_pool_gives_logits_that_follow_the_image(pool: str) -> None:
    config = replace(BASE, out_channels=7, num_head_channels=32, pool=pool)
    classifier = randomised(Classifier(config))
    logits = classifier(torch.randn(3, 3, 16, 16), torch.zeros(3))
    assert logits.shape == (3, 7) and (logits[0] - logits[1]).abs().max() > 1e-4


def test_classes_must_be_given_exactly_where_the_network_takes_them() -> None:
    x, t = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    with pytest.raises(ValueError, match="y: none given, this network takes one of 4 classes"):
        UNet(replace(BASE, num_classes=4))(x, t)
    with pytest.raises(ValueError, match="y: given, this network takes none"):
        UNet(BASE)(x, t, torch.tensor([1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 15}, "image_size: 15 does not divide by 2"),
        ({"pool": "mean"}, "pool: 'mean' is not one of attention"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **change)


def reference_norm_act(x: torch.Tensor, layer: nn.GroupNorm, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(layer(x) * (1 + scale[..., None, None]) + shift[..., None, None])


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far-from-zero"])
def test_written_out_normalisation_has_torchs_values_and_gradients(offset: float) -> None:
    """Against autograd through torch's own operations in float64; a mean far beyond the deviation costs no digits."""
    torch.manual_seed(0)
    layer = norm.group_norm(64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = (torch.randn(3, 64, 6, 6) + offset).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(2, 3, 64).unbind()
    leaves = [x, scale.requires_grad_(), shift.requires_grad_(), layer.weight, layer.bias]
    weights = torch.randn(3, 64, 6, 6)
    found = norm.norm_act(x, layer, scale, shift)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    wanted = reference_norm_act(x.double(), layer.double(), scale, shift)
    theirs = torch.autograd.grad((wanted * weights).sum(), [x, scale, shift, layer.weight, layer.bias])
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=1e-3, atol=1e-3)


def test_normalisation_without_silu_has_torchs_values_and_gradient() -> None:
    torch.manual_seed(0)
    layer = norm.group_norm(32)
    nn.init.normal_(layer.weight)
    x = torch.randn(2, 32, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 32, 5, 5)
    found, wanted = norm.plain_norm(x, layer), layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_fast_precision_stays_near_exact(kernels: str) -> None:
    """Relative error on eps of random weights, as bfloat16's 8 bits give (a trained model has a tenth of it).

    3e-2 by torch; Winograd's algorithm in bfloat16 has twice that.
    """
    exact, fast = (randomised(UNet(replace(BASE, num_head_channels=32))) for _ in range(2))
    fast.load_state_dict(exact.state_dict())
    to_bfloat16(fast)  # type: ignore[type-var]
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([5.0, 200.0, 600.0, 990.0])
    wanted, found = exact(x, t), fast(x, t)
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm() / wanted.norm() < (8e-2 if kernels == "native" else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resampling_is_torchs_and_so_are_its_gradients(dtype: torch.dtype) -> None:
    near = 1e-2 if dtype == torch.bfloat16 else 1e-6  # torch adds the gradient's fours up in another order
    x = torch.randn(3, 32, 8, 6).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    for ours, theirs, tolerance in (
        (mean2x2, lambda v: nn.functional.avg_pool2d(v, 2), 0.0),
        (upsample, lambda v: nn.functional.interpolate(v, scale_factor=2), near),
    ):
        found, wanted = ours(x), theirs(x)
        assert torch.equal(found, wanted)
        weights = torch.randn(found.shape).to(dtype)
        mine, other = (torch.autograd.grad(y, x, weights)[0] for y in (found, wanted))
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
