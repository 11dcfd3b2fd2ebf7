"""Which image size and which networks to train, by the images and the hardware at hand."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rarefy.cores import usable_cores
from rarefy.errors import DataError, bad, one_of
from rarefy.models.config import NetworkConfig

# Sizes that can be halved until 4 to 8 pixels are left, which is where a U-Net of this family stops.
SIZES = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
COARSEST = 8  # the side at which halving stops
MULTIPLIERS = {
    2: (1.0, 2.0),
    3: (1.0, 2.0, 3.0),
    4: (1.0, 2.0, 3.0, 4.0),
    5: (1.0, 1.0, 2.0, 3.0, 4.0),
    6: (1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
}
LARGE_GPU_BYTES = 30e9
MANY_IMAGES = 10_000


@dataclass(frozen=True)
class Hardware:
    """Where training will run. memory_bytes: of the GPU, or of the whole machine; name: for people."""

    device: torch.device
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Tier:
    """Networks for a kind of hardware and an amount of data.

    max_size: the largest image size that is chosen without ``--size``; width: model_channels of the U-Net;
    attention_side: self-attention at this side in pixels and below; hours: the most that training of the U-Net may take
    by the estimate; passes: factor of the number of images that training sees; why: one line for people.
    """

    name: str
    max_size: int
    width: int
    res_blocks: int
    attention_side: int
    dropout: float
    lr: float
    batch: int
    hours: float
    passes: float
    why: str


CPU = Tier("cpu", 32, 32, 1, 8, 0.0, 5e-4, 128, 6, 1, "small networks, because this machine trains on its CPU")
SMALL = Tier("small", 64, 64, 2, 16, 0.1, 3e-4, 128, 12, 1, "mid-sized networks, because fewer than 10,000 images "
             "would be memorised by larger ones")  # fmt: skip
LARGE = Tier("large", 64, 128, 3, 16, 0.1, 2e-4, 256, 24, 4, "large networks, because there are a GPU and 10,000 "
             "images or more")  # fmt: skip


def find_hardware() -> Hardware:
    """The first GPU, or the CPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(torch.device("cuda", 0), properties.name, properties.total_memory)
    cores = usable_cores()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(torch.device("cpu"), f"{cores} CPU cores", memory)


def choose_tier(hardware: Hardware, images: int) -> Tier:
    """The tier for this hardware and this number of training images."""
    if hardware.device.type == "cpu":
        return CPU
    return LARGE if images >= MANY_IMAGES else SMALL


def largest_size(hardware: Hardware, tier: Tier) -> int:
    """The largest size chosen without ``--size``; a GPU with much memory also trains 128 px."""
    return 2 * tier.max_size if tier is LARGE and hardware.memory_bytes >= LARGE_GPU_BYTES else tier.max_size


def supported_size(size: int) -> int:
    """The size, if the networks can have it. Raises DataError."""
    if size not in SIZES:
        raise DataError(bad("size", size, one_of(size, list(map(str, SIZES)))))
    return size


def choose_size(side: int, given: int | None, largest: int) -> tuple[int, str]:
    """The image size, and why. side: the typical smaller side of the images in pixels; given: the user's choice."""
    if given is not None:
        return supported_size(given), "as you asked"
    if side < SIZES[0]:
        raise DataError(
            bad("size", f"{side} pixels", f"at least {SIZES[0]}; give --size {SIZES[0]} to enlarge the images")
        )
    own = max(size for size in SIZES if size <= side)
    if own <= largest:
        return own, "the images' own size" if own == side else f"the largest supported size up to their {side} pixels"
    return largest, f"the images have {side}, but more than {largest} would take this machine too long (--size decides)"


def unet_config(size: int, channels: int, classes: int, tier: Tier) -> NetworkConfig:
    """The U-Net, with learned sigma, conditioned on the classes."""
    return _config(size, channels, 2 * channels, classes, tier)


def classifier_config(size: int, channels: int, classes: int, tier: Tier) -> NetworkConfig:
    """The noise-aware classifier: the U-Net's encoder with half the residual blocks, at least one."""
    return _config(size, channels, classes, None, tier)


def _config(size: int, channels: int, outputs: int, classes: int | None, tier: Tier) -> NetworkConfig:
    levels = levels_of(size)
    sides = [size >> level for level in range(levels)]
    factors = [size // side for side in sides if side <= tier.attention_side]
    plain = tier is CPU  # strided convolutions cost less than residual blocks that resample
    return NetworkConfig(
        image_size=size,
        in_channels=channels,
        model_channels=tier.width,
        out_channels=outputs,
        num_res_blocks=tier.res_blocks if classes is not None else max(1, tier.res_blocks // 2),
        attention_resolutions=tuple(factors[-2:] if len(factors) > 2 else factors),
        channel_mult=MULTIPLIERS[levels],
        dropout=tier.dropout if classes is not None else 0.0,
        num_classes=classes,
        num_head_channels=32 if tier.width < 64 else 64,
        resblock_updown=not plain,
        conv_resample=not plain,
    )


def levels_of(size: int) -> int:
    """Number of resolutions: the size is halved until at most 8 pixels are left, at least once."""
    levels, side = 1, size
    while levels < 2 or side > COARSEST:
        side //= 2
        levels += 1
    return levels
