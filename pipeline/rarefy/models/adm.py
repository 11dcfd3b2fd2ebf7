"""The ADM U-Net and the noise-aware encoder classifier (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs").

Parameter names and shapes are those of openai/guided-diffusion's checkpoints, so its files load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rarefy.models.blocks import (
    AttentionBlock,
    AttentionPool,
    Downsample,
    ResBlock,
    Upsample,
    group_norm,
    normal,
    timestep_embedding,
    zero_,
)
from rarefy.models.config import NetworkConfig


class ADM(nn.Module):
    """What the two networks share: the time embedding, the encoder and the middle block."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, 4 * width, _weight=normal(config.num_classes, 4 * width))
        self.input_blocks, self._skip_channels = _encoder(config)
        channels = self._skip_channels[-1]
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, config),
                _attention(channels, config, config.num_heads),
                ResBlock(channels, channels, config),
            ]
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the convolutions inside the network."""
        return next(p for p in self.middle_block.parameters() if p.ndim == 4).dtype

    def _embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        """The embedding of time and class: (B, 4 model_channels)."""
        num_classes = self.config.num_classes
        if (y is None) != (num_classes is None):
            given = "None" if y is None else "a tensor"
            allowed = "None, since this network is unconditional"
            if num_classes is not None:
                allowed = f"a tensor of class ids from 0 to {num_classes - 1}"
            raise ValueError(f"y: {given} is not {allowed}")
        embedding = timestep_embedding(t, self.config.model_channels)
        emb: Tensor = self.time_embed(embedding.to(next(self.time_embed.parameters()).dtype))
        return emb if y is None else emb + self.label_emb(y)

    def _encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run encoder and middle block. Returns the output and the skip connections, outermost first."""
        skips = []
        for block in self.input_blocks:
            x = _apply(block, x, emb)
            skips.append(x)
        return _apply(self.middle_block, x, emb), skips


class UNet(ADM):
    """ADM U-Net: (x_t, t, y) -> eps, followed by v in further channels if sigma is learned.

    x: (B, C, H, W) in [-1, 1] scale; t: (B,) original time steps; y: (B,) int64 class ids, or None if the model is
    unconditional. Returns (B, out_channels, H, W) in x's dtype.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.output_blocks, channels = _decoder(config, self._skip_channels)
        self.out = nn.Sequential(
            group_norm(channels), nn.SiLU(), zero_(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self._embed(t, y)
        h, skips = self._encode(x, emb)
        for block in self.output_blocks:
            h = _apply(block, torch.cat([h, skips.pop()], dim=1), emb)
        output: Tensor = self.out(h)
        return output.to(x.dtype)


class Classifier(ADM):
    """Noise-aware classifier: (x_t, t) -> logits of p(y | x_t), (B, K), in x's dtype.

    The reference's EncoderUNetModel with all its ``pool`` forms: attention (ADM's), adaptive, spatial, spatial_v2.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels, pool = self._skip_channels[-1], config.pool
        if pool == "attention":
            side = config.image_size // 2 ** (len(config.channel_mult) - 1)
            head = AttentionPool(side, channels, config.num_head_channels, config.out_channels)
            self.out = nn.Sequential(group_norm(channels), nn.SiLU(), head)
        elif pool == "adaptive":
            self.out = nn.Sequential(
                group_norm(channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                zero_(nn.Conv2d(channels, config.out_channels, 1)),
                nn.Flatten(),
            )
        else:
            features = sum(self._skip_channels) + channels
            act = nn.ReLU() if pool == "spatial" else nn.SiLU()
            norm: list[nn.Module] = [] if pool == "spatial" else [nn.GroupNorm(32, 2048)]
            self.out = nn.Sequential(nn.Linear(features, 2048), *norm, act, nn.Linear(2048, config.out_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, skips = self._encode(x, self._embed(t, None))
        if self.config.pool in ("spatial", "spatial_v2"):
            h = torch.cat([s.mean(dim=(2, 3)) for s in [*skips, h]], dim=-1)
        logits: Tensor = self.out(h)
        return logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Mean over pixels of the encoder's output at t = 0. x: (B, C, H, W) clean images -> (B, F) in x's dtype."""
        h, _ = self._encode(x, self._embed(torch.zeros(len(x), device=x.device), None))
        return h.mean(dim=(2, 3)).to(x.dtype)


def _apply(block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    """Run a block's layers in turn; residual blocks also take the embedding."""
    for layer in block.children():
        x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
    return x


def _attention(channels: int, config: NetworkConfig, num_heads: int) -> AttentionBlock:
    return AttentionBlock(channels, num_heads, config.num_head_channels, config.use_new_attention_order)


def _encoder(config: NetworkConfig) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks, and the number of channels that each passes to the decoder."""
    channels = int(config.channel_mult[0] * config.model_channels)
    blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(config.in_channels, channels, 3, padding=1)])])
    skips, factor = [channels], 1
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(channels, int(mult * config.model_channels), config)]
            channels = int(mult * config.model_channels)
            if factor in config.attention_resolutions:
                layers.append(_attention(channels, config, config.num_heads))
            blocks.append(nn.ModuleList(layers))
            skips.append(channels)
        if level + 1 < len(config.channel_mult):
            down: nn.Module = (
                ResBlock(channels, channels, config, Downsample(channels, use_conv=False))
                if config.resblock_updown
                else Downsample(channels, config.conv_resample)
            )
            blocks.append(nn.ModuleList([down]))
            skips.append(channels)
            factor *= 2
    return blocks, skips


def _decoder(config: NetworkConfig, skip_channels: list[int]) -> tuple[nn.ModuleList, int]:
    """The output blocks, and the number of channels of the last one."""
    skips, channels = list(skip_channels), skip_channels[-1]
    factor = 2 ** (len(config.channel_mult) - 1)
    num_heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
    blocks = nn.ModuleList()
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for index in range(config.num_res_blocks + 1):
            width = int(mult * config.model_channels)
            layers: list[nn.Module] = [ResBlock(channels + skips.pop(), width, config)]
            channels = width
            if factor in config.attention_resolutions:
                layers.append(_attention(channels, config, num_heads))
            if level and index == config.num_res_blocks:
                layers.append(
                    ResBlock(channels, channels, config, Upsample(channels, use_conv=False))
                    if config.resblock_updown
                    else Upsample(channels, config.conv_resample)
                )
                factor //= 2
            blocks.append(nn.ModuleList(layers))
    return blocks, channels
