"""The models rarefy knows by name: the embedded default and OpenAI's public ADM checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline import assets
from pipeline.errors import CheckpointError, ManifestError, bad
from pipeline.models.adm import Classifier, UNet
from pipeline.models.blocks import NetworkConfig
from pipeline.models.checkpoint import load_network
from pipeline.models.precision import set_precision, to_device


@dataclass(frozen=True)
class Assets:
    """A preset's files in the package. folder: its data set's; unet, classifier: the weights' names in it."""

    folder: str
    unet: str = "unet"
    classifier: str = "classifier"


@dataclass(frozen=True)
class Preset:
    """A diffusion model with its noise-aware classifier.

    num_classes: classes that the U-Net is conditioned on, None where it is unconditional; classifier_classes: classes
    that guidance and labels can name; schedule and diffusion_steps: the chain it was trained on; recommended_scale:
    classifier guidance in the published samples; assets: its files where they ship with the package.
    """

    name: str
    description: str
    unet: NetworkConfig
    classifier: NetworkConfig
    schedule: str
    recommended_scale: float
    diffusion_steps: int = 1000
    class_names: tuple[str, ...] = ()
    assets: Assets | None = None

    @property
    def embedded(self) -> bool:
        """Whether its weights and reference images ship with the package."""
        return self.assets is not None

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.unet.image_size

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.unet.in_channels

    @property
    def num_classes(self) -> int | None:
        """Classes the U-Net is conditioned on; None where unconditional."""
        return self.unet.num_classes

    @property
    def classifier_classes(self) -> int:
        """Classes that a sample can be labelled with."""
        return self.classifier.out_channels

    def class_name(self, class_id: int) -> str:
        """Name of a class; its number where the preset has no names."""
        return self.class_names[class_id] if self.class_names else str(class_id)


@dataclass(frozen=True, eq=False)
class Models:
    """Loaded networks, in eval mode, frozen, on one device."""

    preset: Preset
    unet: UNet
    classifier: Classifier
    checkpoint_sha256: str
    classifier_sha256: str

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.unet.parameters()).device


FASHION_MNIST_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}

FASHION_UNET = NetworkConfig(
    image_size=28,
    in_channels=1,
    model_channels=32,
    out_channels=2,
    num_res_blocks=1,
    attention_resolutions=(4,),
    channel_mult=(1, 2, 3),
    num_classes=10,
    num_head_channels=32,
    resblock_updown=False,
    conv_resample=False,
)
FASHION_CLASSIFIER = NetworkConfig(
    image_size=28,
    in_channels=1,
    model_channels=32,
    out_channels=10,
    num_res_blocks=1,
    attention_resolutions=(4,),
    channel_mult=(1, 2, 2),
    num_head_channels=32,
    resblock_updown=False,
    conv_resample=False,
)


def _imagenet_unet(size: int, width: int, depth: int) -> NetworkConfig:
    return NetworkConfig(
        image_size=size,
        in_channels=3,
        model_channels=width,
        out_channels=6,
        num_res_blocks=depth,
        attention_resolutions=tuple(size // resolution for resolution in (32, 16, 8)),
        channel_mult=_CHANNEL_MULT[size],
        num_classes=1000,
        num_head_channels=64,
    )


def _imagenet(size: int, unet: NetworkConfig, scale: float, description: str) -> Preset:
    classifier = replace(_imagenet_unet(size, 128, 4 if size == 64 else 2), out_channels=1000, num_classes=None)
    return Preset(
        name=f"adm-imagenet-{size}",
        description=description,
        unet=unet,
        classifier=classifier,
        schedule="cosine" if size == 64 else "linear",
        recommended_scale=scale,
    )


def _presets() -> list[Preset]:
    fashion = Preset(
        name="fashion-mnist-28",
        description="embedded: class-conditional ADM on Fashion-MNIST, 28 px grey",
        unet=FASHION_UNET,
        classifier=FASHION_CLASSIFIER,
        schedule="cosine",
        recommended_scale=1.0,
        class_names=FASHION_MNIST_CLASSES,
        assets=Assets("fashion-mnist-28"),
    )
    fashion_ect = replace(
        fashion,
        name="fashion-mnist-28-ect",
        description="embedded: the same ADM with a classifier of entropy-constraint training (ED-DPM)",
        assets=Assets("fashion-mnist-28", classifier="classifier-ect"),
    )
    fashion_uncond = replace(
        fashion,
        name="fashion-mnist-28-uncond",
        description="embedded: unconditional ADM on Fashion-MNIST, 28 px grey",
        unet=replace(FASHION_UNET, num_classes=None),
        assets=Assets("fashion-mnist-28", unet="unet-uncond"),
    )
    fashion_uncond_ect = replace(
        fashion_uncond,
        name="fashion-mnist-28-uncond-ect",
        description="embedded: the unconditional ADM with the classifier of entropy-constraint training",
        assets=Assets("fashion-mnist-28", unet="unet-uncond", classifier="classifier-ect"),
    )
    unet_64 = replace(_imagenet_unet(64, 192, 3), dropout=0.1, use_new_attention_order=True)
    unet_128 = replace(_imagenet_unet(128, 256, 2), num_head_channels=-1, num_heads=4)
    unet_256, unet_512 = _imagenet_unet(256, 256, 2), _imagenet_unet(512, 256, 2)
    conditional_256 = _imagenet(256, unet_256, 1.0, "256x256_diffusion.pt with 256x256_classifier.pt")
    return [
        fashion,
        fashion_ect,
        fashion_uncond,
        fashion_uncond_ect,
        _imagenet(64, unet_64, 1.0, "64x64_diffusion.pt with 64x64_classifier.pt"),
        _imagenet(128, unet_128, 0.5, "128x128_diffusion.pt with 128x128_classifier.pt"),
        conditional_256,
        replace(
            conditional_256,
            name="adm-imagenet-256-uncond",
            description="256x256_diffusion_uncond.pt with 256x256_classifier.pt",
            unet=replace(unet_256, num_classes=None),
            recommended_scale=10.0,
        ),
        _imagenet(512, unet_512, 4.0, "512x512_diffusion.pt with 512x512_classifier.pt"),
    ]


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _presets()}


def get_preset(name: str) -> Preset:
    """The preset of that name; ManifestError lists the known ones."""
    if name not in PRESETS:
        raise ManifestError(bad("model.preset", name, f"one of {', '.join(PRESETS)}"))
    return PRESETS[name]


def load_models(
    preset: Preset,
    checkpoint: str | None,
    classifier: str | None,
    sha256s: tuple[str | None, str | None],
    device: torch.device,
    precision: str,
) -> Models:
    """Load a preset's two networks. Paths may be left out where the preset's weights are embedded.

    precision: ``exact`` (float32) or ``fast`` (bfloat16 where the device multiplies it). Raises CheckpointError.
    """
    unet_path = _path(preset, checkpoint, "checkpoint")
    classifier_path = _path(preset, classifier, "classifier")
    unet, unet_sha = load_network(lambda: set_precision(UNet(preset.unet), precision, device), unet_path, sha256s[0])
    guide, guide_sha = load_network(
        lambda: set_precision(Classifier(preset.classifier), precision, device), classifier_path, sha256s[1]
    )
    return Models(
        preset=preset,
        unet=to_device(unet, device),
        classifier=to_device(guide, device),
        checkpoint_sha256=unet_sha,
        classifier_sha256=guide_sha,
    )


def _path(preset: Preset, given: str | None, key: str) -> Path:
    if given:
        return Path(given)
    if preset.assets is None:
        raise CheckpointError(
            bad(f"model.{key}", given, f"the path of a file for {preset.name}, whose weights do not ship here")
        )
    name = preset.assets.unet if key == "checkpoint" else preset.assets.classifier
    return assets.weights(preset.assets.folder, name)
