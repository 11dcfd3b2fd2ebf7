"""DINOv2 (Oquab et al. 2023) from a file of its published weights, without the code that torch.hub would download."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.torchvision_operators import import_module

PATCH = 14
SIDE = 224
TRAINED_GRID = 37  # patches along a side of the 518 px images that the published weights were trained with last
OFFSET = 0.1  # the authors' own, added to the grid before its scale is taken
EPS = 1e-6
SHAPES = {  # width, blocks, heads
    "dinov2-vit-s-14": (384, 12, 6),
    "dinov2-vit-b-14": (768, 12, 12),
    "dinov2-vit-l-14": (1024, 24, 16),
    "dinov2-vit-g-14": (1536, 40, 24),
}
GATED = "dinov2-vit-g-14"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in grey levels


class Attention(nn.Module):
    """Self-attention over tokens (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020), of the largest network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPS) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = GatedMlp(width) if gated else Mlp(width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return patches


class DinoV2(nn.Module):
    """uint8 RGB (B, 3, H, W) -> (features (B, width),): the class token after the last norm.

    Parameters have the published names. Images are resized as torch-fidelity resizes them for DINOv2.
    """

    def __init__(self, width: int, blocks: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; here only to load strictly
        self.patch_embed = _Patches(width)
        self.blocks = nn.Sequential(*(Block(width, heads, gated) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self._resize = import_module("torch_fidelity.interpolate_compat_tensorflow")

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        resized = self._resize.interpolate_bilinear_2d_like_tensorflow1x(
            pixels.float(), size=(SIDE, SIDE), align_corners=False
        )
        mean, std = (resized.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (self.embed((resized - mean) / std),)

    def embed(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, 224, 224) -> (B, width)."""
        patches = self.patch_embed(x) + self._patch_places(x.shape[-1] // PATCH)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens: Tensor = self.norm(self.blocks(torch.cat([first, patches], dim=1)))
        return tokens[:, 0]

    def _patch_places(self, grid: int) -> Tensor:
        """The position embedding of the trained grid, resized as the authors do."""
        trained = self.pos_embed[:, 1:].unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
        scale = (grid + OFFSET) / TRAINED_GRID
        return F.interpolate(trained, scale_factor=(scale, scale), mode="bicubic").flatten(2).transpose(1, 2)


def load_dinov2(name: str, weights: str) -> tuple[nn.Module, str]:
    """The network with weights from a published file, and the file's sha256. Raises what torch does for other files."""
    with torch.device("meta"):
        network = DinoV2(*SHAPES[name], gated=name == GATED)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False), hashlib.sha256(Path(weights).read_bytes()).hexdigest()
