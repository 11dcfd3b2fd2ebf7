"""The ADM U-Net and the noise-aware encoder classifier (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs").

Parameter names and shapes are those of openai/guided-diffusion's checkpoints, so its files load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rarefy.fast.conv import Conv3x3, working_dtype
from rarefy.fast.norm import group_norm, norm_act
from rarefy.fast.norm_conv import norm_act_conv
from rarefy.models.blocks import (
    AttentionBlock,
    AttentionPool,
    Downsample,
    ResBlock,
    Upsample,
    normal,
    timestep_embedding,
    weight_of,
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
        """The precision of the convolutions behind the first; outputs come back in float32."""
        return working_dtype(weight_of(self.input_blocks[1][0].in_layers[2]))  # type: ignore[index]

    def _to_head(self, h: Tensor) -> Tensor:
        """The output layers' input, in their own precision."""
        return h.to(working_dtype(weight_of(self.time_embed[0])))

    def blocks(self) -> list[nn.Module]:
        """The residual and attention blocks, first to last."""
        return [*self.input_blocks, self.middle_block]

    def _embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        """SiLU of the embedding of time and class: (B, 4 model_channels)."""
        weight = weight_of(self.time_embed[0])
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(weight.dtype))
        if (y is None) != (self.config.num_classes is None):
            wanted = "none" if self.config.num_classes is None else f"one of {self.config.num_classes} classes an image"
            raise ValueError(f"y: {'none given' if y is None else 'given'}, this network takes {wanted}")
        if y is not None:
            emb = emb + self.label_emb(y)
        return torch.nn.functional.silu(emb)

    def _encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run encoder and middle block. Returns its output and the skips, outermost first."""
        first, *others = self.input_blocks
        # A copy, since one-channel images count as channels-last already and would leave every layer to guess.
        h = x.to(next(first.parameters()).dtype).clone(memory_format=torch.channels_last)
        h = _apply(first, h, emb).to(self.dtype)
        skips = [h]
        for block in others:
            h = _apply(block, h, emb)
            skips.append(h)
        return _apply(self.middle_block, h, emb), skips


class UNet(ADM):
    """ADM U-Net: (x_t, t, y) -> eps, and v behind it where sigma is learned.

    x: (B, C, H, W) in [-1, 1] scale; t: (B,) original time steps; y: (B,) int64 class ids, or None where the model is
    unconditional. Returns (B, out_channels, H, W) float32.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.output_blocks, channels = _decoder(config, self._skip_channels)
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), zero_(Conv3x3(channels, config.out_channels)))

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.output_blocks]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self._embed(t, y)
        h, skips = self._encode(x, emb)
        for block in self.output_blocks:
            h = _apply(block, h, emb, beside=skips.pop())
        output = norm_act_conv(self._to_head(h), self.out[0], self.out[2])
        return output.to(x.dtype)


class Classifier(ADM):
    """Noise-aware classifier: (x_t, t) -> logits of p(y | x_t), (B, K) float32.

    The reference's EncoderUNetModel with its ``pool`` forms: attention (ADM's), adaptive, spatial, spatial_v2.
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
            second = nn.ReLU() if pool == "spatial" else nn.SiLU()
            norm: list[nn.Module] = [] if pool == "spatial" else [nn.GroupNorm(32, 2048)]
            self.out = nn.Sequential(nn.Linear(features, 2048), *norm, second, nn.Linear(2048, config.out_channels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self._embed(t, None)
        h, skips = self._encode(x, emb)
        if self.config.pool in ("attention", "adaptive"):
            h = norm_act(self._to_head(h), self.out[0])
            for layer in list(self.out)[2:]:
                h = layer(h)
            return h.to(x.dtype)
        means = torch.cat([s.mean(dim=(2, 3)) for s in [*skips, h]], dim=-1)
        logits: Tensor = self.out(self._to_head(means))
        return logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Mean over pixels of the encoder's output at t = 0. x: (B, C, H, W) clean images -> (B, F) in x's dtype."""
        h, _ = self._encode(x, self._embed(torch.zeros(len(x), device=x.device), None))
        return self._to_head(h).mean(dim=(2, 3)).to(x.dtype)


def _apply(block: nn.Module, x: Tensor, emb: Tensor, beside: Tensor | None = None) -> Tensor:
    """beside: an image of more channels, for the first layer, a residual block.

    That upsamples, where a layer without a convolution of its own, the decoder's last before it, should have.
    """
    for layer in block.children():
        if isinstance(layer, ResBlock):
            x, beside = layer(x, emb, beside), None
        elif not isinstance(layer, Upsample) or layer.conv is not None:
            x = layer(x)
    return x


def _attention(channels: int, config: NetworkConfig, num_heads: int) -> AttentionBlock:
    return AttentionBlock(channels, num_heads, config.num_head_channels, config.use_new_attention_order)


def _encoder(config: NetworkConfig) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks and the channels of what each hands to the decoder."""
    channels = int(config.channel_mult[0] * config.model_channels)
    blocks = nn.ModuleList([nn.ModuleList([Conv3x3(config.in_channels, channels)])])
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
    """The output blocks and the channels of the last one."""
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
