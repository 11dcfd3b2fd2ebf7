"""The peer of ``step.py`` and ``training.py``: ADM's networks as openai/guided-diffusion computes them.

That package is in no index, so this stands in for it: rarefy's plain networks, not prepared, in float32. Like the
reference they compute attention by einsum over all tokens, repeat attention blocks in the backward pass, with the
gradients of their weights, and keep weights that require gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rarefy.models.adm import ADM
from rarefy.models.blocks import AttentionBlock


def baseline(network: ADM) -> Any:
    """Make a new network compute as the reference's, in place; returns it."""
    for parameter in network.requires_grad_().parameters():
        parameter.data = parameter.data.contiguous()
    for block in network.modules():
        if isinstance(block, AttentionBlock):
            block.__dict__["forward"] = functools.partial(_checkpointed, block)
    return network.eval()


def _checkpointed(block: AttentionBlock, x: Tensor) -> Tensor:
    y: Tensor = _Checkpoint.apply(functools.partial(_attention, block), x, *block.parameters())  # type: ignore[no-untyped-call]
    return y


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """(B, C, H, W) -> the same shape."""
    tokens = x.flatten(2)
    qkv = block.qkv(block.norm(tokens))
    batch, width, length = qkv.shape
    channels = width // (3 * block.num_heads)
    if block.new_order:
        q, k, v = (part.reshape(-1, channels, length) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(-1, 3 * channels, length).split(channels, dim=1)
    scale = 1 / math.sqrt(math.sqrt(channels))
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
    h = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length)
    y: Tensor = tokens + block.proj_out(h)
    return y.reshape(x.shape)


class _Checkpoint(torch.autograd.Function):
    """The reference's checkpointing: backward runs the block again and also differentiates its weights."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *weights: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x, *weights)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return None, *torch.autograd.grad(ctx.run(x), [x, *weights], grads[0])
