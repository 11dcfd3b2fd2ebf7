"""Faster forms of the networks in :mod:`rarefy.models.adm`, with the same parameters.

Images stay channels-last, attention works on (B, N, C) tokens, the time embedding is activated once for all blocks,
and decoder blocks read their two inputs without concatenating them first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.attention import attend
from rarefy.fast.conv import FastConv3x3, join, norm_act_conv, norm_act_conv_and_skip, working_dtype
from rarefy.fast.norm import FastGroupNorm
from rarefy.fast.resample import mean2x2, upsample
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.blocks import AttentionBlock, AttentionPool, ResBlock, Upsample


def exchange(network: ADM, own_kernels: bool) -> None:
    """Replace the classes of a network and its layers by their faster forms, in place. Parameters stay as they are.

    own_kernels: whether the layers use rarefy's kernels. A subclass of UNet or Classifier stays plain, since its own
    forward pass may not suit the faster layers.
    """
    if type(network) not in (UNet, Classifier, FastUNet, FastClassifier):
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and (module.kernel_size, module.stride) == ((3, 3), (1, 1)):
            module.__class__ = FastConv3x3
        else:
            module.__class__ = _FASTER.get(type(module), type(module))
        if isinstance(module, FastConv3x3 | FastGroupNorm):
            module.own_kernels = own_kernels


def to_bfloat16(network: ADM) -> None:
    """Cast the convolutions, attention and embedding layers of the blocks to bfloat16, in place.

    The first convolution, the time embedding, the normalisation and the output layers stay float32, so that neither
    x_t at the input nor eps and logits at the output are rounded to 8 bits.
    """
    blocks = [*network.input_blocks[1:], network.middle_block]
    if isinstance(network, UNet):
        blocks += network.output_blocks
    for block in blocks:
        for module in block.modules():
            if not isinstance(module, nn.GroupNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)


class _FastADM(ADM):
    def __getstate__(self) -> dict[str, Any]:
        """For copies: without the compiled or recorded forward pass, which would use this network's weights."""
        return {name: value for name, value in self.__dict__.items() if name != "forward"}

    def _embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        return F.silu(super()._embed(t, y))

    def _encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        first, *others = self.input_blocks
        # A copy: torch takes images of one channel for channels-last, and each layer would choose its own layout.
        h = x.to(next(first.parameters()).dtype).clone(memory_format=torch.channels_last)
        h = _apply(first, h, emb)
        h = h.to(working_dtype(next(p for p in self.middle_block.parameters() if p.ndim == 4)))
        skips = [h]
        for block in others:
            h = _apply(block, h, emb)
            skips.append(h)
        return _apply(self.middle_block, h, emb), skips

    def _to_head(self, h: Tensor) -> Tensor:
        """The input of the output layers, in their precision."""
        return h.to(working_dtype(next(self.time_embed.parameters())))


class FastUNet(_FastADM, UNet):
    """A U-Net whose decoder blocks read the encoder's images without concatenating them first."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self._embed(t, y)
        h, skips = self._encode(x, emb)
        for block in self.output_blocks:
            h = _apply(block, h, emb, skips.pop())
        return norm_act_conv(self._to_head(h), self.out[0], self.out[2]).to(x.dtype)


class FastClassifier(_FastADM, Classifier):
    """A classifier whose output layers are in float32."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, skips = self._encode(x, self._embed(t, None))
        if self.config.pool in ("spatial", "spatial_v2"):
            means = torch.cat([s.mean(dim=(2, 3)) for s in [*skips, h]], dim=-1)
            logits: Tensor = self.out(self._to_head(means))
        else:
            norm, _, *head = self.out
            logits = norm(self._to_head(h), silu=True)
            for layer in head:
                logits = layer(logits)
        return logits.to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        h, _ = self._encode(x, self._embed(torch.zeros(len(x), device=x.device), None))
        return self._to_head(h).mean(dim=(2, 3)).to(x.dtype)


def _apply(block: nn.Module, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
    """Run a block's layers in turn. skip: the encoder's image, for the first layer of a decoder block.

    An Upsample without a convolution is always the last layer of its block: the next block upsamples its input itself.
    """
    for layer in block.children():
        if isinstance(layer, FastResBlock):
            x, skip = layer(x, emb, skip), None
        elif not isinstance(layer, Upsample) or layer.conv is not None:
            x = layer(x)
    return x


class FastResBlock(ResBlock):
    """A residual block whose normalisation, activation and convolution are fused."""

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); emb: (B, 4 model_channels), already through SiLU.

        skip: further channels, concatenated to x; x may have half their height and width and is then upsampled.
        """
        parts = [x] if skip is None else [x, skip]
        norm, _, conv = self.in_layers
        if self.resample is None:
            h, skipped = norm_act_conv_and_skip(parts, norm, conv, self.skip_connection)
        else:
            x = join(parts)
            h, skipped = conv(self.resample(norm(x, silu=True))), self.skip_connection(self.resample(x))
        _, linear = self.emb_layers
        emb_out = linear(emb.to(next(linear.parameters()).dtype)).expand(len(h), -1)
        norm, _, dropout, conv = self.out_layers
        assert isinstance(dropout, nn.Dropout)
        if not self.scale_shift:
            return norm_act_conv(h + emb_out[..., None, None], norm, conv, residual=skipped, dropout=dropout)
        scale, shift = emb_out.chunk(2, dim=1)
        return norm_act_conv(h, norm, conv, scale, shift, skipped, dropout)


class FastAttentionBlock(AttentionBlock):
    """Self-attention over (B, N, C) tokens."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = _linear_1x1(tokens, self.qkv)
        if self.new_order:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        h = _linear_1x1(attend(q, k, v).transpose(1, 2).flatten(2), self.proj_out)
        return x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)


class FastAttentionPool(AttentionPool):
    """Attention pooling that computes the mean token's query alone."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t().to(tokens.dtype)
        weight, bias = self.qkv_proj.weight[..., 0], self.qkv_proj.bias
        assert bias is not None
        query = F.linear(tokens[:, :1], weight[:channels], bias[:channels])
        k, v = F.linear(tokens, weight[channels:], bias[channels:]).chunk(2, dim=-1)
        q, k, v = (s.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for s in (query, k, v))
        return _linear_1x1(attend(q, k, v).transpose(1, 2).flatten(1), self.c_proj)


class FastUpsample(Upsample):
    """``Upsample`` with a faster gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = upsample(x)
        return x if self.conv is None else self.conv(x)


class FastMean2x2(nn.AvgPool2d):
    """``nn.AvgPool2d(2)`` with a faster gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return mean2x2(x)


def _linear_1x1(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1x1 convolution of the last axis. x: (..., C_in) -> (..., C_out)."""
    return F.linear(x, conv.weight[..., 0], conv.bias)


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    UNet: FastUNet,
    Classifier: FastClassifier,
    ResBlock: FastResBlock,
    AttentionBlock: FastAttentionBlock,
    AttentionPool: FastAttentionPool,
    Upsample: FastUpsample,
    nn.AvgPool2d: FastMean2x2,
    nn.GroupNorm: FastGroupNorm,
}
