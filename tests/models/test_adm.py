"""Network forms that the goldens do not cover."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rarefy.models.adm import Classifier, UNet
from rarefy.models.blocks import attention
from rarefy.models.config import NetworkConfig

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


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_every_pool_gives_logits_that_follow_the_image(pool: str) -> None:
    classifier = randomised(Classifier(replace(BASE, out_channels=7, num_head_channels=32, pool=pool)))
    x = torch.randn(3, 3, 16, 16)
    logits = classifier(x, torch.zeros(3))
    assert logits.shape == (3, 7) and (logits[0] - logits[1]).abs().max() > 1e-4
    assert classifier.features(x).shape == (3, 64)  # type: ignore[operator]


@pytest.mark.parametrize("new_order", [True, False])
def test_attention_reads_the_references_channel_orders(new_order: bool) -> None:
    """Head by head from the formula. qkv holds all queries, keys, values, or those of each head in turn."""
    qkv = torch.randn(2, 3 * 2 * 4, 5, dtype=torch.float64)  # two heads of four channels, five tokens
    out = attention(qkv, 2, new_order)
    for head in range(2):
        starts = [8 * part + 4 * head if new_order else 12 * head + 4 * part for part in range(3)]
        q, k, v = (qkv[:, start : start + 4] for start in starts)
        weights = torch.einsum("bct,bcs->bts", q, k).div(2).softmax(-1)
        torch.testing.assert_close(out[:, 4 * head : 4 * head + 4], torch.einsum("bts,bcs->bct", weights, v))


def test_float64_and_autocast() -> None:
    unet = randomised(UNet(BASE))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 900.0])
    single, double = unet(x, t), copy.deepcopy(unet).double()(x.double(), t)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = unet(x, t)
    assert reduced.dtype == torch.float32 and 0 < (reduced - single).norm() < 0.05 * single.norm()


def test_dropout_is_active_in_training_only() -> None:
    unet = randomised(UNet(replace(BASE, dropout=0.5)))
    x, t = torch.randn(2, 3, 16, 16), torch.full((2,), 10.0)
    assert torch.equal(unet(x, t), unet(x, t))
    assert not torch.equal(unet.train()(x, t), unet(x, t))


def test_classes_must_be_given_exactly_if_the_network_takes_them() -> None:
    x, t = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    with pytest.raises(ValueError, match="y: None is not a tensor of class ids from 0 to 3"):
        UNet(replace(BASE, num_classes=4))(x, t)
    with pytest.raises(ValueError, match="y: a tensor is not None, since this network is unconditional"):
        UNet(BASE)(x, t, torch.tensor([1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 15}, "image_size: 15 is not divisible by 2"),
        ({"pool": "mean"}, "pool: 'mean' is not one of attention"),
        ({"model_channels": 48}, "channels: 48 is not a multiple of 32"),
        ({"num_head_channels": 48}, "num_head_channels: 48 does not divide 64 channels"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(BASE, **change))
