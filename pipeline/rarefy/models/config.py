"""The configuration of a network: ADM's, with the names of openai/guided-diffusion, or another kind's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rarefy.errors import bad

GROUPS = 32  # of the group normalisation
# Beyond every network there is. Without bounds, building the network that a file describes could take forever.
MOST = {"image_size": 2**16, "model_channels": 2**14, "num_res_blocks": 64, "num_classes": 2**20, "out_channels": 2**20}
MOST_LEVELS, LARGEST_FACTOR = 16, 1024
POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of an ADM network, in the reference's vocabulary.

    attention_resolutions are downsampling factors (image_size // resolution). num_head_channels of -1 means that
    num_heads is used instead. num_classes of None means unconditional. Only the classifier reads pool.
    """

    kind: ClassVar[str] = "adm"

    image_size: int
    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...]
    dropout: float = 0.0
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    use_new_attention_order: bool = False
    pool: str = "attention"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(bad(name, value, f"at most {most}"))
        for name in ("channel_mult", "attention_resolutions"):
            values = getattr(self, name)
            if len(values) > MOST_LEVELS or max(values, default=0) > LARGEST_FACTOR:
                raise ValueError(
                    bad(name, list(values), f"a list of up to {MOST_LEVELS} factors up to {LARGEST_FACTOR}")
                )
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.image_size % factor:
            raise ValueError(
                f"image_size: {self.image_size} is not divisible by {factor}, the downsampling of "
                f"{len(self.channel_mult)} levels"
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool: {self.pool!r} is not one of {', '.join(POOLS)}")


@dataclass(frozen=True)
class OtherNetwork:
    """A network that is not ADM.

    kind: ``diffusers`` or the import path ``package.module:function`` of a function that builds the network; options:
    its arguments; out_channels: of a U-Net, as many as in_channels or twice as many (learned sigma), of a classifier,
    the number of classes; num_classes: classes that a U-Net is conditioned on, None if unconditional.
    """

    kind: str
    image_size: int
    in_channels: int
    out_channels: int
    num_classes: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


NetworkSpec = NetworkConfig | OtherNetwork
