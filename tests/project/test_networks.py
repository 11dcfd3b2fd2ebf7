"""The networks that init chooses fit together, for every size and kind of hardware."""

from __future__ import annotations

import pytest
import torch

from rarefy.errors import DataError
from rarefy.models.networks import build_classifier, build_unet
from rarefy.project.networks import (
    CPU,
    LARGE,
    SIZES,
    SMALL,
    Hardware,
    Tier,
    choose_size,
    choose_tier,
    classifier_config,
    largest_size,
    unet_config,
)

GPU = Hardware(torch.device("cuda", 0), "a GPU", 80_000_000_000)


@pytest.mark.parametrize("tier", [CPU, SMALL, LARGE], ids=lambda tier: tier.name)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size: int, tier: Tier) -> None:
    with torch.device("meta"):
        unet = build_unet(unet_config(size, 3, 7, tier))
        classifier = build_classifier(classifier_config(size, 3, 7, tier))
        x, t = torch.zeros(2, 3, size, size), torch.zeros(2)
        assert unet(x, t, torch.zeros(2, dtype=torch.int64)).shape == (2, 6, size, size)
        assert classifier(x, t).shape == (2, 7)
    coarsest = size >> (len(unet_config(size, 3, 7, tier).channel_mult) - 1)
    assert 4 <= coarsest <= 8


def test_attention_is_at_the_small_sides() -> None:
    """8 px on a CPU, 16 and 8 px on a GPU, as factors of the size."""
    assert unet_config(32, 3, 7, CPU).attention_resolutions == (4,)
    assert unet_config(64, 3, 7, LARGE).attention_resolutions == (4, 8)
    assert classifier_config(28, 1, 7, CPU).attention_resolutions == (4,)


@pytest.mark.parametrize(
    ("side", "given", "largest", "size", "why"),
    [
        (28, None, 32, 28, "the images' own size"),
        (30, None, 32, 28, "the largest supported size up to their 30 pixels"),
        (500, None, 32, 32, "more than 32 would take this machine too long"),
        (5, 8, 32, 8, "as you asked"),
    ],
)
def test_size(side: int, given: int | None, largest: int, size: int, why: str) -> None:
    chosen = choose_size(side, given, largest)
    assert chosen[0] == size
    assert why in chosen[1]


def test_sizes_that_are_refused() -> None:
    with pytest.raises(DataError, match="size: 33 is not one of 8, 12, 16"):
        choose_size(64, 33, 64)
    with pytest.raises(DataError, match="size: '5 pixels' is not at least 8; give --size 8"):
        choose_size(5, None, 64)


def test_tiers() -> None:
    assert choose_tier(Hardware(torch.device("cpu"), "2 CPU cores", 10**10), 10**6) is CPU
    assert (choose_tier(GPU, 9_999), choose_tier(GPU, 10_000)) == (SMALL, LARGE)
    assert (largest_size(GPU, LARGE), largest_size(GPU, SMALL)) == (128, 64)
