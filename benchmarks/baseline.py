"""A stand-in for openai/guided-diffusion's step: plain eager float32 in (B, C, H, W) order, written from the formulas.

The package itself is in no index, so this is what ``benchmarks/`` compares with: attention by einsum over all tokens
(the classifier's pool too), normalisation apart from scale, shift and SiLU, each block activating the time embedding
for itself, attention blocks run again in the backward pass with their weights' gradients, weights that want gradients,
and one network call after another. Checked against the goldens in tests/bench/test_baseline.py. It reads the weights of
our modules, whose names and shapes are the reference's, and none of their forward code but the resampling layers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.diffusion.schedule import Schedule
from rarefy.models.adm import ADM, Classifier, UNet
from rarefy.models.blocks import AttentionBlock, AttentionPool, ResBlock, timestep_embedding


def unet_forward(network: UNet, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """x: (B, C, H, W) float32; t: (B,); y: (B,) or None -> (B, out_channels, H, W)."""
    emb = _embed(network, t)
    if y is not None:
        emb = emb + network.label_emb(y)
    h, skips = _encode(network, x, emb)
    for block in network.output_blocks:
        h = _apply(block, torch.cat([h, skips.pop()], dim=1), emb)
    output: Tensor = network.out(h)
    return output


def classifier_forward(network: Classifier, x: Tensor, t: Tensor) -> Tensor:
    """x: (B, C, H, W) float32; t: (B,) -> logits (B, K). Attention pool only, as ADM's classifiers have it."""
    h, _ = _encode(network, x, _embed(network, t))
    return _pool(network.out[2], network.out[1](network.out[0](h)))


@dataclass(frozen=True, eq=False)
class BaselineStep:
    """One ancestral step with classifier guidance, as the reference's sampling loop takes it."""

    unet: UNet
    classifier: Classifier
    schedule: Schedule
    scale: float

    def eps_and_variance(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The U-Net's output, without gradients."""
        with torch.no_grad():
            return unet_forward(self.unet, x, t, None if self.unet.config.num_classes is None else y)

    def log_prob(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy image that wants a gradient, and the sum of log p(y | x_t)."""
        with torch.enable_grad():
            x_in = x.detach().requires_grad_()
            log_probs = F.log_softmax(classifier_forward(self.classifier, x_in, t), dim=-1)
            return x_in, log_probs[range(len(y)), y].sum()

    def __call__(self, x: Tensor, k: int, y: Tensor, noise: Tensor) -> Tensor:
        """x_t of step k -> the image of the step after it, (B, C, H, W)."""
        steps = torch.full((len(x),), k, device=x.device)
        t = self.schedule.timesteps.to(x.device)[steps]
        eps, v = self.eps_and_variance(x, t, y).chunk(2, dim=1)
        s = self.schedule
        log_beta, log_posterior = self._at(s.betas.log(), steps), self._at(s.posterior_log_variance, steps)
        log_variance = (v + 1) / 2 * log_beta + (1 - v) / 2 * log_posterior
        abar = s.alphas_cumprod
        pred = self._at((1 / abar).sqrt(), steps) * x - self._at((1 / abar - 1).sqrt(), steps) * eps
        mean = self._at(s.posterior_mean_coef_xstart, steps) * pred.clamp(-1, 1)
        mean = mean + self._at(s.posterior_mean_coef_xt, steps) * x
        x_in, objective = self.log_prob(x, t, y)
        (gradient,) = torch.autograd.grad(objective, x_in)
        mean = mean + log_variance.exp() * gradient * self.scale
        return mean + (k > 0) * (0.5 * log_variance).exp() * noise

    @staticmethod
    def _at(table: Tensor, steps: Tensor) -> Tensor:
        return table.to(steps.device)[steps].float()[:, None, None, None]


def _embed(network: ADM, t: Tensor) -> Tensor:
    emb: Tensor = network.time_embed(timestep_embedding(t, network.config.model_channels))
    return emb


def _encode(network: ADM, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
    h, skips = x, []
    for block in network.input_blocks:
        h = _apply(block, h, emb)
        skips.append(h)
    return _apply(network.middle_block, h, emb), skips


def _apply(block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    for layer in block.children():
        if isinstance(layer, ResBlock):
            h = _res_block(layer, h, emb)
        elif isinstance(layer, AttentionBlock):
            h = _Recomputed.apply(lambda x, layer=layer: _attention(layer, x), h, *layer.parameters())  # type: ignore[no-untyped-call]
        else:
            h = layer(h)
    return h


def _res_block(block: ResBlock, x: Tensor, emb: Tensor) -> Tensor:
    norm, act, conv = block.in_layers
    h = act(norm(x))
    if block.resample is not None:
        h, x = block.resample(h), block.resample(x)
    h = conv(h)
    emb_out = block.emb_layers(emb)[..., None, None]
    out_norm, *rest = block.out_layers
    if block.scale_shift:
        scale, shift = emb_out.chunk(2, dim=1)
        h = out_norm(h) * (1 + scale) + shift
    else:
        h = out_norm(h + emb_out)
    for layer in rest:
        h = layer(h)
    y: Tensor = block.skip_connection(x) + h
    return y


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    qkv = block.qkv(block.norm(tokens))
    h = block.proj_out(_attend(qkv, block.num_heads, block.new_order))
    y: Tensor = (tokens + h).reshape(x.shape)
    return y


def _attend(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """(B, 3C, N) -> (B, C, N)."""
    batch, width, length = qkv.shape
    channels = width // (3 * heads)
    if new_order:
        q, k, v = (part.reshape(batch * heads, channels, length) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(batch * heads, 3 * channels, length).split(channels, dim=1)
    scale = 1 / math.sqrt(math.sqrt(channels))
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
    return torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length)


def _pool(pool: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(pool, AttentionPool)
    tokens = x.flatten(2)
    tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1) + pool.positional_embedding
    pooled: Tensor = pool.c_proj(_attend(pool.qkv_proj(tokens), pool.num_heads, new_order=True))
    return pooled[:, :, 0]


class _Recomputed(torch.autograd.Function):
    """Checkpointing as the reference has it: backward runs the block again, and for its weights' gradients too."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *parameters)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.run(x)
        return None, *torch.autograd.grad(y, [x, *parameters], grads[0])
